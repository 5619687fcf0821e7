"""What a setting may be: checked texts, and the words in which an error message and the documentation say it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from keepstep.errors import ProtocolError
from keepstep.proxies import NETWORKS_MAX, parse_networks
from keepstep.validation import parse_origin

ADMIN_KEY_CHARACTERS_MIN: Final = 32
SECRET_CHARACTERS_MAX: Final = 256
HOST_CHARACTERS_MAX: Final = 253
"""Of a DNS name in all (RFC 1035 section 2.3.4, without the dots' last)."""
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")

KIB: Final = 1_024
MIB: Final = 1_024 * KIB
GIB: Final = 1_024 * MIB


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a setting may be, in the words of an error message, where its bounds alone do not say it."""

    text: str


@dataclass(frozen=True, slots=True)
class ReloadableMark:
    """That a setting may change while the server runs; see ``keepstep.reloading``."""


T = TypeVar("T")
Reloadable = Annotated[T, ReloadableMark()]
"""The type of a setting that may change while the server runs: ``Reloadable[int]``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule between settings: ``fields`` take part, ``text`` says what must hold."""

    fields: tuple[str, ...]
    text: str
    broken: Callable[[Any], bool]


class RulesBrokenError(ValueError):
    """Settings that are each allowed contradict each other."""

    def __init__(self, rules: list[Rule]) -> None:
        super().__init__("; ".join(rule.text for rule in rules))
        self.rules = rules


def at_most(smaller: str, larger: str, why: str) -> Rule:
    """The rule that a setting is not above another."""
    return Rule(
        (smaller, larger),
        f"{smaller} must be at most {larger}: {why}",
        lambda settings: bool(getattr(settings, smaller) > getattr(settings, larger)),
    )


def _check_host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        labels = value.removesuffix(".").split(".")
        if len(value) > HOST_CHARACTERS_MAX or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
            raise
    return value


def _check_name(value: str) -> str:
    if not (1 <= len(value) <= 64 and value.isprintable() and value.strip() == value):
        raise ValueError
    return value


def _check_account_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", value):
        raise ValueError
    return value


def _check_directory(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError
    try:
        return value.expanduser().absolute()
    except (RuntimeError, OSError) as exc:  # nobody's home; a working directory that was removed
        raise ValueError from exc


def _check_database_url(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("postgresql", "postgres") or parts.path in ("", "/") or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError where it is no number up to 65535
    return value


def _check_admin_key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if not (ADMIN_KEY_CHARACTERS_MIN <= len(key) <= SECRET_CHARACTERS_MAX and key.isascii() and key.isprintable()):
        raise ValueError
    if " " in key:
        raise ValueError
    return value


def _check_rest_url(value: str) -> str:
    try:
        return parse_origin(value)
    except ProtocolError as exc:
        raise ValueError from exc


def _check_origins(value: str) -> str:
    for origin in filter(None, value.split(",")):
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != origin:
            raise ValueError
        _check_host(parts.hostname or "")
        if parts.username is not None or origin != origin.lower():
            raise ValueError
        _ = parts.port
    return value


def _check_networks(value: str) -> str:
    return ",".join(map(str, parse_networks(value)))


def _check_device_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("ws", "wss") or not parts.path or parts.username or parts.query or parts.fragment:
        raise ValueError
    _check_host(parts.hostname or "")
    _ = parts.port
    return value


def _check_region(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,64}", value):
        raise ValueError
    return value


def _check_secret(value: SecretStr) -> SecretStr:
    secret = value.get_secret_value()
    if not (1 <= len(secret) <= SECRET_CHARACTERS_MAX and secret.isascii() and secret.isprintable()):
        raise ValueError
    return value


def _check_archive_url(value: str) -> str:
    parts = urlsplit(value)
    if "\0" in value or parts.query or parts.fragment:
        raise ValueError
    if parts.scheme == "s3":
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc):
            raise ValueError
    elif parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError
    elif not value.startswith("/"):
        raise ValueError
    return value


Host = Annotated[str, AfterValidator(_check_host), Allowed("an IP address or a host name")]
Port = Annotated[int, Field(ge=1, le=65_535)]
PrintableName = Annotated[str, AfterValidator(_check_name), Allowed("1 to 64 printable characters")]
AccountName = Annotated[str, AfterValidator(_check_account_name), Allowed("the name of a user account")]
Directory = Annotated[Path, AfterValidator(_check_directory), Allowed("the path of a directory")]
File = Annotated[Path, AfterValidator(_check_directory), Allowed("the path of a file")]
Networks = Annotated[
    str,
    AfterValidator(_check_networks),
    Allowed(f"up to {NETWORKS_MAX} IP networks (192.0.2.0/24) or addresses, separated by commas"),
]
DatabaseUrl = Annotated[
    SecretStr,
    AfterValidator(_check_database_url),
    Allowed("postgresql://user:password@host:port/database, or not set for the embedded PostgreSQL"),
]
AdminKey = Annotated[
    SecretStr,
    AfterValidator(_check_admin_key),
    Allowed(f"{ADMIN_KEY_CHARACTERS_MIN} to {SECRET_CHARACTERS_MAX} printable ASCII characters without a space"),
]
Origins = Annotated[
    str,
    AfterValidator(_check_origins),
    Allowed("origins separated by commas, each http:// or https:// with a host in lower case and nothing after it"),
]
ArchiveUrl = Annotated[
    str,
    AfterValidator(_check_archive_url),
    Allowed("the absolute path of a directory, file:///path, or s3://bucket/prefix"),
]
S3Region = Annotated[str, AfterValidator(_check_region), Allowed("the name of a region, such as eu-central-1")]
S3Secret = Annotated[
    SecretStr, AfterValidator(_check_secret), Allowed(f"1 to {SECRET_CHARACTERS_MAX} printable ASCII characters")
]
RestUrl = Annotated[
    str,
    AfterValidator(_check_rest_url),
    Allowed("http:// or https:// with a host and nothing after it but perhaps a port"),
]
DeviceUrl = Annotated[
    str,
    AfterValidator(_check_device_url),
    Allowed("ws:// or wss:// with a host and a path, without credentials, query or fragment"),
]

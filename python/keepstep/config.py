"""The configuration: every setting with its unit, bounds and reason, checked before anything opens.

``load`` takes values from the environment (``KEEPSTEP_…``; ``DATABASE_URL`` and ``ADMIN_API_KEY`` are understood too),
then from the TOML file that ``KEEPSTEP_CONFIG`` names, then from the defaults here. An empty variable counts as not
set. Every problem is reported at once, each with the variable, the value (secrets masked) and what is allowed.

``Settings(...)`` takes only what it is given, so that a test never picks up its surroundings by accident.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from keepstep.errors import ConfigError, ProtocolError
from keepstep.validation import parse_origin

PREFIX: Final = "KEEPSTEP_"
FILE_VARIABLE: Final = "KEEPSTEP_CONFIG"
"""Names the TOML file."""
DEVICE_VARIABLES: Final = frozenset({"KEEPSTEP_HOME", "KEEPSTEP_DEVICE"})
"""Of the device commands (``keepstep.client.cli``), not settings; they may be set where a server runs."""
USUAL_VARIABLES: Final = {"DATABASE_URL": "database_url", "ADMIN_API_KEY": "admin_api_key"}
"""What hosting platforms call some settings; the variable with our prefix wins where both are set."""
ADMIN_KEY_CHARACTERS_MIN: Final = 32
EVENT_OVERHEAD_BYTES_MAX: Final = 4_096
"""Most that an event's header, signature and framing take beside its payload, in the rules between limits."""
_VALUE_CHARACTERS_MAX: Final = 256
"""How much of a wrong value an error message repeats, characters: a path should be seen whole."""

KIB: Final = 1_024
MIB: Final = 1_024 * KIB
GIB: Final = 1_024 * MIB


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a setting may be, in the words of an error message, where its bounds alone do not say it."""

    text: str


def _check_host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,255}", value):
        raise ValueError
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
    return value.expanduser().absolute()


def _check_database_url(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("postgresql", "postgres") or parts.path in ("", "/") or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError where it is no number up to 65535
    return value


def _check_admin_key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if not (ADMIN_KEY_CHARACTERS_MIN <= len(key) <= _VALUE_CHARACTERS_MAX and key.isascii() and key.isprintable()):
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
        if parts.scheme not in ("http", "https") or not parts.hostname or f"{parts.scheme}://{parts.netloc}" != origin:
            raise ValueError
        if parts.username is not None or origin != origin.lower():
            raise ValueError
        _ = parts.port
    return value


def _check_device_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port
    return value


Host = Annotated[str, AfterValidator(_check_host), Allowed("an IP address or a host name")]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Settings(BaseSettings):
    """All settings of one server. Frozen; made by ``load`` outside tests."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    # -- where things are
    data_dir: Annotated[Path, AfterValidator(_check_directory), Allowed("the path of a directory")] = Path("data")
    """Everything the server keeps on its own disk: keys and the embedded PostgreSQL. Relative to where it starts."""
    database_url: (
        Annotated[
            SecretStr,
            AfterValidator(_check_database_url),
            Allowed("postgresql://user:password@host:port/database, or not set for the embedded PostgreSQL"),
        ]
        | None
    ) = None
    """A PostgreSQL 15 to 18. Not set: the server runs its own in ``data_dir``. ``DATABASE_URL`` is understood too."""
    embedded_user: Annotated[str, AfterValidator(_check_account_name), Allowed("the name of a user account")] = "nobody"
    """The account the embedded PostgreSQL runs as when the server is started by root, which PostgreSQL refuses."""
    unsafe: bool = False
    """Start even where PostgreSQL would not fsync what it acknowledges. For experiments; health and bench report it."""
    server_name: Annotated[str, AfterValidator(_check_name), Allowed("1 to 64 printable characters")] = "keepstep"
    """What the server calls itself to people."""

    # -- listening
    rest_host: Host = "127.0.0.1"
    """Address REST listens on; ``0.0.0.0`` or ``::`` for all. Loopback by default: TLS belongs in front of it."""
    rest_port: Port = 8440
    """TCP port of REST."""
    device_host: Host = "127.0.0.1"
    """Address the device WebSocket listens on."""
    device_port: Port = 8441
    """TCP port of the device WebSocket; its own, so that REST's server never has to speak WebSocket."""
    public_device_url: (
        Annotated[
            str,
            AfterValidator(_check_device_url),
            Allowed("ws:// or wss:// with a host and a path, without credentials, query or fragment"),
        ]
        | None
    ) = None
    """Where devices reach the WebSocket, as told to them; not set: made of ``device_host`` and ``device_port``."""

    public_rest_url: (
        Annotated[
            str,
            AfterValidator(_check_rest_url),
            Allowed("http:// or https:// with a host and nothing after it but perhaps a port"),
        ]
        | None
    ) = None
    """Where devices reach REST, as they sign it; not set: beside ``public_device_url``, else from ``rest_host``."""

    # -- REST
    cors_origins: Annotated[
        str,
        AfterValidator(_check_origins),
        Allowed("origins separated by commas, each http:// or https:// with a host in lower case and nothing after it"),
    ] = ""
    """Whose web pages may call REST from a browser: exact origins. None by default."""
    rest_connections_max: int = Field(default=1_024, ge=1, le=100_000)
    """REST sockets in all; one more is closed as it comes, so that devices and the database keep theirs."""
    rest_calls_per_user_minute: int = Field(default=1_200, ge=1, le=1_000_000)
    """REST calls of one user's devices per minute, which may come at once: a reader that polls needs a few a second."""
    rest_calls_per_address_minute: int = Field(default=600, ge=1, le=1_000_000)
    """REST calls per address prefix and minute that come without a valid token."""

    access_token_lifetime_s: int = Field(default=3_600, ge=60, le=86_400)
    """Seconds an access token is good for; a replaced signing key is kept as long as the largest value."""
    refresh_token_lifetime_s: int = Field(default=2_592_000, ge=300, le=31_536_000)
    """Seconds a refresh token is good for; a REST client that was away longer signs a challenge again."""
    challenge_lifetime_s: int = Field(default=60, ge=5, le=600)
    """Seconds a device has to sign a challenge."""

    # -- accounts
    registration: Literal["open", "invite", "closed"] = "open"
    """Whether new accounts may be made: by everybody, by who has an invite, or by nobody."""
    registrations_per_address_hour: int = Field(default=20, ge=1, le=1_000_000)
    """New accounts per address prefix and hour: a household sets up in minutes, a script does not fill the disk."""
    registrations_per_hour: int = Field(default=1_000, ge=1, le=10_000_000)
    """New accounts per hour from all addresses."""
    streams_per_user_max: int = Field(default=10_000, ge=3, le=1_000_000)
    """Streams of one user, ``$devices`` and ``$keys`` among them: each costs a row, a head and a cache entry."""
    devices_per_user_max: int = Field(default=64, ge=1, le=1_024)
    """Live devices of one user: each is listed in every account check and gets every content key wrapped."""

    # -- administration
    admin_api_key: (
        Annotated[
            SecretStr,
            AfterValidator(_check_admin_key),
            Allowed(
                f"{ADMIN_KEY_CHARACTERS_MIN} to {_VALUE_CHARACTERS_MAX} printable ASCII characters without a space"
            ),
        ]
        | None
    ) = None
    """Opens ``/admin``; not set: there is no ``/admin``. ``ADMIN_API_KEY`` is understood too. Choose it at random."""
    audit_retention_days: int = Field(default=365, ge=1, le=3_650)
    """Days for which every call of an administrator stays recorded."""

    # -- publishing
    publish_events_max: int = Field(default=256, ge=1, le=4_096)
    """Events in one publish message: bounds what one message makes the server parse and verify."""
    payload_bytes_max: int = Field(default=256 * KIB, ge=KIB, le=16 * MIB)
    """Bytes of one event's payload, as sealed."""
    inflight_publishes_max: int = Field(default=64, ge=1, le=1_024)
    """Publish messages of one session that wait for their answer; the session is not read from above it."""
    pipelines: int = Field(default=2, ge=1, le=16)
    """Commit pipelines, sharded by user: one commits while another waits for the disk. Each holds one connection."""
    pipeline_queue_max: int = Field(default=1_024, ge=1, le=65_536)
    """Submissions that wait for one pipeline; above it the sessions that publish are not read."""
    batch_events_max: int = Field(default=1_000, ge=1, le=10_000)
    """Events in one transaction: above a thousand an ack waits longer and nothing gets cheaper."""
    batch_bytes_max: int = Field(default=4 * MIB, ge=64 * KIB, le=64 * MIB)
    """Payload bytes in one transaction."""

    # -- reading
    page_events_max: int = Field(default=1_000, ge=1, le=10_000)
    """Events in one page read from the log."""
    page_bytes_max: int = Field(default=MIB, ge=KIB, le=32 * MIB)
    """Bytes of one page; a page holds at least one event."""
    unacked_bytes_max: int = Field(default=8 * MIB, ge=KIB, le=256 * MIB)
    """Bytes sent to one session and not acknowledged by it; above it the session waits, others do not."""
    tail_bytes_max: int = Field(default=64 * MIB, ge=0, le=64 * GIB)
    """Memory for the newest events of all streams, from which live devices are served without the database."""
    tail_stream_bytes_max: int = Field(default=4 * MIB, ge=0, le=GIB)
    """The share of one stream in it."""
    subscriptions_per_session_max: int = Field(default=10_000, ge=1, le=100_000)
    """Streams one session follows."""

    # -- connections
    connections_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Device connections at a time: each costs about 20 KiB and a file descriptor."""
    unauthenticated_connections_max: int = Field(default=256, ge=1, le=100_000)
    """Connections that have not finished their handshake, so that strangers never crowd out devices."""
    unauthenticated_connections_per_address_max: int = Field(default=64, ge=1, le=100_000)
    """The share of one address prefix in them."""
    handshake_timeout_s: float = Field(default=10, gt=0, le=300)
    """Seconds from the accepted connection to the authenticated device."""
    send_timeout_s: float = Field(default=30, gt=0, le=3_600)
    """Seconds one message to a device may take to leave before the connection is closed."""
    idle_timeout_s: float = Field(default=120, gt=0, le=86_400)
    """Seconds without a message from a device before the connection is closed; devices ping well within it."""
    drain_timeout_s: float = Field(default=10, gt=0, le=600)
    """Seconds that publishes under way get to finish when the server is told to stop."""

    # -- the database
    read_connections: int = Field(default=4, ge=1, le=32)
    """Connections, and threads, for reading pages. With ``pipelines`` they stay below the embedded server's 64."""
    statement_timeout_ms: int = Field(default=15_000, ge=100, le=600_000)
    """Milliseconds for one statement: a thread that waits for the database cannot be cancelled otherwise."""
    lock_timeout_ms: int = Field(default=2_000, ge=10, le=60_000)
    """Milliseconds to wait for another transaction's lock before the batch is decided again."""
    database_connect_timeout_s: int = Field(default=5, ge=2, le=60)
    """Seconds for a new connection to PostgreSQL; libpq takes whole ones and treats 1 as 2."""

    # -- periodic work
    head_interval_s: float = Field(default=60, gt=0, le=86_400)
    """Seconds between signed heads to a session, by which a device notices that events are withheld."""
    reread_interval_s: float = Field(default=30, gt=0, le=3_600)
    """Seconds after which a session looks at the log again without a hint: hints may be lost."""
    cleanup_interval_s: float = Field(default=60, gt=0, le=86_400)
    """Seconds between runs of the clean-up."""
    partitions_ahead: int = Field(default=3, ge=1, le=52)
    """Partitions of each event table made ahead of time."""
    clock_offset_interval_s: float = Field(default=60, gt=0, le=3_600)
    """Seconds between measurements of the database's clock, which ``received_at`` follows."""

    # -- logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe line that is written."""
    log_format: Literal["console", "json"] = "console"
    """For people or for machines."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: ``load`` reads the surroundings, and knows for each value where it came from."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule for rule in _RULES if rule.broken(self)]
        if broken:
            raise _RulesBrokenError(broken)
        return self


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule between settings: ``fields`` take part, ``text`` says what must hold."""

    fields: tuple[str, ...]
    text: str
    broken: Callable[[Settings], bool]


class _RulesBrokenError(ValueError):
    """Settings that are each allowed contradict each other."""

    def __init__(self, rules: list[_Rule]) -> None:
        super().__init__("; ".join(rule.text for rule in rules))
        self.rules = rules


def _at_most(smaller: str, larger: str, why: str) -> _Rule:
    return _Rule(
        (smaller, larger),
        f"{smaller} must be at most {larger}: {why}",
        lambda settings: bool(getattr(settings, smaller) > getattr(settings, larger)),
    )


def _event_fits(limit: str, why: str) -> _Rule:
    return _Rule(
        ("payload_bytes_max", limit),
        f"{limit} must be at least payload_bytes_max + {EVENT_OVERHEAD_BYTES_MAX}: {why}",
        lambda settings: bool(getattr(settings, limit) < settings.payload_bytes_max + EVENT_OVERHEAD_BYTES_MAX),
    )


_RULES: Final = (
    _Rule(
        ("rest_host", "rest_port", "device_host", "device_port"),
        "rest_port and device_port must differ on one address: each has its own server",
        lambda settings: (
            settings.rest_port == settings.device_port
            and (
                settings.rest_host == settings.device_host
                or bool({settings.rest_host, settings.device_host} & {"0.0.0.0", "::"})  # noqa: S104  # compared only
            )
        ),
    ),
    _event_fits("batch_bytes_max", "the largest event must fit in a transaction"),
    _event_fits("unacked_bytes_max", "the largest event must be deliverable"),
    _at_most("page_bytes_max", "unacked_bytes_max", "a session could never take a whole page"),
    _at_most("publish_events_max", "batch_events_max", "a publish is decided in one transaction"),
    _at_most("tail_stream_bytes_max", "tail_bytes_max", "it is a share of it"),
    _at_most("registrations_per_address_hour", "registrations_per_hour", "it is a share of it"),
    _at_most("unauthenticated_connections_per_address_max", "unauthenticated_connections_max", "it is a share of it"),
    _at_most("unauthenticated_connections_max", "connections_max", "it is a share of it"),
    _at_most("lock_timeout_ms", "statement_timeout_ms", "the statement would always be cut off first"),
    _Rule(
        ("access_token_lifetime_s", "refresh_token_lifetime_s"),
        "access_token_lifetime_s must be below refresh_token_lifetime_s: nothing would be left to refresh with",
        lambda settings: settings.access_token_lifetime_s >= settings.refresh_token_lifetime_s,
    ),
    _at_most("handshake_timeout_s", "idle_timeout_s", "the handshake would be cut off as idle"),
)


def load() -> Settings:
    """The settings of this process: environment, then TOML file, then defaults.

    Raises:
        ConfigError: with every problem found, one a line: the file, unknown names, values, rules between values.
    """
    file_values, problems = _read_file()
    problems += _unknown_variables()
    problems += _unknown_keys(file_values)
    values, origins = _merge(file_values)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += _value_problems(error, values, origins)
    else:
        if not problems:
            return settings
    # Without the cause: pydantic's error carries the values, and with them the secrets.
    raise ConfigError(
        "the configuration cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)
    ) from None


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def allowed(name: str) -> str:
    """What a setting may be, in words."""
    field = Settings.model_fields[name]
    parts = [*field.metadata, *_parts(field.annotation)]
    for part in parts:
        if isinstance(part, Allowed):
            return part.text
        if get_origin(part) is Literal:
            return " or ".join(str(choice) for choice in get_args(part))
    if bool in parts:
        return "true or false"
    bounds = [
        f"{word} {getattr(part, key):,}".replace(",", "_")
        for word, key in (("from", "ge"), ("above", "gt"), ("up to", "le"))
        for part in field.metadata
        if hasattr(part, key)
    ]
    return f"a {'whole ' if int in parts else ''}number {' '.join(bounds)}"


def reference() -> str:
    """The settings as a Markdown table, for ``docs/reference/configuration.md``."""
    rows = ["| variable | default | allowed | what it is |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "not set" if field.default is None else f"`{str(field.default).lower()}`"
        rows.append(f"| `{variable(name)}` | {default} | {allowed(name)} | {field.description} |")
    return "\n".join(rows)


def _parts(annotation: object) -> Iterator[object]:
    """An annotation and everything it is made of, metadata included."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _parts(part)


def _read_file() -> tuple[dict[str, Any], list[str]]:
    """The values of the file that ``KEEPSTEP_CONFIG`` names, and what is wrong with that file."""
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return {}, []
    if not Path(path).is_file():
        return {}, [f"{FILE_VARIABLE}={_shown(path)}: must be the path of a TOML file; there is no file there"]
    try:
        return TomlConfigSettingsSource(Settings, toml_file=path)(), []
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return {}, [f"{FILE_VARIABLE}={_shown(path)}: must be the path of a TOML file; reading it failed: {error}"]


def _merge(file_values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The value of every setting that has one, and the name under which it was given."""
    values = {name: value for name, value in file_values.items() if name in Settings.model_fields}
    origins = {name: f"{name} in {os.environ[FILE_VARIABLE]}" for name in values}
    for usual, name in USUAL_VARIABLES.items():
        if os.environ.get(usual):
            values[name] = os.environ[usual]
            origins[name] = usual
    for name, value in EnvSettingsSource(Settings, env_prefix=PREFIX, env_ignore_empty=True)().items():
        values[name] = value
        origins[name] = variable(name)
    return values, origins


def _unknown_variables() -> list[str]:
    """Variables with our prefix that mean nothing: most often a typing error, which must not go unnoticed."""
    known = {FILE_VARIABLE, *DEVICE_VARIABLES, *map(variable, Settings.model_fields)}
    return [
        f"{name}: there is no such setting{_closest(name.upper(), known)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


def _unknown_keys(file_values: dict[str, Any]) -> list[str]:
    return [
        f"{_shown(name)} in {file}: there is no such setting{_closest(name, Settings.model_fields)}"
        for file in [os.environ.get(FILE_VARIABLE)]
        for name in file_values
        if name not in Settings.model_fields
    ]


def _closest(name: str, known: Iterable[str]) -> str:
    """A guess at what was meant; the prefix, which all share, makes nothing alike."""
    candidates = {candidate.removeprefix(PREFIX): candidate for candidate in known}
    matches = difflib.get_close_matches(name.removeprefix(PREFIX), candidates, n=1)
    return f"; did you mean {candidates[matches[0]]}?" if matches else ""


def _value_problems(error: ValidationError, values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """One line a wrong value and a broken rule. Rules are tried again without the wrong values, to find all at once."""
    wrong = list(dict.fromkeys(str(detail["loc"][0]) for detail in error.errors() if detail["loc"]))
    problems = [f"{origins[name]}={_shown(values[name], name)}: must be {allowed(name)}" for name in wrong]
    try:
        Settings(**{name: value for name, value in values.items() if name not in wrong})
    except ValidationError as rules_error:
        for rule in rules_error.errors()[0]["ctx"]["error"].rules:
            if not set(rule.fields) & set(wrong):
                given = (values.get(name, Settings.model_fields[name].default) for name in rule.fields)
                shown = (
                    f"{origins.get(name, variable(name))}={_shown(value, name)}"
                    for name, value in zip(rule.fields, given, strict=True)
                )
                problems.append(f"{', '.join(shown)}: {rule.text}")
    return problems


def _shown(value: object, name: str = "") -> str:
    """A value as an error message may show it: never a secret, never without bound, always on one line."""
    if name and SecretStr in _parts(Settings.model_fields[name].annotation):
        return "***"
    text = str(value)
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= _VALUE_CHARACTERS_MAX else shown[:_VALUE_CHARACTERS_MAX] + "…"

"""What must hold between the settings of the edge: TLS and the proxies in front."""

from __future__ import annotations

from typing import Any, Final

from keepstep import certificates
from keepstep.certificates import CertificateFiles
from keepstep.errors import ConfigError
from keepstep.settings.types import Rule

RULES: Final = (
    Rule(
        ("tls_certificate_file", "tls_key_file"),
        "tls_certificate_file and tls_key_file must be set together: neither is of use alone",
        lambda settings: (settings.tls_certificate_file is None) != (settings.tls_key_file is None),
    ),
    Rule(
        ("tls_key_file", "tls_key_password_file"),
        "tls_key_password_file must not be set without tls_key_file: there is nothing to open",
        lambda settings: settings.tls_key_password_file is not None and settings.tls_key_file is None,
    ),
    Rule(
        ("tls_certificate_file", "public_device_url"),
        "public_device_url must begin with wss:// where tls_certificate_file is set: the port speaks nothing else",
        lambda settings: (
            settings.tls_certificate_file is not None and (settings.public_device_url or "").startswith("ws://")
        ),
    ),
    Rule(
        ("tls_certificate_file", "public_rest_url"),
        "public_rest_url must begin with https:// where tls_certificate_file is set: the port speaks nothing else",
        lambda settings: (
            settings.tls_certificate_file is not None and (settings.public_rest_url or "").startswith("http://")
        ),
    ),
    Rule(
        ("proxy_protocol", "trusted_proxies"),
        "proxy_protocol needs trusted_proxies: nobody else may send a PROXY header, so nobody could connect",
        lambda settings: settings.proxy_protocol and not settings.trusted_proxies,
    ),
)


def certificate_files(settings: Any) -> CertificateFiles | None:
    """Where the TLS certificate is; ``None`` where TLS is off."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return CertificateFiles(settings.tls_certificate_file, settings.tls_key_file, settings.tls_key_password_file)


def certificate_problems(settings: Any) -> list[Rule]:
    """The rule that the TLS files can be used, with the reason, where they cannot. Reads them."""
    files = certificate_files(settings)
    if files is None:
        return []
    try:
        certificates.load(files)
    except ConfigError as exc:
        fields: tuple[str, ...] = ("tls_certificate_file", "tls_key_file")
        if files.password is not None:
            fields += ("tls_key_password_file",)
        return [Rule(fields, str(exc), lambda _: True)]
    return []

"""TLS certificates in files: read, checked, and made into what sockets are served with.

TLS 1.3, or 1.2 for those who know no better; HTTP/1.1 only (ADR 0190).
"""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from keepstep.errors import ConfigError
from keepstep.settings.secrets import RUNTIME_FOLDER, SecretFileError, read_secret

FILE_BYTES_MAX: Final = 1024 * 1024
"""Largest file of certificates or of a key."""
PASSWORD_BYTES_MAX: Final = 1024
"""OpenSSL's own bound of a key's password."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate is.

    Attributes:
        certificate: PEM: the server's certificate, then those between it and its authority.
        key: PEM: its private key; not everybody on the machine may read it.
        password: a file with what opens the key, as private; ``None`` where the key is not encrypted.
    """

    certificate: Path
    key: Path
    password: Path | None = None

    def fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when one of the files was changed or replaced. A file that is not there counts as zeros."""
        return tuple(_fingerprint(path) for path in (self.certificate, self.key, self.password) if path is not None)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that can be served with.

    Attributes:
        context: for new connections.
        begins_at_s: unix seconds from which on it is good.
        ends_at_s: unix seconds until which it is.
    """

    context: ssl.SSLContext
    begins_at_s: int
    ends_at_s: int


def load(files: CertificateFiles) -> Certificate:
    """Read and check the files. Blocking: some reads, and the derivation of an encrypted key's own key.

    Raises:
        ConfigError: which file cannot be read or used, and why.
    """
    leaf = _parse_certificates(files.certificate)
    _read(files.key, private=True)
    password = "" if files.password is None else _read_password(files.password)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    # A peer that asks for new handshakes on one connection costs us more than itself; tickets would stay readable with
    # a key that lives as long as this context.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(files.certificate, files.key, password=lambda: password)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{files.key} is not the key of the certificate in {files.certificate}") from exc
        if exc.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
            raise ConfigError(f"{files.certificate} has a key or a signature that TLS calls too weak") from exc
        raise ConfigError(f"{files.key} holds no private key in PEM{_opened_by(files.password)}") from exc
    except OSError as exc:
        raise ConfigError(f"{files.key} cannot be read: {exc.strerror}") from exc
    return Certificate(context, int(leaf.not_valid_before_utc.timestamp()), int(leaf.not_valid_after_utc.timestamp()))


def _opened_by(password: Path | None) -> str:
    return " that can be read without a password" if password is None else f" that the password in {password} opens"


def _parse_certificates(path: Path) -> x509.Certificate:
    """The first of a file. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificates(_read(path))[0]
    except ValueError as exc:
        raise ConfigError(f"{path} holds no certificate in PEM") from exc


def _read_password(path: Path) -> str:
    """The password of a key. Raises ConfigError."""
    try:
        password = read_secret(str(path))
    except SecretFileError as exc:
        raise ConfigError(f"{path} holds no password: {exc}") from exc
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise ConfigError(f"{path} holds no password: it is longer than {PASSWORD_BYTES_MAX} bytes")
    return password


def _read(path: Path, *, private: bool = False) -> bytes:
    """A whole regular file, within bounds, which not everybody may read where it is private. Raises ConfigError."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # reading a named pipe could wait for good
            raise ConfigError(f"{path} is no regular file")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if private and mode & stat.S_IROTH and not path.is_relative_to(RUNTIME_FOLDER):
        raise ConfigError(f"{path} can be read by every user of this machine; chmod o-r it")
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    return data


def _fingerprint(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)

"""Certificates of an authority that exists for one test, and reading them without waiting."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import trio
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from keepstep.certificates import CertificateFiles

PASSWORD = "correct horse"


T = TypeVar("T")


class SameThread:
    """Runs what is for worker threads where it is: a mock clock would jump while a thread works."""

    async def run(self, function: Callable[[], T], *, limiter: trio.CapacityLimiter) -> T:
        """As ``Threads.run``."""
        async with limiter:
            return function()


@dataclass
class Authority:
    """An authority and the files of one server certificate, which can be issued again.

    Attributes:
        files: of the server; password-protected where ``password`` is in them.
        certificate: the authority's own, PEM.
    """

    folder: Path
    encrypted: bool = False

    def __post_init__(self) -> None:
        self._authority = trustme.CA()
        self.certificate = self.folder / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.certificate))
        password = self.folder / "password" if self.encrypted else None
        if password is not None:
            password.touch(mode=0o600)
            password.write_text(f"{PASSWORD}\n")
        self.files = CertificateFiles(self.folder / "server.pem", self.folder / "server.key", password)
        self.issue()

    def issue(self, *, ends_at_s: int | None = None) -> bytes:
        """Write a new certificate and key into the files; the certificate in DER."""
        issued = self._authority.issue_cert(
            "127.0.0.1",
            "localhost",
            not_after=None if ends_at_s is None else datetime.fromtimestamp(ends_at_s, UTC),
        )
        self.files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key = issued.private_key_pem.bytes()
        if self.encrypted:
            key = load_pem_private_key(key, None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode())
            )
        self.files.key.touch(mode=0o600)
        self.files.key.write_bytes(key)
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def client_context(self) -> ssl.SSLContext:
        """For clients that trust this authority only."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def settings(self) -> dict[str, Any]:
        """The server's settings for these files."""
        return {
            "tls_certificate_file": self.files.certificate,
            "tls_key_file": self.files.key,
            "tls_key_password_file": self.files.password,
        }

"""TLS certificates in files: what can be served with, and the words where one cannot."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from keepstep.certificates import FILE_BYTES_MAX, PASSWORD_BYTES_MAX, CertificateFiles, load
from keepstep.errors import ConfigError
from tests.support.certificates import Authority


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_certificate_that_is_right_is_served_with(tmp_path: Path, encrypted: bool) -> None:
    """With an encrypted key too; TLS 1.2 at least, HTTP/1.1 only, no renegotiation, no tickets."""
    authority = Authority(tmp_path, encrypted=encrypted)
    authority.issue(ends_at_s=4_000_000_000)
    loaded = load(authority.files)
    assert loaded.ends_at_s == 4_000_000_000
    assert loaded.begins_at_s < loaded.ends_at_s
    assert loaded.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert loaded.context.options & ssl.OP_NO_RENEGOTIATION
    assert loaded.context.num_tickets == 0


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Both ends in memory; the client's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for end in (theirs, ours):
            if end not in done:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                done.add(end)
    assert len(done) == 2
    return theirs


@pytest.mark.parametrize(
    ("newest", "version"), [(ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")]
)
def test_tls_is_as_new_as_the_client_knows(tmp_path: Path, newest: ssl.TLSVersion, version: str) -> None:
    """Always with forward secrecy, and HTTP/1.1 by ALPN even where HTTP/2 is offered first."""
    authority = Authority(tmp_path)
    client = authority.client_context()
    client.maximum_version = newest
    client.set_alpn_protocols(["h2", "http/1.1"])
    agreed = handshake(load(authority.files).context, client)
    cipher = agreed.cipher()
    assert agreed.version() == version
    assert agreed.selected_alpn_protocol() == "http/1.1"
    assert cipher is not None
    assert cipher[0].startswith(("TLS_", "ECDHE-"))


def test_older_tls_is_not_spoken(tmp_path: Path) -> None:
    """1.1 and below are broken."""
    authority = Authority(tmp_path)
    client = authority.client_context()
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        handshake(load(authority.files).context, client)


def _missing_certificate(files: CertificateFiles) -> None:
    files.certificate.unlink()


def _missing_key(files: CertificateFiles) -> None:
    files.key.unlink()


def _key_in_place_of_certificate(files: CertificateFiles) -> None:
    files.certificate.write_bytes(files.key.read_bytes())


def _certificate_in_place_of_key(files: CertificateFiles) -> None:
    files.key.write_bytes(files.certificate.read_bytes())


def _cut_off(files: CertificateFiles) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes()[:200])


def _empty_key(files: CertificateFiles) -> None:
    files.key.write_bytes(b"")


def _huge(files: CertificateFiles) -> None:
    files.certificate.write_bytes(bytes(FILE_BYTES_MAX + 1))


def _key_of_another(files: CertificateFiles) -> None:
    (files.key.parent / "other").mkdir()
    files.key.write_bytes(Authority(files.key.parent / "other").files.key.read_bytes())


def _public(files: CertificateFiles) -> None:
    files.key.chmod(0o644)


def _pipe(files: CertificateFiles) -> None:
    files.certificate.unlink()
    os.mkfifo(files.certificate)


def _folder(files: CertificateFiles) -> None:
    files.key.unlink()
    files.key.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing_certificate, r"server\.pem cannot be read: No such file"),
        (_missing_key, r"server\.key cannot be read: No such file"),
        (_folder, r"server\.key is no regular file"),
        (_public, r"server\.key can be read by every user of this machine; chmod o-r it"),
        (_pipe, r"server\.pem is no regular file"),
        (_key_in_place_of_certificate, r"server\.pem holds no certificate in PEM"),
        (_cut_off, r"server\.pem holds no certificate in PEM"),
        (_huge, rf"server\.pem is larger than {FILE_BYTES_MAX} bytes"),
        (_certificate_in_place_of_key, r"server\.key holds no private key in PEM that can be read without a password"),
        (_empty_key, r"server\.key holds no private key in PEM that can be read without a password"),
        (_key_of_another, r"server\.key is not the key of the certificate in .*server\.pem"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, spoil: Callable[[CertificateFiles], None], words: str
) -> None:
    """With the reason."""
    files = Authority(tmp_path).files
    spoil(files)
    with pytest.raises(ConfigError, match=words):
        load(files)


@pytest.mark.parametrize(
    ("password", "words"),
    [
        (b"wrong\n", r"that the password in .*password opens"),
        (b"", "holds no password: "),
        (b"\n", "holds no password: "),
        (b"x" * (PASSWORD_BYTES_MAX + 1), f"holds no password: it is longer than {PASSWORD_BYTES_MAX} bytes"),
        (b"\xff\xfe", "holds no password: "),
    ],
)
def test_a_password_that_does_not_open_the_key_is_told(tmp_path: Path, password: bytes, words: str) -> None:
    """And never shown."""
    files = Authority(tmp_path, encrypted=True).files
    assert files.password is not None
    files.password.write_bytes(password)
    with pytest.raises(ConfigError, match=words):
        load(files)


def test_an_encrypted_key_without_password_asks_no_terminal(tmp_path: Path) -> None:
    """A server has none."""
    files = replace(Authority(tmp_path, encrypted=True).files, password=None)
    with pytest.raises(ConfigError, match="that can be read without a password"):
        load(files)


def test_a_line_of_windows_ends_a_password_too(tmp_path: Path) -> None:
    """Files are edited anywhere."""
    files = Authority(tmp_path, encrypted=True).files
    assert files.password is not None
    files.password.write_bytes(files.password.read_bytes().replace(b"\n", b"\r\n"))
    load(files)


def test_a_key_that_tls_calls_too_weak_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL's level of security refuses it."""

    def refuse(*_arguments: object, **_keywords: object) -> None:
        error = ssl.SSLError()
        error.reason = "EE_KEY_TOO_SMALL"
        raise error

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", refuse)
    with pytest.raises(ConfigError, match="too weak"):
        load(Authority(tmp_path).files)


def test_a_file_that_goes_between_two_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL reads by itself, after us."""

    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", refuse)
    with pytest.raises(ConfigError, match=r"server\.key cannot be read: No such file"):
        load(Authority(tmp_path).files)


def test_a_replaced_file_has_another_fingerprint(tmp_path: Path) -> None:
    """Also one that is away."""
    authority = Authority(tmp_path, encrypted=True)
    seen = [authority.files.fingerprint()]
    for path in (authority.files.certificate, authority.files.key, authority.files.password):
        assert path is not None
        new = tmp_path / "new"
        new.write_bytes(path.read_bytes())
        new.replace(path)
        seen.append(authority.files.fingerprint())
    authority.files.key.unlink()
    seen.append(authority.files.fingerprint())
    assert len(set(seen)) == 5

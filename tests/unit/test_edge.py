"""The edge's settings: what must hold between them, and where devices are told to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from keepstep import config, config_check, edge
from keepstep.config import Settings
from keepstep.errors import ConfigError
from keepstep.listening import bind
from keepstep.reloading import Reloads
from keepstep.runtime import SystemClock, WorkerThreads
from keepstep.telemetry import Metrics
from tests.support.certificates import Authority, SameThread


def set_variables(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """The settings' environment variables."""
    for name, value in values.items():
        monkeypatch.setenv(config.variable(name), str(value))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tls_key_file": "/k"}, "tls_certificate_file and tls_key_file must be set together"),
        ({"tls_certificate_file": "/c"}, "tls_certificate_file and tls_key_file must be set together"),
        ({"tls_key_password_file": "/p"}, "tls_key_password_file must not be set without tls_key_file"),
        ({"tls_certificate_file": "/c", "tls_key_file": "/k"}, "/c cannot be read: No such file or directory"),
        (
            {
                "tls_certificate_file": "/c",
                "tls_key_file": "/k",
                "public_device_url": "ws://sync.example.org/v1/connect",
            },
            "public_device_url must begin with wss://",
        ),
        (
            {"tls_certificate_file": "/c", "tls_key_file": "/k", "public_rest_url": "http://sync.example.org"},
            "public_rest_url must begin with https://",
        ),
        ({"proxy_protocol": "true"}, "proxy_protocol needs trusted_proxies"),
        ({"trusted_proxies": "10.0.0.1/8"}, "KEEPSTEP_TRUSTED_PROXIES=10.0.0.1/8: must be up to 64 IP networks"),
        ({"trusted_proxies": "proxy.example"}, "KEEPSTEP_TRUSTED_PROXIES=proxy.example: must be up to 64 IP networks"),
        ({"forwarded_header": "x-real-ip"}, "must be x-forwarded-for or forwarded"),
    ],
)
def test_settings_that_make_no_edge_are_in_the_report(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], words: str
) -> None:
    """With the variables and what is wrong."""
    set_variables(monkeypatch, **values)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert words in str(caught.value)


def test_a_password_that_does_not_open_the_key_is_in_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside every other problem, and without the password."""
    authority = Authority(tmp_path, encrypted=True)
    assert authority.files.password is not None
    authority.files.password.write_text("not the password\n")
    set_variables(monkeypatch, **authority.settings(), connections_max=2)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert f"KEEPSTEP_TLS_KEY_PASSWORD_FILE={authority.files.password}" in str(caught.value)
    assert "holds no private key in PEM that the password in" in str(caught.value)
    assert "not the password" not in str(caught.value)
    assert "unauthenticated_connections_max must be at most connections_max" in str(caught.value)


def test_settings_that_make_an_edge_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Networks in one spelling; files by their absolute path."""
    authority = Authority(tmp_path, encrypted=True)
    set_variables(
        monkeypatch, **authority.settings(), trusted_proxies=" 10.0.0.0/8, 2001:DB8::1", proxy_protocol="true"
    )
    settings = config.load()
    assert settings.trusted_proxies == "10.0.0.0/8,2001:db8::1/128"
    assert settings.tls_key_file == authority.files.key


@pytest.mark.parametrize(
    ("values", "device_scheme", "origin"),
    [
        ({}, "ws://127.0.0.1:", "http://127.0.0.1:"),
        ({"tls": True}, "wss://127.0.0.1:", "https://127.0.0.1:"),
        ({"tls": True, "device_host": "::", "rest_host": "::"}, "wss://[::1]:", "https://[::1]:"),
        (
            {"public_device_url": "wss://sync.example.org/v1/connect"},
            "wss://sync.example.org/v1/connect",
            "https://sync.example.org",
        ),
        (
            {"tls": True, "public_device_url": "wss://sync.example.org:8441/v1/connect"},
            "wss://sync.example.org:8441/v1/connect",
            "https://sync.example.org:8440",
        ),
        ({"tls": True, "public_rest_url": "https://rest.example.org"}, "wss://127.0.0.1:", "https://rest.example.org"),
    ],
)
def test_devices_are_told_to_come_in_tls_where_it_is_on(
    tmp_path: Path, values: dict[str, Any], device_scheme: str, origin: str
) -> None:
    """A public address counts more: a proxy in front may do TLS instead."""
    tls = Authority(tmp_path).settings() if values.pop("tls", False) else {}
    settings = Settings(data_dir=tmp_path, **values, **tls)
    (sock,) = bind("127.0.0.1", 0, setting="rest_port")
    with sock:
        assert edge.device_url(settings, [sock]).startswith(device_scheme)
        assert edge.rest_origin(settings, [sock]).startswith(origin)
        scheme = "https" if tls else "http"
        assert edge.local_rest_url(settings, [sock]).startswith(f"{scheme}://")


def test_other_proxies_are_believed_after_a_reload(tmp_path: Path) -> None:
    """Whom a header is believed of can be corrected without cutting anybody off."""
    settings = Settings(data_dir=tmp_path, trusted_proxies="10.0.0.1")
    metrics = Metrics()
    reloads = Reloads(settings, WorkerThreads(), metrics, structlog.get_logger())
    entrance = edge.build_entrance(settings, None, metrics, reloads)
    headers = [(b"forwarded", b"for=198.51.100.7")]
    assert entrance.is_proxy("10.0.0.1")
    assert entrance.client_address("10.0.0.1", headers) == "10.0.0.1"
    with structlog.testing.capture_logs():
        reloads.take_over(Settings(data_dir=tmp_path, trusted_proxies="10.0.0.0/8", forwarded_header="forwarded"))
    assert entrance.is_proxy("10.0.0.2")
    assert entrance.client_address("10.0.0.1", headers) == "198.51.100.7"


async def test_a_reload_reads_the_certificate_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """At once, in place of at the next look."""
    authority = Authority(tmp_path)
    settings = Settings(data_dir=tmp_path, **authority.settings())
    metrics, logger = Metrics(), structlog.get_logger()
    reloads = Reloads(settings, SameThread(), metrics, logger)
    certificate = edge.server_certificate(settings, SystemClock(), SameThread(), metrics, logger)
    assert certificate is not None
    edge.build_entrance(settings, certificate, metrics, reloads)
    async with trio.open_nursery() as nursery:
        await nursery.start(certificate.run)
        before = certificate.context
        with structlog.testing.capture_logs() as lines:
            reloads.take_over(settings)
            await trio.testing.wait_all_tasks_blocked()
        assert certificate.context is not before
        assert "certificate_loaded" in [line["event"] for line in lines]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("now_s", "is_problem", "words"),
    [
        (1_000_000_000, False, "is valid until 2033-05-18 03:33 UTC"),
        (2_000_000_000, True, "has expired on 2033-05-18 03:33 UTC: clients refuse it"),
        (0, True, "is not valid before 2000-01-01 00:00 UTC: clients refuse it"),
    ],
)
def test_checking_the_configuration_tells_how_long_the_certificate_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_s: int, is_problem: bool, words: str
) -> None:
    """A server would start with it all the same, and nobody could connect."""
    monkeypatch.setattr(SystemClock, "now_ms", lambda _clock: now_s * 1000)
    authority = Authority(tmp_path)
    authority.issue(ends_at_s=2_000_000_000)
    settings = Settings(data_dir=tmp_path / "data", **authority.settings())
    (finding,) = [one for one in config_check.check(settings) if one.name == "certificate"]
    assert finding == config_check.Finding("certificate", is_problem, f"{authority.files.certificate} {words}")
    assert not [one for one in config_check.check(Settings(data_dir=tmp_path)) if one.name == "certificate"]

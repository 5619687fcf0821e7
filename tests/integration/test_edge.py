"""TLS, proxies and the PROXY protocol on real sockets, on both ports of a whole server."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio

from keepstep import tls
from keepstep.client import create_user, find_server, open_device
from keepstep.errors import ClientError
from keepstep.proxyheader import SIGNATURE
from tests.support.certificates import Authority
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.edge import addresses, ask_as_device, ask_rest, opened
from tests.support.server import RunningServer, running_server

ADMIN_KEY = "a-key-for-administrators-in-a-test-of-the-edge"
CLIENT = "198.51.100.7"
DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"
TIMEOUT_S = 60


def text_header(address: str) -> bytes:
    """The PROXY protocol's version 1."""
    return f"PROXY TCP4 {address} 127.0.0.1 4711 443\r\n".encode()


def binary_header(address: str) -> bytes:
    """Version 2, with a field added."""
    body = socket.inet_aton(address) + bytes(4) + struct.pack("!HH", 4711, 443) + b"\x02\x00\x04here"
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(body)) + body


async def metric(server: RunningServer, name: str, *, trust: ssl.SSLContext | bool = True) -> float:
    """One value, as it is scraped."""
    async with httpx.AsyncClient(base_url=server.rest_url, verify=trust, timeout=60) as http:
        text = (await http.get("/metrics")).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True])
async def test_devices_and_rest_clients_work_in_tls(data_dir: Path, tmp_path: Path, encrypted: bool) -> None:
    """The addresses that are told say so, and the library follows them with the authority it is given."""
    authority = Authority(tmp_path, encrypted=encrypted)
    trust = authority.client_context()
    with trio.fail_after(TIMEOUT_S):
        async with running_server(data_dir, settings=authority.settings()) as server:
            assert server.rest_url.startswith("https://127.0.0.1:")
            assert server.device_url.startswith("wss://127.0.0.1:")
            found = await find_server(server.rest_url, tls=trust)
            assert str(found) == server.device_url
            path = tmp_path / "laptop.sqlite3"
            await create_user(
                found,
                path=path,
                name="laptop",
                recovery_path=tmp_path / "recovery.txt",
                passphrase=PASSPHRASE,
                cost=CHEAP,
                tls=trust,
            )
            async with open_device(path, tls=trust) as device:
                await (await device.publish("notes", b"sealed")).accepted()
                subscription = await device.subscribe("notes")
                assert (await anext(subscription)).data == b"sealed"
            name = "keepstep_tls_certificate_expiry_timestamp_seconds"
            assert await metric(server, name, trust=trust) > 1_900_000_000


async def test_a_client_that_does_not_know_the_authority_says_so(data_dir: Path, tmp_path: Path) -> None:
    """In words, not with a traceback."""
    async with running_server(data_dir, settings=Authority(tmp_path).settings()) as server:
        with pytest.raises(ClientError, match="its certificate is not trusted here"):
            await find_server(server.rest_url)


async def test_the_command_line_trusts_the_authority_that_the_environment_names(data_dir: Path, tmp_path: Path) -> None:
    """``SSL_CERT_FILE``, as every program with OpenSSL."""
    authority = Authority(tmp_path)
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEEPSTEP_")} | {
        "KEEPSTEP_HOME": str(tmp_path / "home"),
        "SSL_CERT_FILE": str(authority.certificate),
    }

    async def keepstep(*arguments: str) -> str:
        command = [sys.executable, "-m", "keepstep", *arguments]
        done = await trio.run_process(command, env=environment, capture_stdout=True)
        return done.stdout.decode()

    with trio.fail_after(TIMEOUT_S):
        async with running_server(data_dir, settings=authority.settings()) as server:
            passphrase = ("--passphrase-file", str(tmp_path / "passphrase"))
            await keepstep("device", "new", "laptop", "--server", server.rest_url, *passphrase)
            assert "1" in await keepstep("publish", "notes", "hello", "--device", "laptop")


async def test_a_renewed_certificate_serves_new_connections_and_old_ones_go_on(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told and nothing is restarted: the files are looked at."""
    monkeypatch.setattr(tls, "LOOK_INTERVAL_S", 0.01)
    authority = Authority(tmp_path)
    trust = authority.client_context()
    with trio.fail_after(TIMEOUT_S):
        async with (
            running_server(data_dir, settings=authority.settings()) as server,
            httpx.AsyncClient(base_url=server.rest_url, verify=trust, timeout=60) as old,
        ):
            assert (await old.get("/health/live")).status_code == 200
            new = authority.issue()
            for url in (server.rest_url, server.device_url):
                shown = b""
                while shown != new:
                    async with opened(url, trust=trust) as stream:
                        assert isinstance(stream, trio.SSLStream)
                        await stream.do_handshake()
                        shown = stream.getpeercert(binary_form=True)
            assert (await old.get("/health/live")).status_code == 200
            assert len(old._transport._pool.connections) == 1  # type: ignore[attr-defined]


async def test_http_on_the_tls_port_is_closed(data_dir: Path, tmp_path: Path) -> None:
    """And counted; nothing is answered in the clear."""
    authority = Authority(tmp_path)
    async with running_server(data_dir, settings=authority.settings()) as server:
        assert await ask_rest(server.rest_url) == 0
        name = 'keepstep_entrance_refusals_total{reason="tls"}'
        assert await metric(server, name, trust=authority.client_context()) == 1


async def test_slow_handshakes_do_not_keep_others_out(data_dir: Path, tmp_path: Path) -> None:
    """They have their address' share of the places, on both ports, and not for long."""
    authority = Authority(tmp_path)
    settings = authority.settings() | {
        "unauthenticated_connections_per_address_max": 2,
        "unauthenticated_connections_max": 4,
        "trusted_proxies": "127.0.0.1",
        "proxy_protocol": True,
    }
    trust = authority.client_context()
    with trio.fail_after(TIMEOUT_S):
        async with running_server(data_dir, settings=settings) as server:
            for url in (server.rest_url, server.device_url):
                async with (
                    opened(url, text_header(CLIENT) + b"\x16"),
                    opened(url, text_header(CLIENT) + b"\x16\x03"),
                    opened(url, text_header(CLIENT)) as third,
                ):
                    assert await third.receive_some() == b""
                    async with opened(url, text_header("203.0.113.1"), trust) as other:
                        assert isinstance(other, trio.SSLStream)
                        await other.do_handshake()


# -- proxies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
async def test_limits_count_the_client_behind_a_proxy(data_dir: Path, header: str) -> None:
    """Its own list before the proxy's part changes nothing, and neither does the other header."""

    def told(address: str) -> str:
        return f"Forwarded: for={address}" if header == "forwarded" else f"X-Forwarded-For: {address}"

    other = "X-Forwarded-For" if header == "forwarded" else "Forwarded"
    settings = {"trusted_proxies": "127.0.0.0/8", "forwarded_header": header, "rest_calls_per_address_minute": 2}
    async with running_server(data_dir, settings=settings) as server:
        calls = [
            (told(CLIENT),),
            (told("203.0.113.1"), told(CLIENT)),
            (told("203.0.113.2"), f"{other}: 203.0.113.3", told(CLIENT)),
            (told("203.0.113.4"),),
        ]
        assert [await ask_rest(server.rest_url, *lines) for lines in calls] == [200, 200, 429, 200]


async def test_a_peer_that_is_not_trusted_is_itself_whatever_it_sends(data_dir: Path) -> None:
    """Else limits per address would be anybody's to evade."""
    settings = {"trusted_proxies": "10.0.0.0/8", "rest_calls_per_address_minute": 2}
    async with running_server(data_dir, settings=settings) as server:
        calls = [f"X-Forwarded-For: 203.0.113.{number}" for number in range(3)]
        assert [await ask_rest(server.rest_url, line) for line in calls] == [200, 200, 429]
        with structlog.testing.capture_logs() as lines:
            await ask_as_device(server.device_url, ("X-Forwarded-For", CLIENT))
        assert addresses(lines) == ["127.0.0.1"]


async def test_the_audit_trail_and_the_log_name_the_client_behind_a_proxy(data_dir: Path) -> None:
    """On both ports."""
    settings = {"trusted_proxies": "127.0.0.0/8", "admin_api_key": ADMIN_KEY}
    async with running_server(data_dir, settings=settings) as server:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}", "X-Forwarded-For": f"203.0.113.9, {CLIENT}:4711, 127.0.0.2"}
        async with httpx.AsyncClient(base_url=server.rest_url, headers=headers, timeout=60) as http:
            assert (await http.get("/admin/users")).status_code == 200
            (entry,) = (await http.get("/admin/audit")).json()["entries"]
        assert entry["address"] == CLIENT
        with structlog.testing.capture_logs() as lines:
            await ask_as_device(server.device_url, ("X-Forwarded-For", f"203.0.113.9, {CLIENT}"))
        assert addresses(lines) == [CLIENT]


@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize("make_header", [text_header, binary_header])
async def test_a_proxy_header_names_the_client_on_both_ports(
    data_dir: Path, tmp_path: Path, make_header: Any, secured: bool
) -> None:
    """In the clear before TLS; a header of HTTP from beyond it counts for nothing."""
    authority = Authority(tmp_path)
    settings: dict[str, Any] = {
        "trusted_proxies": "127.0.0.0/8",
        "proxy_protocol": True,
        "rest_calls_per_address_minute": 2,
    }
    trust = authority.client_context() if secured else None
    async with running_server(data_dir, settings=settings | (authority.settings() if secured else {})) as server:
        clients = [CLIENT, CLIENT, CLIENT, "203.0.113.1"]
        forged = "X-Forwarded-For: 203.0.113.9"
        answers = [await ask_rest(server.rest_url, forged, first=make_header(one), trust=trust) for one in clients]
        assert answers == [200, 200, 429, 200]
        with structlog.testing.capture_logs() as lines:
            await ask_as_device(
                server.device_url, ("X-Forwarded-For", "203.0.113.9"), first=make_header(CLIENT), trust=trust
            )
        assert addresses(lines) == [CLIENT]


async def test_a_proxy_behind_a_proxy_names_the_client(data_dir: Path) -> None:
    """Where the PROXY header names a trusted proxy, what that one wrote counts."""
    settings = {"trusted_proxies": "127.0.0.0/8,10.0.0.0/8", "proxy_protocol": True}
    async with running_server(data_dir, settings=settings) as server:
        with structlog.testing.capture_logs() as lines:
            await ask_as_device(server.device_url, ("X-Forwarded-For", CLIENT), first=text_header("10.0.0.9"))
        assert addresses(lines) == [CLIENT]


@pytest.mark.parametrize("first", [b"", text_header("198.51.100.700"), b"PROXY TCP4 "])
async def test_without_a_proxy_header_there_is_no_connection(data_dir: Path, first: bytes) -> None:
    """Where every connection has to begin with one."""
    settings = {"trusted_proxies": "127.0.0.0/8", "proxy_protocol": True}
    async with running_server(data_dir, settings=settings) as server:
        assert await ask_rest(server.rest_url, first=first) == 0


async def test_a_proxy_header_of_a_stranger_is_refused(data_dir: Path) -> None:
    """It would make the stranger anybody."""
    settings = {"trusted_proxies": "10.0.0.0/8", "proxy_protocol": True}
    async with running_server(data_dir, settings=settings) as server:
        for url in (server.rest_url, server.device_url):
            async with opened(url, text_header(CLIENT)) as stream:
                with suppress(trio.BrokenResourceError):  # the header lay unread when the connection was closed
                    assert await stream.receive_some() == b""


@pytest.mark.parametrize("secured", [False, True])
async def test_the_images_health_check_asks_as_the_server_speaks(data_dir: Path, tmp_path: Path, secured: bool) -> None:
    """In TLS where the environment names a certificate, which need not be for the loopback address."""
    settings = Authority(tmp_path).settings() if secured else {}
    (line,) = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith('    CMD ["python3", "-c"')]
    program = json.loads(line.removeprefix("    CMD "))[2]
    async with running_server(data_dir, settings=settings) as server:
        environment = {**os.environ, "KEEPSTEP_REST_PORT": server.rest_url.rpartition(":")[2]}
        if secured:
            environment["KEEPSTEP_TLS_CERTIFICATE_FILE"] = str(settings["tls_certificate_file"])
        with trio.fail_after(TIMEOUT_S):
            await trio.run_process([sys.executable, "-c", program], env=environment)

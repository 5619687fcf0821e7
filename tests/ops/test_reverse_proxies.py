"""keepstep behind Debian's nginx, HAProxy and Caddy, configured as the documentation says; TLS in them or behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import structlog
import trio

from keepstep.client import create_user, open_device
from keepstep.client.server import Server
from tests.ops.machine import ROOT, Person, free_ports, running
from tests.support.certificates import Authority
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.edge import addresses, ask_as_device
from tests.support.server import RunningServer, running_server

DOCUMENT: Final = ROOT / "docs" / "how-to" / "put-behind-a-proxy.md"
CLIENT: Final = "127.0.0.77"
"""An address of this machine that is not the one the proxies connect from."""
ADMIN_KEY: Final = "a-key-for-administrators-in-a-test-of-proxies"
TIMEOUT_S: Final = 60


def snippet(language: str, containing: str) -> str:
    """One block of the document."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text with each key, which must be in it, replaced."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def authority(place: Path, tmp_path: Path) -> Authority:
    """An authority whose files a proxy's workers may read, with HAProxy's one file of certificate and key."""
    folder = place / f"authority-{tmp_path.name}"
    folder.mkdir()
    made = Authority(folder)
    (folder / "both.pem").write_bytes(made.files.certificate.read_bytes() + made.files.key.read_bytes())
    return made


@dataclass(frozen=True, slots=True)
class Front:
    """Where a proxy listens: for HTTP, or for devices and REST apart."""

    rest_url: str
    device_url: str


@asynccontextmanager
async def listening(command: tuple[str, ...], port: int, root: Person, folder: Path) -> AsyncIterator[None]:
    """A proxy until the block ends, from when it accepts connections on a port."""
    async with running(*command, person=root, folder=folder) as proxy:
        with trio.fail_after(TIMEOUT_S):
            while True:
                assert proxy.process.poll() is None, "the proxy has ended"
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError:
                    await trio.sleep(0.05)
                else:
                    await stream.aclose()
                    break
        yield


@asynccontextmanager
async def nginx(server: RunningServer, authority: Authority, root: Person, folder: Path) -> AsyncIterator[Front]:
    """nginx with the document's server block."""
    (port,) = free_ports(1)
    block = replaced(
        snippet("nginx", "proxy_pass"),
        {
            "listen 443 ssl": f"listen {port} ssl",
            "    listen [::]:443 ssl;\n": "",
            "sync.example.org.pem": "SYNC.pem",
            "/etc/ssl/sync.example.org.key": str(authority.files.key),
            "/etc/ssl/SYNC.pem": str(authority.files.certificate),
            "127.0.0.1:8441": port_of(server.device_url),
            "127.0.0.1:8440": port_of(server.rest_url),
        },
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"user root;\ndaemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{block}}}\n"
    )
    program = shutil.which("nginx")
    assert program is not None
    async with listening((program, "-e", "stderr", "-c", str(configuration)), port, root, folder):
        yield Front(f"https://127.0.0.1:{port}", f"wss://127.0.0.1:{port}/v1/connect")


@asynccontextmanager
async def haproxy(server: RunningServer, authority: Authority, root: Person, folder: Path) -> AsyncIterator[Front]:
    """HAProxy that speaks HTTP and does TLS, as in the document."""
    (port,) = free_ports(1)
    text = replaced(
        snippet("haproxy", "mode http"),
        {
            "bind :443": f"bind :{port}",
            "/etc/haproxy/sync.example.org.pem": str(authority.folder / "both.pem"),
            "127.0.0.1:8441": port_of(server.device_url),
            "127.0.0.1:8440": port_of(server.rest_url),
        },
    )
    async with haproxy_with(text, port, root, folder):
        yield Front(f"https://127.0.0.1:{port}", f"wss://127.0.0.1:{port}/v1/connect")


@asynccontextmanager
async def caddy(server: RunningServer, authority: Authority, root: Person, folder: Path) -> AsyncIterator[Front]:
    """Caddy with the document's site; the certificate, which it would fetch by itself, is given."""
    (port,) = free_ports(1)
    site = replaced(
        snippet("caddyfile", "reverse_proxy"),
        {
            "sync.example.org {\n": f"https://127.0.0.1:{port} {{\n"
            f"    tls {authority.files.certificate} {authority.files.key}\n",
            "127.0.0.1:8441": port_of(server.device_url),
            "127.0.0.1:8440": port_of(server.rest_url),
        },
    )
    configuration = folder / "Caddyfile"
    configuration.write_text(f"{{\n    admin off\n    auto_https disable_redirects\n    skip_install_trust\n}}\n{site}")
    program = shutil.which("caddy")
    assert program is not None
    command = (program, "run", "--adapter", "caddyfile", "--config", str(configuration))
    async with listening(command, port, root, folder):
        yield Front(f"https://127.0.0.1:{port}", f"wss://127.0.0.1:{port}/v1/connect")


@asynccontextmanager
async def haproxy_passing_bytes(
    server: RunningServer, version: str, root: Person, folder: Path
) -> AsyncIterator[Front]:
    """HAProxy that passes bytes on after a PROXY header, as in the document; TLS is keepstep's."""
    device_port, rest_port = free_ports(2)
    text = replaced(
        snippet("haproxy", "mode tcp"),
        {
            "bind :8441": f"bind :{device_port}",
            "bind :8440": f"bind :{rest_port}",
            "10.0.0.9:8441": port_of(server.device_url),
            "10.0.0.9:8440": port_of(server.rest_url),
            "send-proxy-v2": version,
        },
    )
    async with haproxy_with(text, device_port, root, folder):
        yield Front(f"https://127.0.0.1:{rest_port}", f"wss://127.0.0.1:{device_port}/v1/connect")


@asynccontextmanager
async def haproxy_with(text: str, port: int, root: Person, folder: Path) -> AsyncIterator[None]:
    """HAProxy with a configuration of frontends and backends."""
    configuration = folder / "haproxy.cfg"
    configuration.write_text(f"global\n    maxconn 100\n\n{text}")
    program = shutil.which("haproxy")
    assert program is not None
    async with listening((program, "-db", "-f", str(configuration)), port, root, folder):
        yield


def port_of(url: str) -> str:
    """``host:port`` of a server's address."""
    found = re.search(r"//([^/]+)", url)
    assert found is not None
    return found[1]


async def check(server: RunningServer, front: Front, authority: Authority, folder: Path) -> None:
    """A device works through the proxy, and both ports know a client by its own address."""
    trust = authority.client_context()
    behind = Server(front.device_url, front.rest_url, server.started.server_key)
    path = folder / "laptop.sqlite3"
    await create_user(
        behind,
        path=path,
        name="laptop",
        recovery_path=folder / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
        tls=trust,
    )
    async with open_device(path, tls=trust) as device:
        await (await device.publish("notes", b"through a proxy")).accepted()
        subscription = await device.subscribe("notes")
        assert (await anext(subscription)).data == b"through a proxy"

    forged = "203.0.113.9"
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "X-Forwarded-For": forged}
    transport = httpx.AsyncHTTPTransport(verify=trust, local_address=CLIENT)
    async with httpx.AsyncClient(base_url=front.rest_url, headers=headers, transport=transport) as http:
        assert (await http.get("/admin/users")).status_code == 200
        (entry,) = (await http.get("/admin/audit")).json()["entries"]
    assert entry["address"] == CLIENT
    with structlog.testing.capture_logs() as lines:
        await ask_as_device(front.device_url, ("X-Forwarded-For", forged), trust=trust, source=CLIENT)
    assert addresses(lines) == [CLIENT]


def settings(**more: Any) -> dict[str, Any]:
    """The proxy is believed, and the audit trail can be asked."""
    return {"trusted_proxies": "127.0.0.1", "admin_api_key": ADMIN_KEY, **more}


@pytest.mark.parametrize("proxy", [nginx, haproxy, caddy])
async def test_a_proxy_that_speaks_http_and_does_tls(
    data_dir: Path, place: Path, tmp_path: Path, authority: Authority, root: Person, proxy: Any
) -> None:
    """The client is known by ``X-Forwarded-For``; what it wrote into that itself changes nothing."""
    with trio.fail_after(TIMEOUT_S):
        async with (
            running_server(data_dir, settings=settings()) as server,
            proxy(server, authority, root, authority.folder) as front,
        ):
            await check(server, front, authority, tmp_path)


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
async def test_a_proxy_that_passes_bytes_on(
    data_dir: Path, place: Path, tmp_path: Path, authority: Authority, root: Person, version: str
) -> None:
    """The client is known by the PROXY header; TLS is spoken with keepstep itself."""
    with trio.fail_after(TIMEOUT_S):
        async with (
            running_server(data_dir, settings=settings(proxy_protocol=True, **authority.settings())) as server,
            haproxy_passing_bytes(server, version, root, authority.folder) as front,
        ):
            await check(server, front, authority, tmp_path)

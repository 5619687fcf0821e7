"""From an accepted socket to HTTP: the PROXY protocol and TLS, each within its deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from keepstep.admission import Admission, Ticket
from keepstep.entrance import Entrance, Stream, peer_address
from keepstep.proxies import TrustedProxies, parse_networks
from keepstep.runtime import SystemClock, WorkerThreads
from keepstep.telemetry import Metrics
from keepstep.tls import ServerCertificate
from tests.support.certificates import Authority

PROXY = "10.0.0.1"
STRANGER = "192.0.2.66"
CLIENT = "198.51.100.7"
HEADER = f"PROXY TCP4 {CLIENT} {PROXY} 4711 443\r\n".encode()
TIMEOUT_S = 10.0


@dataclass
class Door:
    """An entrance, who is inside, and why somebody did not come in."""

    entrance: Entrance
    admission: Admission
    reasons: list[str]
    entered: list[tuple[Stream, str] | None] = field(default_factory=list)

    async def open(self, nursery: trio.Nursery, address: str) -> Any:
        """The peer's end of a connection that is being let in."""
        ours, theirs = trio.testing.memory_stream_pair()

        async def let_in() -> None:
            place: Ticket = self.admission.enter(address)
            deadline_s = trio.current_time() + TIMEOUT_S
            with place:
                self.entered.append(await self.entrance.enter(theirs, address, place, deadline_s=deadline_s))
                if self.entered[-1] is None:
                    await trio.aclose_forcefully(theirs)
                await trio.sleep_forever()

        nursery.start_soon(let_in)
        return ours


@asynccontextmanager
async def door(
    *, proxy_protocol: bool = False, authority: Authority | None = None, per_address_max: int = 2
) -> AsyncIterator[tuple[Door, trio.Nursery]]:
    """An entrance with 10.0.0.0/8 trusted, until the block ends."""
    reasons: list[str] = []
    certificate = (
        None
        if authority is None
        else ServerCertificate(authority.files, SystemClock(), WorkerThreads(), Metrics(), structlog.get_logger())
    )
    entrance = Entrance(
        TrustedProxies(parse_networks("10.0.0.0/8")),
        proxy_protocol=proxy_protocol,
        certificate=certificate,
        on_refused=reasons.append,
    )
    admission = Admission(
        connections_max=10,
        unauthenticated_max=10,
        unauthenticated_per_address_max=per_address_max,
        on_refused=lambda: reasons.append("full"),
        is_proxy=entrance.is_proxy,
    )
    async with trio.open_nursery() as nursery:
        yield Door(entrance, admission, reasons), nursery
        nursery.cancel_scope.cancel()


async def test_without_settings_there_is_nothing_before_http() -> None:
    """No proxy is believed, nothing is waited for."""
    entrance = Entrance()
    assert not entrance.speaks_tls
    assert not entrance.is_proxy("127.0.0.1")
    assert entrance.client_address(STRANGER, [(b"x-forwarded-for", CLIENT.encode())]) == STRANGER
    async with door() as (here, nursery):
        await here.open(nursery, STRANGER)
        await trio.testing.wait_all_tasks_blocked()
        assert [entered and entered[1] for entered in here.entered] == [STRANGER]


async def test_a_trusted_proxy_names_its_client() -> None:
    """The address that counts is the client's from then on."""
    async with door(proxy_protocol=True, per_address_max=1) as (here, nursery):
        for _ in range(2):
            stream = await here.open(nursery, PROXY)
            await stream.send_all(HEADER)
        await trio.testing.wait_all_tasks_blocked()
        assert [entered and entered[1] for entered in here.entered] == [CLIENT, None]
        assert here.reasons == ["full"]  # the same client a second time
        other = await here.open(nursery, PROXY)
        await other.send_all(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert here.entered[-1] is not None
        assert here.entered[-1][1] == "203.0.113.9"


async def test_a_proxy_may_speak_for_itself() -> None:
    """Its health check."""
    async with door(proxy_protocol=True) as (here, nursery):
        stream = await here.open(nursery, PROXY)
        await stream.send_all(b"PROXY UNKNOWN\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert [entered and entered[1] for entered in here.entered] == [PROXY]


@pytest.mark.parametrize(
    ("address", "sent"), [(STRANGER, HEADER), (STRANGER, b""), (PROXY, b"GET /v1/connect HTTP/1.1\r\n")]
)
async def test_without_a_header_of_a_trusted_proxy_nobody_comes_in(
    address: str, sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """At once: a stranger's header is not even read."""
    async with door(proxy_protocol=True) as (here, nursery):
        start_s = trio.current_time()
        stream = await here.open(nursery, address)
        if sent:
            await stream.send_all(sent)
        assert await stream.receive_some() == b""
        assert trio.current_time() == start_s
        assert here.entered == [None]
        assert here.reasons == ["proxy_header"]


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 198.51", HEADER, HEADER + b"\x16\x03\x01"])
async def test_header_and_handshake_share_one_deadline(
    tmp_path: Path, sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """However slowly the bytes come."""
    async with door(proxy_protocol=True, authority=Authority(tmp_path)) as (here, nursery):
        start_s = trio.current_time()
        stream = await here.open(nursery, PROXY)
        for byte in sent:
            await stream.send_all(bytes([byte]))
        assert await stream.receive_some() == b""
        assert trio.current_time() - start_s == pytest.approx(TIMEOUT_S)
        assert here.reasons == ["timeout"]


async def test_unfinished_handshakes_are_counted_by_address(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Slow ones of one network never crowd out others, and their places come back."""
    async with door(authority=Authority(tmp_path)) as (here, nursery):
        slow = [await here.open(nursery, STRANGER) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        assert here.admission.unauthenticated == 2
        with pytest.raises(Exception, match="too_many_connections"):
            here.admission.enter(STRANGER)
        here.admission.enter(CLIENT).__exit__()
        for stream in slow:
            assert await stream.receive_some() == b""
        assert here.reasons == ["full", "timeout", "timeout"]


async def test_tls_is_spoken_after_the_header(tmp_path: Path) -> None:
    """A proxy that passes bytes on sends its header in the clear."""
    authority = Authority(tmp_path)
    async with door(proxy_protocol=True, authority=authority) as (here, nursery):
        assert here.entrance.speaks_tls
        stream = await here.open(nursery, PROXY)
        await stream.send_all(HEADER)
        secured = trio.SSLStream(stream, authority.client_context(), server_hostname="localhost")
        await secured.do_handshake()
        await trio.testing.wait_all_tasks_blocked()
        entered = here.entered[0]
        assert entered is not None
        assert entered[1] == CLIENT
        await secured.send_all(b"hello")
        assert await entered[0].receive_some() == b"hello"


@pytest.mark.parametrize(
    "sent", [b"GET /v1/connect HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(100)]
)
async def test_what_is_no_handshake_is_closed_at_once(
    tmp_path: Path, sent: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """HTTP on the TLS port, and noise."""
    async with door(authority=Authority(tmp_path)) as (here, nursery):
        start_s = trio.current_time()
        stream = await here.open(nursery, STRANGER)
        await stream.send_all(sent)
        while await stream.receive_some():
            pass
        assert trio.current_time() == start_s
        assert here.reasons == ["tls"]


async def test_a_peer_has_one_spelling_and_may_be_gone() -> None:
    """IPv4 on a socket for both kinds is IPv4."""

    class Peer:
        """As much of a socket stream as is asked."""

        def __init__(self, address: str | None) -> None:
            self.socket = self
            self._address = address

        def getpeername(self) -> tuple[str, int]:
            """As a socket's."""
            if self._address is None:
                raise OSError
            return self._address, 1

    gone: Any = Peer(None)
    mapped: Any = Peer("::ffff:192.0.2.1")
    assert peer_address(gone) is None
    assert peer_address(mapped) == "192.0.2.1"

"""The peers: what each checks and promises, how it is started, and what of the workloads it can take."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.machine import free_ports
from bench.peers.build import NATS_VERSION, NOSTR_VERSION, build_nats, build_nostr
from bench.peers.works import CATCH_UP, IDLE, LATENCY, PUBLISH, RELAY, Work
from bench.server import POLL_S, running_process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NATS_CONFIG: Final = """\
listen: 127.0.0.1:{port}
max_connections: 65536
jetstream {{
  store_dir: "{directory}/jetstream"
{more}
}}
"""
NOSTR_CONFIG: Final = """\
[info]
relay_url = "ws://127.0.0.1:{port}/"
[database]
data_directory = "{directory}"
[network]
address = "127.0.0.1"
port = {port}
[limits]
messages_per_sec = 0
subscriptions_per_min = 0
broadcast_buffer = 65536
event_persist_buffer = 4096
[verified_users]
mode = "disabled"
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that runs.

    Attributes:
        address: host, port and, for WebSocket, a path.
        pid: of it; ``None`` where it was not started here, and its processes are not known.
    """

    address: str
    pid: int | None


Start = Callable[["Path"], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: on the command line and in the results.
        title: for people, with its version.
        protocol: that ``keepstep-peers`` speaks with it.
        verifies: who checks that an event is its author's.
        acknowledges: what its acknowledgement means.
        works: what it is put to; a rate or a number that others take would only measure its queue.
        start: runs it in a new directory.
        arguments: of the load generator, beside those of the work.
    """

    name: str
    title: str
    protocol: str
    verifies: str
    acknowledges: str
    works: Sequence[Work]
    start: Start
    arguments: Sequence[str] = ()


@contextlib.contextmanager
def started(command: Sequence[str], directory: Path, port: int) -> Iterator[Running]:
    """A server that was started with a port, stopped afterwards. Raises BenchError where it does not listen."""

    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=POLL_S).close()

    with running_process(command, directory, connect) as (process, _):
        yield Running(f"127.0.0.1:{port}", process.pid)


def _nats(more: str) -> Start:
    @contextlib.contextmanager
    def start(directory: Path) -> Iterator[Running]:
        (port,) = free_ports(1)
        config = directory / "nats.conf"
        config.write_text(NATS_CONFIG.format(port=port, directory=directory, more=more))
        with started([str(build_nats()), "--config", str(config)], directory, port) as running:
            yield running

    return start


@contextlib.contextmanager
def _nostr(directory: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    config = directory / "config.toml"
    config.write_text(NOSTR_CONFIG.format(port=port, directory=directory))
    command = [str(build_nostr()), "--config", str(config), "--db", str(directory)]
    with started(command, directory, port) as running:
        yield running


def own(name: str, protocol: str, address: str, pid: int | None) -> Peer:
    """A server that an operator runs, somewhere on this machine."""

    @contextlib.contextmanager
    def start(_directory: Path) -> Iterator[Running]:
        yield Running(address, pid)

    works: Sequence[Work] = (PUBLISH_FEW, RELAY_FEW, _at(200), CATCH_UP_FEW, IDLE)
    if protocol == "centrifugo":
        works = (PUBLISH_MANY, RELAY_MANY, _at(1_000), IDLE)
    return Peer(name, name, protocol, "as configured", "as configured", works, start)


def _at(rate: float) -> Work:
    return dataclasses.replace(LATENCY, rate=rate)


PUBLISH_MANY: Final = dataclasses.replace(PUBLISH, events_per_s_max=400_000)
RELAY_MANY: Final = dataclasses.replace(RELAY, events_per_s_max=300_000)
CATCH_UP_MANY: Final = dataclasses.replace(CATCH_UP, events=100_000)
# Their events are signed beforehand, and each takes a kilobyte of the generator's memory.
PUBLISH_FEW: Final = dataclasses.replace(PUBLISH, events_per_s_max=30_000)
RELAY_FEW: Final = dataclasses.replace(RELAY, events_per_s_max=30_000)
CATCH_UP_FEW: Final = dataclasses.replace(CATCH_UP, events=10_000)

PEERS: Final = (
    Peer(
        name="nats",
        title=f"NATS JetStream {NATS_VERSION}, default",
        protocol="nats",
        verifies="nobody: any client may publish anything",
        acknowledges="in the page cache; an fsync every two minutes",
        works=(PUBLISH_MANY, RELAY_MANY, _at(1_000), CATCH_UP_MANY, IDLE),
        start=_nats(""),
    ),
    Peer(
        name="nats-synced",
        title=f"NATS JetStream {NATS_VERSION}, sync_interval: always",
        protocol="nats",
        verifies="nobody: any client may publish anything",
        acknowledges="on disk: one fsync a message",
        works=(PUBLISH_MANY, RELAY_MANY, _at(500)),
        start=_nats("  sync_interval: always"),
    ),
    Peer(
        name="nats-core",
        title=f"NATS JetStream {NATS_VERSION}, default, told before it is stored",
        protocol="nats",
        verifies="nobody: any client may publish anything",
        acknowledges="in the page cache; subscribers are told before that, and cannot resume",
        works=(RELAY_MANY, _at(1_000)),
        start=_nats(""),
        arguments=("--delivery", "core"),
    ),
    Peer(
        name="nostr-rs-relay",
        title=f"nostr-rs-relay {NOSTR_VERSION}",
        protocol="nostr",
        verifies="the relay: a Schnorr signature an event",
        acknowledges="in SQLite's write-ahead log, synchronous = NORMAL: not on disk",
        works=(PUBLISH_FEW, RELAY_FEW, _at(200), CATCH_UP_FEW, IDLE),
        start=_nostr,
    ),
)

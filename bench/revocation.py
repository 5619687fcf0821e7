"""How long a revoked device stays connected: ``python -m bench.revocation`` (``make bench-revocation``).

Two servers on one database. A phone at the first revokes devices that are connected to the first and to the second;
measured is from the call on the phone to the end of the other device's socket, so what the phone itself does before
it publishes the revocation counts too.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from bench.clients import make_account, run
from bench.server import BenchError, database_url, running_server
from bench.statistics import percentile
from keepstep.client import open_device
from keepstep.client.connection import Connection, connect
from keepstep.client.environment import SYSTEM
from keepstep.client.store import open_store
from keepstep.client.transport import Disconnected
from keepstep.errors import ERRORS

if TYPE_CHECKING:
    from pathlib import Path

    from bench.server import Server
    from keepstep.client import Device

REVOCATIONS: Final = 100
TOO_LATE_S: Final = 10.0
MILLISECONDS: Final = 1e3


@dataclass(frozen=True, slots=True)
class Closing:
    """Milliseconds from the revocation to the closed socket.

    Attributes:
        revocations: how many.
        p50_ms: the median.
        p99_ms: 99 % are not above it.
        max_ms: the slowest.
    """

    revocations: int
    p50_ms: float
    p99_ms: float
    max_ms: float


async def measure(server: Server, directory: Path, count: int) -> dict[str, Closing]:
    """Devices at the server where the revocation is published, and at another one of the same database."""
    phone_path = await make_account(server, directory)
    with running_server(_second(server, directory), {"DATABASE_URL": database_url(server)}) as second:
        places = {"the same server": server.device_url, "another server": second.device_url}
        samples: dict[str, list[float]] = {place: [] for place in places}
        async with open_device(phone_path) as phone:
            for number in range(count):
                for place, url in places.items():
                    path = directory / f"lost-{number}.device"
                    samples[place].append(await revoke_one(phone, path, url.partition("#")[0]))
                    path.unlink()
    return {
        place: Closing(len(each), percentile(each, 0.5), percentile(each, 0.99), max(each))
        for place, each in samples.items()
    }


async def revoke_one(phone: Device, path: Path, device_url: str) -> float:
    """Enrol a device, let it connect, revoke it; milliseconds until its socket is closed. Raises BenchError."""
    await phone.enrol(path, path.stem)
    store = open_store(path)
    identity = store.identity
    store.close()
    async with connect(identity, SYSTEM, device_url=device_url) as connection, trio.open_nursery() as nursery:
        began_s = time.perf_counter()
        nursery.start_soon(phone.revoke, identity.device_id)
        with trio.move_on_after(TOO_LATE_S) as scope:
            await _until_closed(connection)
        if scope.cancelled_caught:
            raise BenchError(f"a revoked device was still connected after {TOO_LATE_S:g} s")
        took_s = time.perf_counter() - began_s
    return took_s * MILLISECONDS


async def _until_closed(connection: Connection) -> None:
    """Until the server closes with ``revoked``. Raises BenchError where it closes for another reason."""
    try:
        while True:
            await connection.receive()
    except Disconnected as closed:
        if closed.close_code != ERRORS["revoked"].close_code:
            raise BenchError(f"the server closed with {closed.close_code}") from closed


def _second(server: Server, directory: Path) -> Path:
    """The directory of another server with the same keys."""
    second = directory / "second"
    (second / "data").mkdir(mode=0o700, parents=True)
    for name in ("server.key", "token-keys.json"):
        shutil.copy2(server.data_dir / name, second / "data" / name)
    return second


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep; the exit status."""
    return run(
        "revocation",
        "from a revocation to the closed socket",
        measure,
        arguments,
        count=REVOCATIONS,
        what="revocations at each of two servers",
    )


if __name__ == "__main__":
    sys.exit(main())

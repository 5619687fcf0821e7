"""A run: devices publish and read without pause while something is killed again and again; then the checker judges."""

from __future__ import annotations

import contextlib
import enum
import itertools
import random
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil
import trio

from bench.checker import Verdict, check_observations
from bench.observations import ObservationWriter
from tests.chaos.editing import Editing
from tests.chaos.process import ServerHome
from tests.chaos.writers import Writers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.chaos.load import Load
    from tests.chaos.process import ServerProcess

ACKS_BEFORE_KILL_MAX: Final = 150
"""A random kill comes after up to this many acknowledgements since the start …"""
DELAY_S_MAX: Final = 0.02
"""… and up to this many seconds more."""
HITS_MAX: Final = 12
"""A failpoint kills when it is reached for the 1st to this time."""
PROGRESS_TIMEOUT_S: Final = 120
"""Until devices make progress again after a kill, on a busy machine."""
LOG_SHOWN_MAX: Final = 4_000
"""Characters of the end of a server's log that are shown where it did not end as it must."""


class Kill(enum.Enum):
    """What is killed, and when."""

    SERVER = "server"
    """SIGKILL to the server at a random moment."""
    DATABASE = "database"
    """SIGKILL to PostgreSQL's postmaster while the server lives, which starts it again."""
    DATABASE_PROCESS = "database_process"
    """SIGKILL to any other process of PostgreSQL, which then recovers by itself, while the server lives."""
    BEFORE_COMMIT = "before_commit"
    """The server dies with a batch written and not committed."""
    AFTER_COMMIT = "after_commit"
    """It dies with a batch committed and not acknowledged."""
    AFTER_ACK = "after_ack"
    """It dies right after an acknowledgement, before what follows from it."""
    DRAIN = "drain"
    """No kill: SIGTERM in the middle of the load, which must end the server cleanly."""


FAILPOINTS: Final = (Kill.BEFORE_COMMIT, Kill.AFTER_COMMIT, Kill.AFTER_ACK)


@dataclass(eq=False, slots=True)
class Outcome:
    """What a run showed.

    Attributes:
        kills: what was killed, in this order.
        seed: that replays it.
        verdict: of the checker.
        summary: what the devices went through.
        problems: what was not as it must be and the checker does not see.
    """

    kills: tuple[Kill, ...]
    seed: int
    verdict: Verdict
    summary: str
    problems: list[str]

    @property
    def clean(self) -> bool:
        """Nothing acknowledged was lost, duplicated or reordered, and nothing else was wrong."""
        return self.verdict.clean and self.verdict.acknowledged > 0 and not self.problems

    def __str__(self) -> str:
        verdict = self.verdict
        kinds = "+".join(dict.fromkeys(kill.value for kill in self.kills))
        return (
            f"{kinds:13} seed {self.seed}: {len(self.kills)} kills, {self.summary}; published {verdict.published}, "
            f"acknowledged {verdict.acknowledged}, delivered {verdict.delivered} to {verdict.readers} readers, "
            f"chains compared {verdict.chains}: {'clean' if self.clean else 'NOT CLEAN'}"
        )


class LoadKind(enum.Enum):
    """What devices do meanwhile."""

    EDITING = "editing"
    """The demo: two people write one text, a recorded session, with the client library; a third one comes late."""
    WRITERS = "writers"
    """Devices that publish as much as they can, many frames in flight."""


async def run_scenario(kills: Sequence[Kill], seed: int, directory: Path, *, load: LoadKind) -> Outcome:
    """Run one scenario in an empty directory.

    Args:
        kills: what is killed, one after the other, on one data directory.
        seed: decides what, when, and what devices say; the machine decides the rest.
        directory: an existing one with a short path; observations and server logs stay in it.
        load: what the devices do.

    Raises:
        trio.TooSlowError: no progress within a deadline.
        AssertionError: a server does not start or end as it must, or answers what it must not.
    """
    home = ServerHome(directory)
    seeded = random.Random(seed)
    observations = directory / "observations.jsonl"
    with ObservationWriter(observations, f"chaos, {load.value}, seed {seed}") as observed:
        devices: Load
        if load is LoadKind.EDITING:
            devices = Editing(directory, seeded, observed)
        else:
            devices = Writers(seeded, observed)
        await _Run(seeded, home, devices).play(kills)
        devices.observe()
    problems = devices.problems()
    faults = await home.verify()
    if faults:
        problems.append(f"what is stored does not verify: {faults}")
    if "Traceback" in home.log:
        problems.append("a traceback in the server's log")
    return Outcome(tuple(kills), seed, check_observations([observations]), devices.summary(), problems)


class _Run:
    """One run's parts."""

    def __init__(self, seeded: random.Random, home: ServerHome, load: Load) -> None:
        self._random = seeded
        self._home = home
        self._load = load

    async def play(self, kills: Sequence[Kill]) -> None:
        """Set up, kill, and bring everything to its end."""
        async with self._home.server() as server:
            await self._load.prepare(server)
            server.terminate()
            await self._ended(server, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._load.run)
            for kill, group in itertools.groupby(kills):
                if kill in (Kill.DATABASE, Kill.DATABASE_PROCESS):
                    await self._kill_databases(list(group))
                else:
                    for _ in group:
                        await self._kill_server(kill)
            async with self._home.server() as server:
                await self._load.finish()
                server.terminate()
                await self._ended(server, 0)
            nursery.cancel_scope.cancel()

    async def _kill_server(self, kill: Kill) -> None:
        """Start a server, let devices work, and end it."""
        failpoint = kill in FAILPOINTS
        point, count = (kill.value, self._random.randint(1, HITS_MAX)) if failpoint else ("never", 0)
        async with self._home.server(point, count) as server:
            if not failpoint:
                await self._random_moment()
                assert server.running
                if kill is Kill.DRAIN:
                    server.terminate()
                else:
                    server.kill()
            expected = 0 if kill is Kill.DRAIN else -signal.SIGKILL
            await self._ended(server, expected)

    async def _kill_databases(self, kills: Sequence[Kill]) -> None:
        """Kill PostgreSQL again and again under a server that must live on and recover by itself."""
        async with self._home.server() as server:
            for kill in kills:
                await self._random_moment()
                if kill is Kill.DATABASE:
                    victim = await server.postmaster()
                else:
                    victim = await server.database_process(self._random)
                with contextlib.suppress(psutil.NoSuchProcess):  # a connection's process may end by itself
                    victim.kill()
                await self._progress(self._load.in_flight + 1)  # what was answered before it does not count
                assert server.running
            server.terminate()
            await self._ended(server, 0)

    async def _ended(self, server: ServerProcess, expected: int) -> None:
        status = await server.ended()
        assert status == expected, f"the server ended with {status}: {self._home.log[-LOG_SHOWN_MAX:]}"

    async def _random_moment(self) -> None:
        await self._progress(self._random.randint(1, ACKS_BEFORE_KILL_MAX))
        await trio.sleep(self._random.uniform(0, DELAY_S_MAX))

    async def _progress(self, events: int) -> None:
        with trio.fail_after(PROGRESS_TIMEOUT_S):
            await self._load.progress(events)

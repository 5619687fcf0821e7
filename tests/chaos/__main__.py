"""Kill as often as asked, then judge: ``python -m tests.chaos [--load LOAD] [--kills N] [--seed S] [KIND...]``.

Every run prints its seed; ``--seed`` replays what was decided by it. The last line is the verdict; exit status 1 where
a run was not clean, and its observations and server log are kept.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from tests.chaos.scenario import Kill, LoadKind, run_scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.scenario import Outcome

KILLS_PER_RUN_MAX: Final = 20
"""Kills on one data directory; more of them are spread over further runs, each with the next seed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all kinds asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="kill -9 under load, then check")
    parser.add_argument("kind", nargs="*", metavar="KIND", help=f"of {', '.join(kill.value for kill in Kill)}; all")
    parser.add_argument("--kills", type=int, default=20, help="of each kind (20)")
    parser.add_argument(
        "--load", type=LoadKind, action="append", help=f"of {', '.join(load.value for load in LoadKind)}; both"
    )
    parser.add_argument("--seed", type=int, help="of the first run (random)")
    options = parser.parse_args(arguments)
    first_seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    kinds = [Kill(kind) for kind in options.kind] or list(Kill)
    dirty = 0
    started_s = time.monotonic()
    total = 0
    for load, kind in itertools.product(options.load or LoadKind, kinds):
        for run, first in enumerate(range(0, options.kills, KILLS_PER_RUN_MAX)):
            kills = min(KILLS_PER_RUN_MAX, options.kills - first)
            outcome = _run(load, kind, first_seed + run, kills)
            total += kills
            dirty += outcome is None or not outcome.clean
    minutes = (time.monotonic() - started_s) / 60
    print(f"{total} kills in {minutes:.1f} min: {f'{dirty} runs NOT CLEAN' if dirty else 'clean'}")
    return 1 if dirty else 0


def _run(load: LoadKind, kind: Kill, seed: int, kills: int) -> Outcome | None:
    """One run, reported; ``None`` where it could not be brought to its end."""
    directory = Path(tempfile.mkdtemp(prefix="keepstep-chaos-"))
    outcome = None
    try:
        outcome = trio.run(partial(run_scenario, [kind] * kills, seed, directory, load=load))
    except (Exception, BaseExceptionGroup) as exc:  # whatever it is, the other kinds are still to be tried
        print(f"{load.value}, {kind.value}, seed {seed}: {exc!r}", flush=True)
    else:
        print(f"{load.value}: {outcome}", flush=True)
    if outcome is not None and outcome.clean:
        shutil.rmtree(directory)
    else:
        if outcome is not None:
            print(outcome.verdict, *outcome.problems, sep="\n")
        print(
            f"kept: {directory}; replay: python -m tests.chaos {kind.value} --seed {seed} --kills {kills}", flush=True
        )
    return outcome


if __name__ == "__main__":
    sys.exit(main())

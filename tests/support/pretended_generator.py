"""A load generator that only pretends: it hands out what was observed in a made-up run."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from bench.generator import Generator

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LATENCY: Final = {"p50": 1.5, "p90": 2.0, "p99": 3.0, "p999": 4.0, "max": 5.0, "count": 24}
REPORT: Final[Mapping[str, Any]] = {
    "acknowledged_in_all": 24,
    "acknowledged": 24,
    "acknowledged_per_s": 2_400.0,
    "delivered_per_s": 4_800.0,
    "acknowledge_ms": LATENCY,
    "deliver_ms": LATENCY,
    "late_ms": LATENCY,
    "errors": {},
}
PROGRAM: Final = """#!{python}
import json, shutil, sys
print(json.dumps({{"phase": "measuring"}}), json.dumps({{"phase": "measured"}}), sep="\\n")
if {observations!r}:
    shutil.copy({observations!r}, sys.argv[sys.argv.index("--observations") + 1])
print(json.dumps({report!r} | {{"arguments": sys.argv[1:]}}))
sys.exit({status})
"""


def pretended_generator(
    folder: Path, observations: Path | None, report: Mapping[str, Any] = REPORT, *, status: int = 0
) -> Generator:
    """A program in ``folder`` that reports this, ends with this status, and says what it was called with."""
    path = folder / "generator"
    path.write_text(
        PROGRAM.format(python=sys.executable, observations=str(observations or ""), report=dict(report), status=status)
    )
    path.chmod(0o700)
    return Generator(path)


def arguments_of(report: Mapping[str, Any]) -> dict[str, str]:
    """What the program was called with, flags without a value aside."""
    return {flag: value for flag, value in pairwise(report["arguments"]) if flag.startswith("--")}

"""Whether hot functions got dearer, in instructions: ``python -m bench.instructions`` (``make bench-instructions``).

Valgrind's callgrind counts what ``rust/core/benches/instructions.rs`` executes, part by part: the same on every run but
for a hundredth, however busy the machine is. It knows no AVX-512, so what it sees is the path of processors with AVX2.
The counts to compare with are kept in ``instructions.json``; ``--keep`` writes today's, for a change that is meant.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.server import REPOSITORY, BenchError

BASELINE: Final = REPOSITORY / "bench" / "instructions.json"
TOLERANCE: Final = 0.05
"""By how much a part may be dearer than what was kept: compilers and random coefficients make less of a difference."""
CHEAPER: Final = 0.10
"""From what gain on the kept count should be moved, so that it cannot be lost again unnoticed."""
BUILD_TIMEOUT_S: Final = 900
PART_TIMEOUT_S: Final = 60
_COUNTED: Final = "*counted*"
"""The function whose instructions count, with those of all that it calls."""
_TOTAL: Final = re.compile(r"^==\d+== Collected : (\d+)$", re.MULTILINE)
_BUILD: Final = ("cargo", "bench", "--locked", "--package", "keepstep-core", "--bench", "instructions", "--no-run")


@dataclass(frozen=True, slots=True)
class Part:
    """What became of one part.

    Attributes:
        name: as the benchmark has it.
        kept: instructions to compare with; None for a part that is new.
        count: instructions now.
    """

    name: str
    kept: int | None
    count: int

    @property
    def change(self) -> float:
        """By what part of the kept count it is dearer; below 0 where it is cheaper."""
        return 0.0 if self.kept is None else self.count / self.kept - 1

    @property
    def is_refused(self) -> bool:
        """Whether it is too dear, or nothing to compare it with was kept."""
        return self.kept is None or self.count > self.kept * (1 + TOLERANCE)

    @property
    def line(self) -> str:
        """For a person."""
        if self.kept is None:
            return f"{self.name:<60} {self.count:>13,}  NEW: keep its count with --keep"
        verdict = "TOO DEAR" if self.is_refused else "cheaper: keep it with --keep" if self.change < -CHEAPER else ""
        return f"{self.name:<60} {self.count:>13,}  {self.change:+7.1%}  {verdict}".rstrip()


def compare(counts: Mapping[str, int], kept: Mapping[str, int]) -> list[Part]:
    """Every part that was counted, in that order.

    Raises:
        BenchError: a part that was kept is not there any more, so nobody watches it.
    """
    lost = sorted(kept.keys() - counts.keys())
    if lost:
        raise BenchError(f"kept, but not counted: {', '.join(lost)}; --keep forgets them")
    return [Part(name, kept.get(name), count) for name, count in counts.items()]


def count_parts() -> dict[str, int]:
    """Instructions by part. Builds the benchmark first.

    Raises:
        BenchError: it cannot be built or run; the message says why.
    """
    built = _output(*_BUILD, "--message-format=json", timeout_s=BUILD_TIMEOUT_S)
    messages = [json.loads(line) for line in built.splitlines()]
    binaries = [
        message["executable"]
        for message in messages
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "instructions"
    ]
    if len(binaries) != 1:
        raise BenchError(f"cargo built {len(binaries)} benchmarks of instructions")
    return {name: _count(binaries[0], name) for name in _output(*binaries, timeout_s=PART_TIMEOUT_S).splitlines()}


def read_total(output: str) -> int:
    """Instructions, of what callgrind says in the end. Raises BenchError where there are none."""
    found = _TOTAL.search(output)
    if found is None or int(found[1]) == 0:
        raise BenchError("callgrind counted nothing: is there still a function `counted`?")
    return int(found[1])


def _count(binary: str, part: str) -> int:
    with tempfile.TemporaryDirectory(prefix="keepstep-bench-") as folder:
        output = f"--callgrind-out-file={folder}/callgrind.out"
        only = ("--collect-atstart=no", f"--toggle-collect={_COUNTED}")
        return read_total(
            _output("valgrind", "--tool=callgrind", output, *only, binary, part, timeout_s=PART_TIMEOUT_S)
        )


def _output(*command: str, timeout_s: float) -> str:
    """Standard output, and of valgrind what it says beside."""
    try:
        done = subprocess.run(  # noqa: S603 - commands of ours
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if command[0] == "valgrind" else None,
            timeout=timeout_s,
            text=True,
            check=True,
            cwd=REPOSITORY,
        )
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(command[:2])} failed: {(error.stdout or '')[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command[:2])} takes longer than {timeout_s:.0f} s") from error
    return done.stdout


def main(arguments: Sequence[str] | None = None, *, baseline: Path = BASELINE) -> int:
    """Count, compare and print; the exit status: 1 where a part is too dear."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="write today's counts, to compare with from now on")
    keep = parser.parse_args(arguments).keep
    try:
        counts = count_parts()
        if keep:
            baseline.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        parts = compare(counts, json.loads(baseline.read_text(encoding="utf-8")))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    for part in parts:
        print(part.line)
    return int(any(part.is_refused for part in parts))


if __name__ == "__main__":
    sys.exit(main())

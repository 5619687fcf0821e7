"""The gate on instruction counts: what it refuses, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import instructions
from bench.instructions import BASELINE, Part, compare, main, read_total
from bench.server import BenchError

CALLGRIND = """\
==8385== Callgrind, a call-graph generating cache profiler
==8385== Events    : Ir
==8385== Collected : 26008900
==8385==
==8385== I   refs:      26,008,900
"""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What callgrind would count: changed by the test."""
    counts = {"parse": 1_000, "verify": 2_000}
    monkeypatch.setattr(instructions, "count_parts", lambda: counts)
    return counts


def test_the_total_is_read_from_what_callgrind_says() -> None:
    """The one line that has all instructions of the counted function."""
    assert read_total(CALLGRIND) == 26_008_900


@pytest.mark.parametrize("output", ["", CALLGRIND.replace("26008900", "0")])
def test_a_count_of_nothing_is_an_error(output: str) -> None:
    """A renamed function must not make everything look free."""
    with pytest.raises(BenchError, match="counted nothing"):
        read_total(output)


@pytest.mark.parametrize(("count", "refused"), [(900, False), (1_000, False), (1_050, False), (1_051, True)])
def test_a_part_is_refused_above_the_tolerance_only(count: int, refused: bool) -> None:
    """Five of a hundred more is what compilers may make of it."""
    assert Part("parse", 1_000, count).is_refused is refused


def test_a_part_that_nobody_kept_is_refused() -> None:
    """Whoever adds a part keeps its count in the same change."""
    [part] = compare({"parse": 1}, {})
    assert part.is_refused
    assert "NEW" in part.line


def test_a_part_that_is_not_counted_any_more_is_an_error() -> None:
    """Else a benchmark that was dropped would pass for ever."""
    with pytest.raises(BenchError, match="not counted: verify"):
        compare({"parse": 1}, {"parse": 1, "verify": 2})


def test_lines_say_what_to_do() -> None:
    """Too dear, cheap enough to keep, or nothing."""
    assert Part("parse", 1_000, 1_200).line.endswith("+20.0%  TOO DEAR")
    assert Part("parse", 1_000, 800).line.endswith("keep it with --keep")
    assert Part("parse", 1_000, 1_010).line.endswith("+1.0%")


def test_counts_are_kept_and_compared_with(
    counted: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--keep` moves the baseline; without it a dearer part is exit status 1."""
    baseline = tmp_path / "kept.json"
    assert main(["--keep"], baseline=baseline) == 0
    assert json.loads(baseline.read_text(encoding="utf-8")) == counted
    assert main([], baseline=baseline) == 0
    counted["verify"] = 3_000
    assert main([], baseline=baseline) == 1
    assert "TOO DEAR" in capsys.readouterr().out
    del counted["verify"]
    assert main([], baseline=baseline) == 2
    assert "--keep forgets them" in capsys.readouterr().err


def test_a_program_that_fails_says_so() -> None:
    """Its last words are in the error; one that is not there is named."""
    with pytest.raises(BenchError, match="failed: no such part"):
        instructions._output(sys.executable, "-c", "print('no such part'); raise SystemExit(1)", timeout_s=60)
    with pytest.raises(BenchError, match="no-such-program is not installed"):
        instructions._output("no-such-program", timeout_s=60)


def test_the_kept_counts_are_those_of_the_benchmark() -> None:
    """The file and the table in Rust have the same names."""
    source = (BASELINE.parents[1] / "rust/core/benches/instructions.rs").read_text(encoding="utf-8")
    kept = json.loads(BASELINE.read_text(encoding="utf-8"))
    assert all(f'("{name}", ' in source for name in kept)
    assert len(kept) == source.count('    ("')

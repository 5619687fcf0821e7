"""Results become the documents' tables; what stands outside the marks stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import documents
from bench.documents import BEGIN, END
from tests.unit.bench.test_report import ORIGIN, results, write

PAGE = f"before\n{BEGIN}\nold\n{END}\nafter\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A document with its marks."""
    path = tmp_path / "performance.md"
    path.write_text(PAGE)
    return path


def run(page: Path, *sources: Path) -> int:
    """The command's exit status."""
    kept = page.parent / "kept"
    return documents.main([*map(str, sources), "--kept", str(kept), "--page", str(page)])


def saturated() -> dict[str, Any]:
    """Results of a load without a rate, of one repetition's worth of reports."""
    found: dict[str, Any] = results() | {"command": "python -m bench run s", "duration_s": 10, "repetitions": 3}
    found["loads"]["peak"]["runs"] = [{"published": 1}]
    return found


def test_goals_and_projection_stand_between_the_marks(page: Path) -> None:
    """With the range of what was seen, the command, and the event-loop thread apart."""
    assert run(page, write(page.parent, "s", saturated())) == 0

    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    goal = "| `s` | peak | acknowledged events/s | ≥ 60,000 | 58,000 (52,200 … 63,800) | **not reached** |"
    assert goal in text
    assert "PostgreSQL 18.6: fsync on, full_page_writes on, synchronous_commit on; 10 s of each load x 3" in text
    assert "`python -m bench run s`" in text
    projection = "| `s`, peak | 8.0 | 12.0 | 9.0 | 125,000 (event-loop thread) | 551,724 (5) |"
    assert projection in text


def test_results_are_kept_without_the_reports_of_single_runs(page: Path) -> None:
    """And every figure of them is in a table beside them."""
    run(page, write(page.parent, "s", saturated()))

    kept = json.loads((page.parent / "kept" / "s.json").read_text())
    assert "runs" not in kept["loads"]["peak"]
    assert kept["loads"]["peak"]["figures"] == saturated()["loads"]["peak"]["figures"]
    figures = (page.parent / "kept" / "figures.md").read_text()
    assert "## A title with <angles>" in figures
    assert "| ack p99 ms | 9.0 (8.1 … 9.9) | 9.0 (8.1 … 9.9) | 9.0 (8.1 … 9.9) |" in figures


def test_growth_and_soak_are_told_too(page: Path) -> None:
    """Growth as ratios with what was stored, a soak with its verdict; other tools' results are left alone."""
    found = {"median": 0.9, "low": 0.85, "high": 0.95}
    goal = {"load": "W1", "figure": "acknowledged_per_s", "ratio_to": "an empty database", "median": 0.9}
    growth = ORIGIN | {
        "scenario": "growth",
        "pairs": 6,
        "ratios": {"W1": {"acknowledged_per_s": found}},
        "figures": {"this": [], "base": []},
        "goals": [goal | {"at_least": 0.8, "at_most": None, "reached": True}],
        "after": {"events": 20_000_000},
    }
    soak = ORIGIN | {"scenario": "soak", "windows": [], "verdict": "memory is flat"}
    (page.parent / "kept").mkdir()
    write(page.parent / "kept", "k6", {"tool": "k6"})

    assert run(page, write(page.parent, "growth", growth), write(page.parent, "soak", soak)) == 0

    figures = (page.parent / "kept" / "figures.md").read_text()
    assert "| W1 | acknowledged events/s | 0.900 | 0.850 … 0.950 |\n\nAfterwards: events 20,000,000." in figures
    assert figures.endswith("memory is flat\n")
    row = "| `growth` | W1 | acknowledged events/s, of an empty database | ≥ 0.800 | 0.900 | reached |"
    assert row in page.read_text()


def test_a_benchmark_of_its_own_has_a_table_on_the_page_too(page: Path) -> None:
    """A row for each of its figures, a column for each of its results."""
    figures = {"before": {"p99_ms": 11.4, "events": 9_600}, "after": {"p99_ms": 13.0, "events": 9_600}}
    own = {name: value for name, value in ORIGIN.items() if name not in {"scenario", "title", "format"}}
    source = write(page.parent, "bench-retention", own | {"benchmark": "retention", "results": figures})

    assert run(page, source) == 0

    table = "|  | before | after |\n| --- | --- | --- |\n| p99 ms | 11.4 | 13.0 |\n| events | 9,600 | 9,600 |"
    kept = page.parent / "kept"
    assert "`python -m bench.retention`: 2026-01-01T00:00:00+00:00, keepstep 0.1.0 at abc." in page.read_text()
    for path in (page, kept / "figures.md"):
        assert table in path.read_text()
    assert (kept / "retention.json").exists()


def test_without_results_the_kept_ones_are_written_again(page: Path) -> None:
    """So that a table's form can change without a new run."""
    run(page, write(page.parent, "s", saturated()))
    before = page.read_text()
    page.write_text(PAGE)
    assert run(page) == 0
    assert page.read_text() == before


def test_a_page_without_marks_and_a_file_without_results_are_refused(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, and the page stays as it is."""
    assert run(page, write(page.parent, "other", {"format": 1})) == 1
    assert "other.json holds no results" in capsys.readouterr().err
    assert page.read_text() == PAGE
    page.write_text("nothing")
    assert run(page, write(page.parent, "s", saturated())) == 1
    assert "performance.md has no" in capsys.readouterr().err
    page.unlink()
    assert run(page) == 1
    assert "performance.md" in capsys.readouterr().err


def test_the_projects_own_page_has_its_marks() -> None:
    """The command finds its place."""
    text = documents.PAGE.read_text()
    assert text.index(BEGIN) < text.index(END)

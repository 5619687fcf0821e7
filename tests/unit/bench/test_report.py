"""Results become one page with pictures; what is no result of the suite is refused."""

from __future__ import annotations

import base64
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.report import InvalidResultsError, read_results
from bench.runner import FORMAT

FLAMES = "<svg>flames</svg>"
FLAMES_BASE64 = base64.b64encode(FLAMES.encode()).decode()
"""Each is a document of its own: their scripts use the same names."""
PNG = b"\x89PNG\r\n"
ORIGIN = {
    "format": FORMAT,
    "scenario": "s",
    "title": "a title with <angles>",
    "at": "2026-01-01T00:00:00+00:00",
    "commit": "abc",
    "version": "0.1.0",
}
MEASURED = ORIGIN | {"duration_s": 5, "command": "python -m bench run s --quick"}


def figure(value: float) -> dict[str, Any]:
    """A figure of three repetitions."""
    return {"median": value, "low": value * 0.9, "high": value * 1.1, "values": [value * 0.9, value, value * 1.1]}


def load(rate: float | None, reached: float) -> dict[str, Any]:
    """One load's results."""
    figures = {
        "acknowledged_per_s": figure(reached),
        "acknowledge_ms_p50": figure(3.0),
        "acknowledge_ms_p99": figure(9.0),
        "disk_ms_p99": figure(4.0),
        "server_us": figure(20.0),
        "loop_us": figure(8.0),
        "database_us": figure(9.0),
    }
    return {"load": {"workload": "relay", "rate": rate, "rate_share": None}, "figures": figures, "runs": []}


def results() -> dict[str, Any]:
    """A sweep with a goal."""
    goal = {"load": "peak", "figure": "acknowledged_per_s", "ratio_to": None, "at_least": 60_000.0, "at_most": None}
    machine = {"processor": "p", "cores": 2, "kernel": "k", "file_system": "ext4", "python": "3.11"}
    durability = {"version": 180_006, "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
    return MEASURED | {
        "machine": machine,
        "durability": durability,
        "loads": {"1,000/s": load(1_000, 1_000), "5,000/s": load(5_000, 5_000), "peak": load(None, 58_000)},
        "repetitions": 3,
        "goals": [goal | {"median": 58_000.0, "reached": False}],
    }


def write(folder: Path, name: str, content: object) -> Path:
    """A file of results."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_a_page_has_goals_figures_pictures_and_a_projection(tmp_path: Path) -> None:
    """And the flame graphs that lie beside the results; what others wrote is escaped."""
    source = write(tmp_path, "s", results())
    (tmp_path / "w2.svg").write_text(FLAMES)
    output = tmp_path / "out" / "report.html"

    assert report.main([str(source), "--output", str(output)]) == 0

    page = output.read_text()
    for part in ("not reached", "58,000", "18.6: fsync on", "a title with &lt;angles&gt;", "5 s of each load x 3"):
        assert part in page
    assert f'<object class="flames" type="image/svg+xml" data="data:image/svg+xml;base64,{FLAMES_BASE64}"' in page
    assert "64 cores" in page
    assert "125,000 (event-loop thread)" in page
    assert page.count("data:image/png;base64,") == 2
    assert [path.name for path in sorted(output.parent.glob("*.png"))] == ["s-cost.png", "s-latency.png"]
    assert (output.parent / "s-latency.png").read_bytes().startswith(PNG)


def test_a_soak_and_a_comparison_have_pictures_of_their_own(tmp_path: Path) -> None:
    """Memory over time, and ratios with their intervals."""
    window = {
        "resident": 2**27,
        "proportional": 2**27,
        "steady": {"acknowledge_ms_p50": 3.0, "acknowledge_ms_p99": 9.0},
    }
    soak = MEASURED | {"scenario": "soak", "window_s": 60, "windows": [window] * 6, "flat": True, "verdict": "flat"}
    ratio = {"median": 1.2, "low": 1.1, "high": 1.3, "pairs": 6}
    compared = MEASURED | {"scenario": "compare", "ratios": {"peak": {"acknowledged_per_s": ratio}}}
    sources = [write(tmp_path, "soak", soak), write(tmp_path, "compare", compared)]
    output = tmp_path / "out" / "report.html"

    assert report.main([*map(str, sources), "--output", str(output)]) == 0

    assert [path.name for path in sorted(output.parent.glob("*.png"))] == ["compare-ratios.png", "soak-soak.png"]
    assert "1.100 … 1.300" in output.read_text()


def test_what_has_no_line_has_no_picture(tmp_path: Path) -> None:
    """Two loads at one rate are none, and a server elsewhere shows no costs."""
    elsewhere = results()
    del elsewhere["durability"]
    elsewhere["loads"] = {"quiet": load(5_000, 4_998), "flooded": load(5_000, 5_001)}
    for each, name in product(elsewhere["loads"].values(), ("server_us", "loop_us", "database_us")):
        del each["figures"][name]
    output = tmp_path / "out" / "report.html"
    assert report.main([str(write(tmp_path, "s", elsewhere)), "--output", str(output)]) == 0
    assert list(output.parent.glob("*.png")) == []
    assert "what its acknowledgements mean is not known" in output.read_text()


@pytest.mark.parametrize("content", ["no JSON", [], {"format": 0, "loads": {}}, {"format": FORMAT}])
def test_what_is_no_result_is_refused(tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name."""
    path = write(tmp_path, "other", content)
    with pytest.raises(InvalidResultsError, match=r"other\.json"):
        read_results(path)
    assert report.main([str(path), "--output", str(tmp_path / "report.html")]) == 1
    assert "other.json" in capsys.readouterr().err

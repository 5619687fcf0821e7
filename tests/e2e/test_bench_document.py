"""The beginning of a real document, through a real server, to a second device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import document


@pytest.mark.slow
def test_a_second_device_reads_the_text_that_was_written(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise there is no result; the figures are of every edit."""
    monkeypatch.delenv("TRACE", raising=False)
    output = data_dir / "document.json"
    assert document.main(["--count", "600", "--directory", str(data_dir), "--output", str(output)]) == 0
    assert "written to" in capsys.readouterr().out
    results = json.loads(output.read_text())["results"]
    assert results["written"]["events"] == results["read"]["events"] == 600
    assert results["written"]["data_bytes_per_event"] == results["read"]["data_bytes_per_event"]
    assert results["written"]["stored_bytes_per_event"] > 0

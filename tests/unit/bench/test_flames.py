"""A flame graph is recorded by py-spy, which has to take how it is called."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from bench.flames import recording

if TYPE_CHECKING:
    from pathlib import Path


def test_the_recorder_takes_its_options(tmp_path: Path) -> None:
    """It looks at them before it looks for the process, which has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    found = subprocess.run(recording(ended.pid, 1, tmp_path / "out.svg"), capture_output=True, text=True, check=False)
    assert "Check that the process is running" in found.stderr

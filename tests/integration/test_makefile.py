"""What `make` is told reaches the server as it was meant."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, ""),
        (["DATA_DIR=my data"], {}, "my data"),
        (["DATA_DIR=/srv"], {"KEEPSTEP_DATA_DIR": "/var"}, "/srv"),
        ([], {"KEEPSTEP_DATA_DIR": "/var"}, "/var"),
    ],
)
def test_data_dir_is_set_for_the_server_only_where_somebody_sets_it(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    """A path may have spaces; where there is none, the configuration file or the default decides."""
    program = tmp_path / "bin" / "keepstep"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$KEEPSTEP_DATA_DIR"\n')
    program.chmod(0o755)
    # Of the `make` that runs the tests, above all that it prints where it works.
    theirs = ("MAKE", "MFLAGS", "DATA_DIR", "KEEPSTEP_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    command = ["make", "--dry-run", "serve", f"VENV={tmp_path}", *arguments]
    planned = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=True)
    start = planned.stdout.splitlines()[-1]
    served = subprocess.run(
        ["sh", "-c", start], env=inherited | environment, capture_output=True, text=True, check=True
    )
    assert served.stdout == f"{expected}\n"

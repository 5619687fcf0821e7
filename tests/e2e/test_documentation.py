"""The examples in the documentation of the client library run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keepstep.client import server
from tests.support.server_thread import server_in_thread

PAGE = Path(__file__).parents[2] / "docs/how-to/use-the-client-library.md"


@pytest.mark.slow
def test_the_examples_of_the_client_library_run(data_dir: Path, tmp_path: Path) -> None:
    """Each in a process of its own, one after the other in one directory, on a server of their own."""
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    printed = []
    with server_in_thread(data_dir) as address:
        for example in examples:
            script = example.replace(server.DEFAULT_REST_URL, address.rest_url)
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", script],
                cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            printed.append(done.stdout.splitlines())
    assert printed == [
        ["published as 1", "1 b'hello'"],
        ["2 b'hello again'"],
        ["b'please sync'"],
        ["b'ring'"],
        ["2 events so far"],
        ["conflict"],
        ["b'sum 6' up to 3"],
    ]

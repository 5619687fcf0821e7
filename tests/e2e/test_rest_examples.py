"""The REST examples run as they stand, in processes of their own, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from keepstep.client import accounts, server
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server_thread import ServerAddress, server_in_thread

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(data_dir: Path) -> Iterator[ServerAddress]:
    """Where a server is reached."""
    with server_in_thread(data_dir) as address:
        yield address


@pytest.fixture
def device_file(address: ServerAddress, tmp_path: Path) -> Path:
    """A device of a new user, where the commands look for devices."""
    path = tmp_path / "devices" / "laptop.sqlite3"
    path.parent.mkdir()
    create = partial(
        accounts.create_user,
        trio.run(server.find_server, address.rest_url),
        path=path,
        name="laptop",
        recovery_path=tmp_path / "recovery.txt",
        passphrase=PASSPHRASE,
        cost=CHEAP,
    )
    trio.run(create)
    return path


def run(*command: str | Path, home: Path) -> list[str]:
    """The lines that a command prints; it succeeds and has nothing to complain about."""
    environment = os.environ | {
        "KEEPSTEP_HOME": str(home),
        "KEEPSTEP_BIN": str(Path(sys.executable).parent),
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_python_program_publishes_and_reads_back(device_file: Path, tmp_path: Path) -> None:
    """Signed, stored, read, verified and decrypted; a second run goes on after the first."""
    command = (sys.executable, "-m", "examples.rest", "notes", device_file, "notes/kitchen")
    assert run(*command, "salt", home=tmp_path) == ["published as 1", "1 salt"]
    assert run(*command, "pepper", home=tmp_path) == ["published as 2", "1 salt", "2 pepper"]


@pytest.mark.slow
def test_the_curl_script_publishes_and_reads_back(device_file: Path, address: ServerAddress, tmp_path: Path) -> None:
    """From a token to signing out, after which the token is good for nothing."""
    script = ("sh", "examples/rest/session.sh", "laptop", "notes/kitchen")
    run(*script, "salt", address.rest_url, home=tmp_path)
    printed = run(*script, "pepper & more", address.rest_url, home=tmp_path)
    account, results = printed[1], printed[3]
    assert '"capabilities":["publish","subscribe","manage"]' in account
    # The one before is sent again, as nobody told the outbox that curl had done it: it is stored once.
    assert re.search(r'"result":"duplicate".*"result":"accepted"', results)
    assert printed[4:] == ["-- read", "1 salt", "2 pepper & more", "-- sign out", "then: 401"]


@pytest.mark.slow
def test_the_byte_by_byte_authentication_gives_a_token(device_file: Path, tmp_path: Path) -> None:
    """With nothing of keepstep but the device's file."""
    (token,) = run(sys.executable, "-m", "examples.rest.authenticate", device_file, home=tmp_path)
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token)


@pytest.mark.slow
def test_the_examples_of_the_how_to_run(device_file: Path, address: ServerAddress, tmp_path: Path) -> None:
    """Its Python as it stands there, and its commands with this server's address."""
    page = (ROOT / "docs/how-to/use-the-rest-api.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    program = program.replace('"laptop.sqlite3"', repr(str(device_file)))
    commands = f"PATH={Path(sys.executable).parent}:$PATH\n{commands.replace('curl', 'curl -fsS')}"

    assert run(sys.executable, "-c", program, home=tmp_path) == ["published as 1", "1 b'over REST'"]
    token, account = run("sh", "-ec", commands.replace("http://127.0.0.1:8440", address.rest_url), home=tmp_path)
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token)
    assert '"user_id"' in account

"""The device commands, as a person types them."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from keepstep.client import cli, device, server
from keepstep.client.store import open_store
from keepstep.errors import ClientError
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server_thread import ServerAddress

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for devices; the recovery file's key is cheap to derive."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEEPSTEP_DEVICE", raising=False)
    monkeypatch.setattr(cli, "_cost", lambda: CHEAP)
    return tmp_path / "home"


def run(*arguments: str, text: str | None = None) -> Result:
    """Run a command; what it raises is in the result."""
    return CliRunner().invoke(cli.commands, arguments, input=text)


def told(result: Result) -> str:
    """The message of the error that a command ended with."""
    assert isinstance(result.exception, ClientError | click.ClickException), result
    return str(result.exception)


@pytest.fixture
def laptop(home: Path, address: ServerAddress, tmp_path: Path) -> str:
    """The name of a first device."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(f"{PASSPHRASE}\n")
    result = run("device", "new", "laptop", "--server", address.rest_url, "--passphrase-file", str(passphrase))
    assert result.exit_code == 0, result.output
    assert address.device_url in result.output
    return "laptop"


def test_a_newcomer_sees_an_event_travel(home: Path, laptop: str) -> None:
    """Two devices, a publish, a tail: the text arrives with its author's name."""
    assert run("device", "new", "phone", "--by", laptop).exit_code == 0
    assert run("publish", "notes", "hello", "--device", laptop).output == "notes #1\n"
    shown = run("tail", "notes", "--device", "phone", "--from", "start", "--count", "1").output
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  laptop  hello\n", shown)
    listed = run("device", "list").output.splitlines()
    assert [line.split()[0] for line in listed] == ["laptop", "phone"]
    assert "publish+subscribe+manage" in listed[0]
    assert "manage" not in listed[1]


def test_each_line_of_standard_input_is_an_event(home: Path, laptop: str) -> None:
    """Also the last one without an end of line, and lines of other systems."""
    assert run("publish", "notes", "-", text="one\r\ntwo\nthree").output == "notes #1\nnotes #2\nnotes #3\n"
    shown = run("tail", "notes", "--from", "start", "--count", "3").output.splitlines()
    assert [line.split("  ")[-1] for line in shown] == ["one", "two", "three"]


def test_what_others_wrote_does_not_steer_the_terminal(home: Path, laptop: str) -> None:
    """Control characters are shown as what they are: nothing to show."""
    run("publish", "notes", "red \x1b[31m alert")
    assert "red \N{REPLACEMENT CHARACTER}[31m alert" in run("tail", "notes", "--from", "start", "--count", "1").output


def test_a_first_device_may_be_another_users(home: Path, laptop: str, address: ServerAddress) -> None:
    """A second user beside the first has to be asked for; the passphrase is asked for twice."""
    assert "--by" in told(run("device", "new", "other", "--server", address.device_url))
    answers = f"{PASSPHRASE}\n{PASSPHRASE}\n"
    result = run(
        "device", "new", "other", "--new-user", "--server", address.device_url, "--rest", address.rest_url, text=answers
    )
    assert result.exit_code == 0, result
    assert (home / "recovery-other.txt").exists()
    assert "which device?" in told(run("publish", "notes", "x"))


def test_what_cannot_be_done_is_told_plainly(home: Path, laptop: str) -> None:
    """Names that are none, devices that are not there, and devices that are."""
    assert "is no name for a device" in told(run("device", "new", "../laptop"))
    assert "here already" in told(run("device", "new", laptop))
    assert "there is no device nope here; there are: laptop" in told(run("tail", "notes", "--device", "nope"))


def test_without_any_device_the_commands_say_how_to_make_one(home: Path) -> None:
    """And without a server, how to start one."""
    assert "keepstep device new NAME" in run("device", "list").output
    assert "keepstep device new NAME" in told(run("publish", "notes", "x"))


def test_without_a_server_the_commands_say_how_to_start_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default address and a named one."""
    monkeypatch.setattr(server, "DEFAULT_REST_URL", NOWHERE)
    assert "cannot be reached" in told(run("device", "new", "laptop", "--server", NOWHERE))
    monkeypatch.setattr(server.find_server, "__defaults__", (NOWHERE,))
    assert "keepstep serve" in told(run("device", "new", "laptop"))


def test_a_text_that_could_not_be_sent_waits_in_the_outbox(
    home: Path, laptop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 75 says so; the next publish sends both."""
    monkeypatch.setattr(cli, "SERVER_WAIT_S", 0.05)
    path = cli.device_path(laptop)
    opened = device.open_device
    monkeypatch.setattr(device, "open_device", lambda file: opened(file, device_url="ws://127.0.0.1:1/v1/connect"))
    result = run("publish", "notes", "later")
    assert result.exit_code == cli.EXIT_WAITING
    assert "outbox" in result.output
    monkeypatch.undo()
    monkeypatch.setenv("KEEPSTEP_HOME", str(home))
    assert "2 waiting" in run("device", "list").output
    assert path.exists()
    assert run("publish", "notes", "now").output == "notes #2\n"


def test_a_device_in_use_is_listed_as_such(home: Path, laptop: str) -> None:
    """Another process may have it open; a file that is none is told apart from that."""
    store = open_store(cli.device_path(laptop))
    try:
        assert "in use" in run("device", "list").output
    finally:
        store.close()
    cli.device_path("broken").write_bytes(b"not a database" * 100)
    assert "not a device's file" in run("device", "list").output

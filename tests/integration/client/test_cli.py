"""The device commands, as a person types them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import httpx
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
    monkeypatch.setattr(cli, "cost", lambda: CHEAP)
    return tmp_path / "home"


def run(*arguments: str, text: str | None = None) -> Result:
    """Run a command; what it raises is in the result."""
    return CliRunner().invoke(cli.commands, arguments, input=text, prog_name="bin/keepstep")


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


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_each_line_of_standard_input_is_an_event(
    home: Path, laptop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also the last one without an end of line, and lines of other systems."""
    text = b"one\r\ntwo\nthree"
    if kind == "pipe":
        source, target = os.pipe()
        os.write(target, text)
        os.close(target)
    else:
        (tmp_path / "lines").write_bytes(text)
        source = os.open(tmp_path / "lines", os.O_RDONLY)
    monkeypatch.setattr(cli, "STDIN", source)
    assert run("publish", "notes", "-").output == "notes #1\nnotes #2\nnotes #3\n"
    os.close(source)
    shown = run("tail", "notes", "--from", "start", "--count", "3").output.splitlines()
    assert [line.split("  ")[-1] for line in shown] == ["one", "two", "three"]


@pytest.mark.slow
def test_a_line_is_acknowledged_before_the_next_and_an_interrupt_ends_it(home: Path, laptop: str) -> None:
    """At a terminal: each line gets its answer at once, and Ctrl-C does not wait for another one."""
    terminal, typing = pty.openpty()
    command = [sys.executable, "-m", "keepstep", "publish", "notes", "-"]
    with (
        subprocess.Popen(command, stdin=typing, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
        contextlib.ExitStack() as failed,
    ):
        failed.callback(process.kill)
        assert process.stdout is not None
        for number in (1, 2):
            os.write(terminal, b"a line\n")
            assert process.stdout.readline() == b"notes #%d\n" % number
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stdout.read() == b""
    os.close(terminal)
    os.close(typing)


def test_bytes_that_are_no_text_are_published_as_they_are(home: Path, laptop: str) -> None:
    """A shell passes them on as it got them."""
    assert run("publish", "notes", "caf\udce9").output == "notes #1\n"
    assert "caf\N{REPLACEMENT CHARACTER}" in run("tail", "notes", "--from", "start", "--count", "1").output


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


def test_options_that_contradict_each_other_are_refused(home: Path, laptop: str) -> None:
    """Above all another user's device, which must not become one of this user."""
    for option in (("--new-user",), ("--server", NOWHERE), ("--recovery", "x"), ("--rest", NOWHERE)):
        refused = run("device", "new", "other", "--by", laptop, *option)
        assert (refused.exit_code, "only --manage goes with it" in refused.output) == (2, True)
    refused = run("device", "new", "other", "--new-user", "--manage")
    assert (refused.exit_code, "goes with --by only" in refused.output) == (2, True)
    assert cli.device_names() == [laptop]


def test_a_passphrase_that_cannot_be_one_is_said_at_once(home: Path, address: ServerAddress, tmp_path: Path) -> None:
    """Before it is typed a second time; and plainly where nobody types, or the file holds no text."""
    command = ("device", "new", "laptop", "--server", address.rest_url)
    assert "--passphrase-file" in told(run(*command, text=""))
    unreadable = tmp_path / "passphrase"
    unreadable.write_bytes(b"\xff" * 20)
    assert "is not UTF-8 text" in told(run(*command, "--passphrase-file", str(unreadable)))
    done = run(*command, text=f"short\n{PASSPHRASE}\n{PASSPHRASE}\n")
    assert done.exit_code == 0, done.output
    assert done.output.count("Error") == 1


def test_without_any_device_the_commands_say_how_to_make_one(home: Path) -> None:
    """And without a server, how to start one."""
    assert "`bin/keepstep device new NAME`" in run("device", "list").output
    assert "`bin/keepstep device new NAME`" in told(run("publish", "notes", "x"))


def test_without_a_server_the_commands_say_how_to_start_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default address and a named one."""
    monkeypatch.setattr(server, "DEFAULT_REST_URL", NOWHERE)
    assert "cannot be reached" in told(run("device", "new", "laptop", "--server", NOWHERE))
    monkeypatch.setattr(server.find_server, "__defaults__", (NOWHERE,))
    assert "`bin/keepstep serve`" in told(run("device", "new", "laptop"))


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


def test_a_device_that_never_met_its_server_says_that_it_cannot_publish(
    home: Path, laptop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know yet who else there is, so nothing of it may wait."""
    run("device", "new", "phone", "--by", laptop)
    monkeypatch.setattr(cli, "SERVER_WAIT_S", 0.05)
    opened = device.open_device
    monkeypatch.setattr(device, "open_device", lambda file: opened(file, device_url="ws://127.0.0.1:1/v1/connect"))
    assert "nothing is published" in told(run("publish", "notes", "x", "--device", "phone"))


def test_a_device_in_use_is_listed_as_such(home: Path, laptop: str) -> None:
    """Another process may have it open; a file that is none is told apart from that."""
    store = open_store(cli.device_path(laptop))
    try:
        assert "in use" in run("device", "list").output
    finally:
        store.close()
    cli.device_path("broken").write_bytes(b"not a database" * 100)
    assert "not a device's file" in run("device", "list").output


def test_a_token_lets_a_shell_ask_rest(laptop: str, address: ServerAddress) -> None:
    """It is all that is printed, and it stands for the device."""
    result = run("token")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", result.output)
    headers = {"authorization": f"Bearer {result.output.strip()}"}
    assert httpx.get(f"{address.rest_url}/api/v1/account", headers=headers, timeout=60).status_code == 200


def test_a_token_of_another_address_is_refused(laptop: str) -> None:
    """With what to do."""
    assert "cannot be reached" in told(run("token", "--rest", NOWHERE))

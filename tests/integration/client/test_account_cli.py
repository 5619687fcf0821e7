"""The commands for a lost device, as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from keepstep.client import account_cli, cli
from keepstep.client.store import open_store
from keepstep.errors import ClientError, ProtocolError
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server_thread import ServerAddress


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: ServerAddress) -> Path:
    """Where a laptop that manages and a phone are."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEEPSTEP_DEVICE", raising=False)
    monkeypatch.setattr(cli, "cost", lambda: CHEAP)
    passphrase_file(tmp_path).write_text(f"{PASSPHRASE}\n")
    made = ("device", "new", "laptop", "--server", address.rest_url, "--passphrase-file")
    assert run(*made, str(passphrase_file(tmp_path))).exit_code == 0
    assert run("device", "new", "phone", "--by", "laptop").exit_code == 0
    return tmp_path / "home"


def passphrase_file(directory: Path) -> Path:
    """Where the passphrase is."""
    return directory / "passphrase"


def run(*arguments: str, text: str | None = None) -> Result:
    """Run a command; what it raises is in the result."""
    return CliRunner().invoke(account_cli.commands, arguments, input=text, prog_name="bin/keepstep")


def device_id(home: Path, name: str) -> bytes:
    """Of a device on this machine."""
    store = open_store(home / "devices" / f"{name}.sqlite3")
    try:
        return store.identity.device_id
    finally:
        store.close()


def test_a_device_is_revoked_by_name(home: Path) -> None:
    """It is a device no more, and the list says so where its file is."""
    assert run("publish", "notes", "hello", "--device", "phone").exit_code == 0
    assert run("device", "revoke", "phone", "--device", "laptop").output == "phone is revoked\n"
    ended = run("publish", "notes", "hello", "--device", "phone")
    assert isinstance(ended.exception, ProtocolError)
    listed = run("device", "list").output.splitlines()
    assert [line.split()[:2] for line in listed] == [["laptop", "user"], ["phone", "revoked:"]]


def test_a_device_is_revoked_by_id_and_its_user_is_told(home: Path) -> None:
    """Another device says so, with what to do about it."""
    assert run("device", "new", "tablet", "--by", "laptop").exit_code == 0
    assert run("publish", "notes", "1", "--device", "tablet").exit_code == 0
    assert run("device", "revoke", device_id(home, "phone").hex(), "--device", "laptop").exit_code == 0
    assert run("tail", "notes", "--device", "tablet", "--from", "start", "--count", "1").exit_code == 0
    notices = [line for line in run("device", "list").output.splitlines() if line.startswith("  ")]
    assert [line.partition("  ")[2].lstrip()[18:] for line in notices] == ["phone was revoked"]


def test_a_device_that_is_none_or_that_may_not_is_told(home: Path) -> None:
    """By a message that names what would work."""
    assert str(run("device", "revoke", "phnoe", "--device", "laptop").exception) == "there is no live device phnoe"
    refused = run("device", "revoke", "laptop", "--device", "phone")
    assert str(refused.exception) == "phone may not revoke devices: laptop may"
    last = run("device", "revoke", "laptop", "--device", "laptop")
    assert "the last device that manages cannot revoke itself" in str(last.exception)
    assert run("publish", "notes", "hello", "--device", "laptop").output == "notes #1\n"


def test_a_device_may_sign_itself_out(home: Path) -> None:
    """Also one that does not manage; its file has no keys afterwards."""
    assert run("device", "revoke", "phone", "--device", "phone").output == "phone is revoked\n"
    assert "phone                 revoked" in run("device", "list").output


def test_everything_is_recovered_from_the_file(home: Path, tmp_path: Path, address: ServerAddress) -> None:
    """A new device reads all; the old file is void; a device that is kept goes on."""
    run("publish", "notes", "hello", "--device", "laptop")
    old = home / "recovery-laptop.txt"
    options: tuple[str, ...] = ("--server", address.device_url, "--rest", address.rest_url)
    options += ("--passphrase-file", str(passphrase_file(tmp_path)))
    recovered = run("recover", str(old), "--name", "new", "--keep", "phone", *options)
    assert recovered.exit_code == 0, recovered.output
    assert f"{old} is void" in recovered.output
    shown = run("tail", "notes", "--device", "new", "--from", "start", "--count", "1").output
    assert shown.endswith("  laptop  hello\n")
    assert run("publish", "notes", "on", "--device", "phone").output == "notes #2\n"
    assert isinstance(run("publish", "notes", "off", "--device", "laptop").exception, ProtocolError)
    again = run("recover", str(old), "--name", "again", *options)
    assert str(again.exception) == "this recovery file is void: a newer one was made from it, or the account is gone"
    assert not (home / "devices" / "again.sqlite3").exists()


def test_a_wrong_passphrase_and_an_unknown_device_are_said_first(home: Path, address: ServerAddress) -> None:
    """Before anything is asked of a server."""
    old = str(home / "recovery-laptop.txt")
    wrong = run("recover", old, "--name", "new", text="another passphrase\n")
    assert isinstance(wrong.exception, ClientError)
    assert "another passphrase" in str(wrong.exception)
    unknown = run("recover", old, "--name", "new", "--keep", "tablet")
    assert str(unknown.exception) == "there is no device tablet here: name the id of a device that is elsewhere"


def test_a_device_is_kept_by_the_name_that_another_one_knows(home: Path, tmp_path: Path) -> None:
    """Also where its own file is elsewhere; the address is that of the recovery file where none is named."""
    kept = device_id(home, "phone")
    (home / "devices" / "phone.sqlite3").rename(tmp_path / "elsewhere")
    assert run("publish", "notes", "1", "--device", "laptop").exit_code == 0
    assert account_cli._kept("phone") == account_cli._kept(kept.hex()) == kept
    options = ("--name", "new", "--keep", "phone", "--passphrase-file", str(passphrase_file(tmp_path)))
    elsewhere = run("recover", str(home / "recovery-laptop.txt"), *options)
    assert "say with --rest" in str(elsewhere.exception)  # REST is not where a default server has it
    assert not (home / "devices" / "new.sqlite3").exists()

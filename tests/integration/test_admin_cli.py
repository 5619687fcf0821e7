"""``keepstep admin``, as an operator types it, against a running server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from keepstep import admin_cli
from keepstep.admin_cli import admin
from keepstep.client import cli
from keepstep.client.http import Response, raise_for_problem, request
from keepstep.client.store import open_store
from keepstep.errors import ClientError
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.events import DeviceFixture, UserFixture
from tests.support.parts import Parts
from tests.support.server_thread import ServerAddress, server_in_thread
from tests.unit.test_account_file import a_life, export

if TYPE_CHECKING:
    from keepstep.interfaces import Genesis

KEY: Final = "correct-horse-battery-staple-0123456789"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerAddress]:
    """A server that lets in who was invited, with an administration key."""
    data_dir: Path = tmp_path_factory.mktemp("data")
    with server_in_thread(data_dir, admin_api_key=KEY, registration="invite") as address:
        yield address


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment, as an operator has it."""
    monkeypatch.delenv("KEEPSTEP_ADMIN_API_KEY", raising=False)
    monkeypatch.setenv("ADMIN_API_KEY", KEY)


def run(address: ServerAddress, *arguments: str) -> Result:
    """A command; what it raises is in the result."""
    return CliRunner().invoke(admin, ["--server", address.rest_url, *arguments])


def answered(address: ServerAddress, *arguments: str) -> Any:
    """What a command that is right prints for programs."""
    result = run(address, "--json", *arguments)
    assert result.exit_code == 0, result
    return json.loads(result.stdout)


def register(address: ServerAddress, name: str) -> str:
    """An account with an invite of its own; its user id."""
    genesis: Genesis = DeviceFixture(UserFixture(name), "phone").genesis()
    code = answered(address, "invite", "--note", f"for {name}")["code"]

    async def post() -> None:
        body = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
        url = f"{address.rest_url}/api/v1/accounts"
        headers = {"Keepstep-Invite": code}
        raise_for_problem(await request("POST", url, body=body, content_type="application/msgpack", headers=headers))

    trio.run(post)
    return genesis.user_key.hex()


def test_the_server_is_asked_on_the_port_that_its_setting_names(
    address: ServerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no --server says otherwise."""
    monkeypatch.setenv("KEEPSTEP_REST_PORT", str(urlsplit(address.rest_url).port))
    result = CliRunner().invoke(admin, ["users"])
    assert result.exit_code == 0, result


def test_an_operator_sees_who_is_here_and_what_they_have(address: ServerAddress) -> None:
    """Tables for people: ids are whole also where nobody looks."""
    user_id = register(address, "ada")
    listed = run(address, "users")
    assert listed.exit_code == 0
    assert user_id in listed.stdout
    assert "devices quota" in listed.stdout
    assert user_id in run(address, "user", user_id).stdout
    devices = run(address, "devices", user_id).stdout
    assert "publish, subscribe, manage" in devices
    assert "last seen" in devices
    assert "$devices" in run(address, "streams", user_id).stdout
    assert run(address, "sessions").exit_code == 0
    assert answered(address, "sessions", "--user", user_id) == []


def test_an_operator_disables_and_enables_an_account(address: ServerAddress) -> None:
    """And sets what it may have."""
    user_id = register(address, "ben")
    assert answered(address, "disable", user_id)["disabled_at_ms"] is not None
    assert answered(address, "enable", user_id)["disabled_at_ms"] is None
    expected = {"streams_max": 5, "devices_max": None, "bytes_max": 4096, "retention_days": None}
    assert answered(address, "quota", user_id, "--streams", "5", "--bytes", "4KiB") == expected
    refused = run(address, "quota", user_id, "--bytes", "much")
    assert "a size is a number of bytes" in refused.output
    assert answered(address, "user", user_id)["quota"] == expected
    assert "5" in run(address, "quota", user_id, "--streams", "5").stdout
    assert answered(address, "quota", user_id, "--retention-days", "90")["retention_days"] == 90


def test_an_operator_makes_invites_and_takes_them_back(address: ServerAddress) -> None:
    """The code is shown with the invite, and never again."""
    made = answered(address, "invite", "--note", "for <nobody> [bold]", "--days", "1")
    listed = run(address, "invites")
    assert made["invite_id"] in listed.stdout
    assert "for <nobody> [bold]" in listed.stdout
    assert made["code"] not in listed.stdout
    assert run(address, "delete-invite", made["invite_id"]).exit_code == 0
    assert made["invite_id"] not in run(address, "invites").stdout
    again = run(address, "delete-invite", made["invite_id"])
    assert "there is no such thing" in str(again.exception)


def test_whoever_was_invited_makes_a_device(
    address: ServerAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else; and an invite is good for one account."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli, "cost", lambda: CHEAP)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE)
    code = answered(address, "invite")["code"]

    def make(name: str, *options: str) -> Result:
        command = ["device", "new", name, "--new-user", "--server", address.rest_url, "--passphrase-file"]
        return CliRunner().invoke(cli.commands, [*command, str(passphrase), *options])

    assert "invite_invalid" in str(make("laptop").exception)
    assert "invite_invalid" in str(make("laptop", "--invite", "no-code").exception)
    assert make("laptop", "--invite", code).exit_code == 0
    assert "invite_invalid" in str(make("phone", "--invite", code).exception)


def test_a_text_of_a_disabled_account_waits_in_the_outbox(
    address: ServerAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is told so: typed again, the text would be there twice."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli, "cost", lambda: CHEAP)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE)
    command = ["device", "new", "laptop", "--server", address.rest_url, "--passphrase-file", str(passphrase)]

    def type_in(*arguments: str) -> Result:
        return CliRunner().invoke(cli.commands, arguments)

    assert type_in(*command, "--invite", answered(address, "invite")["code"]).exit_code == 0
    assert type_in("publish", "notes", "first").output == "notes #1\n"
    with contextlib.closing(open_store(cli.device_path("laptop"))) as store:
        user_id = store.identity.user_key.hex()
    assert run(address, "disable", user_id).exit_code == 0
    refused = type_in("publish", "notes", "second")
    assert refused.exit_code == 1
    assert "it is in the outbox" in refused.stderr
    assert run(address, "enable", user_id).exit_code == 0
    assert type_in("publish", "notes", "third").output == "notes #3\n"


def test_an_operator_reads_an_account_in(
    address: ServerAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server runs; a file that does not verify is named, and one that is too large is not sent."""
    parts = Parts()

    async def written() -> tuple[str, bytes]:
        phone = await a_life(parts)
        return phone.user.user_key.hex(), await export(parts, phone)

    user_id, data = trio.run(written)
    file, cut_short = tmp_path / "alice.keepstep", tmp_path / "damaged.keepstep"
    file.write_bytes(data)
    cut_short.write_bytes(data[:-1])
    assert answered(address, "import-account", str(file), "--verify")["stored"] is None
    assert "cut short" in str(run(address, "import-account", str(cut_short)).exception)
    read_in = answered(address, "import-account", str(file))
    assert (read_in["user_id"], read_in["stored"]) == (user_id, read_in["events"])
    assert user_id in run(address, "import-account", str(file)).stdout
    assert answered(address, "user", user_id)["streams"] == read_in["streams"]
    monkeypatch.setattr(admin_cli, "IMPORT_BYTES_MAX", 10)
    assert "keepstep import-account" in str(run(address, "import-account", str(file)).exception)


def test_programs_ask_before_or_after_the_command(address: ServerAddress) -> None:
    """``--json`` is where people expect it, too."""
    after = run(address, "statistics", "--json")
    assert json.loads(after.stdout) == answered(address, "statistics")
    assert "--json" in run(address, "users", "--help").stdout


def test_a_list_is_read_to_its_limit(address: ServerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page; a person is told that there may be more."""
    monkeypatch.setattr("keepstep.admin_cli.PAGE_LIMIT", 2)
    for _ in range(5):
        answered(address, "invite")
    assert len(answered(address, "invites", "--limit", "5")) == 5
    assert len(answered(address, "invites", "--limit", "1000")) >= 5
    assert "more with --limit" in run(address, "invites", "--limit", "3").stderr


def test_an_operator_looks_after_the_server(address: ServerAddress) -> None:
    """What it holds, what it removes, who administrated it, and its token key."""
    assert "database bytes" in run(address, "statistics").stdout
    assert answered(address, "statistics")["open_sessions"] == 0
    retention = run(address, "retention").stdout
    assert "for ever" in retention
    assert "none by this server" in retention
    kid = answered(address, "rotate-token-key", "--stolen")["kid"]
    assert kid not in run(address, "rotate-token-key").stdout
    assert "post_admin_keys_tokens_rotate" in run(address, "audit").stdout
    assert answered(address, "keys")["token_keys"][0] != kid
    assert "none" in run(address, "keys").stdout
    successor = answered(address, "announce-server-key", "--from-days", "1")["server_key"]
    assert successor in run(address, "keys").stdout
    assert "announced already" in str(run(address, "announce-server-key").exception)
    cut = run(address, "cut", "0" * 32)
    assert "there is no such thing" in str(cut.exception)


def test_an_identifier_cannot_lead_elsewhere(address: ServerAddress) -> None:
    """What is typed is one part of a path."""
    assert isinstance(run(address, "user", "../audit").exception, ClientError)


def test_a_wrong_key_is_explained(address: ServerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is none, and one that no server can have; the variable with our prefix goes first."""
    monkeypatch.setenv("KEEPSTEP_ADMIN_API_KEY", "x" * 32)
    assert "another key than the server's" in str(run(address, "users").exception)
    monkeypatch.setenv("KEEPSTEP_ADMIN_API_KEY", "with\nbreak")
    assert "no administration key has" in str(run(address, "users").exception)
    monkeypatch.delenv("KEEPSTEP_ADMIN_API_KEY")
    monkeypatch.delenv("ADMIN_API_KEY")
    assert "set ADMIN_API_KEY" in str(run(address, "users").exception)


def test_another_refusal_is_named(address: ServerAddress) -> None:
    """By the code of the error table, and with what is wrong."""
    refused = str(run(address, "user", "nobody").exception)
    assert refused.startswith("the server refuses: malformed: the path: ")
    assert "streams_max" in str(run(address, "quota", "0" * 64, "--streams", "-1").exception)


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"7"])
def test_an_answer_of_another_program_is_told(
    address: ServerAddress, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """As behind a wrong address, where everything is answered with a page."""

    async def other(*_: object, **__: object) -> Response:
        return Response(200, "text/html", body)

    monkeypatch.setattr(admin_cli, "request", other)
    assert "is not a keepstep server" in str(run(address, "statistics").exception)

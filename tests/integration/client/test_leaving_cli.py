"""``keepstep export-account`` and ``keepstep delete-account``, as a person types them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from keepstep.account_file import AccountFile
from keepstep.account_import import import_account
from keepstep.admin_cli import admin
from keepstep.client import account_cli, cli, crypto, rest
from keepstep.client.http import Response
from keepstep.client.leaving_cli import delete_account, export_account
from keepstep.client.rest import RestClient
from keepstep.client.store import open_store
from keepstep.errors import ClientError, ProtocolError
from keepstep.memory import MemoryAccounts, MemoryDatabase, MemoryLog
from keepstep.protocol.receipt import verify_receipt
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.server_thread import ServerAddress, server_in_thread


@pytest.fixture(autouse=True)
def laptop(tmp_path: Path, address: ServerAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only device of a user, which has published something."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEEPSTEP_DEVICE", raising=False)
    monkeypatch.setattr(cli, "cost", lambda: CHEAP)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE)
    server = ["--server", address.rest_url, "--passphrase-file", str(passphrase)]
    for arguments in (["device", "new", "laptop", *server], ["publish", "notes", "hello"]):
        made = CliRunner().invoke(cli.commands, arguments)
        assert made.exit_code == 0, made


def export(file: Path) -> Result:
    """Write the account into a file."""
    return CliRunner().invoke(export_account, [str(file)])


async def verify(file: Path) -> int:
    """How many events an account file has, each verified."""
    database = MemoryDatabase()
    with file.open("rb") as opened:
        imported = await import_account(AccountFile(opened), MemoryLog(database), MemoryAccounts(database))
    return imported.events


def test_an_account_is_exported_as_one_file(tmp_path: Path) -> None:
    """Which another server verifies; a file that is there is not touched."""
    file = tmp_path / "account.keepstep"
    result = export(file)
    assert result.exit_code == 0, result
    assert f"{file.stat().st_size} bytes" in result.output
    assert trio.run(verify, file) >= 2  # the genesis and the text; the content key may still be in the outbox
    assert "is there already" in str(export(file).exception)
    assert not (tmp_path / "account.keepstep.part").exists()


@pytest.mark.parametrize("cut", [1, 40])
def test_a_file_that_ends_early_is_not_kept(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks between two pieces looks like an end."""
    whole = RestClient.request

    async def request(self: RestClient, method: str, path: str, **arguments: object) -> object:
        sink = arguments["sink"]
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        answer = await whole(self, method, path, sink=keep)
        await sink(b"".join(pieces)[:-cut])  # type: ignore[operator]
        return answer

    monkeypatch.setattr(RestClient, "request", request)
    assert "before its end" in str(export(tmp_path / "account.keepstep").exception)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("account")] == []


def test_an_account_is_deleted_for_a_receipt(tmp_path: Path) -> None:
    """Asked for twice; signed by the server that the device pins; afterwards nothing of it is let in."""
    receipt = tmp_path / "receipt"
    assert CliRunner().invoke(delete_account, [], input="n\n").exit_code == 1
    assert export(tmp_path / "before").exit_code == 0
    result = CliRunner().invoke(delete_account, ["--receipt", str(receipt)], input="y\n")
    assert result.exit_code == 0, result
    data, sig = (bytes.fromhex(line) for line in receipt.read_text().splitlines())
    store = open_store(tmp_path / "home" / "devices" / "laptop.sqlite3")
    signed = verify_receipt(crypto, store.identity.server_key, data, sig)
    assert signed.user_key == store.identity.user_key
    store.close()
    assert isinstance(export(tmp_path / "after").exception, ProtocolError)
    assert not (tmp_path / "after").exists()


@pytest.mark.parametrize("field", ["receipt", "signature"])
def test_a_receipt_that_proves_nothing_is_told(tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has said that it deleted the account, and can deny it."""
    real = rest.decode_answer

    def forged(response: Response, answer_type: type[Any]) -> Any:
        answer = real(response, answer_type)
        if answer_type is rest._Deleted:
            answer = msgspec.structs.replace(answer, **{field: "A" * 86})
        return answer

    monkeypatch.setattr(rest, "decode_answer", forged)
    result = CliRunner().invoke(delete_account, ["--yes"])
    assert isinstance(result.exception, ClientError)
    assert "proves nothing" in str(result.exception)


def test_an_account_stays_where_its_receipt_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt is given once; nor is a file left behind where the server does not delete."""
    there = tmp_path / "there"
    there.write_text("a receipt of before")
    for receipt in (there, tmp_path / "nowhere" / "receipt"):
        result = CliRunner().invoke(delete_account, ["--receipt", str(receipt)], input="y\n")
        assert isinstance(result.exception, OSError)
    assert export(tmp_path / "still-there").exit_code == 0

    async def refuse(_client: RestClient) -> object:
        await trio.lowlevel.checkpoint()
        raise ProtocolError("unavailable")

    monkeypatch.setattr(RestClient, "delete_account", refuse)
    result = CliRunner().invoke(delete_account, ["--receipt", str(tmp_path / "receipt")], input="y\n")
    assert isinstance(result.exception, ProtocolError)
    assert not (tmp_path / "receipt").exists()


def test_a_device_is_moved_by_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names the other server's key, or confirms the one that is shown; what it publishes next is there."""
    key = "correct-horse-battery-staple-0123456789"
    monkeypatch.setenv("ADMIN_API_KEY", key)
    file = tmp_path / "account.keepstep"
    assert export(file).exit_code == 0

    def run(*arguments: str, answer: str = "") -> Result:
        return CliRunner().invoke(account_cli.commands, arguments, input=answer)

    with server_in_thread(tmp_path / "there", admin_api_key=key) as there:
        pinned = f"{there.rest_url}#{there.device_url.partition('#')[2]}"
        missing = run("device", "move", pinned, "--yes")
        assert "import its account there first" in str(missing.exception)
        read_in = CliRunner().invoke(admin, ["--server", there.rest_url, "import-account", str(file)])
        assert read_in.exit_code == 0, read_in
        assert "names the server's key" in str(run("device", "move", there.rest_url, "--yes").exception)
        assert run("device", "move", there.rest_url, answer="n\n").exit_code == 1
        moved = run("device", "move", pinned, answer="y\n")
        assert moved.exit_code == 0, moved
        assert pinned.partition("#")[2] in moved.output
        published = run("publish", "notes", "there")
        assert published.output == "notes #2\n", published
        again = run("recover", str(file), "--name", "new", "--moved", "--server", there.rest_url)
        assert "name the server and its key" in str(again.exception)

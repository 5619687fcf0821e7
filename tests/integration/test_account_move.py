"""An account moves from one server to another: exported over REST, read in from the shell, used on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio

from keepstep import cli
from keepstep.account_file import CONTENT_TYPE
from keepstep.journal import AccountRecord, read_journal
from keepstep.postgres.verification import verify_database
from keepstep.runtime import SystemClock
from tests.integration.test_rest_application import Account, account
from tests.support.events import DeviceFixture
from tests.support.server import running_server

ADMIN_KEY: Final = "correct-horse-battery-staple-0123456789"


async def export(data_dir: Path, file: Path) -> tuple[DeviceFixture, dict[str, Any]]:
    """An account with events on one server, as a file; the device, and what the server said of its stream."""
    async with account(data_dir) as (_, alice):
        await alice.publish(*alice.phone.events("notes", 200))
        await alice.publish(*alice.phone.events("notes", 100))
        await alice.publish(alice.phone.event("empty", b""))
        answer = await alice.http.get("/api/v1/account/export")
        assert answer.status_code == 200
        assert answer.headers["content-disposition"].endswith('.keepstep"')
        file.write_bytes(answer.content)
        return alice.phone, await stands(alice)


async def stands(alice: Account) -> dict[str, Any]:
    """Where a stream and its author stand."""
    stream = (await alice.http.get("/api/v1/streams/notes")).json()
    return {name: stream[name] for name in ("head", "author", "policy")}


def in_journal(data_dir: Path, phone: DeviceFixture) -> list[int]:
    """Which events of the account log a server has written down outside of its database."""
    found = [record for record in read_journal(data_dir) if isinstance(record, AccountRecord)]
    return [record.seq for record in found if record.user_key == phone.user.user_key]


async def go_on(data_dir: Path, database_url: str, phone: DeviceFixture) -> tuple[dict[str, Any], dict[str, Any]]:
    """The device on the other server: where the stream stands there, and what becomes of its next event."""
    async with (
        running_server(data_dir, database_url=database_url) as server,
        httpx.AsyncClient(base_url=server.rest_url, timeout=30) as http,
    ):
        alice = Account(http, phone)
        await alice.sign_in()
        found = await stands(alice)
        (result,) = await alice.publish(phone.event("notes"))
        return found, result


@pytest.mark.slow
def test_an_account_goes_on_on_another_server(
    tmp_path: Path,
    data_dir: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its device signs in there, finds its streams where they were, and publishes its next event."""
    file = tmp_path / "alice.keepstep"
    phone, before = trio.run(export, data_dir, file)
    monkeypatch.setenv("KEEPSTEP_DATA_DIR", str(data_dir))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr("keepstep.telemetry.configure_logging", lambda *_: None)
    told = []
    for arguments in (["--verify"], [], []):
        with pytest.raises(SystemExit) as ended:
            cli.main(["import-account", str(file), *arguments])
        assert not ended.value.code
        told.append(capsys.readouterr().out.splitlines()[-1])
    verified = f"302 events in 4 streams of {phone.user.user_key.hex()} verify"
    assert in_journal(data_dir, phone) == [1, 1], "once stored, once repeated"
    assert told == [verified, f"{verified}; 302 of them are new here", f"{verified}; 0 of them are new here"]

    after, result = trio.run(go_on, data_dir, database_url, phone)
    assert after == before
    assert (result["result"], result["first_seq"]) == ("accepted", before["head"]["seq"] + 1)
    report = verify_database(database_url, now_ms=SystemClock().now_ms())
    assert (report.faults, report.events) == ((), 303)


@pytest.mark.slow
async def test_an_account_is_read_in_by_a_running_server(tmp_path: Path, data_dir: Path, database_url: str) -> None:
    """Over REST, with the administration key; its device goes on there at once, in PostgreSQL as in memory."""
    file = tmp_path / "alice.keepstep"
    phone, before = await export(tmp_path / "elsewhere", file)
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": CONTENT_TYPE}
    settings = {"admin_api_key": ADMIN_KEY}
    async with (
        running_server(data_dir, database_url=database_url, settings=settings) as server,
        httpx.AsyncClient(base_url=server.rest_url, timeout=60) as http,
    ):
        answers = []
        for content in (file.read_bytes()[:-1], file.read_bytes(), file.read_bytes()):
            answer = await http.post("/admin/accounts/import", content=content, headers=headers)
            answers.append((answer.status_code, answer.json().get("stored")))
        assert answers == [(422, None), (200, 302), (200, 0)]
        assert in_journal(data_dir, phone) == [1]
        alice = Account(http, phone)
        await alice.sign_in()
        assert await stands(alice) == before
        (result,) = await alice.publish(phone.event("notes"))
        assert (result["result"], result["first_seq"]) == ("accepted", before["head"]["seq"] + 1)


def test_a_damaged_file_is_refused_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any database is looked for."""
    file = tmp_path / "damaged.keepstep"
    file.write_bytes(b"keepstep account 1\n\0\0\0")
    with pytest.raises(SystemExit) as ended:
        cli.main(["import-account", str(file)])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "keepstep: the file was cut short or is damaged\n"

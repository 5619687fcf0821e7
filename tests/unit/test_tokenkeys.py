"""The keys that sign access tokens, in their file."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from keepstep import accesstokens
from keepstep.errors import ProtocolError, StartupError
from keepstep.memory import MemoryTokens
from keepstep.runtime import SystemRandomness
from keepstep.tokenkeys import FILE_NAME, KEYS_MAX, TokenKeyFile
from tests.support.events import NOW_MS
from tests.support.parts import Parts
from tests.support.tokens import make_tokens, sign_in

HOUR_MS: Final = 3_600_000


def opened(data_dir: Path, now_ms: int = NOW_MS) -> TokenKeyFile:
    """The keys of a directory, as a process that starts has them."""
    keys = TokenKeyFile(data_dir, SystemRandomness())
    keys.open(now_ms)
    return keys


def problem(data_dir: Path) -> str:
    """What a process that starts says of the file."""
    with pytest.raises(StartupError) as caught:
        opened(data_dir)
    return str(caught.value)


def test_a_first_start_makes_a_key_that_stays(tmp_path: Path) -> None:
    """Readable by its owner alone, and nothing else is left beside it."""
    first, second = opened(tmp_path), opened(tmp_path, NOW_MS + HOUR_MS)

    assert first.current == second.current
    assert first.valid(NOW_MS) == [first.current]
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert opened(Path(tmp_path)).current.secret.hex() in (tmp_path / FILE_NAME).read_text()


def test_a_replaced_key_verifies_until_its_last_token_has_run_out(tmp_path: Path) -> None:
    """And then no longer, in this process and in one that starts later."""
    keys = opened(tmp_path)
    old = keys.current
    keys.rotate(NOW_MS, overlap_ms=HOUR_MS)

    assert keys.current != old
    for each in (keys, opened(tmp_path)):
        assert each.valid(NOW_MS + HOUR_MS - 1) == [keys.current, old]
        assert each.valid(NOW_MS + HOUR_MS) == [keys.current]
    keys.rotate(NOW_MS + HOUR_MS, overlap_ms=HOUR_MS)
    assert len(json.loads((tmp_path / FILE_NAME).read_text())["keys"]) == 2


def test_stolen_keys_verify_nothing(tmp_path: Path) -> None:
    """Neither the one that signed until now nor those before it."""
    keys = opened(tmp_path)
    keys.rotate(NOW_MS, overlap_ms=HOUR_MS)
    keys.rotate(NOW_MS, overlap_ms=0)

    assert keys.valid(NOW_MS) == [keys.current]
    assert opened(tmp_path).valid(NOW_MS) == [keys.current]


def test_only_so_many_keys_verify(tmp_path: Path) -> None:
    """Another rotation says how long to wait; giving up the old keys needs no room."""
    keys = opened(tmp_path)
    for number in range(KEYS_MAX - 1):
        keys.rotate(NOW_MS + number, overlap_ms=HOUR_MS)
    current = keys.current

    with pytest.raises(ProtocolError, match="limit_exceeded") as caught:
        keys.rotate(NOW_MS + 1000, overlap_ms=HOUR_MS)
    assert caught.value.retry_after_ms == HOUR_MS - 1000
    assert keys.current == current
    assert len(keys.valid(NOW_MS + 1000)) == KEYS_MAX
    keys.rotate(NOW_MS + 1000, overlap_ms=0)
    assert len(keys.valid(NOW_MS + 1000)) == 1


def test_processes_on_one_directory_share_the_keys(tmp_path: Path) -> None:
    """One rotates, the other reads; and neither undoes what the other did."""
    one, other = opened(tmp_path), opened(tmp_path)
    one.rotate(NOW_MS, overlap_ms=HOUR_MS)
    assert other.current != one.current
    other.reload()
    assert other.valid(NOW_MS) == one.valid(NOW_MS)

    one.rotate(NOW_MS + 1, overlap_ms=HOUR_MS)
    other.rotate(NOW_MS + 2, overlap_ms=HOUR_MS)
    assert one.current in other.valid(NOW_MS + 2)


def test_rotations_at_the_same_time_lose_no_key(tmp_path: Path) -> None:
    """Each builds on the file as the one before it left it."""
    processes = [opened(tmp_path) for _ in range(4)]
    threads = [
        threading.Thread(target=each.rotate, args=(NOW_MS,), kwargs={"overlap_ms": HOUR_MS}) for each in processes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    valid = opened(tmp_path).valid(NOW_MS)
    assert len(valid) == 5
    assert all(each.current in valid for each in processes)


def test_a_deleted_file_costs_the_running_process_nothing(tmp_path: Path) -> None:
    """It goes on with what it knows, and its next rotation writes the file again."""
    keys = opened(tmp_path)
    current = keys.current
    (tmp_path / FILE_NAME).unlink()
    keys.reload()
    assert keys.current == current
    keys.rotate(NOW_MS, overlap_ms=HOUR_MS)
    assert opened(tmp_path).current == keys.current


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The message says what that means and what to do."""
    opened(tmp_path)
    (tmp_path / FILE_NAME).chmod(0o640)
    assert "chmod 600" in problem(tmp_path)
    assert "0640" in problem(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"version": 1, "keys": []}',
        '{"version": 2, "keys": [{"secret": "%s", "made_at_ms": 1, "verifies_until_ms": null}]}' % ("ab" * 32),
        '{"version": 1, "keys": [{"secret": "%s", "made_at_ms": 1, "verifies_until_ms": 5}]}' % ("ab" * 32),
        '{"version": 1, "keys": [{"secret": "short", "made_at_ms": 1, "verifies_until_ms": null}]}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    """It costs nothing but signing in again, and the message says so."""
    path = tmp_path / FILE_NAME
    path.write_text(content)
    path.chmod(0o600)
    assert "Delete the file" in problem(tmp_path)


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """With the system's reason."""
    (tmp_path / FILE_NAME).mkdir()
    assert "cannot be read" in problem(tmp_path)


def test_a_directory_that_is_not_there_is_reported(tmp_path: Path) -> None:
    """It is made with the server's own key, before this."""
    assert "cannot be opened" in problem(tmp_path / "none")


def test_a_disk_that_refuses_leaves_the_keys_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file, in the process, and without a draft."""
    keys = opened(tmp_path)
    current, content = keys.current, (tmp_path / FILE_NAME).read_text()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartupError, match="No space left"):
        keys.rotate(NOW_MS, overlap_ms=HOUR_MS)
    assert keys.current == current
    assert (tmp_path / FILE_NAME).read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


async def test_stolen_keys_are_given_up_by_every_process_on_the_same_folder(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """Soon, also by one that is shown nothing but tokens signed with them; nor does it sign with them."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    store = MemoryTokens(parts.database)
    nodes = []
    for _ in range(2):
        keys = TokenKeyFile(tmp_path, parts.randomness)
        keys.open(parts.clock.now_ms())
        nodes.append(make_tokens(parts, store=store, keys=keys))
    here, elsewhere = nodes
    before = await sign_in(elsewhere, phone)
    await elsewhere.authenticate(f"Bearer {before.access_token}")

    kid = await here.rotate_keys(stolen=True)
    is_read = trio.Event()
    reload = elsewhere._reload

    async def reload_and_tell() -> None:
        await reload()
        is_read.set()

    elsewhere._reload = reload_and_tell  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(elsewhere.run)
        await is_read.wait()
        nursery.cancel_scope.cancel()
    refreshed = await elsewhere.refresh(phone.user.user_key, before.refresh_token)
    for grant in (refreshed, await sign_in(elsewhere, phone)):
        assert accesstokens.kid_of(grant.access_token) == kid
    with pytest.raises(ProtocolError) as caught:
        await elsewhere.authenticate(f"Bearer {before.access_token}")
    assert (caught.value.code, caught.value.detail) == ("invalid_token", "signed with no key of ours")

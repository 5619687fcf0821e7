"""What a device knew at an earlier position, from what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.client import Policy, open_device
from keepstep.client.environment import Environment
from keepstep.client.follower import Follower
from keepstep.client.keys import Keyring
from keepstep.client.locallog import LocalLog
from keepstep.client.rewinds import Restoration
from keepstep.client.settingback import account_at, set_back
from keepstep.client.store import open_store
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Position
from tests.unit.client.test_lies import STREAM, publish

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.support.device_server import DeviceServer


async def written(server: DeviceServer, directory: Path) -> Path:
    """The file of a device that has read what two devices wrote, a policy among it."""
    path = server.new_user(directory)
    async with open_device(path, environment=server.environment) as laptop:
        await laptop.enrol(directory / "phone.sqlite3", "phone")
        await publish(laptop, b"one")
        async with open_device(directory / "phone.sqlite3", environment=server.environment) as phone:
            await phone.wait_until_ready()
            await publish(phone, b"two")
        await (await laptop.set_policy(STREAM, Policy.LATEST)).accepted()
        await (await laptop.publish(STREAM, b"three", key="name")).accepted()
        await laptop.wait_until_caught_up(STREAM)
        await laptop.wait_until_caught_up(KEYS_STREAM)
        while laptop.position(STREAM).seq < 4:
            await laptop.wait_until_connected()
            await laptop.wait_until_caught_up(STREAM)
    return path


async def test_a_state_goes_back(autojump_clock: MockClock, server: DeviceServer, tmp_path: Path) -> None:
    """Authors, policy and winners are what they were; heads beyond are forgotten."""
    store = open_store(await written(server, tmp_path))
    log = LocalLog(store)
    chains = server.stream(STREAM).chains
    state = log.streams()[STREAM]
    steps: list[tuple[int, Policy, list[int]]] = [
        (4, Policy.LATEST, [1, 3]),
        (3, Policy.LATEST, [1, 2]),
        (2, Policy.APPEND, [1, 1]),
        (1, Policy.APPEND, [1]),
        (0, Policy.APPEND, []),
    ]
    for seq, policy, numbers in steps:
        earlier = set_back(log, STREAM, state, Position(seq, chains[seq]))
        assert earlier.position == Position(seq, chains[seq])
        assert sorted(author.n for author in earlier.authors.values()) == numbers
        assert earlier.rules.policy is not None
        assert earlier.rules.policy.policy == policy
        assert len(earlier.rules.winners) == (seq == 4)
    store.close()


async def test_an_account_goes_back(autojump_clock: MockClock, server: DeviceServer, tmp_path: Path) -> None:
    """To any position of the account log, which is kept whole; content keys that came stay."""
    store = open_store(await written(server, tmp_path))
    log = LocalLog(store)
    chains = server.stream(DEVICES_STREAM).chains
    account = account_at(log, server.user_key, Position(1, chains[1]))
    assert (account.position, len(account.devices)) == (Position(1, chains[1]), 1)
    environment: Environment = server.environment
    follower = Follower(store, log, Keyring(store.content_keys()), environment, lambda: None)
    assert len(follower.account.devices) == 2
    keys = follower.position(KEYS_STREAM).seq
    follower.set_back(Restoration(KEYS_STREAM, 1, 0, keys, 0, 0, keys))
    follower.set_back(Restoration(DEVICES_STREAM, 1, 1, follower.position(DEVICES_STREAM).seq, 0, 0, 1))
    assert len(follower.account.devices) == 1
    assert follower.position(DEVICES_STREAM) == Position(1, chains[1])
    assert [each.stream for each in follower.rewinds.restorations()] == [KEYS_STREAM, DEVICES_STREAM]
    store.close()

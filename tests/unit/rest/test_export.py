"""A whole account as one file over REST."""

from __future__ import annotations

import io
from typing import Any

import pytest

from keepstep.account_file import AccountFile, AccountFileError
from keepstep.account_import import import_account
from keepstep.errors import ProtocolError
from keepstep.memory import MemoryAccounts, MemoryDatabase, MemoryLog
from keepstep.model import Capability
from tests.support.events import DeviceFixture, submission
from tests.support.rest import Site, site


async def alice(here: Site) -> tuple[DeviceFixture, dict[str, str]]:
    """A user's device with events, and what proves it."""
    (phone,) = await here.parts.register("alice", "phone")
    principal = await here.parts.principal(phone)
    events = phone.events("notes", 3)
    await here.parts.log.append([submission(principal, *events)], now_ms=here.parts.clock.now_ms())
    return phone, await here.token(phone)


async def test_an_account_is_written_whole() -> None:
    """Another server reads it in; the place that writing took is free again."""
    async with site() as here:
        phone, token = await alice(here)
        await here.parts.register("bob", "phone")
        answer = await here.http.get("/api/v1/account/export", headers=token)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.keepstep.account")
        assert f'filename="{phone.user.user_key.hex()[:16]}.keepstep"' in answer.headers["content-disposition"]
        database = MemoryDatabase()
        file = AccountFile(io.BytesIO(answer.content))
        imported = await import_account(file, MemoryLog(database), MemoryAccounts(database))
        assert (imported.user_key, imported.events) == (phone.user.user_key, 4)
        assert not here.services.watches._by_user


@pytest.mark.parametrize("capabilities", [Capability.SUBSCRIBE | Capability.PUBLISH, Capability.MANAGE])
async def test_only_a_device_that_manages_and_reads_takes_the_account_away(capabilities: Capability) -> None:
    """Others may not have all of it."""
    async with site() as here:
        phone, _ = await alice(here)
        other = DeviceFixture(phone.user, "other", capabilities=capabilities)
        await here.parts.enrol(phone, other)
        answer = await here.http.get("/api/v1/account/export", headers=await here.token(other))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_a_device_that_ends_meanwhile_has_no_whole_file() -> None:
    """What it has lacks its last frame, and nobody takes it for a whole one."""
    async with site() as here:
        _, token = await alice(here)
        streams = here.parts.log.streams

        async def revoke(*arguments: Any) -> Any:
            here.tokens.away = ProtocolError("invalid_token")
            return await streams(*arguments)

        here.parts.log.streams = revoke  # type: ignore[method-assign, assignment]
        answer = await here.http.get("/api/v1/account/export", headers=token)
        assert answer.status_code == 200
        with pytest.raises(AccountFileError, match="cut short"):
            AccountFile(io.BytesIO(answer.content))


async def test_one_user_does_not_have_the_log_read_without_end() -> None:
    """So many files at a time, with what else waits."""
    async with site() as here:
        phone, token = await alice(here)
        user_pk = (await here.parts.principal(phone)).user_pk
        held = [here.services.watches.add(user_pk) for _ in range(16)]
        answer = await here.http.get("/api/v1/account/export", headers=token)
        assert (answer.status_code, answer.json()["code"]) == (429, "limit_exceeded")
        assert len(held) == 16

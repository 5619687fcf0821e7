"""Calls that are made again with the same ``Idempotency-Key``."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from keepstep.errors import ProtocolError
from keepstep.rest.endpoints import Reply
from keepstep.rest.idempotency import ANSWERS_MAX, RepeatedAnswers
from tests.support.parts import TestClock


class Work:
    """A handler that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: ProtocolError | None = None
        self.go_on = trio.Event()
        self.go_on.set()

    async def __call__(self) -> Reply:
        """Answer with the number of the call."""
        await self.go_on.wait()
        self.calls += 1
        if self.error is not None:
            raise self.error
        return Reply(str(self.calls).encode())


async def test_the_same_call_is_made_once() -> None:
    """The second answer is the first one."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    first = await answers.once("admin", "key", b"request", work)
    assert await answers.once("admin", "key", b"request", work) is first
    assert work.calls == 1


async def test_keys_of_different_callers_have_nothing_to_do_with_each_other() -> None:
    """Nobody is given another's answer."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    await answers.once("user:1", "key", b"request", work)
    assert (await answers.once("user:2", "key", b"request", work)).body == b"2"


async def test_a_key_is_good_for_one_request() -> None:
    """Used for another one it is refused."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    await answers.once("admin", "key", b"request", work)
    with pytest.raises(ProtocolError, match="key_reused"):
        await answers.once("admin", "key", b"another", work)


async def test_an_error_is_not_kept() -> None:
    """The call may be made again."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    work.error = ProtocolError("quota_exceeded")
    with pytest.raises(ProtocolError, match="quota_exceeded"):
        await answers.once("admin", "key", b"request", work)
    work.error = None
    assert (await answers.once("admin", "key", b"request", work)).body == b"2"


async def test_a_call_under_way_is_not_made_twice() -> None:
    """The second one is told to come back."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    work.go_on = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers.once, "admin", "key", b"request", work)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ProtocolError, match="unavailable"):
            await answers.once("admin", "key", b"request", work)
        work.go_on.set()


async def test_an_answer_is_kept_for_ten_minutes(autojump_clock: trio.testing.MockClock) -> None:
    """Then the call is made again."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    await answers.once("admin", "key", b"request", work)
    await trio.sleep(599)
    assert (await answers.once("admin", "key", b"request", work)).body == b"1"
    await trio.sleep(2)
    assert (await answers.once("admin", "key", b"request", work)).body == b"2"


async def test_so_many_answers_are_kept() -> None:
    """The oldest is forgotten first."""
    answers, work = RepeatedAnswers(TestClock()), Work()
    for number in range(ANSWERS_MAX + 1):
        await answers.once("admin", str(number), b"request", work)
    assert len(answers._answers) == ANSWERS_MAX
    assert (await answers.once("admin", "0", b"request", work)).body == str(ANSWERS_MAX + 2).encode()


@pytest.mark.parametrize("key", ["", "x" * 65, "a b", "é"])
async def test_a_key_has_a_form(key: str) -> None:
    """Anything else is malformed."""
    with pytest.raises(ProtocolError, match="malformed"):
        await RepeatedAnswers(TestClock()).once("admin", key, b"", Work())

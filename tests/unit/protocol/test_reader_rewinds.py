"""What a restore of the server explains to a reader, and what it does not (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep.errors import VerificationError
from keepstep.model import DEVICES_STREAM, Kind, Policy
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.reader import StreamVerifier
from keepstep.protocol.rewind import CLOCKS_APART_MS_MAX, Rewind
from keepstep.protocol.verified import Problem
from tests.support.events import NOW_MS
from tests.support.scripted_log import ScriptedStream, ScriptedUser, follow, make_device

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH_MS = NOW_MS + 1_000
LATER_MS = EPOCH_MS + CLOCKS_APART_MS_MAX + 1
DEAD = bytes(range(32))
"""A chain of the branch that the restore ended."""


def restored(stream: ScriptedStream, *names: str) -> StreamVerifier:
    """A reader to whom the server has said that these streams went back to where ``stream`` stands now."""
    seq, chain = stream.head_position
    rewinds = {name: [Rewind(stream.user.user_key, name, EPOCH_MS, seq, chain)] for name in names or (stream.name,)}
    logs = {stream.name: stream, DEVICES_STREAM: stream.user.devices_stream}
    return follow(
        stream,
        rewinds=lambda name: rewinds.get(name, ()),
        received_at_ms=lambda name, seq: logs[name].rows[seq - 1][2] if seq else 0,
    )


def problems(stream: ScriptedStream, reader: StreamVerifier) -> list[Problem | None]:
    """Of what the reader has not read."""
    return [event.problem for event in reader.feed(*stream.page(reader.position.seq))]


def test_what_lost_its_place_need_not_build_on_the_head() -> None:
    """It was signed before the restore and builds on what that took away; all else is held to the policy."""
    stream = ScriptedUser().stream()
    laptop = stream.user.laptop
    stream.append(laptop, encode_policy(Policy.EXPECT), kind=Kind.POLICY)
    stream.append(laptop, base=(1, stream.chains[1]))
    reader = restored(stream)
    for base in ((2, stream.chains[2]), (9, DEAD), (9, DEAD), (1, stream.chains[1])):
        hlc = (LATER_MS if len(stream.rows) == 4 else EPOCH_MS) << 16
        stream.append(laptop, base=base, hlc=hlc, seen=(2, stream.chains[2]))
    stream.append(laptop, base=1)
    expected = [None, None, None, None, Problem.INVALID, Problem.INVALID, None]
    assert problems(stream, reader) == expected
    assert problems(stream, follow(stream)) == [None, None, None, *[Problem.INVALID] * 4]


def scripted(name: str) -> tuple[ScriptedStream, StreamVerifier, Callable[..., None]]:
    """Two events and three account events, a reader that knows of a restore, and what says what an author had seen."""
    user = ScriptedUser()
    stream = user.stream()
    stream.append(user.laptop)
    stream.append(user.laptop)
    user.enrol(make_device("phone"), received_at_ms=NOW_MS)
    user.enrol(make_device("other"), received_at_ms=LATER_MS)
    reader = restored(stream, name)

    def write(seq: int, chain: bytes | None = None) -> None:
        of = stream if name == stream.name else user.devices_stream
        place: dict[str, Any] = {"seen" if of is stream else "devices_seen": (seq, chain or of.chains[seq])}
        stream.append(user.laptop, received_at_ms=LATER_MS, **place)

    return stream, reader, write


@pytest.mark.parametrize("name", ["notes", DEVICES_STREAM])
def test_a_restore_explains_what_an_author_saw_until_it_has_read_what_came_after(name: str) -> None:
    """From then on another history is a lie again."""
    stream, reader, write = scripted(name)
    write(2)
    write(3, DEAD)
    assert problems(stream, reader) == [None] * 3 + [None if name == "notes" else Problem.INVALID]
    write(3)
    assert problems(stream, reader) == [None]
    write(3, DEAD)
    with pytest.raises(VerificationError, match="another history"):
        problems(stream, reader)


@pytest.mark.parametrize("name", ["notes", DEVICES_STREAM])
def test_a_restore_explains_nothing_before_its_place(name: str) -> None:
    """What was there before it is there still."""
    stream, reader, write = scripted(name)
    write(1, DEAD)
    with pytest.raises(VerificationError, match="another history"):
        problems(stream, reader)

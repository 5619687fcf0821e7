"""A session's positions below the tails of their streams, while the archive is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keepstep.errors import ArchiveUnavailable
from tests.support.following import Following, seqs

if TYPE_CHECKING:
    import pytest

    from keepstep.interfaces import Page


async def test_an_archive_that_is_away_keeps_only_its_stream_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on at once; the next rereading of the heads asks again."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    await bench.publish("tasks", 2)
    read = bench.parts.log.read

    async def away(user_pk: Any, stream: str, **arguments: Any) -> Page:
        if stream == "notes":
            raise ArchiveUnavailable
        return await read(user_pk, stream, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(bench.parts.log, "read", away)
        bench.subscribe({"notes": "start", "tasks": "start"})
        messages = await bench.pull_all()
    assert (seqs(messages), seqs(messages, "tasks")) == ([], [1, 2])
    assert await bench.pull_all() == []
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert seqs(await bench.pull_all()) == [1, 2]

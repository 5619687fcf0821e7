"""The main job on real input: the whole recorded session of two people, through a real server and its database."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from examples.collaborative_editing.session import Session
from examples.collaborative_editing.trace import load_trace

TRACE = Path(__file__).parents[1] / "data/editing-traces/friendsforever.json.gz"


@pytest.mark.slow
async def test_a_real_editing_session_ends_with_the_same_text_on_every_device_and_none_on_the_server() -> None:
    """26,078 edits: every device has the text and the chain, one of them late, one after a cut; nothing leaked."""
    trace = load_trace(TRACE)
    acknowledged: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        session = Session(trace, Path(directory), tell=acknowledged.append, say=lambda _: None)
        found = await session.run()
    assert found.events == sum(acknowledged) == 26_078
    assert [copy.text == trace.end_content for copy in found.copies] == [True, True, True]
    assert len({copy.position for copy in found.copies}) == 1
    assert found.copies[0].position.seq == 26_078
    assert [copy.alarms for copy in found.copies] == [0, 0, 0]
    assert found.leaked == frozenset()
    assert found.runs - found.innocent_runs > 20_000
    assert found.offline_events > 0
    assert 0 < found.caught_up_events < 26_078

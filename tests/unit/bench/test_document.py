"""A document's edits become events in their order, and the text that they come to is the trace's."""

from __future__ import annotations

import msgspec
import pytest

from bench.document import DEFAULT_TRACE, apply, edits_of
from bench.server import BenchError
from examples.collaborative_editing.trace import Patch, Step, Trace, load_trace

EDITS: list[list[Patch]] = [[(0, 0, "helo")], [(3, 0, "l"), (5, 0, "!")], [(0, 1, "J"), (5, 1, "")]]
TRACE = Trace(
    name="t",
    authors=1,
    steps=[Step(index, 0, (), patches) for index, patches in enumerate(EDITS)],
    is_ascii=True,
    end_content="Jello",
)


def test_edits_come_to_the_text() -> None:
    """Positions are those of the text as it then is."""
    assert apply(EDITS) == TRACE.end_content
    assert apply([]) == ""


def test_an_edit_is_one_event() -> None:
    """In the trace's order, the first so many."""
    assert [msgspec.msgpack.decode(edit, type=list[Patch]) for edit in edits_of(TRACE, 2)] == EDITS[:2]


def test_two_authors_make_no_such_document() -> None:
    """Their edits have to be merged, which is the demo's business."""
    with pytest.raises(BenchError, match="2 authors"):
        edits_of(msgspec.structs.replace(TRACE, authors=2), 10)


def test_the_paper_comes_to_its_own_end() -> None:
    """Its first edits are at its beginning; all of them make the text that the trace says."""
    trace = load_trace(DEFAULT_TRACE)
    assert len(trace.steps) == len(edits_of(trace, 10**9)) == 259_778
    assert len(trace.end_content) > 100_000

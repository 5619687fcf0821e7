"""The parts of the demonstration: traces, replicas, the search for plaintext, and the figures."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from examples.collaborative_editing.leaks import CHUNK_BYTES, Needles
from examples.collaborative_editing.measures import Measures, latency
from examples.collaborative_editing.replica import Replica
from examples.collaborative_editing.trace import Trace, TraceError, load_trace

TEXT = "the quick brown fox jumps over the lazy dog"


def write(path: Path, content: Any, *, packed: bool = True) -> Path:
    """A trace's file."""
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def play(trace: Trace) -> list[str]:
    """Everybody's text after a trace, without a server in between."""
    replicas = [Replica(author, is_ascii=trace.is_ascii) for author in range(trace.authors)]
    updates: dict[int, bytes] = {}
    merged: list[set[int]] = [set() for _ in replicas]
    for step in trace.steps:
        for index in step.merges:
            replicas[step.author].merge(updates[index])
        updates[step.index] = replicas[step.author].edit(step.patches)
        merged[step.author] |= {*step.merges, step.index}
    for replica, seen in zip(replicas, merged, strict=True):
        for index in updates.keys() - seen:
            replica.merge(updates[index])
    return [str(replica) for replica in replicas]


def test_a_session_of_two_merges_what_its_parents_say(tmp_path: Path) -> None:
    """The second author sees the first one's edit only when the trace says so; then their texts are one."""
    content = {
        "endContent": "xaby",
        "txns": [
            {"parents": [], "agent": 0, "patches": [[0, 0, "a"]]},
            {"parents": [0], "agent": 1, "patches": [[1, 0, "y"]]},
            {"parents": [0], "agent": 0, "patches": [[1, 0, "b"]]},
            {"parents": [1, 2], "agent": 1, "patches": [[0, 0, "x"]]},
        ],
    }
    trace = load_trace(write(tmp_path / "trace.json.gz", content))
    assert (trace.authors, [step.merges for step in trace.steps]) == (2, [(), (0,), (), (2,)])
    assert play(trace) == [trace.end_content] * 2


def test_a_session_of_one_needs_no_parents(tmp_path: Path) -> None:
    """Edits follow each other; a text may be there at the beginning; the file need not be packed."""
    content = {
        "startContent": "héllo",
        "endContent": "hé😀o!",
        "txns": [{"patches": [[5, 0, "!"]]}, {"patches": [[2, 2, "😀"]]}],
    }
    trace = load_trace(write(tmp_path / "trace.json", content, packed=False))
    assert (trace.authors, trace.is_ascii, len(trace.steps)) == (1, False, 3)
    assert play(trace) == [trace.end_content]


def test_a_text_at_the_beginning_comes_before_everybodys_edits(tmp_path: Path) -> None:
    """Also where the edits name their parents."""
    content = {
        "startContent": "b",
        "endContent": "abc",
        "txns": [
            {"parents": [], "agent": 0, "patches": [[0, 0, "a"]]},
            {"parents": [0], "agent": 1, "patches": [[2, 0, "c"]]},
        ],
    }
    assert play(load_trace(write(tmp_path / "trace.json.gz", content))) == ["abc", "abc"]


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"endContent": "", "txns": [{"parents": [0], "patches": []}]},
        {"endContent": "", "txns": [{"parents": [], "agent": -1, "patches": []}]},
    ],
)
def test_another_file_is_told_apart(tmp_path: Path, content: Any) -> None:
    """No trace, and one whose edits come before their parents."""
    with pytest.raises(TraceError, match="is not an editing trace"):
        load_trace(write(tmp_path / "trace.json.gz", content))
    with pytest.raises(TraceError, match="is not an editing trace"):
        load_trace(tmp_path / "none")


def spellings(data: bytes) -> list[bytes]:
    """As it is, and in each way it is looked for."""
    return [
        data,
        data.hex().encode(),
        data.hex().upper().encode(),
        base64.b64encode(data),
        base64.urlsafe_b64encode(data),
    ]


def test_plaintext_is_found_in_every_spelling_at_every_place(tmp_path: Path) -> None:
    """Any twelve characters, whatever is around them."""
    needles = Needles([TEXT])
    random = Random(7)
    file = tmp_path / "file"
    for _ in range(30):
        start = random.randrange(len(TEXT) - 12)
        run = TEXT[start : start + 12].encode()
        hidden = random.randbytes(random.randrange(20)) + run + random.randbytes(random.randrange(20))
        for spelling in spellings(hidden):
            file.write_bytes(random.randbytes(random.randrange(9)) + spelling)
            assert needles.search([tmp_path]).runs


def test_plaintext_across_two_readings_is_found(tmp_path: Path) -> None:
    """A large file is read in parts."""
    file = tmp_path / "file"
    file.write_bytes(bytes(CHUNK_BYTES - 6) + TEXT[:12].encode() + bytes(100))
    assert Needles([TEXT]).search([file]).runs == {TEXT[:12].encode()}


def test_less_than_a_run_is_no_finding(tmp_path: Path) -> None:
    """Eleven characters may be anybody's, and so is a run with a change in it."""
    file = tmp_path / "file"
    file.write_bytes(TEXT[:11].encode() + b"\0" + TEXT[12:20].encode() + TEXT[:12].replace("q", "Q").encode())
    found = Needles([TEXT]).search([file])
    assert (found.runs, found.size_bytes) == (frozenset(), file.stat().st_size)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """What is elsewhere is not the server's."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(TEXT)
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "link").symlink_to(elsewhere)
    needles = Needles([TEXT])
    assert needles.search([directory]).size_bytes == 0
    assert needles.runs == len(TEXT) - 11


def test_latencies_are_ordered_before_they_are_told() -> None:
    """The middle one and the one a hundredth are above; and none at all."""
    found = latency([0.001 * (number % 100) for number in range(100)])
    assert (found.p50_ms, found.p99_ms) == (50, 99)
    assert str(latency([])) == "p50 0.0 ms, p99 0.0 ms"


def test_each_edit_is_measured_from_its_publishing() -> None:
    """Acknowledged and delivered, by index."""
    measures = Measures()
    for index in (0, 1):
        measures.published(index)
    measures.acknowledged(0)
    measures.delivered(1)
    assert (len(measures.ack_s), len(measures.delivery_s)) == (1, 1)
    assert measures.ack_s[0] >= 0

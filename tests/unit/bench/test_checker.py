"""The checker finds each fault where it was planted, and nothing where none was."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from bench.checker import FINDINGS_PER_FAULT_MAX, Fault, check_observations, main
from bench.observations import (
    Accepted,
    Complete,
    Device,
    Duplicate,
    InvalidObservationsError,
    ObservationWriter,
    Published,
    Received,
    Record,
    Refused,
    Subscribed,
)
from tests.support.observed_run import STREAM, Entry, ObservedRun, chain_0, chains
from tests.support.planted_faults import PLANTED, Plant

if TYPE_CHECKING:
    from pathlib import Path

USER = bytes(range(32))
DEVICE = bytes(range(16))


def write(path: Path, *records: Record) -> Path:
    """An observation log of one user's one device and these records."""
    with ObservationWriter(path, "test") as writer:
        writer.write(Device(DEVICE, USER))
        for record in records:
            writer.write(record)
    return path


def test_a_right_run_is_clean_and_counted(tmp_path: Path) -> None:
    """Nothing is found, and the counts show that everything was looked at."""
    run = ObservedRun(1, users=2, devices=3, events=12)
    verdict = check_observations([run.write(tmp_path / "log")])
    assert verdict.clean
    assert verdict.findings == ()
    assert verdict.published == verdict.acknowledged == verdict.logged == 24
    assert verdict.delivered == 3 * 24
    assert verdict.readers == 6
    assert verdict.chains >= 24


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("plant", "fault"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_exactly_the_planted_fault_is_found(plant: Plant, fault: Fault, seed: int, tmp_path: Path) -> None:
    """One fault in, the same fault out, and no other beside it."""
    run = ObservedRun(seed)
    plant(run)
    verdict = check_observations([run.write(tmp_path / "log")])
    assert set(verdict.counts) == {fault}
    assert {finding.fault for finding in verdict.findings} == {fault}
    assert not verdict.clean


def test_every_fault_is_planted_somewhere() -> None:
    """No kind of fault goes without a proof that it is found."""
    assert {fault for _, fault in PLANTED} == set(Fault)


def test_a_run_spread_over_files_is_judged_as_one(tmp_path: Path) -> None:
    """What one file publishes another may receive, whichever is named first."""
    run = ObservedRun(5, users=1)
    records = list(run.records())
    devices = [record for record in records if isinstance(record, Device)]
    split = next(place for place, record in enumerate(records) if isinstance(record, Subscribed))
    paths = [tmp_path / "received", tmp_path / "published"]
    for path, part in zip(paths, ([*devices, *records[split:]], records[:split]), strict=True):
        with ObservationWriter(path, "test") as writer:
            for record in part:
                writer.write(record)
    assert check_observations(paths).clean


def test_a_published_event_without_an_answer_may_be_stored_or_not(tmp_path: Path) -> None:
    """A connection that broke before the ack proves nothing either way."""
    run = ObservedRun(7, users=1)
    user = run.users[0]
    user.answers = user.answers[:-2]
    user.published[user.devices[0]].append(bytes(32))
    verdict = check_observations([run.write(tmp_path / "log")])
    assert verdict.clean
    assert verdict.published == verdict.acknowledged + 3


def test_a_late_reader_is_judged_from_its_start(tmp_path: Path) -> None:
    """A session that begins at a known position is checked against the chain there."""
    run = ObservedRun(8, users=1)
    user = run.users[0]
    known = chains(user.key, user.log)
    reader = user.readers[0]
    user.readers = [reader]
    user.answers = user.answers[5:]
    reader.start, reader.chain = 5, known[4]
    reader.pages = [page for page in run.pages(user, user.log) if page.entries[0].seq > 5]
    first = reader.pages[0].entries[0].seq
    reader.start, reader.chain = first - 1, known[first - 2]
    user.answers = [answer for answer in user.answers if answer.seq >= first]
    verdict = check_observations([run.write(tmp_path / "log")])
    assert verdict.clean
    assert verdict.chains > 0


def test_a_resume_from_an_earlier_position_is_no_fault(tmp_path: Path) -> None:
    """A device that lost its memory of the last page reads it again in a new session."""
    run = ObservedRun(9, users=1)
    user = run.users[0]
    records = list(run.records())
    again = Subscribed(user.devices[0], STREAM, 2, chains(user.key, user.log)[1])
    rows = [(entry.author, entry.n, entry.received_at_ms, entry.hash) for entry in user.log[2:]]
    page = Received(user.devices[0], STREAM, 3, rows, chains(user.key, user.log)[-1])
    with ObservationWriter(tmp_path / "log", "test") as writer:
        for record in [*records, again, page]:
            writer.write(record)
    assert check_observations([tmp_path / "log"]).clean


def test_an_event_signed_anew_after_a_refusal_is_no_fault(tmp_path: Path) -> None:
    """A refused event consumes no number: other bytes take its place."""
    first, second = bytes(32), bytes([1] * 32)
    entry = Entry(1, DEVICE, 1, 1_000, second)
    (chain,) = chains(USER, [entry])
    log = write(
        tmp_path / "log",
        Published(DEVICE, STREAM, 1, [first]),
        Refused(DEVICE, STREAM, 1, first, "unprocessable"),
        Published(DEVICE, STREAM, 1, [second]),
        Refused(DEVICE, STREAM, 1, second, "unavailable"),
        Accepted(DEVICE, STREAM, 1, 1, 1, 1_000, chain),
        Subscribed(DEVICE, STREAM, 0, None),
        Received(DEVICE, STREAM, 1, [(DEVICE, 1, 1_000, second)], chain),
        Complete(DEVICE, STREAM),
    )
    assert check_observations([log]).clean


def test_the_refused_bytes_of_a_number_signed_anew_are_found_in_the_log(tmp_path: Path) -> None:
    """The first signing was refused for good, and is stored all the same."""
    first, second = bytes(32), bytes([1] * 32)
    (chain,) = chains(USER, [Entry(1, DEVICE, 1, 1_000, first)])
    log = write(
        tmp_path / "log",
        Published(DEVICE, STREAM, 1, [first]),
        Refused(DEVICE, STREAM, 1, first, "unprocessable"),
        Published(DEVICE, STREAM, 1, [second]),
        Subscribed(DEVICE, STREAM, 0, None),
        Received(DEVICE, STREAM, 1, [(DEVICE, 1, 1_000, first)], chain),
    )
    assert set(check_observations([log]).counts) == {Fault.REFUSED_STORED}


def test_an_unchecked_duplicate_is_satisfied_by_any_place(tmp_path: Path) -> None:
    """The server only says that it was stored; later answers may name the place."""
    value = bytes(32)
    (chain,) = chains(USER, [Entry(1, DEVICE, 1, 1_000, value)])
    log = write(
        tmp_path / "log",
        Published(DEVICE, STREAM, 1, [value]),
        Duplicate(DEVICE, STREAM, 1, None, None, None),
        Duplicate(DEVICE, STREAM, 1, 1, chain, 1_000),
        Duplicate(DEVICE, STREAM, 1, None, None, None),
        Subscribed(DEVICE, STREAM, 0, chain_0(USER)),
        Received(DEVICE, STREAM, 1, [(DEVICE, 1, 1_000, value)], chain),
        Complete(DEVICE, STREAM),
    )
    assert check_observations([log]).clean


def test_a_log_read_from_its_middle_without_a_chain_takes_the_first_one_given(tmp_path: Path) -> None:
    """There is nothing to compare it with; what follows is compared."""
    run = ObservedRun(11, users=1)
    user = run.users[0]
    known = chains(user.key, user.log)
    rows = [(entry.author, entry.n, entry.received_at_ms, entry.hash) for entry in user.log]
    declared = [Device(device, user.key) for device in user.devices]
    published = [Published(device, STREAM, 1, hashes) for device, hashes in user.published.items()]
    reading: list[Record] = [
        Subscribed(user.devices[0], STREAM, 3, None),
        Received(user.devices[0], STREAM, 4, rows[3:6], known[5]),
        Received(user.devices[0], STREAM, 7, rows[6:], known[-1]),
    ]
    verdict = check_observations([write(tmp_path / "right", *declared, *published, *reading)])
    assert verdict.clean
    assert verdict.chains == 1
    reading[-1] = Received(user.devices[0], STREAM, 7, rows[6:], bytes(32))
    verdict = check_observations([write(tmp_path / "wrong", *declared, *published, *reading)])
    assert set(verdict.counts) == {Fault.BROKEN_CHAIN}


def test_two_readers_that_disagree_are_found_once_each_stream(tmp_path: Path) -> None:
    """The first place at which they part is the finding; what follows from it is not repeated."""
    run = ObservedRun(12, users=1)
    user = run.users[0]
    log = list(user.log)
    user.log = list(reversed(log))
    user.readers[-1].pages = run.pages(
        user, [Entry(seq, e.author, e.n, e.received_at_ms, e.hash) for seq, e in enumerate(user.log, 1)]
    )
    verdict = check_observations([run.write(tmp_path / "log")])
    assert verdict.counts == {Fault.REORDERING: 1}


def test_many_findings_of_a_kind_are_counted_but_not_all_kept(tmp_path: Path) -> None:
    """A run that lost everything does not take all memory to say so."""
    run = ObservedRun(13, users=1, events=3 * FINDINGS_PER_FAULT_MAX)
    user = run.users[0]
    user.log = []
    run.deliver(user)
    verdict = check_observations([run.write(tmp_path / "log")])
    assert verdict.counts == {Fault.LOSS: 3 * FINDINGS_PER_FAULT_MAX}
    assert len(verdict.findings) == FINDINGS_PER_FAULT_MAX


def test_an_event_that_was_noted_twice_and_never_answered_is_no_fault(tmp_path: Path) -> None:
    """A device that started again may write down its outbox once more; nobody has heard of it yet."""
    published = Published(DEVICE, STREAM, 1, [bytes(32)])
    verdict = check_observations([write(tmp_path / "log", published, published)])
    assert verdict.clean
    assert (verdict.published, verdict.acknowledged) == (1, 0)


def test_of_many_contradicting_chains_the_first_place_is_named(tmp_path: Path) -> None:
    """Everything after it follows from it."""
    run = ObservedRun(14, users=1)
    for answer in reversed(run.users[0].answers):
        run.users[0].extra.append(msgspec.structs.replace(answer, chain=bytes(32)))
    verdict = check_observations([run.write(tmp_path / "log")])
    assert verdict.counts == {Fault.BROKEN_CHAIN: 1}
    assert verdict.findings[0].seq == 1


CONTRADICTIONS: list[tuple[str, list[Record]]] = [
    ("belongs to two users", [Device(DEVICE, bytes(32))]),
    ("is not declared", [Published(bytes(16), STREAM, 1, [bytes(32)])]),
    ("is not declared", [Subscribed(bytes(16), STREAM, 0, None)]),
    ("out of turn", [Published(DEVICE, STREAM, 1, [bytes(32)]), Published(DEVICE, STREAM, 3, [bytes(32)])]),
    ("out of turn", [Published(DEVICE, STREAM, 2, [bytes(32)]), Published(DEVICE, STREAM, 1, [bytes(32)])]),
    ("without a subscription", [Received(DEVICE, STREAM, 1, [(DEVICE, 1, 1, bytes(32))], bytes(32))]),
    ("never subscribed", [Complete(DEVICE, STREAM)]),
]


@pytest.mark.parametrize(("reason", "records"), CONTRADICTIONS)
def test_observations_that_contradict_themselves_are_not_judged(
    reason: str, records: list[Record], tmp_path: Path
) -> None:
    """A mistake of whoever observed is not blamed on the server."""
    with pytest.raises(InvalidObservationsError, match=reason):
        check_observations([write(tmp_path / "log", *records)])


def test_the_command_says_clean_and_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is the verdict."""
    assert main([str(ObservedRun(1).write(tmp_path / "log"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "clean"


def test_the_command_names_what_it_found_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kind, place, and how often."""
    run = ObservedRun(1)
    plant, _ = next(planted for planted in PLANTED if planted[1] is Fault.AUTHOR_GAP)
    plant(run)
    assert main([str(run.write(tmp_path / "log"))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "NOT CLEAN"
    assert lines[-2].startswith("1 x author_gap: ")
    assert lines[1].startswith("author_gap notes#")


def test_a_finding_without_a_place_names_its_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal has no position."""
    log = write(tmp_path / "log", Refused(DEVICE, STREAM, 1, bytes(32), "malformed"))
    assert main([str(log)]) == 1
    assert "unpublished_ack notes: " in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, a missing file, something else: exit 2 and a sentence."""
    other = tmp_path / "other"
    other.write_text("hello\n")
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert main([str(tmp_path / "missing")]) == 2
    assert "cannot judge" in capsys.readouterr().err
    assert main([str(other)]) == 2
    assert "cannot judge" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    """``python -m bench.checker FILE`` is what the documentation says."""
    log = ObservedRun(1).write(tmp_path / "log")
    done = subprocess.run(
        [sys.executable, "-m", "bench.checker", str(log)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("clean\n")

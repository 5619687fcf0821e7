"""Judge a run from outside: is what was acknowledged really there, once, in one order, and nobody else's?

``python -m bench.checker FILE...`` reads observation logs (``bench.observations``), prints a verdict and exits 0
where nothing is wrong, 1 where something is, 2 where the files are no observations. It trusts no part of the
product: it recomputes every chain from the events' hashes as protocol.md section 3 defines it.

The files are read twice: first what was published, then what became of it, so that the order of the lines of
different devices does not matter. It holds about 0.5 kB an event.
"""

from __future__ import annotations

import enum
import struct
import sys
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import blake3

from bench.observations import (
    Accepted,
    Complete,
    Device,
    Duplicate,
    InvalidObservationsError,
    Published,
    Received,
    Refused,
    Subscribed,
    read_observations,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FINDINGS_PER_FAULT_MAX: Final = 20
"""How many findings of one kind are kept to be shown; all are counted."""
FINAL_REFUSALS: Final = frozenset(
    {"malformed", "bad_signature", "forbidden", "too_large", "conflict", "id_reused", "unprocessable"}
)
"""Answers after which an event must never appear (protocol.md section 3); any other may be followed by success."""
UNKNOWN_SEQ: Final = -1


class Fault(enum.Enum):
    """What can be wrong with a run."""

    LOSS = "acknowledged, but missing from the log of a reader that should have it"
    DUPLICATE = "the same event stored at two places, or delivered twice in one session"
    REORDERING = "an author's numbers out of order, two readers' orders differ, or an acknowledged seq is not the log's"
    GAP = "a delivered page does not continue the session's position"
    AUTHOR_GAP = "an author's number follows another than the one before it"
    BROKEN_CHAIN = "a chain that was given is not the chain of the delivered events"
    LEAK = "a device was given another user's event"
    UNPUBLISHED_ACK = "an acknowledgement of an event that nobody published"
    PHANTOM = "an event in the log that nobody published"
    CHANGED = "an event that differs from the one its author published"
    REFUSED_STORED = "an event in the log that was refused for good"
    UNREAD = "acknowledged, but no complete reader looked at its place: the run proves nothing about it"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong.

    Attributes:
        fault: what kind.
        stream: the stream's name.
        seq: the position, where one is known.
        detail: a sentence for people.
    """

    fault: Fault
    stream: str
    seq: int | None
    detail: str

    def __str__(self) -> str:
        place = self.stream if self.seq is None else f"{self.stream}#{self.seq}"
        return f"{self.fault.name.lower()} {place}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the observations show.

    Attributes:
        counts: how many of each fault; empty where nothing is wrong.
        findings: the first of each, at most ``FINDINGS_PER_FAULT_MAX``.
        published: events that devices published.
        acknowledged: events that were acknowledged at least once.
        delivered: rows that all devices together were given.
        logged: distinct positions seen in all streams.
        chains: chain values compared with a recomputed one.
        readers: (device, stream) pairs that were complete.
    """

    counts: Counter[Fault]
    findings: tuple[Finding, ...]
    published: int
    acknowledged: int
    delivered: int
    logged: int
    chains: int
    readers: int

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return not self.counts

    def __str__(self) -> str:
        summary = (
            f"published {self.published}, acknowledged {self.acknowledged}, delivered {self.delivered} "
            f"(of {self.logged} positions, {self.readers} complete readers), chains compared {self.chains}"
        )
        lines = [summary, *(str(finding) for finding in self.findings)]
        lines += [f"{count} x {fault.name.lower()}: {fault.value}" for fault, count in self.counts.items()]
        lines.append("clean" if self.clean else "NOT CLEAN")
        return "\n".join(lines)


def check_observations(paths: Sequence[Path]) -> Verdict:
    """Read observation logs and judge them.

    Args:
        paths: the files of one run, in any order except that a device's own records are in order over them.

    Raises:
        InvalidObservationsError: they are no observations, or contradict themselves (an undeclared device).
        OSError: a file cannot be read.
    """
    checker = _Checker()
    for record in read_observations(paths):
        if isinstance(record, Device):
            checker.declare(record)
        elif isinstance(record, Published):
            checker.published(record)
    for record in read_observations(paths):
        match record:
            case Accepted():
                checker.accepted(record)
            case Duplicate():
                checker.duplicate(record)
            case Refused():
                checker.refused(record)
            case Subscribed():
                checker.subscribed(record)
            case Received():
                checker.received(record)
            case Complete():
                checker.complete(record)
            case _:
                pass
    return checker.verdict()


_ENTRY: Final = struct.Struct(">IQQ32s")
"""A log entry: index of its author's ``_Authored``, n, received_at_ms, hash. Packed: one comparison, little memory."""


@dataclass(eq=False, slots=True)
class _Authored:
    """One device's events in one stream, as published; index 0 is number ``first_n``."""

    index: int
    device: bytes
    user: bytes
    stream: str
    first_n: int = 0
    hashes: list[bytes] = field(default_factory=list)
    signed_anew: dict[int, list[bytes]] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)
    acknowledged: array[int] = field(default_factory=lambda: array("q"))
    """Per event the seq it was acknowledged at; 0 not at all, ``UNKNOWN_SEQ`` without one."""
    stored: array[int] = field(default_factory=lambda: array("q"))
    """Per event the seq at which the log has it; 0 nowhere."""

    def publish(self, n: int, hashes: Sequence[bytes]) -> None:
        if not self.hashes:
            self.first_n = n
        for number, value in enumerate(hashes, n):
            place = number - self.first_n
            if not 0 <= place <= len(self.hashes):
                raise InvalidObservationsError(f"{_name(self.device)} published {self.stream} n {number} out of turn")
            if place == len(self.hashes):
                self.hashes.append(value)
                self.acknowledged.append(0)
                self.stored.append(0)
            elif self.hashes[place] != value:
                self.signed_anew.setdefault(number, []).append(self.hashes[place])
                self.hashes[place] = value

    def has(self, n: int) -> bool:
        return 0 <= n - self.first_n < len(self.hashes)

    def signed(self, n: int, value: bytes) -> bool:
        """The device published these bytes under this number."""
        return self.has(n) and (self.hashes[n - self.first_n] == value or value in self.signed_anew.get(n, ()))


@dataclass(eq=False, slots=True)
class _Stream:
    """One stream of one user, as all readers together saw it."""

    user: bytes
    name: str
    entries: dict[int, bytes] = field(default_factory=dict)
    chains: dict[int, bytes] = field(default_factory=dict)
    """Chains that the server gave, by seq."""
    contradicted_at: int | None = None
    """Lowest seq for which two different chains were given."""
    forked_from: int | None = None
    """Lowest seq at which readers disagree or a foreign event lies: no chain can be right from there on."""
    readers: dict[bytes, _Reader] = field(default_factory=dict)

    def fork(self, seq: int) -> None:
        self.forked_from = seq if self.forked_from is None else min(self.forked_from, seq)


@dataclass(eq=False, slots=True)
class _Reader:
    """One device's reading of one stream."""

    start: int
    """The lowest position it ever began at: it can say nothing about places up to there."""
    position: int
    diverged: bool = False
    complete: bool = False


class _Checker:
    """Everything known about the run so far."""

    def __init__(self) -> None:
        self._users: dict[bytes, bytes] = {}
        self._authored: dict[tuple[bytes, str], _Authored] = {}
        self._by_index: list[_Authored] = []
        self._streams: dict[tuple[bytes, str], _Stream] = {}
        self._hash_users: dict[bytes, bytes] | None = None
        self._counts: Counter[Fault] = Counter()
        self._findings: list[Finding] = []
        self._acknowledged_elsewhere: dict[tuple[int, int], set[int]] = defaultdict(set)
        """Further seqs of an event that was acknowledged at more than one, by (author index, n)."""
        self._stored_elsewhere: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._delivered = 0
        self._chains = 0

    # -- what was published -------------------------------------------------------------------------------------

    def declare(self, record: Device) -> None:
        if self._users.setdefault(record.device, record.user) != record.user:
            raise InvalidObservationsError(f"device {_name(record.device)} belongs to two users")

    def published(self, record: Published) -> None:
        key = (record.device, record.stream)
        authored = self._authored.get(key)
        if authored is None:
            authored = _Authored(len(self._by_index), record.device, self._user(record.device), record.stream)
            self._authored[key] = authored
            self._by_index.append(authored)
        authored.publish(record.n, record.hashes)

    # -- what was answered --------------------------------------------------------------------------------------

    def accepted(self, record: Accepted) -> None:
        stream = self._stream(record.device, record.stream)
        self._claim(stream, record.seq + record.count - 1, record.chain)
        for offset in range(record.count):
            if not self._acknowledge(stream, record.device, record.n + offset, record.seq + offset):
                return

    def duplicate(self, record: Duplicate) -> None:
        stream = self._stream(record.device, record.stream)
        if record.seq is not None and record.chain is not None:
            self._claim(stream, record.seq, record.chain)
        self._acknowledge(stream, record.device, record.n, UNKNOWN_SEQ if record.seq is None else record.seq)

    def _acknowledge(self, stream: _Stream, device: bytes, n: int, seq: int) -> bool:
        authored = self._authored.get((device, stream.name))
        if authored is None or not authored.has(n):
            self._find(Fault.UNPUBLISHED_ACK, stream.name, seq, f"{_name(device)} n {n}")
            return False
        place = n - authored.first_n
        earlier = authored.acknowledged[place]
        if earlier in (0, UNKNOWN_SEQ):
            authored.acknowledged[place] = seq
        elif seq not in (earlier, UNKNOWN_SEQ):
            self._acknowledged_elsewhere[authored.index, n].add(seq)
        return True

    def refused(self, record: Refused) -> None:
        authored = self._authored.get((record.device, record.stream))
        if authored is None or not authored.signed(record.n, record.hash):
            self._find(Fault.UNPUBLISHED_ACK, record.stream, None, f"{_name(record.device)} n {record.n} was refused")
        elif record.code in FINAL_REFUSALS:
            authored.refused[record.hash] = record.code

    # -- what was received --------------------------------------------------------------------------------------

    def subscribed(self, record: Subscribed) -> None:
        stream = self._stream(record.device, record.stream)
        reader = stream.readers.get(record.device)
        if reader is None:
            reader = stream.readers[record.device] = _Reader(start=record.seq, position=record.seq)
        reader.start = min(reader.start, record.seq)
        reader.position = record.seq
        if record.chain is not None and not reader.diverged:
            self._claim(stream, record.seq, record.chain)

    def received(self, record: Received) -> None:
        stream = self._stream(record.device, record.stream)
        reader = stream.readers.get(record.device)
        if reader is None:
            raise InvalidObservationsError(f"{_name(record.device)} received {record.stream} without a subscription")
        if record.seq > reader.position + 1:
            self._find(Fault.GAP, stream.name, record.seq, f"{_name(record.device)} was at {reader.position}")
        elif record.seq <= reader.position:
            self._find(Fault.DUPLICATE, stream.name, record.seq, f"{_name(record.device)} had {reader.position}")
        self._delivered += len(record.rows)
        last = record.seq + len(record.rows) - 1
        for seq, (author, n, received_at_ms, value) in enumerate(record.rows, record.seq):
            authored = self._authored.get((author, record.stream))
            entry = _ENTRY.pack(authored.index if authored else 2**32 - 1, n, received_at_ms, value)
            known = stream.entries.setdefault(seq, entry)
            if known is entry:
                self._store(stream, seq, author, n, value)
            elif known != entry:
                self._diverge(stream, reader, seq, known, entry)
        reader.position = max(reader.position, last)
        if not reader.diverged:
            self._claim(stream, last, record.chain)

    def complete(self, record: Complete) -> None:
        reader = self._stream(record.device, record.stream).readers.get(record.device)
        if reader is None:
            raise InvalidObservationsError(f"{_name(record.device)} is complete in {record.stream}, never subscribed")
        reader.complete = True

    def _diverge(self, stream: _Stream, reader: _Reader, seq: int, known: bytes, entry: bytes) -> None:
        """Two readers were given different events for one place."""
        first = _ENTRY.unpack(known)
        second = _ENTRY.unpack(entry)
        fault = Fault.CHANGED if first[:2] == second[:2] else Fault.REORDERING
        if not reader.diverged:
            self._find(fault, stream.name, seq, "two readers were given different events")
        reader.diverged = True
        stream.fork(seq)

    def _store(self, stream: _Stream, seq: int, author: bytes, n: int, value: bytes) -> None:
        """An event is seen at a place for the first time."""
        authored = self._authored.get((author, stream.name))
        if self._users.get(author, stream.user) != stream.user:
            self._find(Fault.LEAK, stream.name, seq, f"an event of device {_name(author)}")
            stream.fork(seq)
            return
        if authored is None or not authored.signed(n, value):
            if self._published_by_other_user(stream.user, value):
                self._find(Fault.LEAK, stream.name, seq, f"another user's event as one of device {_name(author)}")
            elif authored is None or not authored.has(n):
                self._find(Fault.PHANTOM, stream.name, seq, f"device {_name(author)} n {n}")
            else:
                self._find(Fault.CHANGED, stream.name, seq, f"device {_name(author)} n {n}")
            if authored is None or not authored.has(n):
                return
        elif value in authored.refused:
            code = authored.refused[value]
            self._find(Fault.REFUSED_STORED, stream.name, seq, f"device {_name(author)} n {n}, refused {code}")
        place = n - authored.first_n
        if authored.stored[place]:
            self._find(Fault.DUPLICATE, stream.name, seq, f"{_name(author)} n {n} is at {authored.stored[place]} too")
            self._stored_elsewhere[authored.index, n].add(seq)
        else:
            authored.stored[place] = seq

    def _published_by_other_user(self, user: bytes, value: bytes) -> bool:
        if self._hash_users is None:  # Only a run that is already wrong pays for this index.
            self._hash_users = {hash_: a.user for a in self._by_index for hash_ in a.hashes}
        return self._hash_users.get(value, user) != user

    def _claim(self, stream: _Stream, seq: int, chain: bytes) -> None:
        if stream.chains.setdefault(seq, chain) != chain and seq < (stream.contradicted_at or seq + 1):
            stream.contradicted_at = seq

    # -- the verdict --------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        for stream in self._streams.values():
            self._judge_chain(stream)
            self._judge_author_order(stream)
        for authored in self._by_index:
            self._judge_acknowledgements(authored)
        return Verdict(
            counts=self._counts,
            findings=tuple(self._findings),
            published=sum(len(authored.hashes) for authored in self._by_index),
            acknowledged=sum(seq != 0 for authored in self._by_index for seq in authored.acknowledged),
            delivered=self._delivered,
            logged=sum(len(stream.entries) for stream in self._streams.values()),
            chains=self._chains,
            readers=sum(reader.complete for stream in self._streams.values() for reader in stream.readers.values()),
        )

    def _judge_chain(self, stream: _Stream) -> None:
        """Recompute the chain over all entries and compare every chain that was given; the first fault ends it."""
        origin = _derive("keepstep/v1/chain-0", stream.user + stream.name.encode())
        self._chains += 0 in stream.chains
        if stream.chains.get(0, origin) != origin:
            self._find(Fault.BROKEN_CHAIN, stream.name, 0, "the chain before the first event")
            return
        chain: bytes | None = origin
        previous = 0
        for seq in sorted(stream.entries):
            if stream.forked_from is not None and seq >= stream.forked_from:
                return
            if seq != previous + 1:
                # What lies between was never delivered; go on from a chain that was given.
                chain = stream.chains.get(seq - 1)
            previous = seq
            given = stream.chains.get(seq)
            if chain is None:
                chain = given
                continue
            _, _, received_at_ms, value = _ENTRY.unpack(stream.entries[seq])
            chain = _derive("keepstep/v1/chain", chain + struct.pack(">QQ", seq, received_at_ms) + value)
            self._chains += given is not None
            if given not in (None, chain) or seq == stream.contradicted_at:
                self._find(Fault.BROKEN_CHAIN, stream.name, seq, "not the chain of the delivered events")
                return

    def _judge_author_order(self, stream: _Stream) -> None:
        """In the order of the log, each author's numbers ascend by one."""
        last: dict[int, int] = {}
        seqs = sorted(stream.entries)
        before_first = 0 if seqs[:1] == [1] else None  # A log that is known from its middle starts as it is found.
        for seq in seqs:
            index, n, _, _ = _ENTRY.unpack(stream.entries[seq])
            if index >= len(self._by_index) or self._by_index[index].user != stream.user:
                continue  # Nobody published it: found already.
            authored = self._by_index[index]
            known = last.get(index, before_first)
            last[index] = n if known is None else max(known, n)
            if known is None or not authored.has(n):
                continue
            if n <= known:
                if authored.stored[n - authored.first_n] == seq:
                    self._find(Fault.REORDERING, stream.name, seq, f"{_name(authored.device)} n {n} after {known}")
                continue
            missing = range(max(known + 1, authored.first_n), n)
            if any(not authored.stored[m - authored.first_n] for m in missing) and not any(
                authored.acknowledged[m - authored.first_n] for m in missing
            ):
                self._find(Fault.AUTHOR_GAP, stream.name, seq, f"{_name(authored.device)} n {n} after {known}")

    def _judge_acknowledgements(self, authored: _Authored) -> None:
        stream = self._streams.get((authored.user, authored.stream))
        if stream is None:
            return
        complete = [reader for reader in stream.readers.values() if reader.complete]
        lowest = min((reader.position for reader in complete), default=0)
        for place, seq in enumerate(authored.acknowledged):
            if seq == 0:
                continue
            n = authored.first_n + place
            stored = authored.stored[place]
            if stored == 0:
                judged = any(reader.start < seq or seq == UNKNOWN_SEQ for reader in complete)
                self._find(Fault.LOSS if judged else Fault.UNREAD, stream.name, seq, f"{_name(authored.device)} n {n}")
                continue
            places = {stored} | self._stored_elsewhere.get((authored.index, n), set())
            named = {seq} | self._acknowledged_elsewhere.get((authored.index, n), set())
            if not named <= places | {UNKNOWN_SEQ}:
                self._find(
                    Fault.REORDERING, stream.name, stored, f"{_name(authored.device)} n {n} was acknowledged at {seq}"
                )
            if stored > lowest:
                for device, reader in stream.readers.items():
                    if reader.complete and reader.position < stored and reader.start < stored:
                        self._find(Fault.LOSS, stream.name, stored, f"{_name(device)} ended at {reader.position}")

    # -- helpers ------------------------------------------------------------------------------------------------

    def _user(self, device: bytes) -> bytes:
        try:
            return self._users[device]
        except KeyError:
            raise InvalidObservationsError(f"device {_name(device)} is not declared") from None

    def _stream(self, device: bytes, name: str) -> _Stream:
        user = self._user(device)
        stream = self._streams.get((user, name))
        if stream is None:
            stream = self._streams[user, name] = _Stream(user, name)
        return stream

    def _find(self, fault: Fault, stream: str, seq: int | None, detail: str) -> None:
        self._counts[fault] += 1
        if self._counts[fault] <= FINDINGS_PER_FAULT_MAX:
            self._findings.append(Finding(fault, stream, None if seq == UNKNOWN_SEQ else seq, detail))


def _derive(context: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context=context).digest()


def _name(device: bytes) -> str:
    """Enough of a device id to find it in the log's own base64 or in a server's log."""
    return device.hex()[:12]


def main(arguments: Sequence[str]) -> int:
    """The command: 0 clean, 1 not clean, 2 no observations."""
    if not arguments:
        print("usage: python -m bench.checker FILE...", file=sys.stderr)
        return 2
    try:
        verdict = check_observations([Path(argument) for argument in arguments])
    except (InvalidObservationsError, OSError) as exc:
        print(f"cannot judge: {exc}", file=sys.stderr)
        return 2
    print(verdict)
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

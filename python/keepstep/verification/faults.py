"""What ``keepstep verify`` can find: stable codes, and the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

FAULTS_LISTED_MAX: Final = 1_000
"""Faults that are kept to be shown; all of them are counted. Where a table is torn there may be one for each row."""

FAULT_CODES: Final[dict[str, str]] = {
    "account_event": "An event of `$devices` that its rules do not allow at that place.",
    "author_number": "An author's events do not follow each other: `n`, `prev`, or the column `n`.",
    "author_prev_seq": "The column that leads to the author's previous event leads elsewhere.",
    "authors_differ": "What the head keeps of its authors is not what the rows say.",
    "bad_signature": "The event is not signed by the device that it is said to be of: forged, or its bytes changed.",
    "chain_differs": "The chain stored with a row is not the one that follows from the row before and this one.",
    "device_differs": "A row of the table of devices is not what `$devices` says.",
    "device_missing": "A device that `$devices` enrolled is not in the table of devices.",
    "device_unknown": "A device in the table was never enrolled in `$devices`.",
    "epoch_differs": "The streams of one user have different `auth_epoch`s.",
    "expiry_differs": "The column `expires_at` is not what the event's ttl makes it.",
    "head_differs": "The head of a stream is not where its rows end.",
    "header_malformed": "A header is not of the documented form, or its kind does not go into that stream.",
    "kept_event": "An event that was kept of a pruned beginning is not as it was signed.",
    "latest_differs": "The winner of a key is not the event that wins it.",
    "payload_differs": "The payload is not the one that the header names.",
    "payload_lost": "A payload is gone, and no ttl, erasure, newer value of its key or read inbox accounts for it.",
    "policy_differs": "Policy, longest ttl or bound of a stream are not those of its last policy event.",
    "position_differs": "A device is said to have more of a stream than there is.",
    "received_at_back": "An event was received before the one that comes before it.",
    "rewind_differs": "The log does not go through the place where a restore set it back to.",
    "root_differs": "The next root key that a user is committed to is not the one of `$devices`.",
    "seq_missing": "Rows are missing: the seqs have a gap, or end before the head.",
    "seq_repeated": "A seq is there more than once.",
    "segment_damaged": "A segment of the archive is cut short or changed: digest, form, chain or a payload is wrong.",
    "segment_forged": "A segment of the archive whose manifest is not signed by the server.",
    "segment_gap": "A segment of the archive does not begin where the one before ended.",
    "segment_misplaced": "A segment of the archive is in the place of another one.",
    "segment_missing": "A segment of the archive is not there.",
    "snapshot_differs": "A row of the table of snapshots is not what the events say.",
    "stored_bytes_differ": "The count of stored bytes is not the sum over the rows.",
    "stray_rows": "Rows that belong to no stream of their user, or are in the table of another class.",
    "stream_missing": "A user without the streams that every user has.",
    "tail_differs": "Where a stream begins does not fit together.",
    "unknown_author": "A row's author is no device of the user.",
    "wrong_stream": "The event was signed for another stream.",
}
"""Every code with its meaning; a code keeps its meaning for ever."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it should be.

    Attributes:
        code: a key of ``FAULT_CODES``.
        user_key: the user id, 32 bytes; ``None`` where rows belong to nobody.
        stream: its name; ``None`` for what is not of one stream.
        seq: in the stream; ``None`` for what is not of one event.
        detail: what was found and what should be, in words.
    """

    code: str
    user_key: bytes | None
    stream: str | None
    seq: int | None
    detail: str

    def __str__(self) -> str:
        place = {
            "user": None if self.user_key is None else self.user_key.hex(),
            "stream": self.stream,
            "seq": self.seq,
        }
        where = " ".join(f"{name} {value}" for name, value in place.items() if value is not None)
        return ": ".join(part for part in (self.code, where, self.detail) if part)


@dataclass(slots=True)
class Found:
    """What was found so far: the first ``FAULTS_LISTED_MAX`` faults, and how many there are."""

    faults: list[Fault] = field(default_factory=list)
    count: int = 0

    def add(self, fault: Fault) -> None:
        """One more."""
        assert fault.code in FAULT_CODES, fault.code
        self.count += 1
        if len(self.faults) < FAULTS_LISTED_MAX:
            self.faults.append(fault)


@dataclass(frozen=True, slots=True)
class Faults:
    """Where the faults of one user, or of one stream, are noted.

    Attributes:
        user_key: whose.
        stream: which.
        found: where they go.
    """

    user_key: bytes | None
    stream: str | None = None
    found: Found = field(default_factory=Found)

    def of(self, stream: str) -> Faults:
        """Those of a stream of the same user."""
        return Faults(self.user_key, stream, self.found)

    def add(self, code: str, seq: int | None, detail: str) -> None:
        """Note a fault."""
        self.found.add(Fault(code, self.user_key, self.stream, seq, detail))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        users: verified.
        events: verified.
        faults: found.
    """

    users: int
    events: int
    faults: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified and what was found.

    Attributes:
        users: verified.
        streams: of them.
        events: in those, counted as they were read.
        seconds: that it took.
        faults: the first ``FAULTS_LISTED_MAX``, in order of users and streams.
        faults_count: of all.
        notes: what is no fault and yet worth knowing: accounts above their own quota.
    """

    users: int
    streams: int
    events: int
    seconds: float
    faults: tuple[Fault, ...]
    faults_count: int
    notes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return self.faults_count == 0

    @property
    def events_per_s(self) -> int:
        """The rate that was seen."""
        return round(self.events / self.seconds) if self.seconds > 0 else 0


def reference() -> str:
    """``docs/reference/verify-faults.md``: the codes, from this file."""
    lines = [
        "# Faults that `keepstep verify` names",
        "",
        "Each with user, stream and seq where it has them, and what was found in words.",
        "A code keeps its meaning for ever. What to do: [verify](../how-to/verify.md).",
        "",
        "| code | meaning |",
        "|---|---|",
    ]
    lines += [f"| `{code}` | {meaning} |" for code, meaning in sorted(FAULT_CODES.items())]
    return "\n".join(lines) + "\n"

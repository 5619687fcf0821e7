"""All users of a database, one after the other, each as of one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from keepstep.model import DEVICES_STREAM, KEYS_STREAM
from keepstep.verification.account import AccountCheck, StoredDevice
from keepstep.verification.faults import Fault, Faults, Found, Progress, Report
from keepstep.verification.kept import KeptEvent, check_kept
from keepstep.verification.stored import StoredEvent, StoredStream, StreamCheck, Winner

if TYPE_CHECKING:
    from keepstep.verification.stored import Devices

NOTES_MAX: Final = 1_000
"""Notes that are kept to be shown."""


class StoredUser(NamedTuple):
    """A row of the table of users; quotas are ``None`` where the server's own limits count."""

    user_key: bytes
    next_root_hash: bytes
    streams_max: int | None
    devices_max: int | None
    bytes_max: int | None


class Stray(NamedTuple):
    """Rows of a table that belong to no stream."""

    table: str
    user_key: bytes | None
    user_pk: int
    stream_pk: int
    rows: int


class UserSnapshot(Protocol):
    """One user as of one moment. Streams and rows come as they are read, in bounded memory."""

    @property
    def user(self) -> StoredUser:
        """The user."""

    def devices(self) -> list[StoredDevice]:
        """All of them."""

    def streams(self) -> list[StoredStream]:
        """Without what ``details`` adds, ascending by stream_pk."""

    def details(self, stream: StoredStream) -> StoredStream:
        """With the rows of small tables that belong to it."""

    def events(self, stream: StoredStream) -> Iterator[list[StoredEvent]]:
        """Rows above the tail, ascending by seq."""

    def kept(self, stream: StoredStream) -> list[KeptEvent]:
        """What is kept of the beginning."""

    def winners(self, stream: StoredStream, keys: Sequence[bytes]) -> Mapping[bytes, Winner]:
        """Of those keys."""

    def winners_count(self, stream: StoredStream) -> int:
        """Winners with a seq above the tail."""


class Source(Protocol):
    """A database that is read."""

    def users(self, user_key: bytes | None) -> Iterable[int]:
        """Row numbers of all users, or of that one; accounts that are being deleted are none."""

    def snapshot(self, user_pk: int) -> AbstractContextManager[UserSnapshot | None]:
        """A user; ``None`` where it has been deleted meanwhile."""

    def strays(self, user_key: bytes | None) -> list[Stray]:
        """Rows that belong to no stream, of all users or of that one."""


class _Verification:
    """One run."""

    def __init__(self, stream: str | None, now_ms: Callable[[], int], progress: Callable[[Progress], None]) -> None:
        self._only = stream
        self._now_ms = now_ms
        self._progress = progress
        self.found = Found()
        self.users = 0
        self.streams = 0
        self.events = 0
        self.notes: list[str] = []

    def check_user(self, snapshot: UserSnapshot) -> None:
        """All of one user."""
        user = snapshot.user
        now_ms = self._now_ms()  # it may take hours until this user's turn; what runs out meanwhile is gone by then
        faults = Faults(user.user_key, None, self.found)
        streams = snapshot.streams()
        rows = snapshot.devices()
        by_name = {stream.name: stream for stream in streams}
        account_faults = faults.of(DEVICES_STREAM) if self._only in (None, DEVICES_STREAM) else Faults(None)
        account = AccountCheck(user.user_key, rows, account_faults)
        devices_stream = by_name.get(DEVICES_STREAM)
        devices = account.follow(() if devices_stream is None else snapshot.events(devices_stream))
        if self._only is None:
            for name in (DEVICES_STREAM, KEYS_STREAM):
                if name not in by_name:
                    faults.of(name).add("stream_missing", None, "the user has no such stream")
            if len({stream.auth_epoch for stream in streams}) > 1:
                faults.add("epoch_differs", None, "its streams have different epochs")
            self._note_quotas(user, streams, rows)
        account.compare(user.next_root_hash)
        for stream in streams:
            if self._only in (None, stream.name):
                self._check_stream(snapshot, stream, devices, now_ms, faults.of(stream.name))
        self.users += 1
        self._tell()

    def add_strays(self, strays: Iterable[Stray]) -> None:
        """Rows that no stream accounts for."""
        for stray in strays:
            whose = f"user_pk {stray.user_pk}, stream_pk {stray.stream_pk}"
            detail = f"{stray.rows} rows of {stray.table} belong to no stream: {whose}"
            self.found.add(Fault("stray_rows", stray.user_key, None, None, detail))

    def _check_stream(
        self, snapshot: UserSnapshot, stream: StoredStream, devices: Devices, now_ms: int, faults: Faults
    ) -> None:
        stream = snapshot.details(stream)
        if stream.tail_seq:
            kept = snapshot.kept(stream)
            policy = check_kept(snapshot.user.user_key, stream.name, stream.tail_seq, kept, devices, faults)
            stream = replace(stream, policy=policy)
        check = StreamCheck(
            snapshot.user.user_key,
            stream,
            devices,
            winners=lambda keys: snapshot.winners(stream, keys),
            winners_count=lambda: snapshot.winners_count(stream),
            now_ms=now_ms,
            faults=faults,
        )
        for batch in snapshot.events(stream):
            check.feed(batch)
            self.events += len(batch)
            self._tell()
        check.finish()
        self.streams += 1

    def _note_quotas(self, user: StoredUser, streams: Sequence[StoredStream], devices: Sequence[StoredDevice]) -> None:
        """An account above its own quota: it may have been lowered since, so it is no fault."""
        stored_bytes = sum(each.stored_bytes for each in streams if each.name not in (DEVICES_STREAM, KEYS_STREAM))
        live = sum(each.revoked_at is None for each in devices)
        for what, has, may in (
            ("streams", len(streams), user.streams_max),
            ("devices", live, user.devices_max),
            ("bytes", stored_bytes, user.bytes_max),
        ):
            if may is not None and has > may and len(self.notes) < NOTES_MAX:
                self.notes.append(f"user {user.user_key.hex()} has {has} {what}, and its quota is {may}")

    def _tell(self) -> None:
        self._progress(Progress(self.users, self.events, self.found.count))


def verify(
    source: Source,
    *,
    now_ms: int,
    monotonic_s: Callable[[], float],
    user_key: bytes | None = None,
    stream: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Verify what a database holds. Blocks; changes nothing.

    Args:
        source: the database.
        now_ms: unix milliseconds, as it begins: what has run out by the time it is read may be gone.
        monotonic_s: a clock for the rate, and for how late it is.
        user_key: only this user; all of them where it is ``None``.
        stream: only streams of this name, and of the account what their signatures need.
        progress: called after each batch of rows and each user.
    """
    begun_s = monotonic_s()

    def elapsed_now_ms() -> int:
        return now_ms + round((monotonic_s() - begun_s) * 1000)

    verification = _Verification(stream, elapsed_now_ms, progress or (lambda _: None))
    for user_pk in source.users(user_key):
        with source.snapshot(user_pk) as snapshot:
            if snapshot is not None:
                verification.check_user(snapshot)
    if stream is None:
        verification.add_strays(source.strays(user_key))
    return Report(
        users=verification.users,
        streams=verification.streams,
        events=verification.events,
        seconds=monotonic_s() - begun_s,
        faults=tuple(verification.found.faults),
        faults_count=verification.found.count,
        notes=tuple(verification.notes),
    )

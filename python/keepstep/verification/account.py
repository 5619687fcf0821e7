"""``$devices`` of a database: replayed by its rules, and compared with the table of devices that is a view of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey
from keepstep.errors import ProtocolError
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.verification.stored import Devices

if TYPE_CHECKING:
    from keepstep.protocol.account_state import EnrolledDevice
    from keepstep.verification.faults import Faults
    from keepstep.verification.stored import StoredEvent


@dataclass(frozen=True, slots=True)
class StoredDevice:
    """A row of the table of devices, as its columns are named there; times in unix milliseconds."""

    device_pk: int
    device_id: bytes
    device_key: bytes
    box_key: bytes
    capabilities: int
    issued_at: int
    expires_at: int | None
    sealed_label: bytes
    enrolled_at: int
    manage_from: int
    revoked_at: int | None
    revoked_seq: int | None


class AccountCheck:
    """Replays the account log of one user.

    Args:
        user_key: the user id.
        rows: the table's.
        faults: where the faults of ``$devices`` go.
    """

    def __init__(self, user_key: bytes, rows: Sequence[StoredDevice], faults: Faults) -> None:
        self._rows = {row.device_id: row for row in rows}
        self._ids = {row.device_pk: row.device_id for row in rows}
        self._faults = faults
        self._log = AccountLog(_keepstep, user_key)
        self._enrolled_at: dict[bytes, int] = {}
        self._is_followed = True

    def follow(self, events: Iterable[Sequence[StoredEvent]]) -> Devices:
        """All events of ``$devices`` in order; what the other streams are verified with.

        What the rules say of an event behind one that they refused is not told: it may be because of that one.
        """
        for batch in events:
            for row in batch:
                self._follow(row)
        return Devices(self._ids, self._keys())

    def compare(self, next_root_hash: bytes) -> None:
        """The table of devices, and what the user is committed to, against what was followed."""
        if not self._is_followed:
            return
        devices = self._log.devices
        for device_id, device in devices.items():
            row = self._rows.get(device_id)
            if row is None:
                self._faults.add("device_missing", device.seq, f"the device {device_id.hex()} has no row")
                continue
            for column, is_, should in _differences(row, device, self._enrolled_at[device_id]):
                self._faults.add(
                    "device_differs",
                    device.seq,
                    f"{column} of the device {device_id.hex()} is {is_}, and should be {should}",
                )
        for device_id in self._rows.keys() - devices.keys():
            self._faults.add("device_unknown", None, f"the device {device_id.hex()} was never enrolled")
        if self._log.next_root_hash not in (None, next_root_hash):
            self._faults.add("root_differs", None, "the next root key is another one than the account log commits to")

    def _follow(self, row: StoredEvent) -> None:
        event = AccountEvent(
            self._ids.get(row.device_pk, b""), row.header, row.sig, row.payload or b"", row.received_at
        )
        try:
            effect = self._log.apply(event)
        except ProtocolError as error:
            if self._is_followed:
                self._faults.add("account_event", row.seq, f"it may not stand there: {error}")
            self._is_followed = False
            self._log.skip(event)
            return
        if effect.enrolled is not None:
            self._enrolled_at[effect.enrolled.entry.device_id] = row.received_at

    def _keys(self) -> dict[bytes, DeviceKey]:
        """By device id: as enrolled, or as the table has it where the account log could not be followed."""
        keys: dict[bytes, DeviceKey] = {}
        public = {} if self._is_followed else {row.device_id: row.device_key for row in self._rows.values()}
        public |= {device_id: device.entry.device_key for device_id, device in self._log.devices.items()}
        for device_id, key in public.items():
            try:
                keys[device_id] = DeviceKey(key)
            except ProtocolError:
                continue  # whose events will be of an unknown author
        return keys


def _differences(row: StoredDevice, device: EnrolledDevice, enrolled_at: int) -> list[tuple[str, object, object]]:
    """(column, what it is, what it should be) where they differ; bytes are not shown whole."""
    entry, ended = device.entry, device.ended
    pairs: list[tuple[str, object, object]] = [
        ("device_key", row.device_key.hex(), entry.device_key.hex()),
        ("box_key", row.box_key.hex(), entry.box_key.hex()),
        ("capabilities", row.capabilities, int(entry.capabilities)),
        ("issued_at", row.issued_at, entry.issued_at_ms),
        ("expires_at", row.expires_at, entry.expires_at_ms),
        ("sealed_label", row.sealed_label.hex(), entry.sealed_label.hex()),
        ("enrolled_at", row.enrolled_at, enrolled_at),
        ("manage_from", row.manage_from, device.manage_from_ms),
        ("revoked_at", row.revoked_at, None if ended is None else ended.received_at_ms),
        ("revoked_seq", row.revoked_seq, None if ended is None else ended.seq),
    ]
    return [(column, is_, should) for column, is_, should in pairs if is_ != should]

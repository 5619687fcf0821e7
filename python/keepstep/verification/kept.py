"""What is kept of a stream's pruned beginning: the policy in force, the newest confirmed snapshot, each as signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.model import Kind
from keepstep.protocol.event import decode_header, verify_event
from keepstep.protocol.policy import PolicyPayload, decode_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.protocol.event import Header
    from keepstep.verification.faults import Faults
    from keepstep.verification.stored import Devices


class KeptEvent(NamedTuple):
    """A row of the table of kept events, as its columns are named there."""

    seq: int
    kind: int
    received_at: int
    device_pk: int
    n: int
    header: bytes
    sig: bytes
    payload: bytes | None


def check_kept(
    user_key: bytes, stream: str, tail_seq: int, rows: Sequence[KeptEvent], devices: Devices, faults: Faults
) -> PolicyPayload | None:
    """Verify them; the policy in force at the tail, ``None`` where no event has set one."""
    policy: PolicyPayload | None = None
    for row in sorted(rows):
        try:
            header = _checked(user_key, stream, row, devices)
            if row.seq > tail_seq:
                raise ProtocolError("malformed", "it is above the tail")
            if header.kind == Kind.POLICY:
                policy = decode_policy(row.payload or b"")
        except ProtocolError as error:
            faults.add("kept_event", row.seq, f"of what is kept of the beginning: {error.detail or error}")
    return policy


def _checked(user_key: bytes, stream: str, row: KeptEvent, devices: Devices) -> Header:
    """Its header. Raises ProtocolError with what is wrong."""
    header = decode_header(row.header)
    if (header.stream, header.kind, header.n) != (stream, row.kind, row.n):
        raise ProtocolError("malformed", "its columns are not what its header says")
    if row.payload is not None and header.payload_hash != _keepstep.blake3(row.payload):
        raise ProtocolError("malformed", "its payload is not the one that its header names")
    device_id = devices.ids.get(row.device_pk, b"")
    key = devices.keys.get(device_id)
    if key is None:
        raise ProtocolError("forbidden", "its author is no device of this user")
    verify_event(
        _keepstep, device_key=key.public, user_key=user_key, device_id=device_id, header=row.header, sig=row.sig
    )
    return header

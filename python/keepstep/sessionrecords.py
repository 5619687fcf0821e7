"""A session's records, in the hands of the connection that listens (protocol.md section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep._keepstep import RecordOpener, RecordReader, RecordSealer
from keepstep.interfaces import Records
from keepstep.protocol.session import REKEY_RECORDS

if TYPE_CHECKING:
    from keepstep.model import Principal
    from keepstep.protocol.session import ServerSession
    from keepstep.sessionservices import SessionLimits


def session_records(protocol: ServerSession, principal: Principal, limits: SessionLimits) -> Records:
    """What opens the device's records, makes submissions of what it publishes, and seals what it is sent."""
    opener, sealer = protocol.opener, protocol.sealer
    assert isinstance(opener, RecordOpener), "the extension's"
    assert isinstance(sealer, RecordSealer), "the extension's"
    reader = RecordReader(
        opener,
        user_pk=principal.user_pk,
        user_key=principal.user_key,
        device_pk=principal.device_pk,
        device_id=principal.device_id,
        device_key=principal.device_key,
        capabilities=principal.capabilities,
        events_max=limits.publish_events_max,
        payload_bytes_max=limits.payload_bytes_max,
        records_max=REKEY_RECORDS,
    )
    return Records(reader, sealer)

"""What a device asks that only the log can answer: pages by position, chains, healing (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.errors import ProtocolError
from keepstep.model import Capability, reading_refusal
from keepstep.pages import encode_read_result
from keepstep.protocol.messages import ChainAt, Heal, Read, encode

if TYPE_CHECKING:
    from keepstep.model import Principal
    from keepstep.sessionservices import SessionLimits, SessionServices


async def look_up(
    services: SessionServices, limits: SessionLimits, principal: Principal, message: Read | ChainAt | Heal
) -> bytes:
    """The answer to a device's question, encoded. Cancel-safe but for ``heal``, which waits for its outcome.

    Raises:
        ProtocolError: why there is none; Unavailable among them.
    """
    if isinstance(message, Read):
        return await _read_page(services, limits, principal, message)
    if isinstance(message, ChainAt):
        return encode(await services.healing.chains(principal, message))
    return encode(await services.healing.heal(principal, message))


async def _read_page(services: SessionServices, limits: SessionLimits, principal: Principal, message: Read) -> bytes:
    if not principal.capabilities & Capability.SUBSCRIBE:
        raise ProtocolError("forbidden")
    refusal = reading_refusal(message.stream, principal.device_id)
    if refusal is not None:
        raise ProtocolError(refusal)
    page = await services.log.read(
        principal.user_pk,
        message.stream,
        after=message.after,
        events_max=min(message.limit, limits.read_events_max),
        bytes_max=limits.read_bytes_max,
        now_ms=services.clock.now_ms(),
    )
    return encode_read_result(message.rid, message.stream, page)

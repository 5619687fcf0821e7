"""Which of the account's devices are connected (protocol.md section 4)."""

from __future__ import annotations

from typing import Final

from keepstep.model import Capability
from keepstep.rest.account import EXAMPLE_DEVICE_ID, format_device_id
from keepstep.rest.endpoints import Access, AnswerBody, Call, Endpoint, Example, NoParameters, Reply
from keepstep.rest.fields import Base64url, DeviceId, Milliseconds
from keepstep.validation import format_base64url


class DevicePresence(AnswerBody, frozen=True, kw_only=True):
    """A connected device and its state, as sealed under the account's content key; `at_ms`: when it told it."""

    device_id: DeviceId
    sealed: Base64url
    at_ms: Milliseconds


class PresenceList(AnswerBody, frozen=True, kw_only=True):
    """Devices that are connected to this server and have told their state."""

    devices: list[DevicePresence]


async def _presence(call: Call[NoParameters, NoParameters, None]) -> Reply:
    present = call.services.presences.present(call.principal.user_key)
    return Reply(
        PresenceList(
            devices=[
                DevicePresence(
                    device_id=format_device_id(device.device_id),
                    sealed=format_base64url(device.sealed),
                    at_ms=device.at_ms,
                )
                for device in sorted(present, key=lambda device: device.device_id)
            ]
        )
    )


ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/presence",
        access=Access.DEVICE,
        summary="Which of the account's devices are connected",
        description=(
            "States are sealed for the account's devices; this server cannot read them. Of devices that are connected "
            "to another node of this server nothing is listed."
        ),
        handler=_presence,
        answers={200: PresenceList},
        capability=Capability.SUBSCRIBE,
        example=Example(
            answer={"devices": [{"device_id": EXAMPLE_DEVICE_ID, "sealed": "AQID", "at_ms": 1_767_225_600_000}]}
        ),
    ),
)

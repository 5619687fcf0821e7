"""The devices of a user, as a device's own file knows them; nothing is asked of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepstep.client import crypto
from keepstep.client.keys import Keyring, open_label
from keepstep.protocol.account import AccountLog
from keepstep.protocol.account_state import decode_account_state

if TYPE_CHECKING:
    from keepstep.client.store import Store
    from keepstep.model import Capability
    from keepstep.protocol.account_state import EndReason


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of the user, as ``$devices`` lists it.

    Attributes:
        device_id: 16 bytes.
        name: what its user called it; ``None`` where this device cannot open it.
        capabilities: what it may do.
        enrolled_at_ms: unix milliseconds, by the enrolling device's clock.
        manages_from_ms: unix milliseconds until which ``MANAGE`` does not count yet; 0 where there is no such wait.
        ended: why it is no device of the user any more; ``None`` while it is.
    """

    device_id: bytes
    name: str | None
    capabilities: Capability
    enrolled_at_ms: int
    manages_from_ms: int
    ended: EndReason | None


def list_devices(account: AccountLog, keyring: Keyring) -> list[DeviceInfo]:
    """Every device that an account log knows, in order of enrolment."""
    return [
        DeviceInfo(
            device_id=device_id,
            name=open_label(
                keyring, user_key=account.user_key, device_id=device_id, sealed_label=each.entry.sealed_label
            ),
            capabilities=each.entry.capabilities,
            enrolled_at_ms=each.entry.issued_at_ms,
            manages_from_ms=each.manage_from_ms,
            ended=None if each.ended is None else each.ended.reason,
        )
        for device_id, each in account.devices.items()
    ]


def list_devices_of(store: Store) -> list[DeviceInfo]:
    """The same from a device's file, as it was last written. Blocks on the disk."""
    state = store.account()
    if state is None:
        return []
    account = AccountLog(crypto, store.identity.user_key, decode_account_state(state))
    return list_devices(account, Keyring(store.content_keys()))

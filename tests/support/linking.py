"""Both sides of a link, with keys that a test names; no mailbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.protocol.linking import Handover, Invitation, NewLink, TrustedLink
from tests.support.events import NOW_MS, seed

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

EXTENSION: Final[Primitives] = _keepstep
CLIENT: Final[Primitives] = crypto
DEVICE_ID: Final = b"d" * 16
DEVICE_SECRET: Final = seed("new device")
BOX_KEY: Final = crypto.x25519_public(seed("new box"))
HANDOVER: Final = Handover(
    entry=(DEVICE_ID, crypto.ed25519_public(DEVICE_SECRET), BOX_KEY, 3, NOW_MS, None, b"label"),
    devices=(3, seed("chain")),
    heads={"$devices": (b"head", b"s" * 64)},
)


def invitation(label: str = "link") -> Invitation:
    """What a trusted device shows; its ephemeral secret is ``seed(f"{label} trusted ephemeral")``."""
    return Invitation(
        version=1,
        rest_url="https://keepstep.example",
        device_url="wss://keepstep.example/v1/connect",
        user_key=seed("user"),
        server_key=seed("server"),
        link_id=seed(f"{label} id")[:16],
        secret=seed(f"{label} secret"),
        ephemeral=crypto.x25519_public(seed(f"{label} trusted ephemeral")),
    )


def trusted_side(primitives: Primitives = CLIENT, label: str = "link") -> TrustedLink:
    """The trusted device's."""
    return TrustedLink(
        primitives,
        invitation(label),
        ephemeral_secret=seed(f"{label} trusted ephemeral"),
        nonce=seed(f"{label} trusted nonce"),
    )


def new_side(primitives: Primitives = CLIENT, label: str = "link", *, who: str = "new", **changes: Any) -> NewLink:
    """The new device's, or somebody else's who has an invitation."""
    arguments = {"ephemeral_secret": seed(f"{label} {who} ephemeral"), "nonce": seed(f"{label} {who} nonce")}
    return NewLink(primitives, changes.pop("invitation", invitation(label)), **(arguments | changes))


def reveal(side: NewLink, nonce: bytes, **changes: Any) -> bytes:
    """The new device's second message."""
    arguments: dict[str, Any] = {
        "device_id": DEVICE_ID,
        "device_secret": DEVICE_SECRET,
        "box_key": BOX_KEY,
        "name": "phone",
        "platform": "Linux",
    }
    return side.receive_nonce(nonce, **(arguments | changes))

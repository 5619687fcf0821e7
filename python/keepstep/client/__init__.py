"""The device library: create users and devices, publish, subscribe; everything verified, encrypted, durable, resumed.

Written for Trio; scripts that know nothing of it use ``keepstep.client.blocking``. See
``docs/how-to/use-the-client-library.md``.
"""

from keepstep.client.accounts import create_user
from keepstep.client.device import Device, open_device
from keepstep.client.linking import Candidate, LinkOffer, WrongCode, accept_link, offer_link
from keepstep.client.listing import DeviceInfo
from keepstep.client.live import DeviceAway, DevicePresence, PresenceChanges, ReceivedSignal, Signals
from keepstep.client.moving import move_device
from keepstep.client.notices import Notice, NoticeKind, Notices
from keepstep.client.publication import Publication, Receipt
from keepstep.client.recovering import recover
from keepstep.client.rewinds import Restoration
from keepstep.client.safekeeping import Fallen, Safety
from keepstep.client.server import Server, find_server
from keepstep.client.snapshots import Snapshot
from keepstep.client.store import Alarm
from keepstep.client.subscription import Event, Subscription
from keepstep.errors import (
    ClientError,
    EventsPruned,
    EventsRewound,
    KeepstepError,
    ProtocolError,
    SessionNeeded,
    StoreError,
    VerificationError,
)
from keepstep.model import Capability, Policy, Position

__all__ = [
    "Alarm",
    "Candidate",
    "Capability",
    "ClientError",
    "Device",
    "DeviceAway",
    "DeviceInfo",
    "DevicePresence",
    "Event",
    "EventsPruned",
    "EventsRewound",
    "Fallen",
    "KeepstepError",
    "LinkOffer",
    "Notice",
    "NoticeKind",
    "Notices",
    "Policy",
    "Position",
    "PresenceChanges",
    "ProtocolError",
    "Publication",
    "Receipt",
    "ReceivedSignal",
    "Restoration",
    "Safety",
    "Server",
    "SessionNeeded",
    "Signals",
    "Snapshot",
    "StoreError",
    "Subscription",
    "VerificationError",
    "WrongCode",
    "accept_link",
    "create_user",
    "find_server",
    "move_device",
    "offer_link",
    "open_device",
    "recover",
]

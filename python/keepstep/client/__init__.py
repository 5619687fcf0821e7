"""The device library: create users and devices, publish, subscribe; everything verified, encrypted, durable, resumed.

Written for Trio; scripts that know nothing of it use ``keepstep.client.blocking``. See
``docs/how-to/use-the-client-library.md``.
"""

from keepstep.client.accounts import create_user
from keepstep.client.device import Device, DeviceInfo, open_device
from keepstep.client.publication import Publication, Receipt
from keepstep.client.server import Server, find_server
from keepstep.client.store import Alarm
from keepstep.client.subscription import Event, Subscription
from keepstep.errors import ClientError, KeepstepError, ProtocolError, StoreError, VerificationError
from keepstep.model import Capability, Position

__all__ = [
    "Alarm",
    "Capability",
    "ClientError",
    "Device",
    "DeviceInfo",
    "Event",
    "KeepstepError",
    "Position",
    "ProtocolError",
    "Publication",
    "Receipt",
    "Server",
    "StoreError",
    "Subscription",
    "VerificationError",
    "create_user",
    "find_server",
    "open_device",
]

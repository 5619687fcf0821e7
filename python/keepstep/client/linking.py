"""Linking a new device to a user: both devices' parts (protocol.md section 4, Linking).

::

    async with offer_link(laptop) as offer:  # on the trusted device
        print(offer.invitation)  # shown as a QR code, or sent
        candidate = await offer.wait_for_device()  # who it says it is
        offer.check_code(input())  # six digits that the new device shows
        await offer.enrol()

    await accept_link(invitation, path=path, name="phone", show_code=print)  # on the new device

Nothing of the new device is believed before its code was typed; then its user has it in hand.
"""

from __future__ import annotations

import contextlib
import platform as machine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.enrolling import READS_AND_WRITES
from keepstep.client.environment import SYSTEM, uuid4
from keepstep.client.http import raise_for_problem
from keepstep.client.locallog import LocalLog
from keepstep.client.mailbox import Mailbox
from keepstep.client.rest import RestClient
from keepstep.client.server import Server
from keepstep.client.store import Identity, create_store
from keepstep.client.worker import CLEANUP_S
from keepstep.errors import ClientError, ProtocolError, VerificationError
from keepstep.model import KEY_BYTES, Capability, Position
from keepstep.protocol.account_payloads import entry_from_wire
from keepstep.protocol.chain import verify_head
from keepstep.protocol.linking import (
    LINK_ID_BYTES,
    Handover,
    Invitation,
    NewLink,
    TrustedLink,
    format_invitation,
    parse_invitation,
)
from keepstep.protocol.streamstate import state_at_start
from keepstep.validation import parse_label

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from keepstep.client.device import Device
    from keepstep.client.environment import Environment
    from keepstep.protocol.linking import Introduction

DONE_WAIT_S: Final = 20.0
"""How long the trusted device waits for the new one's word that it is complete, seconds."""
PLATFORM_CHARACTERS_MAX: Final = 128


class WrongCode(ClientError):
    """Another code than the new device's was typed.

    Attributes:
        tries_left: how often it may be typed again; 0: the link is over.
    """

    def __init__(self, tries_left: int) -> None:
        super().__init__(
            "that is not the code that the new device shows" + ("" if tries_left else "; the link is over")
        )
        self.tries_left = tries_left


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who wants to be linked, by its own words; proven only by its code.

    Attributes:
        name: what its user called it.
        platform: what it runs on.
        address: the IP address that it came from, as the server says.
    """

    name: str
    platform: str
    address: str


class LinkOffer:
    """A link on the trusted device; ``offer_link`` makes it.

    Attributes:
        invitation: text for a QR code. Whoever sees it can take part: show it to nobody else.
    """

    def __init__(
        self, device: Device, mailbox: Mailbox, link: TrustedLink, text: str, capabilities: Capability
    ) -> None:
        self.invitation = text
        self._device = device
        self._mailbox = mailbox
        self._link = link
        self._capabilities = capabilities
        self._introduction: Introduction | None = None
        self.is_over = False

    async def wait_for_device(self) -> Candidate:
        """Wait for a new device.

        Raises:
            ClientError: none came in time, or the server cannot be reached.
            ProtocolError: what came has not seen the invitation, or breaks the protocol: the link is over.
        """
        commitment, _ = await self._mailbox.read()
        await self._mailbox.write(self._link.receive_commitment(commitment))
        revealed, address = await self._mailbox.read()
        introduction = self._introduction = self._link.receive_reveal(revealed)
        return Candidate(_printable(introduction.name), _printable(introduction.platform), _printable(address))

    def check_code(self, typed: str) -> None:
        """Compare what was typed with the new device's code; spaces do not count. Raises WrongCode, ProtocolError."""
        try:
            self._link.check_code("".join(typed.split()))
        except ProtocolError as error:
            if error.code != "auth_failed":
                raise
            raise WrongCode(self._link.tries_left) from error

    async def enrol(self) -> None:
        """Enrol the device whose code was typed, and hand over what it needs.

        Raises:
            ClientError: this device may not, the link is over, or the new device did not say that it is complete: then
                it may be enrolled, see ``Device.devices``.
            ProtocolError: the server refuses; no right code was typed.

        After a cancellation the new device may be enrolled or not.
        """
        if not self._link.is_confirmed:
            raise ProtocolError("unexpected", "the code of the new device was not typed")
        introduction = self._introduction
        assert introduction is not None
        handover = await self._device.enrol_linked(introduction, capabilities=self._capabilities)
        self.is_over, is_complete = True, False
        with trio.move_on_after(DONE_WAIT_S), contextlib.suppress(ClientError, ProtocolError):
            for part in self._link.hand_over(handover):
                await self._mailbox.write(part)
            message, _ = await self._mailbox.read()
            self._link.receive_done(message)
            is_complete = True
        if not is_complete:
            name = _printable(introduction.name)
            raise ClientError(f"{name} is enrolled, but did not say that it is complete: revoke it if it does not work")

    async def refuse(self) -> None:
        """End the link; the new device is told, where it can be."""
        self.is_over = True
        message = self._link.refuse()
        if message is not None:
            with contextlib.suppress(ClientError, ProtocolError):
                await self._mailbox.write(message)


@contextlib.asynccontextmanager
async def offer_link(
    device: Device,
    *,
    capabilities: Capability = READS_AND_WRITES,
    environment: Environment = SYSTEM,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[LinkOffer]:
    """Begin to link a new device, which is good for two minutes; refused at the end of the block if not enrolled.

    Args:
        device: one that manages; connected.
        capabilities: what the new one may do; reading is necessary.
        environment: clock and randomness.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: the device may not, or the server cannot be reached.
        ProtocolError: the server refuses.
    """
    device.check_enrols(capabilities)
    identity = device.identity
    client = RestClient(identity, environment=environment, tls=tls)
    secret, ephemeral = crypto.x25519_generate(environment.random_bytes(KEY_BYTES))
    invitation = Invitation(
        version=1,
        rest_url=client.origin,
        device_url=identity.device_url,
        user_key=identity.user_key,
        server_key=identity.server_key,
        link_id=environment.random_bytes(LINK_ID_BYTES),
        secret=environment.random_bytes(KEY_BYTES),
        ephemeral=ephemeral,
    )
    link = TrustedLink(crypto, invitation, ephemeral_secret=secret, nonce=environment.random_bytes(KEY_BYTES))
    path = f"/api/v1/links/{invitation.link_id.hex()}"
    raise_for_problem(await client.request("PUT", path))
    mailbox = Mailbox(client.origin, invitation.link_id, "trusted", tls=tls)
    offer = LinkOffer(device, mailbox, link, format_invitation(invitation), capabilities)
    try:
        yield offer
    finally:
        # A refusal stays until the link's time is over, so that the new device can read it.
        with trio.move_on_after(CLEANUP_S, shield=True), contextlib.suppress(ClientError, ProtocolError):
            if not offer.is_over:
                await offer.refuse()
            else:
                await client.request("DELETE", path)


async def accept_link(
    invitation: str,
    *,
    path: Path,
    name: str,
    show_code: Callable[[str], None],
    environment: Environment = SYSTEM,
    at: Server | None = None,
    platform: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Become a device of the user who shows an invitation; its file is at ``path`` when this returns.

    Args:
        invitation: the text of the QR code.
        path: where the device's file will be.
        name: for its user; the server does not see it.
        show_code: called with six digits that the user types into the trusted device.
        environment: clock and randomness.
        at: where the server is reached, if not where the invitation says; from ``find_server``.
        platform: what to call this machine; found out by default.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: that is no invitation, something is at ``path`` already, the link is over, the server cannot be
            reached, or ``at`` is another one.
        ProtocolError: ``forbidden``: the trusted device's user refused; ``link_taken``: another device was first.
        VerificationError: what was handed over is not true.

    After a cancellation the device may be enrolled without a file: the trusted device says so.
    """
    try:
        invited = parse_invitation(invitation)
        label = parse_label(name)
    except ProtocolError as exc:
        raise ClientError(f"this device cannot be linked: {exc.detail}") from exc
    if await trio.to_thread.run_sync(path.exists):
        raise ClientError(f"{path} exists already")
    at = at or Server(invited.device_url, invited.rest_url, invited.server_key)
    if at.server_key != invited.server_key:
        raise ClientError(f"{at.rest_url} is another server than the one of the invitation")
    link = NewLink(
        crypto,
        invited,
        ephemeral_secret=environment.random_bytes(KEY_BYTES),
        nonce=environment.random_bytes(KEY_BYTES),
    )
    device_id = uuid4(environment)
    device_secret, _ = crypto.ed25519_generate(environment.random_bytes(KEY_BYTES))
    box_secret, box_key = crypto.x25519_generate(environment.random_bytes(KEY_BYTES))
    mailbox = Mailbox(at.rest_url, invited.link_id, "new", tls=tls)
    await mailbox.write(link.commit())
    nonce, _ = await mailbox.read()
    revealed = link.receive_nonce(
        nonce,
        device_id=device_id,
        device_secret=device_secret,
        box_key=box_key,
        name=label,
        platform=(machine.platform() if platform is None else platform)[:PLATFORM_CHARACTERS_MAX],
    )
    await mailbox.write(revealed)
    show_code(link.code)
    handover = None
    while handover is None:
        part, _ = await mailbox.read()
        handover = link.receive_handover(part)
    identity = _identity(invited, at, handover, label, device_id, device_secret, box_secret)
    await trio.to_thread.run_sync(_keep, path, identity, handover)
    with contextlib.suppress(ClientError, ProtocolError):  # it is complete, whether or not that is heard
        await mailbox.write(link.done())


def _identity(
    invited: Invitation,
    at: Server,
    handover: Handover,
    name: str,
    device_id: bytes,
    device_secret: bytes,
    box_secret: bytes,
) -> Identity:
    """Who this device is now, if what was handed over is about it. Raises VerificationError."""
    entry = entry_from_wire(handover.entry)
    mine = (device_id, crypto.ed25519_public(device_secret), crypto.x25519_public(box_secret))
    if (entry.device_id, entry.device_key, entry.box_key) != mine:
        raise VerificationError("the entry is another device's", stream="$devices", seq=handover.devices[0])
    for stream, signed in handover.heads.items():
        try:
            head = verify_head(crypto, invited.server_key, signed)
        except ProtocolError as exc:
            raise VerificationError("a head does not verify", stream=stream) from exc
        if (head.user_key, head.stream) != (invited.user_key, stream):
            raise VerificationError("a head is of another stream", stream=stream)
    return Identity(
        name=name,
        user_key=invited.user_key,
        device_id=device_id,
        device_secret=device_secret,
        box_secret=box_secret,
        capabilities=entry.capabilities,
        device_url=at.device_url,
        rest_url=at.rest_url,
        server_key=invited.server_key,
        handed_over=Position(*handover.devices),
    )


def _keep(path: Path, identity: Identity, handover: Handover) -> None:
    """Write the device's file: the server has to show a history that goes through all that was handed over."""
    store = create_store(path, identity, genesis=None, content_keys=())
    with contextlib.closing(store), store.transaction():
        log = LocalLog(store)
        for stream, signed in handover.heads.items():
            start = state_at_start(crypto, identity.user_key, stream)
            log.save(stream, msgspec.structs.replace(start, heads=[signed]), ())


def _printable(text: str) -> str:
    """What a stranger wrote, so that it cannot steer a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)

"""Linking a new device, over a server on real sockets: as it should be, and everything that can come between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pytest
import trio

from keepstep.client import (
    ClientError,
    Device,
    ProtocolError,
    Server,
    VerificationError,
    create_user,
    enrolling,
    find_server,
    linking,
    open_device,
)
from keepstep.client.linking import LinkOffer, WrongCode, accept_link, offer_link
from keepstep.client.mailbox import LINK_OVER, Mailbox
from keepstep.client.store import open_store
from keepstep.model import Capability
from keepstep.protocol.codec import encode
from keepstep.protocol.linking import format_invitation, parse_invitation
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.linking import HANDOVER
from tests.support.linking import invitation as example
from tests.support.server import running_server

if TYPE_CHECKING:
    from keepstep.client.store import Identity
    from keepstep.protocol.linking import Handover

READS: Final = Capability.SUBSCRIBE


@pytest.fixture
async def laptop(data_dir: Path, tmp_path: Path) -> AsyncIterator[Device]:
    """A user's first device, connected to a server in memory."""
    async with running_server(data_dir) as server:
        path = tmp_path / "laptop.sqlite3"
        await create_user(
            await find_server(server.rest_url),
            path=path,
            name="laptop",
            recovery_path=tmp_path / "recovery.txt",
            passphrase=PASSPHRASE,
            cost=CHEAP,
        )
        async with open_device(path) as device:
            await device.wait_until_ready()
            yield device


class Phone:
    """A new device that accepts an invitation.

    Attributes:
        path: where its file will be.
        error: why it was not linked.
    """

    def __init__(self, directory: Path, name: str = "phone") -> None:
        self.path = directory / f"{name}.sqlite3"
        self.error: Exception | None = None
        self._name = name
        self._code = ""
        self._shown = trio.Event()

    async def accept(self, invitation: str) -> None:
        """As ``accept_link``; an error is kept."""
        try:
            await accept_link(invitation, path=self.path, name=self._name, show_code=self._show, platform="Test")
        except (ClientError, ProtocolError, VerificationError) as error:
            self.error = error

    def _show(self, code: str) -> None:
        self._code = code
        self._shown.set()

    async def code(self) -> str:
        """What it shows."""
        await self._shown.wait()
        return self._code


async def link(laptop: Device, phone: Phone, *, capabilities: Capability = READS | Capability.PUBLISH) -> None:
    """All of it."""
    async with offer_link(laptop, capabilities=capabilities) as offer, trio.open_nursery() as nursery:
        nursery.start_soon(phone.accept, offer.invitation)
        await offer.wait_for_device()
        offer.check_code(await phone.code())
        await offer.enrol()


async def test_a_linked_device_reads_everything_and_writes(laptop: Device, tmp_path: Path) -> None:
    """Also what was written before it came; and the server shows it what it was handed."""
    await (await laptop.publish("notes", b"before")).accepted()
    await laptop.wait_until_caught_up("notes")
    phone = Phone(tmp_path)
    async with offer_link(laptop) as offer, trio.open_nursery() as nursery:
        nursery.start_soon(phone.accept, offer.invitation)
        candidate = await offer.wait_for_device()
        assert (candidate.name, candidate.platform, candidate.address) == ("phone", "Test", "127.0.0.1")
        code = await phone.code()
        offer.check_code(f" {code[:3]} {code[3:]} ")
        await offer.enrol()
    assert phone.error is None
    store = open_store(phone.path)
    assert store.identity.handed_over.seq == laptop.position("$devices").seq
    store.close()
    async with open_device(phone.path) as opened:
        subscription = await opened.subscribe("notes")
        assert (await anext(subscription)).data == b"before"
        await (await opened.publish("notes", b"after")).accepted()
        assert [(each.name, each.ended) for each in await opened.devices()] == [("laptop", None), ("phone", None)]
        assert await opened.alarms() == []


async def test_a_device_is_linked_with_what_it_may_do(laptop: Device, tmp_path: Path) -> None:
    """As the trusted device says."""
    phone = Phone(tmp_path)
    await link(laptop, phone, capabilities=READS)
    store = open_store(phone.path)
    assert store.identity.capabilities is READS
    store.close()


async def test_a_wrong_code_links_nothing(laptop: Device, tmp_path: Path) -> None:
    """Three of them end the link, and the new device is told."""
    phone = Phone(tmp_path)
    async with trio.open_nursery() as nursery, offer_link(laptop) as offer:
        invitation = offer.invitation
        nursery.start_soon(phone.accept, invitation)
        await offer.wait_for_device()
        wrong = f"{(int(await phone.code()) + 1) % 1_000_000:06}"
        for left in (2, 1, 0):
            with pytest.raises(WrongCode) as caught:
                offer.check_code(wrong)
            assert caught.value.tries_left == left
        with pytest.raises(ProtocolError, match="unexpected"):
            offer.check_code(await phone.code())
    assert isinstance(phone.error, ProtocolError)
    assert phone.error.code == "forbidden"
    assert not phone.path.exists()
    assert len(await laptop.devices()) == 1


async def test_a_user_who_refuses_links_nothing(laptop: Device, tmp_path: Path) -> None:
    """By leaving the block, whatever was typed."""
    phone = Phone(tmp_path)
    async with trio.open_nursery() as nursery, offer_link(laptop) as offer:
        invitation = offer.invitation
        nursery.start_soon(phone.accept, invitation)
        await offer.wait_for_device()
        offer.check_code(await phone.code())
    assert isinstance(phone.error, ProtocolError)
    assert len(await laptop.devices()) == 1


async def test_nobody_is_enrolled_without_the_code(laptop: Device, tmp_path: Path) -> None:
    """The state machine says no before anything is signed."""
    phone = Phone(tmp_path)
    async with trio.open_nursery() as nursery, offer_link(laptop) as offer:
        invitation = offer.invitation
        nursery.start_soon(phone.accept, invitation)
        await offer.wait_for_device()
        with pytest.raises(ProtocolError, match="unexpected"):
            await offer.enrol()
    assert len(await laptop.devices()) == 1


async def test_a_second_device_finds_the_link_taken(laptop: Device, tmp_path: Path) -> None:
    """One invitation, one device."""
    first, second = Phone(tmp_path), Phone(tmp_path, "tablet")
    async with offer_link(laptop) as offer, trio.open_nursery() as nursery:
        nursery.start_soon(first.accept, offer.invitation)
        await offer.wait_for_device()
        await second.accept(offer.invitation)
        assert isinstance(second.error, ProtocolError)
        assert second.error.code == "link_taken"
        offer.check_code(await first.code())
        await offer.enrol()
    await second.accept(offer.invitation)
    assert str(second.error) == LINK_OVER
    assert len(await laptop.devices()) == 2


async def test_who_has_not_seen_the_invitation_is_turned_away(laptop: Device, tmp_path: Path) -> None:
    """The mailbox's id alone is no use."""
    stranger = Phone(tmp_path, "stranger")
    async with trio.open_nursery() as nursery:
        async with offer_link(laptop) as offer:
            guessed = msgspec.structs.replace(parse_invitation(offer.invitation), secret=bytes(32))
            nursery.start_soon(stranger.accept, format_invitation(guessed))
            with pytest.raises(ProtocolError, match="bad_record"):
                await offer.wait_for_device()
        nursery.cancel_scope.cancel()
    assert not stranger.path.exists()


async def test_what_the_new_device_is_handed_has_to_be_about_it(laptop: Device, tmp_path: Path) -> None:
    """Its own entry, and heads that the server it was told of has signed; else it keeps nothing."""
    handed: list[Handover] = []
    phone = Phone(tmp_path)
    keep = linking._keep

    def remember(path: Path, identity: Identity, handover: Handover) -> None:
        handed.append(handover)
        keep(path, identity, handover)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linking, "_keep", remember)
        await link(laptop, phone)
    (good,) = handed
    store = open_store(phone.path)
    mine = store.identity
    store.close()
    (head, sig) = good.heads["$devices"]
    for lie, what in (
        ({"entry": HANDOVER.entry}, "another device's"),
        ({"heads": {"$devices": (head, bytes(64))}}, "does not verify"),
        ({"heads": {"$keys": (head, sig)}}, "another stream"),
    ):
        told = msgspec.structs.replace(good, **lie)
        invited = msgspec.structs.replace(example(), user_key=mine.user_key, server_key=mine.server_key)
        at = Server(mine.device_url, mine.rest_url, mine.server_key)
        with pytest.raises(VerificationError, match=what):
            linking._identity(invited, at, told, "phone", mine.device_id, mine.device_secret, mine.box_secret)


async def test_a_new_device_that_says_nothing_in_the_end_is_named(
    laptop: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is enrolled and may have no file: its user should revoke it."""
    monkeypatch.setattr(linking, "DONE_WAIT_S", 0)
    with pytest.RaisesGroup(pytest.RaisesExc(ClientError, match="phone is enrolled, but did not say")):
        await link(laptop, Phone(tmp_path))
    assert len(await laptop.devices()) == 2


@pytest.mark.parametrize(
    ("invitation", "name", "what"),
    [("not one", "phone", "invitation"), ("keepstep:AQID", "phone", "invitation"), (None, "", "cannot be linked")],
)
async def test_what_cannot_be_accepted_is_said_at_once(
    tmp_path: Path, invitation: str | None, name: str, what: str
) -> None:
    """Nothing is asked of any server."""
    with pytest.raises(ClientError, match=what):
        await accept_link(
            invitation or format_invitation(example()), path=tmp_path / "new", name=name, show_code=lambda _: None
        )


async def test_a_device_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    """Its keys would be lost."""
    (tmp_path / "phone").write_text("keys")
    with pytest.raises(ClientError, match="exists already"):
        await accept_link(format_invitation(example()), path=tmp_path / "phone", name="phone", show_code=lambda _: None)


async def test_only_a_device_that_manages_offers_links(laptop: Device, tmp_path: Path) -> None:
    """Nor can it offer one for a device that does not read."""
    phone = Phone(tmp_path)
    await link(laptop, phone)
    async with open_device(phone.path) as opened:
        await opened.wait_until_ready()
        with pytest.raises(ClientError, match="may not enrol"):
            async with offer_link(opened):
                pass
    with pytest.raises(ClientError, match="has to read"):
        async with offer_link(laptop, capabilities=Capability.PUBLISH):
            pass


async def test_an_error_of_the_server_is_what_it_is(laptop: Device) -> None:
    """Not everything that goes wrong is a link that is over."""
    async with offer_link(laptop) as offer:
        invited = parse_invitation(offer.invitation)
        mailbox = Mailbox(invited.rest_url, invited.link_id, "new")
        with pytest.raises(ProtocolError, match="too_large"):
            await mailbox.write(bytes(20_000))
        assert isinstance(offer, LinkOffer)


async def test_an_invitation_of_another_server_is_refused(laptop: Device, tmp_path: Path) -> None:
    """Where the new device is told that the server is elsewhere, it is the same one all the same."""
    elsewhere = await find_server(laptop.identity.rest_url)
    with pytest.raises(ClientError, match="another server"):
        await accept_link(
            format_invitation(example()), path=tmp_path / "new", name="phone", show_code=lambda _: None, at=elsewhere
        )


async def test_heads_that_do_not_fit_are_left_out(
    laptop: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the reserved streams come first; the daily checkpoint has all positions."""
    for name in ("a", "b"):
        await (await laptop.publish(name, b"1")).accepted()
        await laptop.wait_until_caught_up(name)
    handed: list[Handover] = []
    enrolled = laptop.enrol_linked

    async def remember(*arguments: object, **more: object) -> Handover:
        handed.append(await enrolled(*arguments, **more))  # type: ignore[arg-type]
        return handed[-1]

    monkeypatch.setattr(laptop, "enrol_linked", remember)
    await link(laptop, Phone(tmp_path, "first"))
    assert list(handed[0].heads) == ["$devices", "$keys", "a", "b"]
    monkeypatch.setattr(enrolling, "HANDOVER_BYTES_MAX", len(encode(handed[0])) - 100)
    await link(laptop, Phone(tmp_path, "second"))
    assert list(handed[1].heads) == ["$devices", "$keys", "a"]

"""The account log: revocation, rotation, cool-down, checkpoints, the server's next key (protocol.md section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.protocol.account import MANAGE_COOL_DOWN_MS, AccountLog
from keepstep.protocol.account_payloads import (
    ACCOUNT_PAYLOAD_BYTES_MAX,
    CheckpointPayload,
    RevokePayload,
    RotatePayload,
    ServerKeyPayload,
    decode_account,
    encode_checkpoint,
    encode_revoke,
    encode_server_key,
)
from keepstep.protocol.account_state import EndReason, decode_account_state
from keepstep.protocol.succession import announce
from tests.support.events import NOW_MS, seed
from tests.support.scripted_log import ScriptedUser, account_event, make_device, replay
from tests.unit.protocol.test_account import refusal

if TYPE_CHECKING:
    from tests.support.events import DeviceFixture

PUBLISH, SUBSCRIBE, MANAGE = Capability.PUBLISH, Capability.SUBSCRIBE, Capability.MANAGE
SUCCESSOR = seed("next server key")


def live(log: AccountLog) -> set[bytes]:
    """Ids of the devices that have not ended."""
    return {device_id for device_id, each in log.devices.items() if each.ended is None}


def ids(*devices: DeviceFixture) -> set[bytes]:
    """Their ids."""
    return {each.device_id for each in devices}


def verdict(log: AccountLog, device: DeviceFixture, seen: tuple[int, bytes], n: int, stream: str = "notes") -> str:
    """What the log says of a device's event."""
    try:
        log.author(
            device.device_id, capability=PUBLISH, devices_seen=seen, received_at_ms=NOW_MS + 50, stream=stream, n=n
        )
    except ProtocolError as error:
        return error.code
    return "allowed"


# -- payloads


def test_payloads_round_trip() -> None:
    """What is encoded is decoded."""
    user = ScriptedUser()
    tablet = make_device("tablet")
    rotate = decode_account(account_event(user.rotate(tablet, user.laptop)).payload)
    assert isinstance(rotate, RotatePayload)
    assert (rotate.staying, rotate.device) == ((user.laptop.device_id,), tablet.entry)
    announcement = announce(
        crypto, old_secret=user.server_secret, new_secret=SUCCESSOR, from_ms=NOW_MS, until_ms=NOW_MS + 1
    )
    assert decode_account(encode_server_key(announcement)) == ServerKeyPayload(announcement)
    assert decode_account(encode_checkpoint({"notes": (3, seed("c"))})) == CheckpointPayload({"notes": (3, seed("c"))})
    assert decode_account(encode_revoke(bytes(16), {"notes": 3})) == RevokePayload(bytes(16), {"notes": 3})


def test_what_names_too_much_is_not_encoded() -> None:
    """A payload above 256 KiB would be refused by everybody."""
    names = {f"{number:0128}": number for number in range(ACCOUNT_PAYLOAD_BYTES_MAX // 128)}
    with pytest.raises(ProtocolError, match="too_large"):
        encode_revoke(bytes(16), names)


# -- revoke


def test_a_revoked_device_is_no_author_beyond_what_is_accepted() -> None:
    """Events up to the accepted n stay; later ones, in streams not named all, are after the revocation."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    before = user.devices_stream.head_position
    user.revoke(phone, {"notes": 3})
    log, after = user.account(), user.devices_stream.head_position
    ended = log.devices[phone.device_id].ended
    assert ended is not None
    assert (ended.seq, ended.reason, ended.by) == (3, EndReason.REVOKED, user.laptop.device_id)
    assert ended.received_at_ms == NOW_MS + 3
    verdicts = [verdict(log, phone, before, n) for n in (1, 3, 4)]
    assert verdicts == ["allowed", "allowed", "revoked"]
    assert verdict(log, phone, before, 1, "others") == "revoked"
    assert verdict(log, phone, after, 1) == "revoked"


def test_a_revoked_device_signs_nothing_into_the_account_log() -> None:
    """Also with positions from before, and numbers that are accepted."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    before = user.devices_stream.head_position
    user.revoke(phone)
    log = user.account()
    row = user.enrol(make_device("spy"), by=phone, devices_seen=before, seen=before)
    assert refusal(log, row) == "revoked"


def test_what_a_revoked_device_enrolled_above_the_accepted_number_goes_with_it() -> None:
    """And what those enrolled, and so on; what it enrolled before stays."""
    user = ScriptedUser()
    phone, watch, spy, mole, tick = (make_device(name) for name in ("phone", "watch", "spy", "mole", "tick"))
    user.enrol(phone)
    user.enrol(watch, by=phone)
    user.enrol(spy, by=phone)
    later = NOW_MS + MANAGE_COOL_DOWN_MS + 100
    user.enrol(mole, by=spy, received_at_ms=later)
    user.enrol(tick, by=spy, received_at_ms=later)
    log = user.account()
    effect = log.apply(account_event(user.revoke(phone, {"$devices": 1}, received_at_ms=later)))
    assert live(log) == ids(user.laptop, watch)
    reasons = {each.entry.device_id: each.ended.reason for each in effect.ended if each.ended is not None}
    assert reasons == {phone.device_id: EndReason.REVOKED} | dict.fromkeys(ids(spy, mole, tick), EndReason.REVOKED_WITH)
    assert all(log.devices[each].ended == log.devices[spy.device_id].ended for each in ids(mole, tick))


def test_what_an_undone_device_revoked_stays_revoked() -> None:
    """Nothing before the revocation is evaluated anew."""
    user = ScriptedUser()
    phone, watch = make_device("phone"), make_device("watch", PUBLISH)
    user.enrol(phone)
    user.enrol(watch)
    user.revoke(watch, by=phone)
    user.revoke(phone, {})
    assert live(user.account()) == ids(user.laptop)


def test_a_device_that_was_revoked_by_name_loses_more_when_its_enrolment_is_undone() -> None:
    """Then nothing of it is accepted."""
    user = ScriptedUser()
    phone, spy = make_device("phone"), make_device("spy", PUBLISH)
    user.enrol(phone)
    user.enrol(spy, by=phone)
    before = user.devices_stream.head_position
    user.revoke(spy, {"notes": 9})
    log = user.account()
    assert verdict(log, spy, before, 9) == "allowed"
    log.apply(account_event(user.revoke(phone, {})))
    assert verdict(log, spy, before, 1) == "revoked"
    ended = log.devices[spy.device_id].ended
    assert ended is not None
    assert ended.seq == 4


@pytest.mark.parametrize("capabilities", [PUBLISH, MANAGE | SUBSCRIBE])
def test_any_device_signs_itself_out(capabilities: Capability) -> None:
    """With or without ``manage``."""
    user = ScriptedUser()
    phone = make_device("phone", capabilities)
    user.enrol(phone)
    user.revoke(phone, by=phone)
    assert live(user.account()) == ids(user.laptop)


def test_the_last_managing_device_stays() -> None:
    """It cannot sign itself out, not even where what it enrolled manages and would go with it, or cools down."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(make_device("watch", PUBLISH))
    log = user.account()
    assert refusal(log, user.revoke(user.laptop, by=user.laptop)) == "forbidden"
    log.skip(account_event(user.devices_stream.rows[-1]))
    log.apply(account_event(user.enrol(phone)))
    assert refusal(log, user.revoke(user.laptop, {"$devices": 1}, by=user.laptop)) == "forbidden"
    log.skip(account_event(user.devices_stream.rows[-1]))
    log.apply(account_event(user.revoke(user.laptop, by=user.laptop)))
    assert {each for each in live(log) if log.devices[each].manages(NOW_MS)} == ids(phone)


@pytest.mark.parametrize(
    ("author", "target", "code"),
    [
        ("watch", "phone", "forbidden"),
        ("stranger", "phone", "forbidden"),
        ("stranger", "stranger", "forbidden"),
        ("phone", "laptop", "forbidden"),
        ("laptop", "stranger", "unprocessable"),
        ("laptop", "gone", "unprocessable"),
        ("gone", "gone", "revoked"),
    ],
)
def test_a_wrong_revocation_is_refused(author: str, target: str, code: str) -> None:
    """By whoever may not, of nobody, a second time, and where it would undo its own author."""
    user = ScriptedUser()
    devices = {name: make_device(name) for name in ("phone", "stranger", "gone")}
    devices |= {"laptop": user.laptop, "watch": make_device("watch", PUBLISH)}
    user.enrol(devices["phone"])
    user.enrol(devices["watch"])
    user.enrol(devices["gone"], received_at_ms=NOW_MS + 4)
    user.revoke(devices["gone"])
    log = user.account()
    assert refusal(log, user.revoke(devices[target], {}, by=devices[author])) == code


# -- cool-down


def test_the_third_managing_device_cools_down() -> None:
    """Its other capabilities hold at once; it manages a day later, by the server's time."""
    user = ScriptedUser()
    tablet = make_device("tablet")
    user.enrol(make_device("phone"))
    user.enrol(tablet)
    log = user.account()
    manages_from_ms = NOW_MS + 3 + MANAGE_COOL_DOWN_MS
    assert log.devices[tablet.device_id].manage_from_ms == manages_from_ms
    assert verdict(log, tablet, user.devices_stream.head_position, 1) == "allowed"
    early = user.enrol(make_device("x", PUBLISH), by=tablet, received_at_ms=manages_from_ms - 1)
    assert refusal(log, early) == "forbidden"
    log.skip(account_event(early))
    log.apply(account_event(user.enrol(make_device("y", PUBLISH), by=tablet, received_at_ms=manages_from_ms)))


def test_a_cooling_device_can_be_revoked() -> None:
    """That is what the time is for."""
    user = ScriptedUser()
    phone, tablet = make_device("phone"), make_device("tablet")
    user.enrol(phone)
    user.enrol(tablet)
    user.revoke(tablet, by=phone)
    assert live(user.account()) == ids(user.laptop, phone)


def test_expired_and_cooling_devices_do_not_count_as_managing() -> None:
    """Where fewer than two manage, the next one does at once."""
    user = ScriptedUser()
    user.enrol(make_device("phone", expires_at_ms=NOW_MS + 100))
    user.enrol(make_device("tablet"))
    late = make_device("late")
    user.enrol(late, received_at_ms=NOW_MS + 100)
    assert user.account().devices[late.device_id].manage_from_ms == 0


# -- rotate


def stolen() -> tuple[ScriptedUser, DeviceFixture, DeviceFixture, DeviceFixture]:
    """A thief with the laptop has enrolled a device of its own and revoked the phone: (user, phone, watch, thief's)."""
    user = ScriptedUser()
    phone, watch, spy = make_device("phone"), make_device("watch", PUBLISH), make_device("spy")
    user.enrol(phone)
    user.enrol(watch)
    user.enrol(spy)
    user.revoke(phone, {})
    return user, phone, watch, spy


def test_a_rotation_locks_out_who_was_not_listed() -> None:
    """Exactly the new device and those that stay are live, also one that the thief had revoked."""
    user, phone, watch, spy = stolen()
    tablet = make_device("tablet")
    before = user.devices_stream.head_position
    log = user.account()
    effect = log.apply(account_event(user.rotate(tablet, phone, watch)))
    assert live(log) == ids(tablet, phone, watch)
    assert log.devices[tablet.device_id].manages(NOW_MS + 6)
    assert {each.entry.device_id for each in effect.staying} == ids(phone, watch)
    assert {each.entry.device_id for each in effect.ended} == ids(user.laptop, spy)
    assert verdict(log, phone, before, 100) == "allowed"
    assert refusal(log, user.enrol(make_device("another"), by=user.laptop)) == "revoked"


def test_a_rotation_builds_on_any_position() -> None:
    """A thief who writes faster cannot get in its way."""
    user, phone, _, _ = stolen()
    log = user.account()
    log.apply(account_event(user.rotate(make_device("tablet"), phone, at=2)))
    assert len(live(log)) == 2


def test_the_root_key_answers_for_what_it_lists() -> None:
    """The revocation of whoever enrolled a device that stayed does not undo it, and may be said after the rotation."""
    user, phone, watch, spy = stolen()
    tablet = make_device("tablet")
    before = user.devices_stream.head_position
    user.rotate(tablet, watch)
    log = user.account()
    assert verdict(log, user.laptop, before, 100) == "allowed"
    log.apply(account_event(user.revoke(user.laptop, {"notes": 7}, by=tablet)))
    assert live(log) == ids(tablet, watch)
    assert [verdict(log, user.laptop, before, n) for n in (7, 8)] == ["allowed", "revoked"]
    ended = log.devices[user.laptop.device_id].ended
    assert ended is not None
    assert ended.seq == 6
    assert verdict(log, spy, before, 1) == "revoked"
    for device in (user.laptop, phone, spy):
        row = user.revoke(device, {}, by=tablet)
        assert refusal(log, row) == "unprocessable"
        log.skip(account_event(row))


def test_a_root_key_signs_once() -> None:
    """The next rotation takes the next root key."""
    user, phone, _, _ = stolen()
    user.rotate(make_device("tablet"), phone)
    log = user.account()
    assert refusal(log, user.rotate(make_device("spare"), phone)) == "forbidden"
    log.skip(account_event(user.devices_stream.rows[-1]))
    third = user.rotate(
        make_device("third"), phone, root_secret=seed("root key after the next"), next_root="the one after that"
    )
    log.apply(account_event(third))
    assert len(live(log)) == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"root_secret": seed("a thief's key")}, "forbidden"),
        ({"root_secret": seed("alice root")}, "forbidden"),
        ({"next_root": "alice next root"}, "unprocessable"),
        ({"next_root": "alice root"}, "unprocessable"),
        ({"n": 2}, "malformed"),
        ({"prev": seed("prev")[:16]}, "malformed"),
        ({"seen": (4, seed("another chain"))}, "malformed"),
        ({"seen": (9, seed("chain")), "devices_seen": (9, seed("chain"))}, "bad_signature"),
        ({"sig": bytes(64)}, "bad_signature"),
    ],
)
def test_a_wrong_rotation_is_refused(arguments: dict[str, Any], code: str) -> None:
    """Every part of it is checked."""
    user, phone, _, _ = stolen()
    log = user.account()
    assert refusal(log, user.rotate(make_device("tablet"), phone, **arguments)) == code


def test_the_devices_of_a_rotation_are_checked() -> None:
    """The new one is new and can do everything; those that stay were there, each once."""
    phone = make_device("phone")
    for device, staying, code in (
        (make_device("tablet"), [make_device("nobody")], "unprocessable"),
        (make_device("tablet"), [phone, phone], "malformed"),
        (make_device("tablet", PUBLISH | SUBSCRIBE), [phone], "malformed"),
        (make_device("tablet", box_key=phone.entry.box_key), [], "unprocessable"),
        (make_device("tablet", box_key=ScriptedUser().next_root_key), [], "unprocessable"),
        (make_device("tablet", expires_at_ms=NOW_MS + 1), [], "unprocessable"),
    ):
        user = stolen()[0]
        log = user.account()
        assert refusal(log, user.rotate(device, *staying)) == code


def test_a_position_that_the_log_does_not_hold_is_no_ground_for_a_rotation() -> None:
    """A root signature over another history does not fit."""
    user, phone, _, _ = stolen()
    log = user.account(upto=4)
    assert refusal(log, user.rotate(make_device("tablet"), phone, at=5)) == "unknown_position"


# -- checkpoint, server key


def test_a_checkpoint_is_remembered_with_its_time() -> None:
    """Devices tell their user when none came for a while."""
    user = ScriptedUser()
    assert user.account().checkpoint is None
    payload = encode_checkpoint({"$devices": user.devices_stream.head_position, "notes": (5, seed("c"))})
    row = user.devices_stream.append(user.laptop, payload)
    log = user.account(upto=1)
    effect = log.apply(account_event(row))
    assert effect.checkpoint is not None
    assert effect.checkpoint["notes"] == (5, seed("c"))
    assert log.checkpoint == (2, NOW_MS + 2)
    other = user.devices_stream.append(user.laptop, encode_checkpoint({"$devices": (1, seed("another chain"))}))
    assert refusal(log, other) == "unknown_position"


def test_the_servers_next_key_is_remembered() -> None:
    """If both keys announce it."""
    user = ScriptedUser()
    log = user.account()

    def told(old: bytes, new: bytes, from_ms: int, until_ms: int) -> Any:
        return announce(crypto, old_secret=old, new_secret=new, from_ms=from_ms, until_ms=until_ms)

    good = told(user.server_secret, SUCCESSOR, 1, 2)
    log.apply(account_event(user.devices_stream.append(user.laptop, encode_server_key(good))))
    assert list(log.announcements) == [good]
    for bad, code in (
        ((good[0], good[1], good[1]), "bad_signature"),
        ((good[0], good[2], good[2]), "bad_signature"),
        (told(SUCCESSOR, SUCCESSOR, 1, 2), "malformed"),
        (told(user.server_secret, SUCCESSOR, 2, 2), "malformed"),
    ):
        row = user.devices_stream.append(user.laptop, encode_server_key(bad))
        assert refusal(log, row) == code
        log.skip(account_event(row))


@pytest.mark.parametrize("payload", [encode_checkpoint({"notes": (1, seed("c"))}), encode_revoke(bytes(16), {})])
def test_only_managing_devices_change_the_account(payload: bytes) -> None:
    """A device that does not manage can say nothing to it but its own end."""
    user = ScriptedUser()
    watch = make_device("watch", PUBLISH | SUBSCRIBE)
    user.enrol(watch)
    log = user.account()
    assert refusal(log, user.devices_stream.append(watch, payload)) == "forbidden"


# -- state


def test_the_state_carries_everything() -> None:
    """A log restored from its state says the same of every device and refuses the same."""
    user, phone, watch, spy = stolen()
    tablet = make_device("tablet")
    user.rotate(tablet, phone)
    user.revoke(watch, {"notes": 2}, by=tablet)
    user.devices_stream.append(tablet, encode_checkpoint({"notes": (1, seed("c"))}))
    announcement = announce(crypto, old_secret=user.server_secret, new_secret=SUCCESSOR, from_ms=1, until_ms=2)
    user.devices_stream.append(tablet, encode_server_key(announcement))
    log = user.account()
    for primitives in (crypto, _keepstep):
        log = replay(primitives, user.user_key, [account_event(row) for row in user.devices_stream.rows])
        restored = AccountLog(primitives, user.user_key, decode_account_state(log.state.encode()))
        for each in (restored, log.copy()):
            assert each.state == log.state
            assert dict(each.devices) == dict(log.devices)
            assert (each.checkpoint, each.received_at_ms, each.next_root_hash) == (
                log.checkpoint,
                log.received_at_ms,
                log.next_root_hash,
            )
            assert list(each.announcements) == [announcement]
        reused = make_device("x", device_key=user.next_root_key)
        for each in (restored, log):
            assert refusal(each, user.enrol(reused, by=tablet)) == "unprocessable"
            user.devices_stream.rows.pop()
            user.devices_stream.chains.pop()
            user.devices_stream.authors[tablet.device_id] = (4, bytes(32))
    assert spy.device_id in log.devices


# -- a revocation that is shown on its own


def test_a_revocation_shown_on_its_own_is_checked() -> None:
    """A device wipes itself on the word of a device that manages, or of the root key, and not on a server's."""
    user = ScriptedUser()
    phone, watch = make_device("phone"), make_device("watch", PUBLISH)
    user.enrol(phone)
    user.enrol(watch)
    revoke = user.revoke(phone)
    followed, behind = user.account(upto=3), user.account(upto=2)
    event = account_event(revoke)
    for log in (followed, behind, user.account()):
        log.verify_end(phone.device_id, event, 4)

    def refused(log: AccountLog, device: DeviceFixture, shown: Any, seq: int) -> str:
        with pytest.raises(ProtocolError) as caught:
            log.verify_end(device.device_id, account_event(shown), seq)
        return caught.value.code

    assert refused(followed, user.laptop, revoke, 4) == "forbidden"
    assert refused(behind, user.laptop, revoke, 4) == "forbidden"
    assert refused(followed, phone, revoke, 3) == "forbidden"
    forged = (*revoke[:4], bytes(64), *revoke[5:])
    assert refused(behind, phone, forged, 4) == "bad_signature"
    assert refused(behind, phone, (*revoke[:5], b"other", None), 4) == "malformed"
    unknown = user.revoke(watch, by=make_device("spy"))
    assert refused(behind, watch, unknown, 5) == "unknown_position"


def test_a_rotation_shown_on_its_own_is_checked() -> None:
    """It ends every device that it does not list."""
    user, phone, watch, _ = stolen()
    behind = user.account(upto=1)
    row = user.rotate(make_device("tablet"), phone)
    behind.verify_end(watch.device_id, account_event(row), 6)
    with pytest.raises(ProtocolError, match="forbidden"):
        behind.verify_end(phone.device_id, account_event(row), 6)
    other = user.rotate(make_device("spy"), root_secret=seed("a thief's key"))
    with pytest.raises(ProtocolError, match="forbidden"):
        behind.verify_end(watch.device_id, account_event(other), 7)


def test_damaged_device_entries_in_a_state_are_refused() -> None:
    """A reason that is none, for one."""
    user, phone, _, _ = stolen()
    state = msgspec.msgpack.decode(user.account().state.encode())
    assert state[1][1][5][2] == EndReason.REVOKED
    state[1][1][5][2] = 9
    with pytest.raises(ProtocolError, match="malformed"):
        decode_account_state(msgspec.msgpack.encode(state))
    assert phone.device_id == state[1][1][0][0]

"""Random histories of an account by honest and thieving devices: what must hold after every event of ``$devices``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.protocol.account import MANAGE_COOL_DOWN_MS, AccountLog
from keepstep.protocol.account_payloads import encode_checkpoint
from keepstep.protocol.account_state import decode_account_state
from keepstep.protocol.verified import Problem
from tests.support.events import NOW_MS, seed
from tests.support.scripted_log import ScriptedUser, account_event, follow, make_device

if TYPE_CHECKING:
    from keepstep.protocol.account_state import EnrolledDevice
    from keepstep.protocol.messages import EventRow
    from tests.support.events import DeviceFixture

NAMES: Final = ("laptop", "phone", "watch", "thief", "spy", "mole")
STEP_MS: Final = MANAGE_COOL_DOWN_MS // 2

names = st.sampled_from(NAMES)
capabilities = st.integers(1, 7).map(Capability)
accepted = st.dictionaries(st.sampled_from(["notes", "$devices"]), st.integers(0, 4))
operations = st.one_of(
    st.tuples(st.just("enrol"), names, names, capabilities),
    st.tuples(st.just("enrol"), names, names, st.just(Capability(7))),
    st.tuples(st.just("revoke"), names, names, accepted),
    st.tuples(st.just("rotate"), st.sets(names), st.booleans(), st.integers(0, 3)),
    st.tuples(st.just("checkpoint"), names, st.integers(0, 3), st.booleans()),
    st.tuples(st.just("wait"), st.integers(1, 3), st.none(), st.none()),
)


class History:
    """One user's account as its server and its devices see it, side by side."""

    def __init__(self) -> None:
        self.user = ScriptedUser()
        self.devices = {name: make_device(name) for name in NAMES}
        self.now_ms = NOW_MS
        self.rotations = 0
        self.server = AccountLog(_keepstep, self.user.user_key)
        self.server.apply(account_event(self.user.devices_stream.rows[0]))

    def perform(self, operation: tuple[Any, ...]) -> EventRow | None:
        """Sign what the operation says, whoever may; ``None`` where nothing is signed."""
        self.now_ms += 1
        match operation:
            case ("enrol", author, device, each):
                self.devices[device] = self._known(device) or make_device(device, each)
                return self.user.enrol(self.devices[device], by=self.devices[author], received_at_ms=self.now_ms)
            case ("revoke", author, device, ns):
                return self.user.revoke(self.devices[device], ns, by=self.devices[author], received_at_ms=self.now_ms)
            case ("rotate", staying, genuine, back):
                return self._rotate([name for name in sorted(staying) if self._known(name)], genuine, back)
            case ("checkpoint", author, back, honest):
                seq = max(0, len(self.user.devices_stream.rows) - back)
                chain = self.user.devices_stream.chains[seq] if honest else seed("another history")
                payload = encode_checkpoint({"$devices": (seq, chain)})
                return self.user.devices_stream.append(self.devices[author], payload, received_at_ms=self.now_ms)
            case ("wait", steps, _, _):
                self.now_ms += steps * STEP_MS
        return None

    def _known(self, name: str) -> DeviceFixture | None:
        device = self.devices[name]
        return device if device.device_id in self.server.devices else None

    def _rotate(self, staying: list[str], genuine: bool, back: int) -> EventRow:
        number = self.rotations
        secret = seed("alice next root" if number == 0 else f"root {number}")
        self.rotations += genuine
        return self.user.rotate(
            make_device(f"recovered {len(self.user.devices_stream.rows)}"),
            *(self.devices[name] for name in staying),
            root_secret=secret if genuine else seed("a thief's root"),
            next_root=f"root {number + 1}",
            at=max(0, len(self.user.devices_stream.rows) - back),
            received_at_ms=self.now_ms,
        )


def live(log: AccountLog) -> dict[bytes, EnrolledDevice]:
    """Devices that have not ended."""
    return {device_id: each for device_id, each in log.devices.items() if each.ended is None}


def check_effect(history: History, before: dict[bytes, EnrolledDevice], row: EventRow) -> None:
    """Who acted was allowed to, and nothing changed but what the event says."""
    after = live(history.server)
    author = row[1]
    operation = account_event(row).payload[1]
    if operation == 3:
        assert author in after
        assert author not in before
        assert history.server.devices[author].manages(history.now_ms)
    elif operation == 2 and author not in after:
        assert author in before  # it signed itself out
    else:
        assert author in before
        assert after[author] == before[author]
        assert operation == 2 or before[author].manages(history.now_ms)
    # Only revoke and rotate end a device, only enrol and rotate begin one, only rotate brings one back.
    assert operation in (2, 3) or before.keys() <= after.keys()
    assert operation in (1, 3) or after.keys() <= before.keys()


@given(st.lists(operations, max_size=14))
def test_the_account_log_holds_what_it_promises(script: list[tuple[Any, ...]]) -> None:
    """After every event: server and reader agree, the state round-trips, and somebody manages or could recover."""
    history = History()
    server, stream = history.server, history.user.devices_stream
    reader_account = AccountLog(crypto, history.user.user_key)
    reader = follow(stream, account=reader_account)
    reader.feed(*stream.page(0))
    for operation in script:
        row = history.perform(operation)
        if row is None:
            continue
        before, spent = live(server), server.next_root_hash
        code = ""
        try:
            server.apply(account_event(row))
        except ProtocolError as error:
            code = error.code
            server.skip(account_event(row))
            assert live(server) == before
            assert server.next_root_hash == spent
        else:
            check_effect(history, before, row)
            assert (server.next_root_hash == spent) == (account_event(row).payload[1] != 3)
        (event,) = reader.feed(*stream.page(row[0] - 1))
        assert (event.problem is None) == (code == "")
        assert (event.problem is Problem.AFTER_REVOCATION) == (code == "revoked")
        assert any(each.may(Capability.MANAGE, history.now_ms) for each in live(server).values())
        assert reader_account.state == server.state
        restored = AccountLog(crypto, server.user_key, decode_account_state(server.state.encode()))
        assert (restored.state, dict(restored.devices)) == (server.state, dict(server.devices))


@given(st.lists(operations, max_size=10), st.sets(names))
def test_the_root_key_locks_out_whoever_was_there(script: list[tuple[Any, ...]], staying: set[str]) -> None:
    """Whatever thieves did first: after a rotation exactly the listed devices and the new one are live."""
    history = History()
    for operation in script:
        row = history.perform(operation)
        if row is not None:
            try:
                history.server.apply(account_event(row))
            except ProtocolError:
                history.server.skip(account_event(row))
                history.rotations -= operation[0] == "rotate" and operation[2]
    row = history.perform(("rotate", staying, True, 0))
    assert row is not None
    kept = {
        history.devices[name].device_id for name in staying if history.devices[name].device_id in history.server.devices
    }
    history.server.apply(account_event(row))
    assert live(history.server).keys() == kept | {row[1]}

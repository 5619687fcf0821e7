"""Records and rekeying after the handshake (protocol.md section 2, Records)."""

from __future__ import annotations

import pytest

from keepstep.errors import ProtocolError
from keepstep.protocol import session as session_module
from keepstep.protocol.messages import (
    MESSAGE_BYTES_MAX,
    Bye,
    Draining,
    Ping,
    Pong,
    Rekey,
    ServerRekey,
    encode,
)
from keepstep.protocol.session import REKEY_INTERVAL_S, ClientSession, ServerSession
from keepstep.protocol.states import State
from tests.support.handshakes import EXTENSION, open_sessions


def code_of(session: ServerSession | ClientSession, record: bytes) -> str:
    """The code of the error that a record causes."""
    with pytest.raises(ProtocolError) as caught:
        session.receive(record)
    return caught.value.code


def test_messages_arrive_in_order_as_they_were_sent() -> None:
    """Structs and messages encoded beforehand are the same to the receiver."""
    server, client = open_sessions()
    records = client.send([Ping(1), encode(Ping(2)), Ping(3)], now_s=1)
    assert [server.receive(record) for record in records] == [Ping(1), Ping(2), Ping(3)]
    records = server.send([Pong(1), encode(Pong(2))], now_s=1)
    assert [client.receive(record) for record in records] == [Pong(1), Pong(2)]


def test_nothing_to_send_is_no_record() -> None:
    """An empty batch does not even rekey."""
    server, _ = open_sessions()
    assert server.send([], now_s=2 * REKEY_INTERVAL_S) == []


@pytest.mark.parametrize("spoil", ["replayed", "lost", "reordered", "changed", "cut", "empty", "echoed"])
def test_a_record_out_of_its_place_closes(spoil: str) -> None:
    """A lost, replayed, reordered or forged record does not open, and nothing after it does."""
    server, client = open_sessions()
    first, second, third = client.send([Ping(1), Ping(2), Ping(3)], now_s=0)
    server.receive(first)
    bad = {
        "replayed": first,
        "lost": third,
        "reordered": third,
        "changed": second[:-1] + bytes([second[-1] ^ 1]),
        "cut": second[:15],
        "empty": b"",
        "echoed": server.send([Pong(1)], now_s=0)[0],
    }[spoil]
    assert code_of(server, bad) == "bad_record"
    assert server.state is State.CLOSED
    assert code_of(server, second) == "unexpected"
    with pytest.raises(ProtocolError, match="unexpected"):
        server.send([Pong(1)], now_s=0)


def test_the_hour_replaces_the_secret_in_each_direction_by_itself() -> None:
    """After an hour the next send begins with a rekey; the other direction keeps its own age."""
    server, client = open_sessions()
    assert len(client.send([Ping(1)], now_s=REKEY_INTERVAL_S - 1)) == 1
    late = open_sessions()
    server, client = late
    records = client.send([Ping(1), Ping(2)], now_s=REKEY_INTERVAL_S)
    assert [server.receive(record) for record in records] == [Rekey(), Ping(1), Ping(2)]
    assert len(client.send([Ping(3)], now_s=REKEY_INTERVAL_S + 1)) == 1
    records = server.send([Pong(1)], now_s=REKEY_INTERVAL_S)
    assert [client.receive(record) for record in records] == [ServerRekey(), Pong(1)]


def test_a_record_under_the_old_secret_no_longer_opens() -> None:
    """After a rekey the old secret is gone on the receiver's side."""
    server, client = open_sessions()
    twin_server, twin_client = open_sessions()
    server.receive(client.send([Ping(1)], now_s=REKEY_INTERVAL_S)[0])
    (old,) = twin_client.send([Ping(1)], now_s=0)
    assert twin_server.receive(old) == Ping(1)
    assert code_of(server, old) == "bad_record"


def test_the_last_record_under_a_secret_is_its_rekey(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for four records under a secret, every fourth is a rekey, also within one batch."""
    monkeypatch.setattr(session_module, "REKEY_RECORDS", 4)
    server, client = open_sessions()
    records = client.send([Ping(number) for number in range(7)], now_s=0)
    received = [server.receive(record) for record in records]
    assert [type(each) for each in received] == [Ping, Ping, Ping, Rekey, Ping, Ping, Ping, Rekey, Ping]
    assert [each.rid for each in received if isinstance(each, Ping)] == list(range(7))


def test_ready_counts_as_a_record_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's direction begins at counter 1."""
    monkeypatch.setattr(session_module, "REKEY_RECORDS", 4)
    server, client = open_sessions()
    records = server.send([Pong(0), Pong(1), Pong(2)], now_s=0)
    assert [type(client.receive(record)) for record in records] == [Pong, Pong, ServerRekey, Pong]


def test_a_peer_that_does_not_rekey_in_time_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver holds the sender to the limit."""
    server, client = open_sessions()
    records = client.send([Ping(1), Ping(2)], now_s=0)
    monkeypatch.setattr(session_module, "REKEY_RECORDS", 2)
    server.receive(records[0])
    assert code_of(server, records[1]) == "unexpected"
    assert server.state is State.CLOSED


def test_what_is_prepared_is_sealed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rekey is in its place among messages that somebody else seals, by number and by age."""
    monkeypatch.setattr(session_module, "REKEY_RECORDS", 4)
    server, client = open_sessions()
    messages = [encode(Pong(number)) for number in range(4)]
    rekey = encode(ServerRekey())
    prepared = [
        *server.prepare(messages[:1], now_s=0),
        *server.prepare(messages[1:3], now_s=1),
        *server.prepare([], now_s=REKEY_INTERVAL_S + 1),
        *server.prepare(messages[3:], now_s=REKEY_INTERVAL_S + 1),
    ]
    assert prepared == [messages[0], messages[1], rekey, None, messages[2], rekey, None, messages[3]]
    received = [client.receive(record) for record in session_module.seal(server.sealer, prepared)]
    assert [each.rid for each in received if isinstance(each, Pong)] == [0, 1, 2, 3]


def test_nothing_too_large_is_prepared() -> None:
    """And nothing of what comes with it counts; nor after the session is closed."""
    server, client = open_sessions()
    with pytest.raises(ProtocolError, match="too_large"):
        server.prepare([b"x", bytes(MESSAGE_BYTES_MAX + 1)], now_s=0)
    (record,) = session_module.seal(server.sealer, server.prepare([encode(Pong(1))], now_s=0))
    assert client.receive(record) == Pong(1)
    server.close()
    with pytest.raises(ProtocolError, match="unexpected"):
        server.prepare([encode(Pong(2))], now_s=0)


def test_the_limits_are_those_of_the_protocol() -> None:
    """2^20 records or one hour."""
    assert (session_module.REKEY_RECORDS, REKEY_INTERVAL_S) == (1_048_576, 3600)


def test_an_unknown_type_is_answered_and_the_session_goes_on() -> None:
    """protocol.md section 4: "unknown types answered unsupported"."""
    server, client = open_sessions()
    unknown, known = client.send([b"\x92\x63\x01", Ping(1)], now_s=0)
    assert code_of(server, unknown) == "unsupported"
    assert server.state is State.ACTIVE
    assert server.receive(known) == Ping(1)


@pytest.mark.parametrize(
    ("plaintext", "code"),
    [
        (b"", "malformed"),
        (b"\x91\x19", "malformed"),
        (b"\x92\x19\xff", "malformed"),
        (encode(Pong(1)), "unexpected"),
        (b"\x95\x01\x91\x01\x91\x02\xc4\x00\xc4\x00", "unexpected"),
    ],
)
def test_a_message_in_another_form_closes(plaintext: bytes, code: str) -> None:
    """A device that seals what no device should send is cut off."""
    server, client = open_sessions()
    (record,) = client.send([plaintext], now_s=0)
    assert code_of(server, record) == code
    assert server.state is State.CLOSED


def test_an_oversized_record_is_refused_unopened() -> None:
    """A record above 2 MiB and its tag is not even tried."""
    server, _ = open_sessions()
    assert code_of(server, bytes(MESSAGE_BYTES_MAX + 17)) == "too_large"


def test_an_oversized_message_is_not_sent() -> None:
    """Nothing of the batch is sealed, so the counters of both sides stay in step."""
    server, client = open_sessions()
    with pytest.raises(ProtocolError, match="too_large"):
        client.send([Ping(1), bytes(MESSAGE_BYTES_MAX + 1)], now_s=0)
    (record,) = client.send([Ping(2)], now_s=0)
    assert server.receive(record) == Ping(2)


def test_both_sides_know_that_the_server_drains() -> None:
    """Draining changes the state and stops nothing: what is under way is still answered."""
    server, client = open_sessions()
    (draining,) = server.send([Draining(1000)], now_s=0)
    assert client.receive(draining) == Draining(1000)
    assert server.state is client.state is State.DRAINING
    (ping,) = client.send([Ping(1)], now_s=0)
    assert server.receive(ping) == Ping(1)
    (pong,) = server.send([Pong(1)], now_s=0)
    assert client.receive(pong) == Pong(1)


def test_both_sides_know_that_the_device_leaves() -> None:
    """After its Bye the server may still send what is under way."""
    server, client = open_sessions()
    (bye,) = client.send([Bye()], now_s=0)
    assert server.receive(bye) == Bye()
    assert server.state is client.state is State.DRAINING


def test_a_closed_session_takes_and_gives_nothing() -> None:
    """Closing is final."""
    server, client = open_sessions()
    (record,) = client.send([Ping(1)], now_s=0)
    server.close()
    assert code_of(server, record) == "unexpected"
    with pytest.raises(ProtocolError, match="unexpected"):
        server.send([], now_s=0)


def test_exporters_are_secrets_of_one_session() -> None:
    """Equal on both ends and different in every session."""
    server, client = open_sessions()
    other, _ = open_sessions(client=EXTENSION, suites=(1,))
    assert server.exporter == client.exporter
    assert len(server.exporter) == 32
    assert other.exporter != server.exporter

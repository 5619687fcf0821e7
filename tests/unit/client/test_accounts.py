"""How a user comes into being: what is on the disk before the server knows, and what stays when it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from keepstep.client import accounts, create_user, crypto, open_device
from keepstep.client.accounts import make_user, register
from keepstep.client.http import Response
from keepstep.client.recovery import read_recovery_file
from keepstep.client.store import open_store
from keepstep.errors import ClientError, ProtocolError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM
from keepstep.protocol.messages import Publish
from tests.support.device_server import CHEAP, PASSPHRASE, DeviceServer


class Registrar:
    """What is at ``/api/v1/accounts``: an honest server until a test changes ``status``, ``body`` or ``seq``."""

    def __init__(self, server: DeviceServer) -> None:
        self.server = server
        self.problem: str | None = None
        self.body: bytes | None = None
        self.posted: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    async def request(
        self, method: str, url: str, *, body: bytes, content_type: str, headers: dict[str, str], tls: object
    ) -> Response:
        """As ``http.request``."""
        self.headers.append(headers)
        assert (method, url, content_type, tls) == (
            "POST", "http://server.test/api/v1/accounts", "application/msgpack", None,
        )  # fmt: skip
        self.posted.append(body)
        if self.problem is not None:
            return Response(403, "application/problem+json", msgspec.json.encode({"code": self.problem}))
        if self.body is not None:
            return Response(200, "application/msgpack", self.body)
        header, sig, payload = msgspec.msgpack.decode(body)
        self.server.user_key = msgspec.msgpack.decode(payload)[1]
        device_id = msgspec.msgpack.decode(payload)[3][0]
        stream = self.server.stream(DEVICES_STREAM)
        if not stream.rows:
            stream.take(device_id, header, sig, payload, received_at_ms=self.server.now_ms)
        answer = [1, stream.rows[0][2], stream.chains[1], self.server.head(DEVICES_STREAM, 1)]
        return Response(201, "application/msgpack", msgspec.msgpack.encode(answer))


@pytest.fixture
def registrar(server: DeviceServer, monkeypatch: pytest.MonkeyPatch) -> Registrar:
    """Takes what is posted."""
    registrar = Registrar(server)
    monkeypatch.setattr(accounts, "request", registrar.request)
    return registrar


async def create(server: DeviceServer, directory: Path) -> None:
    """A user with a first device."""
    await create_user(
        server.address,
        path=directory / "laptop.sqlite3",
        name="laptop",
        recovery_path=directory / "recovery.txt",
        passphrase=PASSPHRASE,
        environment=server.environment,
        cost=CHEAP,
    )


def files(directory: Path) -> list[str]:
    """What is there."""
    return sorted(file.name for file in directory.iterdir())


async def test_a_user_is_a_key_that_only_the_recovery_file_holds(
    server: DeviceServer, registrar: Registrar, tmp_path: Path
) -> None:
    """The root keys are in no device; the file knows the head of the account log."""
    await create(server, tmp_path)
    recovery = read_recovery_file(tmp_path / "recovery.txt", PASSPHRASE)
    assert crypto.ed25519_public(recovery.root_secret) == recovery.user_key == server.user_key
    assert recovery.heads == {DEVICES_STREAM: (1, server.stream(DEVICES_STREAM).chains[1])}
    assert recovery.server_key == server.server_key
    device = (tmp_path / "laptop.sqlite3").read_bytes()
    assert recovery.root_secret not in device
    assert recovery.next_root_secret not in device
    assert files(tmp_path) == ["laptop.sqlite3", "recovery.txt"]
    assert registrar.headers == [{}]


async def test_the_first_content_key_is_published(server: DeviceServer, registrar: Registrar, tmp_path: Path) -> None:
    """Wrapped for the first device, once, however often registration was tried."""
    await create(server, tmp_path)
    async with open_device(tmp_path / "laptop.sqlite3", environment=server.environment) as device:
        await server.until(lambda: KEYS_STREAM in server.streams)
        await device.wait_until_caught_up(KEYS_STREAM)
    assert len(server.stream(KEYS_STREAM).rows) == len(server.messages(Publish)) == 1


@pytest.mark.parametrize("code", ["registration_closed", "malformed", "rate_limited"])
async def test_a_refused_registration_leaves_no_file(
    server: DeviceServer, registrar: Registrar, tmp_path: Path, code: str
) -> None:
    """It is known that there is no such user: the next try begins anew."""
    registrar.problem = code
    with pytest.raises(ProtocolError) as caught:
        await create(server, tmp_path)
    assert caught.value.code == code
    assert files(tmp_path) == []


async def test_a_registration_of_unknown_outcome_is_finished_later(
    server: DeviceServer, registrar: Registrar, tmp_path: Path
) -> None:
    """The server may have it: the files stay, and opening the device posts the same genesis again."""
    registrar.problem = "unavailable"
    with pytest.raises(ClientError, match="will try again"):
        await create(server, tmp_path)
    registrar.problem = None
    async with open_device(tmp_path / "laptop.sqlite3", environment=server.environment) as device:
        assert (await (await device.publish("notes", b"1")).accepted()).seq == 1
    assert len(registrar.posted) == 2
    assert len(set(registrar.posted)) == 1


async def test_an_interrupted_registration_is_finished_later(
    server: DeviceServer, registrar: Registrar, tmp_path: Path
) -> None:
    """The answer was taken in half: what is there already is not written twice."""
    made = make_user(
        server.address, tmp_path / "laptop.sqlite3", "laptop", tmp_path / "recovery.txt", PASSPHRASE,
        server.environment, CHEAP,
    )  # fmt: skip
    genesis = made.store.genesis()
    assert genesis is not None
    server.register(made.store)
    with made.store.transaction():
        made.store.execute("UPDATE device SET genesis = ?", genesis)
    position = await register(made.store, server.environment)
    assert position.seq == 1
    assert made.store.genesis() is None
    assert made.store.row("SELECT count(*) FROM outbox")[0] == 1
    made.store.close()


@pytest.mark.parametrize("body", [b"oops", msgspec.msgpack.encode([1, 2])])
async def test_an_answer_in_no_known_form_is_told(
    server: DeviceServer, registrar: Registrar, tmp_path: Path, body: bytes
) -> None:
    """The files stay: the server may have registered the user."""
    registrar.body = body
    with pytest.raises(ClientError, match="no form that is known"):
        await create(server, tmp_path)
    assert files(tmp_path) == ["laptop.sqlite3", "recovery.txt"]
    assert registrar.headers == [{}]


@pytest.mark.parametrize("change", ["seq", "chain", "head"])
async def test_an_untrue_answer_is_not_taken(
    server: DeviceServer, registrar: Registrar, tmp_path: Path, change: str
) -> None:
    """Another place, another chain, or a head that the pinned server did not sign."""
    made = make_user(
        server.address, tmp_path / "laptop.sqlite3", "laptop", tmp_path / "recovery.txt", PASSPHRASE,
        server.environment, CHEAP,
    )  # fmt: skip
    server.register(made.store)
    made.store.close()
    stream = server.stream(DEVICES_STREAM)
    head = server.head(DEVICES_STREAM, 1)
    answer = [1, stream.rows[0][2], stream.chains[1], head]
    if change == "seq":
        answer[0] = 2
    elif change == "chain":
        answer[2] = bytes(32)
    else:
        answer[3] = (head[0], bytes(64))
    registrar.body = msgspec.msgpack.encode(answer)
    store = open_store(tmp_path / "laptop.sqlite3")
    with store.transaction():
        store.execute("DELETE FROM events")
        store.execute("DELETE FROM streams")
        header, sig, payload = stream.rows[0][3:6]
        store.execute("UPDATE device SET genesis = ?", msgspec.msgpack.encode([header, sig, payload]))
    with pytest.raises(VerificationError) as caught:
        await register(store, server.environment)
    assert caught.value.stream == DEVICES_STREAM
    store.close()


async def test_what_is_there_is_not_overwritten(server: DeviceServer, registrar: Registrar, tmp_path: Path) -> None:
    """Neither a device nor a recovery file; nothing is posted."""
    (tmp_path / "recovery.txt").write_text("precious")
    with pytest.raises(ClientError, match="exists already"):
        await create(server, tmp_path)
    assert (files(tmp_path), registrar.posted) == (["recovery.txt"], [])


async def test_a_device_that_cannot_be_made_leaves_no_recovery_file(server: DeviceServer, tmp_path: Path) -> None:
    """It would be of a user that does not exist, and in the way of the next attempt."""
    (tmp_path / "file").touch()
    recovery_path = tmp_path / "recovery.txt"
    with pytest.raises(ClientError, match="cannot be written"):
        make_user(
            server.address,
            tmp_path / "file" / "laptop.sqlite3",
            "laptop",
            recovery_path,
            PASSPHRASE,
            server.environment,
            CHEAP,
        )
    assert not recovery_path.exists()

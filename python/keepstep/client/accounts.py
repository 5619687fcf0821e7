"""How a user and devices come into being: root keys, genesis, the recovery file (protocol.md section 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.environment import SYSTEM, uuid4, uuid7
from keepstep.client.http import raise_for_problem, request
from keepstep.client.keys import Keyring, generate_content_key, recovery_box, seal_label, wrap
from keepstep.client.locallog import LocalLog
from keepstep.client.outbox import HLC_COUNTER_BITS, Draft, Outbox
from keepstep.client.payload import NONCE_BYTES
from keepstep.client.recovery import COST, Recovery, RecoveryFile
from keepstep.client.store import Identity, create_store
from keepstep.client.worker import CLEANUP_S
from keepstep.errors import ClientError, ProtocolError, Retry, VerificationError
from keepstep.model import DEVICES_STREAM, KEY_BYTES, KEYS_STREAM, Capability, DeviceEntry, Kind, Position
from keepstep.protocol.account import AccountLog
from keepstep.protocol.account_payloads import FULL_CAPABILITIES, RotatePayload, decode_account, encode_genesis
from keepstep.protocol.chain import chain_0, event_hash, start_of_devices, verify_head
from keepstep.protocol.codec import decode_lenient, encode
from keepstep.protocol.event import NO_PREV, Header, sign_event
from keepstep.protocol.messages import U64, Bytes32, SignedHead
from keepstep.protocol.reader import StreamVerifier
from keepstep.protocol.streamstate import state_at_start

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.payload import ContentKey
    from keepstep.client.recovery import Cost
    from keepstep.client.server import Server
    from keepstep.client.store import Store

_REGISTERED: Final = msgspec.msgpack.Decoder(tuple[U64, U64, Bytes32, SignedHead])
"""``[seq, received_at_ms, chain, signed head]``."""
_POSTED: Final = msgspec.msgpack.Decoder(tuple[bytes, bytes, bytes])


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device that nobody knows yet: its secrets and the entry that will list it."""

    identity: Identity
    entry: DeviceEntry


async def create_user(
    server: Server,
    *,
    path: Path,
    name: str,
    recovery_path: Path,
    passphrase: str,
    environment: Environment = SYSTEM,
    cost: Cost = COST,
    invite: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Make a user with a first device, and register it.

    The root keys go into the recovery file, sealed under the passphrase, and nowhere else. The device's file is at
    ``path``; open it with ``open_device``.

    Args:
        server: from ``find_server``.
        path: where the device's file will be.
        name: of the device, for its user; sealed before it leaves this machine.
        recovery_path: where the recovery file will be.
        passphrase: at least 12 characters.
        environment: clock and randomness.
        cost: what a guess of the passphrase costs.
        invite: the code of an invite, where the server asks for one.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: a file is there already, the passphrase is too short, or the server cannot be reached. Where it
            is not known whether the server has registered the user, the files stay, and ``open_device`` tries again.
        ProtocolError: the server refuses; no file is left.

    After a cancellation the files may be there: ``open_device`` goes on with them.
    """
    made = await trio.to_thread.run_sync(
        lambda: make_user(server, path, name, recovery_path, passphrase, environment, cost)
    )
    try:
        position = await register(made.store, environment, invite=invite, tls=tls)
    except ProtocolError as error:
        if error.row.retry is not Retry.NEVER and error.code != "rate_limited":
            raise ClientError(f"{error}; the device at {path} will try again when it is used") from error
        with trio.move_on_after(CLEANUP_S, shield=True):
            await trio.to_thread.run_sync(made.remove)
        raise
    finally:
        made.store.close()
    await trio.to_thread.run_sync(made.write_recovery, {DEVICES_STREAM: (position.seq, position.chain)})


@dataclass(frozen=True, slots=True, eq=False)
class NewUser:
    """A user's first device, its genesis not posted, and recovery file, on the disk; calls block."""

    store: Store
    recovery: Recovery
    recovery_file: RecoveryFile
    recovery_path: Path
    environment: Environment

    def write_recovery(self, heads: dict[str, tuple[int, bytes]]) -> None:
        """Put the recovery file in place again, with what is known of the user's streams."""
        recovery = msgspec.structs.replace(self.recovery, heads=heads)
        self.recovery_file.write(self.recovery_path, recovery, nonce=self.environment.random_bytes(NONCE_BYTES))

    def remove(self) -> None:
        """Take both files away again."""
        self.store.close()
        self.store.path.unlink()
        self.recovery_path.unlink()


def make_user(
    server: Server,
    path: Path,
    name: str,
    recovery_path: Path,
    passphrase: str,
    environment: Environment,
    cost: Cost,
) -> NewUser:
    """Write both files; blocks, on Argon2id too. Arguments and errors as of ``create_user``."""
    for each in (path, recovery_path):
        if each.exists():
            raise ClientError(f"{each} exists already")
    recovery_file = RecoveryFile(passphrase, salt=environment.random_bytes(crypto.PASSWORD_SALT_BYTES), cost=cost)
    root_secret, next_root_secret = environment.random_bytes(KEY_BYTES), environment.random_bytes(KEY_BYTES)
    user_key = crypto.ed25519_public(root_secret)
    key = generate_content_key(environment, after=1)
    new = make_device(
        server, key, user_key=user_key, name=name, capabilities=FULL_CAPABILITIES, environment=environment
    )
    genesis = _sign_genesis(new, root_secret, crypto.ed25519_public(next_root_secret), environment)
    recovery = Recovery(
        version=1,
        root_secret=root_secret,
        next_root_secret=next_root_secret,
        user_key=user_key,
        server_key=server.server_key,
        server_url=server.device_url,
        heads={},
        content_keys=[(key.content_epoch, key.after, key.content_key, key.index_key)],
        created_at_ms=environment.now_ms(),
    )
    # The root keys are safe before anything exists that only they could recover.
    recovery_file.write(recovery_path, recovery, nonce=environment.random_bytes(NONCE_BYTES))
    try:
        store = create_store(path, new.identity, genesis=genesis, content_keys=[key])
    except BaseException:
        if not path.exists():
            recovery_path.unlink()
        raise
    return NewUser(store, recovery, recovery_file, recovery_path, environment)


def make_device(
    server: Server,
    content_key: ContentKey,
    *,
    user_key: bytes,
    name: str,
    capabilities: Capability,
    environment: Environment,
) -> NewDevice:
    """Fresh keys and an id for a device that is to be enrolled.

    Raises:
        ClientError: the name cannot be one.
    """
    device_id = uuid4(environment)
    device_secret, device_key = crypto.ed25519_generate(environment.random_bytes(KEY_BYTES))
    box_secret, box_key = crypto.x25519_generate(environment.random_bytes(KEY_BYTES))
    nonce = environment.random_bytes(NONCE_BYTES)
    entry = DeviceEntry(
        device_id=device_id,
        device_key=device_key,
        box_key=box_key,
        capabilities=capabilities,
        issued_at_ms=environment.now_ms(),
        expires_at_ms=None,
        sealed_label=seal_label(content_key, user_key=user_key, device_id=device_id, name=name, nonce=nonce),
    )
    identity = Identity(
        name=name,
        user_key=user_key,
        device_id=device_id,
        device_secret=device_secret,
        box_secret=box_secret,
        capabilities=capabilities,
        device_url=server.device_url,
        rest_url=server.rest_url,
        server_key=server.server_key,
        handed_over=start_of_devices(crypto, user_key),
    )
    return NewDevice(identity, entry)


def _sign_genesis(new: NewDevice, root_secret: bytes, next_root_key: bytes, environment: Environment) -> bytes:
    """The body that registers a user: the genesis event, signed by the root key and the first device."""
    payload = encode_genesis(crypto, root_secret=root_secret, next_root_key=next_root_key, device=new.entry)
    return sign_first(new.identity, payload, start_of_devices(crypto, new.identity.user_key), environment)


def sign_first(identity: Identity, payload: bytes, built_on: Position, environment: Environment) -> bytes:
    """The body of a genesis or a rotation: the first event of the device that it lists, as it is posted."""
    header = Header(
        kind=Kind.ACCOUNT,
        id=uuid7(environment),
        stream=DEVICES_STREAM,
        n=1,
        prev=NO_PREV,
        base=None,
        seen=(built_on.seq, built_on.chain),
        devices_seen=(built_on.seq, built_on.chain),
        key=None,
        hlc=environment.now_ms() << HLC_COUNTER_BITS,
        ttl_s=None,
        payload_len=len(payload),
        payload_hash=crypto.blake3(payload),
    ).encode()
    sig = sign_event(
        crypto,
        secret=identity.device_secret,
        user_key=identity.user_key,
        device_id=identity.device_id,
        header=header,
    )
    return encode([header, sig, payload])


async def register(
    store: Store, environment: Environment, *, invite: str | None = None, tls: ssl.SSLContext | None = None
) -> Position:
    """Post the genesis or the rotation that a store holds, and verify the answer; posting it again is no harm.

    An invite is asked for at most once: what is stored is answered without it.

    Returns:
        the position in ``$devices`` that it was given.

    Raises:
        ClientError: the server cannot be reached, or answers in no form that is known.
        ProtocolError: the server refuses.
        VerificationError: the answer is not true.
    """
    body = store.genesis()
    assert body is not None
    is_rotation = isinstance(decode_account(_POSTED.decode(body)[2]), RotatePayload)
    address = f"{store.identity.rest_url}/api/v1/accounts"
    response = await request(
        "POST",
        f"{address}/{store.identity.user_key.hex()}/rotate" if is_rotation else address,
        body=body,
        content_type="application/msgpack",
        headers={} if invite is None else {"Keepstep-Invite": invite},
        tls=tls,
    )
    raise_for_problem(response)
    try:
        answer = decode_lenient(_REGISTERED, response.body, "the answer to a registration")
    except ProtocolError as exc:
        raise ClientError("the server's answer to the registration is in no form that is known") from exc
    take = take_rotation if is_rotation else take_registration
    return await trio.to_thread.run_sync(take, store, environment, body, answer)


def take_rotation(
    store: Store, environment: Environment, body: bytes, answer: tuple[int, int, bytes, SignedHead]
) -> Position:
    """Keep where the server says the rotation is: ``$devices`` must pass through there when it is read.

    Raises:
        VerificationError: the answer is not true, as far as that shows before ``$devices`` is read.
    """
    seq, _, chain, signed = answer
    identity = store.identity
    header, sig, _ = _POSTED.decode(body)
    try:
        head = verify_head(crypto, identity.server_key, signed)
    except ProtocolError as exc:
        raise VerificationError("a head does not verify", stream=DEVICES_STREAM, seq=seq) from exc
    position = Position(seq, chain)
    named = (head.user_key, head.stream) == (identity.user_key, DEVICES_STREAM)
    if not named or head.seq < seq or (head.seq == seq and head.chain != chain):
        raise VerificationError("the head is not of the rotation that was posted", stream=DEVICES_STREAM, seq=seq)
    hash_ = event_hash(crypto, header, sig)
    with store.transaction():
        store.hand_over(position)
        store.execute("INSERT INTO own VALUES (?, 1, ?, 1, ?, ?, ?, 0)", DEVICES_STREAM, hash_, hash_, seq, chain)
        store.raise_hlc(environment.now_ms() << HLC_COUNTER_BITS)
        store.forget_genesis()
    return position


def take_registration(
    store: Store, environment: Environment, body: bytes, answer: tuple[int, int, bytes, SignedHead]
) -> Position:
    """Verify the server's answer to a genesis, and keep ``$devices`` up to it; blocks, and may be done again.

    Raises:
        VerificationError: the answer is not true.
    """
    seq, received_at_ms, chain, head = answer
    identity = store.identity
    header, sig, payload = _POSTED.decode(body)
    account = AccountLog(crypto, identity.user_key)
    verifier = StreamVerifier(
        crypto,
        user_key=identity.user_key,
        server_key=identity.server_key,
        stream=DEVICES_STREAM,
        account=account,
        state=state_at_start(crypto, identity.user_key, DEVICES_STREAM),
    )
    events = verifier.feed([(seq, identity.device_id, received_at_ms, header, sig, payload, None)], chain)
    if events[0].problem is not None:
        raise VerificationError("the genesis does not verify", stream=DEVICES_STREAM, seq=seq)
    verifier.note(head)
    log = LocalLog(store)
    if DEVICES_STREAM not in log.streams():
        hash_ = event_hash(crypto, header, sig)
        with store.transaction():
            log.save(DEVICES_STREAM, verifier.state, events)
            store.save_account(account.state.encode())
            store.execute("INSERT INTO own VALUES (?, 1, ?, 1, ?, ?, ?, 0)", DEVICES_STREAM, hash_, hash_, seq, chain)
            store.raise_hlc(environment.now_ms() << HLC_COUNTER_BITS)
    _publish_first_key(store, environment, verifier.position)
    with store.transaction():
        store.forget_genesis()
    return verifier.position


def _publish_first_key(store: Store, environment: Environment, devices: Position) -> None:
    """Put the first content key, wrapped for its own device, into the outbox; once."""
    keyring = Keyring(store.content_keys())
    identity = store.identity
    nothing_read = Position(0, chain_0(crypto, identity.user_key, KEYS_STREAM))
    outbox = Outbox(store, keyring, environment, {DEVICES_STREAM: devices, KEYS_STREAM: nothing_read}.__getitem__)
    if outbox.own(KEYS_STREAM).last_n == 0:
        receivers = dict([recovery_box(identity.user_key)])
        receivers[identity.device_id] = crypto.x25519_public(identity.box_secret)
        wrapped = wrap(keyring.current(), receivers)
        outbox.add([Draft(KEYS_STREAM, wrapped, kind=Kind.KEYS)], sending=False)

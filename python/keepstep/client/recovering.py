"""Recovery: the recovery file makes a new first device and ends the lost ones (protocol.md sections 1 and 5).

It signs a ``rotate`` with the next root key. From then on another root key counts, which is in the new recovery file:
the old one is void.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.accounts import make_device, register, sign_first
from keepstep.client.device import open_device
from keepstep.client.environment import SYSTEM
from keepstep.client.payload import NONCE_BYTES, ContentKey
from keepstep.client.recovery import COST, Recovery, RecoveryFile, read_recovery_file
from keepstep.client.server import find_server
from keepstep.client.store import create_store, open_store
from keepstep.client.worker import CLEANUP_S
from keepstep.errors import ClientError, ProtocolError, Retry
from keepstep.model import DEVICES_STREAM, KEY_BYTES, Position
from keepstep.protocol.account_payloads import FULL_CAPABILITIES, encode_rotate
from keepstep.protocol.chain import start_of_devices

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.recovery import Cost
    from keepstep.client.server import Server
    from keepstep.client.store import Store


async def recover(
    recovery_path: Path,
    passphrase: str,
    *,
    path: Path,
    name: str,
    new_recovery_path: Path,
    keep: Collection[bytes] = (),
    server: Server | None = None,
    moved: bool = False,
    environment: Environment = SYSTEM,
    cost: Cost = COST,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Make a new device with the recovery file, end every other device but those to keep, and make the file anew.

    Whatever a thief did with a stolen device, he cannot prevent this. The new device is at ``path`` with every content
    key; what the ended devices wrote up to now stays. The old recovery file is void from then on. Where it was
    interrupted the same call goes on.

    Args:
        recovery_path: the recovery file.
        passphrase: its passphrase, which will be the new one's too.
        path: where the new device's file will be.
        name: of the new device, for its user.
        new_recovery_path: where the new recovery file will be.
        keep: ids of the devices that stay; a device that was revoked against its user's will comes back by it.
        server: from ``find_server``, where it is reached otherwise than the file says; its key stays the pinned one.
        moved: the account was moved to ``server``, which has another key; its user trusts that.
        environment: clock and randomness.
        cost: what a guess of the passphrase costs.
        tls: for ``https`` and ``wss``; the system's trusted certificates by default.

    Raises:
        ClientError: a file is there already, the passphrase is wrong, the recovery file is void, or the server cannot
            be reached. Where it is not known whether the server took it, the new files stay: call it again.
        ProtocolError: the server refuses; no new file is left.
        VerificationError: the server lies about the account.

    After a cancellation the new files may be there: call it again.
    """
    old = await trio.to_thread.run_sync(read_recovery_file, recovery_path, passphrase)
    if server is None:
        server = await find_server(f"{old.server_url}#{old.server_key.hex()}", tls=tls)
    if server.server_key != old.server_key and not moved:
        raise ClientError("that is another server than the one that the recovery file names")
    made = Recovering(old, server, path, name, new_recovery_path, environment)
    await trio.to_thread.run_sync(lambda: made.begin(passphrase, cost, keep))
    await made.post(tls)
    async with open_device(path, environment=environment, tls=tls) as device:
        await device.finish_recovery(old.root_secret)
        backup = await device.backup()
    new = msgspec.structs.replace(made.new, heads=backup.heads, content_keys=backup.content_keys)
    await trio.to_thread.run_sync(made.write_recovery, new)


class Recovering:
    """One recovery, step by step; ``begin`` and ``write_recovery`` block.

    Attributes:
        new: what the new recovery file holds.
    """

    def __init__(
        self,
        old: Recovery,
        server: Server,
        path: Path,
        name: str,
        new_recovery_path: Path,
        environment: Environment,
    ) -> None:
        self.new = msgspec.structs.replace(
            old,
            root_secret=old.next_root_secret,
            next_root_secret=environment.random_bytes(KEY_BYTES),
            server_key=server.server_key,
            server_url=server.device_url,
            created_at_ms=environment.now_ms(),
        )
        self._old = old
        self._server = server
        self._path = path
        self._name = name
        self._new_recovery_path = new_recovery_path
        self._environment = environment
        self._file: RecoveryFile | None = None

    def begin(self, passphrase: str, cost: Cost, keep: Collection[bytes]) -> None:
        """Put the new recovery file and the new device's file, with the signed rotation, on the disk, once."""
        environment = self._environment
        self._file = RecoveryFile(passphrase, salt=environment.random_bytes(crypto.PASSWORD_SALT_BYTES), cost=cost)
        if self._path.exists() and self._new_recovery_path.exists():
            begun = read_recovery_file(self._new_recovery_path, passphrase)
            if begun.root_secret == self._old.next_root_secret:
                self.new = begun
                return
        for each in (self._path, self._new_recovery_path):
            if each.exists():
                raise ClientError(f"{each} exists already")
        self._write(keep)

    def _write(self, keep: Collection[bytes]) -> None:
        environment = self._environment
        keys = [ContentKey(*each) for each in self._old.content_keys]
        new = make_device(
            self._server,
            max(keys, key=lambda key: (key.after, key.content_epoch)),
            user_key=self._old.user_key,
            name=self._name,
            capabilities=FULL_CAPABILITIES,
            environment=environment,
        )
        # Any position that the log holds will do: the file may be old, and a thief cannot win by writing faster.
        known = self._old.heads.get(DEVICES_STREAM)
        start = start_of_devices(crypto, self._old.user_key)
        built_on = start if known is None else Position(*known)
        payload = encode_rotate(
            crypto,
            user_key=self._old.user_key,
            root_secret=self._old.next_root_secret,
            next_root_key=crypto.ed25519_public(self.new.next_root_secret),
            built_on=built_on.chain,
            staying=list(keep),
            device=new.entry,
        )
        body = sign_first(new.identity, payload, built_on, environment)
        # The root key that counts from now on is safe before the server can take the rotation.
        self.write_recovery(self.new)
        try:
            create_store(self._path, new.identity, genesis=body, content_keys=keys).close()
        except BaseException:
            self._new_recovery_path.unlink()
            raise

    def write_recovery(self, recovery: Recovery) -> None:
        """Put the new recovery file in place."""
        assert self._file is not None
        self._file.write(self._new_recovery_path, recovery, nonce=self._environment.random_bytes(NONCE_BYTES))

    async def post(self, tls: ssl.SSLContext | None) -> None:
        """Have the server take the rotation, where it is not known to have. Raises as ``recover``."""
        store = await trio.to_thread.run_sync(self._open)
        try:
            if store.genesis() is not None:
                await register(store, self._environment, tls=tls)
        except ProtocolError as error:
            if error.row.retry is not Retry.NEVER and error.code != "rate_limited":
                raise ClientError(f"{error}; use the same recovery file again in a while: it goes on") from error
            with trio.move_on_after(CLEANUP_S, shield=True):
                await trio.to_thread.run_sync(self._remove, store)
            if error.code == "forbidden":
                raise ClientError(
                    "this recovery file is void: a newer one was made from it, or the account is gone"
                ) from error
            raise
        finally:
            store.close()

    def _open(self) -> Store:
        """The new device's file, which knows the server where it is now: it may have been begun elsewhere."""
        store = open_store(self._path)
        try:
            with store.transaction():
                store.relocate(self._server.device_url, self._server.rest_url)
        except BaseException:
            store.close()
            raise
        return store

    def _remove(self, store: Store) -> None:
        store.close()  # first, so that nothing stays that SQLite keeps beside it
        self._path.unlink()
        self._new_recovery_path.unlink()

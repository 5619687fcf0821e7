"""``tokenstore.TokenStore`` in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from keepstep.memory.database import TokenFamily
from keepstep.model import UserPk
from keepstep.tokenstore import Challenge, Refreshed, TokenState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepstep.memory.database import DeviceRow, MemoryDatabase
    from keepstep.model import DevicePk


class MemoryTokens:
    """Tokens in memory.

    Args:
        database: where users and devices are.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._challenges: dict[bytes, Challenge] = {}
        self._revoked: dict[tuple[int, bytes], int] = {}

    async def add_challenge(self, challenge: Challenge) -> None:
        """As ``TokenStore.add_challenge``. Cancel-safe."""
        await self._arrive()
        self._challenges[challenge.nonce_hash] = challenge

    async def take_challenge(self, nonce_hash: bytes) -> Challenge | None:
        """As ``TokenStore.take_challenge``. Cancel-safe."""
        await self._arrive()
        return self._challenges.pop(nonce_hash, None)

    async def begin_family(
        self,
        user_pk: UserPk,
        device_pk: DevicePk,
        *,
        family_id: bytes,
        token_hash: bytes,
        now_ms: int,
        expires_at_ms: int,
        families_max: int,
    ) -> int:
        """As ``TokenStore.begin_family``. Cancel-safe."""
        await self._arrive()
        families = self._families(user_pk, device_pk)
        _see(self._database.users[user_pk].devices[device_pk], now_ms)
        families[family_id] = TokenFamily(now_ms, expires_at_ms, tokens={token_hash: (expires_at_ms, None)})
        newest = sorted(families, key=lambda each: (-families[each].created_at_ms, each))
        for oldest in newest[families_max:]:
            del families[oldest]
        return self._database.epoch

    async def refresh(
        self,
        user_key: bytes,
        token_hash: bytes,
        *,
        next_hash: bytes,
        now_ms: int,
        expires_at_ms: int,
        refreshes_max: int,
    ) -> Refreshed | None:
        """As ``TokenStore.refresh``. Cancel-safe."""
        await self._arrive()
        user_pk = UserPk(self._database.user_pk(user_key) or 0)
        found = [
            (device, family_id, family)
            for device in self._devices(user_pk)
            for family_id, family in device.token_families.items()
            if token_hash in family.tokens
        ]
        if not found:
            return None
        ((device, family_id, family),) = found
        token_expires_at_ms, used_for = family.tokens[token_hash]
        if used_for is None and token_expires_at_ms <= now_ms:
            return None
        refreshed = Refreshed(user_pk, family_id, device.entry.device_id, self._database.epoch, ended=False)
        if used_for == next_hash:
            return refreshed
        if used_for is not None or family.refreshes >= refreshes_max:
            del device.token_families[family_id]
            return replace(refreshed, ended=True)
        _see(device, now_ms)
        family.tokens[token_hash] = token_expires_at_ms, next_hash
        family.tokens[next_hash] = expires_at_ms, None
        family.refreshes += 1
        family.expires_at_ms = expires_at_ms
        return refreshed

    async def end_family(self, user_pk: UserPk, family_id: bytes) -> None:
        """As ``TokenStore.end_family``. Cancel-safe."""
        await self._arrive()
        for device in self._devices(user_pk):
            device.token_families.pop(family_id, None)

    async def end_families(self, user_pk: UserPk, device_pk: DevicePk) -> None:
        """As ``TokenStore.end_families``. Cancel-safe."""
        await self._arrive()
        self._families(user_pk, device_pk).clear()

    async def revoke_token(self, user_pk: UserPk, token_id: bytes, *, expires_at_ms: int) -> None:
        """As ``TokenStore.revoke_token``. Cancel-safe."""
        await self._arrive()
        self._revoked[user_pk, token_id] = expires_at_ms

    async def token_state(self, user_pk: UserPk, *, family_id: bytes, token_id: bytes) -> TokenState:
        """As ``TokenStore.token_state``. Cancel-safe."""
        await self._arrive()
        is_there = any(family_id in device.token_families for device in self._devices(user_pk))
        return TokenState(self._database.epoch, is_there and (user_pk, token_id) not in self._revoked)

    async def clean_up_tokens(self, *, now_ms: int, rows_max: int) -> int:
        """As ``TokenStore.clean_up_tokens``. Cancel-safe."""
        await self._arrive()
        challenges = [key for key, each in self._challenges.items() if each.expires_at_ms <= now_ms][:rows_max]
        all_families = [
            (device.token_families, family_id, family)
            for user_pk in self._database.users
            for device in self._devices(user_pk)
            for family_id, family in device.token_families.items()
        ]
        tokens = [
            (family, token_hash)
            for _, _, family in all_families
            for token_hash, (expires_at_ms, _) in family.tokens.items()
            if expires_at_ms <= now_ms
        ][:rows_max]
        for family, token_hash in tokens:
            del family.tokens[token_hash]
        families = [
            (held, family_id)
            for held, family_id, family in all_families
            if family.expires_at_ms <= now_ms and not family.tokens
        ][:rows_max]
        revoked = [place for place, expires_at_ms in self._revoked.items() if expires_at_ms <= now_ms][:rows_max]
        for nonce_hash in challenges:
            del self._challenges[nonce_hash]
        for held, family_id in families:
            del held[family_id]
        for place in revoked:
            del self._revoked[place]
        return len(challenges) + len(tokens) + len(families) + len(revoked)

    def _devices(self, user_pk: int) -> Iterable[DeviceRow]:
        user = self._database.users.get(user_pk)
        return () if user is None else user.devices.values()

    def _families(self, user_pk: UserPk, device_pk: DevicePk) -> dict[bytes, TokenFamily]:
        return self._database.users[user_pk].devices[device_pk].token_families

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()


def _see(device: DeviceRow, now_ms: int) -> None:
    device.last_seen_at_ms = max(device.last_seen_at_ms or 0, now_ms)

"""``tokenstore.TokenStore`` over PostgreSQL: challenges, families of refresh tokens, revoked access tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from keepstep.postgres.queries import query
from keepstep.tokenstore import Challenge, Refreshed, TokenState

if TYPE_CHECKING:
    from keepstep.model import DevicePk, UserPk
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")

_CLEAN_UPS: Final = (
    "clean_up_challenges",
    "clean_up_refresh_tokens",
    "clean_up_refresh_families",
    "clean_up_revoked_tokens",
)


class PostgresTokens:
    """Tokens. All methods raise Unavailable while the database is away; a cancellation waits for the end.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_challenge(self, challenge: Challenge) -> None:
        """As ``TokenStore.add_challenge``."""
        await self._run(
            "add_challenge",
            nonce_hash=challenge.nonce_hash,
            user_id=challenge.user_key,
            device_id=challenge.device_id,
            purpose=challenge.purpose,
            expires_at=challenge.expires_at_ms,
        )

    async def take_challenge(self, nonce_hash: bytes) -> Challenge | None:
        """As ``TokenStore.take_challenge``. One whose answer is lost on the way here is gone."""
        row = await self._ask(lambda connection: _row(connection, "take_challenge", nonce_hash=nonce_hash))
        return None if row is None else Challenge(nonce_hash, *row)

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
        """As ``TokenStore.begin_family``."""
        owner = {"user_pk": int(user_pk), "device_pk": int(device_pk)}

        def begin(connection: Connection) -> int:
            with connection.transaction():
                _execute(
                    connection,
                    "begin_family",
                    **owner,
                    family_id=family_id,
                    token_hash=token_hash,
                    now_ms=now_ms,
                    expires_at=expires_at_ms,
                )
                _execute(connection, "end_oldest_families", **owner, families_max=families_max)
                row = _row(connection, "read_token_epoch")
            assert row is not None
            return int(row[0])

        return await self._ask(begin)

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
        """As ``TokenStore.refresh``. Asked twice with the same ``next_hash`` it is one refresh."""

        def use(connection: Connection) -> Refreshed | None:
            with connection.transaction():
                family = _row(connection, "lock_family", user_id=user_key, token_hash=token_hash)
                if family is None:
                    return None
                user_pk, family_id = family
                token = {"user_pk": user_pk, "token_hash": token_hash}
                row = _row(connection, "read_refresh_token", **token)
                if row is None:  # it ended while its lock was waited for
                    return None
                device_id, refreshes, token_expires_at_ms, used_for, epoch = row
                ended = False
                if used_for is None:
                    if token_expires_at_ms <= now_ms:
                        return None
                    ended = refreshes >= refreshes_max
                    if not ended:
                        exchange = {"next_hash": next_hash, "expires_at": expires_at_ms}
                        _execute(connection, "exchange_refresh_token", **token, **exchange)
                elif used_for != next_hash:
                    ended = True
                if ended:
                    _execute(connection, "end_family", user_pk=user_pk, family_id=family_id)
                return Refreshed(user_pk, family_id, device_id, epoch, ended)

        refreshed = await self._ask(use)
        if refreshed is not None and not refreshed.ended:
            seen = {"user_pk": int(refreshed.user_pk), "device_id": refreshed.device_id, "now_ms": now_ms}
            await self._run("see_refreshed", **seen)
        return refreshed

    async def end_family(self, user_pk: UserPk, family_id: bytes) -> None:
        """As ``TokenStore.end_family``."""
        await self._run("end_family", user_pk=int(user_pk), family_id=family_id)

    async def end_families(self, user_pk: UserPk, device_pk: DevicePk) -> None:
        """As ``TokenStore.end_families``."""
        await self._run("end_families", user_pk=int(user_pk), device_pk=int(device_pk))

    async def revoke_token(self, user_pk: UserPk, token_id: bytes, *, expires_at_ms: int) -> None:
        """As ``TokenStore.revoke_token``."""
        await self._run("revoke_token", user_pk=int(user_pk), token_id=token_id, expires_at=expires_at_ms)

    async def token_state(self, user_pk: UserPk, *, family_id: bytes, token_id: bytes) -> TokenState:
        """As ``TokenStore.token_state``."""
        arguments = {"user_pk": int(user_pk), "family_id": family_id, "token_id": token_id}
        row = await self._ask(lambda connection: _row(connection, "token_state", **arguments))
        assert row is not None
        return TokenState(*row)

    async def clean_up_tokens(self, *, now_ms: int, rows_max: int) -> int:
        """As ``TokenStore.clean_up_tokens``."""

        def clean_up(connection: Connection) -> int:
            return sum(_execute(connection, name, now_ms=now_ms, rows_max=rows_max) for name in _CLEAN_UPS)

        return await self._ask(clean_up)

    async def _run(self, statement: str, /, **arguments: object) -> None:
        await self._ask(lambda connection: _execute(connection, statement, **arguments))

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))


def _execute(connection: Connection, statement: str, /, **arguments: object) -> int:
    """Run a statement; returns how many rows it touched."""
    return connection.execute(query(statement), arguments).rowcount


def _row(connection: Connection, statement: str, /, **arguments: object) -> tuple[Any, ...] | None:
    """The one row that a statement finds."""
    return cast("tuple[Any, ...] | None", connection.execute(query(statement), arguments, binary=True).fetchone())

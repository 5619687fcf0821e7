"""Access to REST: a signed challenge becomes tokens, tokens become a device, and all of it ends within a second.

A device signs a challenge with its key (protocol.md section 2, Over REST) and is given an access token, good for an
hour, and a refresh token, which is exchanged for the next pair and works once. All that came from one challenge is a
family: whoever presents a used refresh token shows that two parties have it, and the family ends.

Every request asks whether the token, its family and its device are still good; the answer is kept for half a second.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from keepstep import _keepstep, accesstokens
from keepstep.accesstokens import TOKEN_ID_BYTES, AccessToken
from keepstep.errors import ProtocolError, StartupError
from keepstep.protocol.challenge import NONCE_BYTES, Purpose, Statement, verify_statement
from keepstep.telemetry import describe
from keepstep.tokenstore import Challenge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep._keepstep import Run
    from keepstep.interfaces import Accounts, Clock, EventLog, Randomness, Threads
    from keepstep.model import DevicePk, Principal, UserPk
    from keepstep.telemetry import Log, Metrics
    from keepstep.tokenstore import TokenKeys, TokenStore

REFRESH_TOKEN_BYTES: Final = 32
CHECK_KEPT_S: Final = 0.5
"""How long the answer to "is this token still good" is kept: how stale a revocation may be on another node."""
CHECKS_MAX: Final = 10_000
"""Answers kept, those asked for last."""
CHALLENGES_WAITING_MAX: Final = 100_000
"""Challenges of this node that have not run out; anybody may ask for one, so their rows are bounded here."""
FAMILIES_PER_DEVICE_MAX: Final = 64
"""Families of one device: a script that authenticates anew each time ends its own oldest ones."""
REFRESHES_MAX: Final = 1_000
"""Refreshes of one family, each of which leaves a used token to be remembered: above a month of hourly ones."""
RELOAD_INTERVAL_S: Final = 1.0
"""How often the keys are read again: how long another process goes on with keys that were given up here."""
OVERLAP_MS: Final = 24 * 3600 * 1000
"""How long a replaced key goes on verifying: what ``access_token_lifetime_s`` can be at most."""
_SCHEME: Final = "bearer"


@dataclass(frozen=True, slots=True)
class TokenLifetimes:
    """For how long things are good, seconds, each from the setting of that name."""

    access_token_lifetime_s: int = 3_600
    refresh_token_lifetime_s: int = 30 * 24 * 3_600
    challenge_lifetime_s: int = 60


class RevocationScope(enum.StrEnum):
    """What ends with an access token that is revoked."""

    TOKEN = "token"  # noqa: S105 - a word of the interface
    """It alone."""
    FAMILY = "family"
    """All tokens that came from the same challenge."""
    DEVICE = "device"
    """All tokens of its device."""


@dataclass(frozen=True, slots=True)
class IssuedChallenge:
    """A nonce to sign, 32 bytes, and until when, unix milliseconds."""

    nonce: bytes
    expires_at_ms: int


@dataclass(frozen=True, slots=True, repr=False)
class Grant:
    """A pair of tokens; without a ``repr``, so that no log shows them.

    Attributes:
        access_token: a signed token.
        expires_in_s: how long it is good.
        refresh_token: 32 bytes.
        refresh_expires_in_s: how long that is good.
    """

    access_token: str
    expires_in_s: int
    refresh_token: bytes
    refresh_expires_in_s: int


@dataclass(frozen=True, slots=True)
class Access:
    """An access token that is good, and whose it is."""

    principal: Principal
    token: AccessToken


@dataclass(frozen=True, slots=True)
class _Check:
    """Whether a token was good when it was asked; ``principal`` is ``None`` where it was not.

    Row numbers mean nothing in another ``generation`` of the log.
    """

    asked_at_s: float
    generation: int
    token: AccessToken
    principal: Principal | None


class Tokens:
    """Challenges, tokens, and what they are worth.

    Args:
        store: where they are kept.
        accounts: where devices are looked up.
        log: its commits tell that a user's devices have changed.
        keys: what signs access tokens.
        clock: the one that all nodes follow.
        randomness: for nonces, ids and refresh tokens.
        threads: for reading and writing keys.
        server_key: the server's identity key, 32 bytes.
        origin: where devices reach this server's REST.
        lifetimes: from the settings.
        metrics: counted into.
        logger: told of reuse and of keys that cannot be read.
    """

    def __init__(
        self,
        store: TokenStore,
        accounts: Accounts,
        log: EventLog,
        keys: TokenKeys,
        clock: Clock,
        randomness: Randomness,
        threads: Threads,
        *,
        server_key: bytes,
        origin: str,
        lifetimes: TokenLifetimes,
        metrics: Metrics,
        logger: Log,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._keys = keys
        self._clock = clock
        self._randomness = randomness
        self._threads = threads
        self._log = log
        self.lifetimes = lifetimes
        self._metrics = metrics
        self._logger = logger
        self._issuer = f"keepstep:{server_key.hex()}"
        self._checks: OrderedDict[bytes, _Check] = OrderedDict()
        self._forgettings = 0
        self._waiting: deque[float] = deque()
        self._reloaded_at_s: float | None = None
        self._limiter = trio.CapacityLimiter(1)
        self.server_key = server_key
        self.origin = origin
        log.subscribe_device_commits(self._committed)

    # -- challenges -----------------------------------------------------------------------------------------------

    async def challenge(self, user_key: bytes, device_id: bytes, purpose: Purpose) -> IssuedChallenge:
        """A nonce for a device to sign; the same, and the same work, whether or not there is such a device.

        Raises:
            ProtocolError: ``rate_limited``: too many challenges wait already.
            Unavailable: it cannot be kept now.
        """
        now_s = self._clock.monotonic_s()
        while self._waiting and self._waiting[0] <= now_s:
            self._waiting.popleft()
        if len(self._waiting) >= CHALLENGES_WAITING_MAX:
            retry_after_ms = max(1, int((self._waiting[0] - now_s) * 1000))
            raise ProtocolError("rate_limited", "too many challenges wait", retry_after_ms=retry_after_ms)
        self._waiting.append(now_s + self.lifetimes.challenge_lifetime_s)
        nonce = self._randomness.bytes(NONCE_BYTES)
        expires_at_ms = self._clock.now_ms() + self.lifetimes.challenge_lifetime_s * 1000
        await self._store.add_challenge(
            Challenge(_keepstep.blake3(nonce), user_key, device_id, purpose.value, expires_at_ms)
        )
        return IssuedChallenge(nonce, expires_at_ms)

    async def take_challenge(
        self,
        nonce: bytes,
        *,
        user_key: bytes,
        device_id: bytes,
        purpose: Purpose,
        signature: bytes,
        device_key: bytes,
    ) -> Principal:
        """The device that signed a challenge of ours; the challenge is used up by that.

        The signature is checked first and the device looked up last, so that only holders of a key learn anything.

        Raises:
            ProtocolError: ``auth_failed``, the same for a bad signature, a nonce that is unknown, used, expired or for
                something else, an unknown user or device, another key than the enrolled one, and a device that ended.
            Unavailable: it cannot be looked up now.
        """
        statement = Statement(self.server_key, self.origin, user_key, device_id, nonce, purpose)
        try:
            verify_statement(_keepstep, device_key, statement, signature)
        except ProtocolError as exc:
            raise ProtocolError("auth_failed", "the challenge's signature does not verify") from exc
        challenge = await self._store.take_challenge(_keepstep.blake3(nonce))
        if (
            challenge is None
            or (challenge.user_key, challenge.device_id, challenge.purpose) != (user_key, device_id, purpose.value)
            or challenge.expires_at_ms <= self._clock.now_ms()
        ):
            raise ProtocolError("auth_failed", "no such challenge waits")
        principal = await self._live(user_key, device_id)
        if principal is None or not _keepstep.constant_time_equal(principal.device_key, device_key):
            raise ProtocolError("auth_failed", "no such device")
        return principal

    async def _live(self, user_key: bytes, device_id: bytes) -> Principal | None:
        """The device, where it is live and has not expired."""
        principal = await self._accounts.principal(user_key, device_id)
        return None if principal is None or principal.is_expired(self._clock.now_ms()) else principal

    # -- tokens ---------------------------------------------------------------------------------------------------

    async def begin(self, principal: Principal) -> Grant:
        """The first tokens of a new family, for a device that proved who it is. Raises Unavailable."""
        family_id, refresh_token = self._randomness.bytes(TOKEN_ID_BYTES), self._randomness.bytes(REFRESH_TOKEN_BYTES)
        now_ms = self._clock.now_ms()
        epoch = await self._store.begin_family(
            principal.user_pk,
            principal.device_pk,
            family_id=family_id,
            token_hash=_keepstep.blake3(refresh_token),
            now_ms=now_ms,
            expires_at_ms=now_ms + self.lifetimes.refresh_token_lifetime_s * 1000,
            families_max=FAMILIES_PER_DEVICE_MAX,
        )
        self._metrics.tokens.labels("issued").inc()
        return self._grant(principal, family_id, epoch, refresh_token, now_ms)

    async def refresh(self, user_key: bytes, refresh_token: bytes) -> Grant:
        """The next tokens of a family, for its refresh token, which is used up by that.

        Raises:
            ProtocolError: ``auth_failed``: there is no such token of that user, it has run out or was used before, or
                its device has ended. A token that was used before ends its family.
            Unavailable: it cannot be looked up now.
        """
        next_token = self._randomness.bytes(REFRESH_TOKEN_BYTES)
        now_ms = self._clock.now_ms()
        refreshed = await self._store.refresh(
            user_key,
            _keepstep.blake3(refresh_token),
            next_hash=_keepstep.blake3(next_token),
            now_ms=now_ms,
            expires_at_ms=now_ms + self.lifetimes.refresh_token_lifetime_s * 1000,
            refreshes_max=REFRESHES_MAX,
        )
        if refreshed is None:
            self._metrics.tokens.labels("refused").inc()
            raise ProtocolError("auth_failed", "no such refresh token")
        if refreshed.ended:
            family_id = refreshed.family_id
            self._forget(lambda check: check.token.family_id == family_id)
            self._metrics.tokens.labels("reused").inc()
            self._logger.warning(
                "token_family_ended",
                user_pk=refreshed.user_pk,
                detail="a refresh token was used twice, or once too often",
            )
            raise ProtocolError("auth_failed", "the refresh token was used before")
        principal = await self._live(user_key, refreshed.device_id)
        if principal is None:
            self._metrics.tokens.labels("refused").inc()
            raise ProtocolError("auth_failed", "the token's device has ended")
        self._metrics.tokens.labels("refreshed").inc()
        return self._grant(principal, refreshed.family_id, refreshed.epoch, next_token, now_ms)

    def _grant(self, principal: Principal, family_id: bytes, epoch: int, refresh_token: bytes, now_ms: int) -> Grant:
        lifetime_s = self.lifetimes.access_token_lifetime_s
        issued_at_s = now_ms // 1000
        token = AccessToken(
            user_key=principal.user_key,
            device_id=principal.device_id,
            token_id=self._randomness.bytes(TOKEN_ID_BYTES),
            family_id=family_id,
            epoch=epoch,
            issued_at_s=issued_at_s,
            expires_at_s=issued_at_s + lifetime_s,
        )
        return Grant(
            accesstokens.encode(token, self._keys.current, issuer=self._issuer),
            lifetime_s,
            refresh_token,
            self.lifetimes.refresh_token_lifetime_s,
        )

    # -- what a token is worth ------------------------------------------------------------------------------------

    async def authenticate(self, authorization: str | None) -> Principal:
        """As ``access.TokenAuthentication``."""
        return (await self.access(authorization)).principal

    async def access(self, authorization: str | None) -> Access:
        """The token in an ``Authorization`` header, and its device: live and not revoked as of half a second ago.

        Raises:
            ProtocolError: ``invalid_token``, the same for every reason.
            Unavailable: it cannot be looked up now.
        """
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != _SCHEME:
            raise ProtocolError("invalid_token", "no bearer token")
        token = accesstokens.decode(
            text, await self._key(accesstokens.kid_of(text)), issuer=self._issuer, now_ms=self._clock.now_ms()
        )
        principal = await self._check(token)
        if principal is None:
            raise ProtocolError("invalid_token", "has been revoked")
        # The answer is kept, the device's end is known in advance.
        if principal.is_expired(self._clock.now_ms()):
            raise ProtocolError("invalid_token", "its device has expired")
        return Access(principal, token)

    async def _key(self, kid: str) -> bytes:
        """The public key of that name, also of one that another process has made."""
        for attempt in range(2):
            for key in self._keys.valid(self._clock.now_ms()):
                if key.kid == kid:
                    return key.public
            if attempt == 0:
                await self._reload()
        raise ProtocolError("invalid_token", "signed with no key of ours")

    async def _reload(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._reloaded_at_s is not None and now_s < self._reloaded_at_s + RELOAD_INTERVAL_S:
            return
        self._reloaded_at_s = now_s
        try:
            await self._threads.run(self._keys.reload, limiter=self._limiter)
        except StartupError as exc:
            self._logger.error("token_keys_unreadable", **describe(exc))

    async def _check(self, token: AccessToken) -> Principal | None:
        """Whether family, token, epoch and device are still good, as of ``CHECK_KEPT_S`` ago at most."""
        now_s, generation = self._clock.monotonic_s(), self._log.generation()
        kept = self._checks.get(token.token_id)
        if kept is not None and kept.generation == generation and now_s < kept.asked_at_s + CHECK_KEPT_S:
            self._checks.move_to_end(token.token_id)
            return kept.principal
        forgettings = self._forgettings
        principal = await self._live(token.user_key, token.device_id)
        if principal is not None:
            state = await self._store.token_state(principal.user_pk, family_id=token.family_id, token_id=token.token_id)
            if not state.is_alive or state.epoch != token.epoch:
                principal = None
        if forgettings != self._forgettings:
            return principal  # something ended meanwhile, maybe this: whoever asks next asks anew
        self._checks[token.token_id] = _Check(now_s, generation, token, principal)
        self._checks.move_to_end(token.token_id)
        if len(self._checks) > CHECKS_MAX:
            self._checks.popitem(last=False)
        return principal

    # -- ending tokens --------------------------------------------------------------------------------------------

    async def revoke(self, access: Access, scope: RevocationScope) -> None:
        """End an access token, its family, or everything of its device: here at once, elsewhere within half a second.

        Raises:
            Unavailable: it could not be written down; nothing is revoked.
        """
        principal, token = access.principal, access.token
        if scope is RevocationScope.DEVICE:
            await self.revoke_device(principal.user_pk, principal.device_pk)
            return
        if scope is RevocationScope.FAMILY:
            await self._store.end_family(principal.user_pk, token.family_id)
            self._forget(lambda check: check.token.family_id == token.family_id)
        else:
            await self._store.revoke_token(principal.user_pk, token.token_id, expires_at_ms=token.expires_at_s * 1000)
            self._forget(lambda check: check.token.token_id == token.token_id)
        self._metrics.tokens.labels("revoked").inc()

    async def revoke_device(self, user_pk: UserPk, device_pk: DevicePk) -> None:
        """End all families of a device, for whoever has revoked it or signs it out. Raises Unavailable."""
        await self._store.end_families(user_pk, device_pk)
        self._forget(
            lambda check: (
                check.principal is not None
                and (check.principal.user_pk, check.principal.device_pk) == (user_pk, device_pk)
            )
        )
        self._metrics.tokens.labels("revoked").inc()

    def _committed(self, runs: Sequence[Run]) -> None:
        """Ask again about every token of users whose devices may have changed."""
        users = {run.user_pk for run in runs}
        self._forget(lambda check: check.principal is not None and check.principal.user_pk in users)

    def _forget(self, is_stale: Callable[[_Check], bool]) -> None:
        self._forgettings += 1
        for token_id in [token_id for token_id, check in self._checks.items() if is_stale(check)]:
            del self._checks[token_id]

    # -- keys and clean-up ----------------------------------------------------------------------------------------

    def public_keys(self) -> list[dict[str, str]]:
        """The keys that verify tokens now, as JSON Web Keys."""
        return [accesstokens.jwk(key) for key in self._keys.valid(self._clock.now_ms())]

    async def rotate_keys(self, *, stolen: bool = False) -> str:
        """Let a new key sign access tokens from now on. A cancellation waits for the file.

        Args:
            stolen: somebody may have the old keys: they verify nothing any more, and every token signed with them is
                refused. Otherwise tokens go on until they run out.

        Returns:
            the new key's ``kid``.

        Raises:
            ProtocolError: ``limit_exceeded``: too many old keys verify still.
            Unavailable: the keys cannot be written now; they are as before.
        """
        now_ms, overlap_ms = self._clock.now_ms(), 0 if stolen else OVERLAP_MS
        try:
            await self._threads.run(lambda: self._keys.rotate(now_ms, overlap_ms=overlap_ms), limiter=self._limiter)
        except StartupError as exc:
            self._logger.error("token_keys_unwritable", **describe(exc))
            raise ProtocolError("unavailable", "the token keys cannot be written") from exc
        return self._keys.current.kid

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the keys again from time to time, until cancelled: another process may have given up stolen ones."""
        task_status.started()
        while True:
            await trio.sleep(RELOAD_INTERVAL_S)
            await self._reload()

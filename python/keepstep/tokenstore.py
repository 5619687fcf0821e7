"""What tokens need of the place where they are kept, and of the keys that sign them.

``TokenStore`` is implemented over PostgreSQL and memory, ``TokenKeys`` over a file in the data directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keepstep.accesstokens import SigningKey
    from keepstep.model import DevicePk, UserPk


@dataclass(frozen=True, slots=True)
class Challenge:
    """A nonce that waits for a device's signature (protocol.md section 2, Over REST).

    Attributes:
        nonce_hash: BLAKE3 of the nonce; the nonce itself is not kept.
        user_key: for whom it was asked, known or not.
        device_id: likewise.
        purpose: what the signature will be good for.
        expires_at_ms: unix milliseconds.
    """

    nonce_hash: bytes
    user_key: bytes
    device_id: bytes
    purpose: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What became of a refresh token that was presented.

    Attributes:
        user_pk: whose it is.
        family_id: 16 bytes.
        device_id: whose family it is.
        epoch: the log's.
        ended: the token had been used before, or its family is used up: the family has ended, with all its tokens.
    """

    user_pk: UserPk
    family_id: bytes
    device_id: bytes
    epoch: int
    ended: bool


@dataclass(frozen=True, slots=True)
class TokenState:
    """What decides whether an access token is still good.

    Attributes:
        epoch: the log's: a restore takes back revocations, and so ends every token from before it.
        is_alive: its family is there, and it has not been revoked by itself.
    """

    epoch: int
    is_alive: bool


class TokenStore(Protocol):
    """Challenges, families of refresh tokens, revoked access tokens. All methods raise Unavailable.

    A family has ended when it is not there any more; the refresh tokens of it go with it.
    """

    async def add_challenge(self, challenge: Challenge) -> None:
        """Keep a challenge until it is taken or runs out."""

    async def take_challenge(self, nonce_hash: bytes) -> Challenge | None:
        """The challenge, which nobody else is given; ``None`` where it is not there. It may have run out."""

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
        """Begin a family with its first refresh token; the device's oldest ones above ``families_max`` end.

        Returns:
            the log's epoch.
        """

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
        """Use a refresh token once: ``next_hash`` takes its place, and the family's end moves to ``expires_at_ms``.

        A token that was used before ends its family, and so does one more than ``refreshes_max`` refreshes.

        Returns:
            what became of it; ``None`` where there is no such token of that user, or it has run out.
        """

    async def end_family(self, user_pk: UserPk, family_id: bytes) -> None:
        """End a family; one that has ended stays so."""

    async def end_families(self, user_pk: UserPk, device_pk: DevicePk) -> None:
        """End all families of a device."""

    async def revoke_token(self, user_pk: UserPk, token_id: bytes, *, expires_at_ms: int) -> None:
        """Remember an access token as revoked until it runs out."""

    async def token_state(self, user_pk: UserPk, *, family_id: bytes, token_id: bytes) -> TokenState:
        """Whether an access token of a user is still good."""

    async def clean_up_tokens(self, *, now_ms: int, rows_max: int) -> int:
        """Drop at most ``rows_max`` of each kind that ran out; returns how many went (0: done)."""


class TokenKeys(Protocol):
    """The keys that sign access tokens. ``reload`` and ``rotate`` block and raise StartupError where they fail."""

    @property
    def current(self) -> SigningKey:
        """The key that signs."""

    def valid(self, now_ms: int) -> list[SigningKey]:
        """The keys whose signatures count now, the one that signs first."""

    def reload(self) -> None:
        """Look for keys that another process made."""

    def rotate(self, now_ms: int, *, overlap_ms: int) -> None:
        """Let a new key sign; the one before it verifies for ``overlap_ms`` more, at 0 neither it nor older ones do.

        Raises:
            ProtocolError: ``limit_exceeded``: too many keys verify still.
        """

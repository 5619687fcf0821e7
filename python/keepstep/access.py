"""Who may call over REST, and how often: what ``rest`` asks of the server's services before it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keepstep.model import Principal


class TokenAuthentication(Protocol):
    """Who a REST request comes from, by its access token."""

    async def authenticate(self, authorization: str | None) -> Principal:
        """The device whose token an ``Authorization`` header carries, live and not revoked as of half a second ago.

        Args:
            authorization: the header's value, ``None`` where the request has none.

        Raises:
            ProtocolError: ``invalid_token``, the same for every reason.
            Unavailable: it cannot be looked up now.
        """


class AdminAccess(Protocol):
    """Who may administer, by the administration key."""

    async def authenticate(self, authorization: str | None, *, address: str) -> None:
        """Let a request pass that carries the key.

        Args:
            authorization: the ``Authorization`` header's value, ``None`` where the request has none.
            address: the peer's, by which failures are counted.

        Raises:
            ProtocolError: ``invalid_token``; ``rate_limited`` after too many failures; ``not_found`` where no key is
                configured.
        """

    async def audit(
        self, operation: str, target: Mapping[str, str], *, status: int, address: str, request_id: str
    ) -> None:
        """Record a call that was answered, also one that failed.

        Args:
            operation: the endpoint's name (``Endpoint.operation``).
            target: its path parameters.
            status: HTTP status of the answer.
            address: the peer's.
            request_id: of the request.

        Raises:
            Unavailable: it could not be recorded.
        """


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """How often one caller may call.

    Attributes:
        name: of the policy, as its callers are told.
        calls: in one window; a caller may spend them at once.
        window_s: in which they come back, evenly.
    """

    name: str
    calls: int
    window_s: int


@dataclass(frozen=True, slots=True)
class RateState:
    """What a caller has left.

    Attributes:
        policy: that counts it.
        remaining: calls it may make at once.
        reset_s: seconds until it may make all of them again.
    """

    policy: RatePolicy
    remaining: int
    reset_s: int


class RateLimiter(Protocol):
    """Counts calls by caller; each policy counts on its own."""

    async def take(self, caller: str, policy: RatePolicy) -> RateState:
        """Count one call of a caller.

        Args:
            caller: who calls, as a name of the server's own making (``user:17``, ``address:192.0.2.0/24``).
            policy: how often it may.

        Raises:
            RateLimited: ``rate_limited`` with the time to wait, and what the caller is told of its calls.
        """

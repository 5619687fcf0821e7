"""Who may administer, and what administrators cut: the key, the audit trail, sessions that end on every node."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

import msgspec

from keepstep import _keepstep
from keepstep.administration import AUDIT_ACTION_MAX, AUDIT_TARGET_MAX, AUDIT_TEXT_MAX, AuditEntry
from keepstep.admission import address_prefix
from keepstep.cleanup import DAY_MS
from keepstep.errors import ProtocolError
from keepstep.polling import Poll
from keepstep.telemetry import BoundedLines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keepstep.administration import Administration
    from keepstep.cleanup import Step
    from keepstep.interfaces import Clock
    from keepstep.polling import Sessions
    from keepstep.telemetry import Log, Metrics

FAILURES_MAX: Final = 10
FAILURES_WINDOW_S: Final = 60.0
"""An address prefix that showed so many wrong keys within this time is not looked at until it is over."""
PREFIXES_MAX: Final = 10_000
"""Address prefixes whose failures are remembered; beyond it the oldest are forgotten."""
CUT_KEPT_MS: Final = 60 * 60 * 1000
"""How long a cut is kept: every node that is up has looked by then."""
REMOVAL_DELAY_MS: Final = 60 * 1000
"""How long a deleted account's rows stay: nodes whose clocks differ, and what was under way, have come to an end."""
_SCHEME: Final = "bearer"


class AdminKey:
    """``access.AdminAccess``: one key, of which only the BLAKE3 hash is kept.

    Args:
        key: the administration key.
        administration: where calls are recorded.
        clock: dates them; its monotonic seconds count failures.
        metrics: counted into.
        logger: told of every call and of every wrong key.
    """

    def __init__(self, key: str, administration: Administration, clock: Clock, metrics: Metrics, logger: Log) -> None:
        self._key_hash = _keepstep.blake3(key.encode())
        self._administration = administration
        self._clock = clock
        self._metrics = metrics
        self._logger = logger
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._refusals = BoundedLines(logger)

    async def authenticate(self, authorization: str | None, *, address: str) -> None:
        """As ``AdminAccess.authenticate``. A prefix that failed too often is refused whatever it shows."""
        try:
            self._check(authorization, address)
        except ProtocolError:
            self._metrics.admin_refusals.inc()
            raise

    def _check(self, authorization: str | None, address: str) -> None:
        prefix, now_s = address_prefix(address), self._clock.monotonic_s()
        failures = self._failures.get(prefix)
        if failures is not None:
            while failures and failures[0] <= now_s - FAILURES_WINDOW_S:
                failures.popleft()
            if len(failures) >= FAILURES_MAX:
                wait_s = failures[0] + FAILURES_WINDOW_S - now_s
                raise ProtocolError("rate_limited", retry_after_ms=max(1, int(wait_s * 1000)))
        scheme, _, key = (authorization or "").partition(" ")
        shown = _keepstep.blake3(key.encode("utf-8", "surrogateescape"))
        if scheme.lower() == _SCHEME and _keepstep.constant_time_equal(shown, self._key_hash):
            return
        self._failures.setdefault(prefix, deque(maxlen=FAILURES_MAX)).append(now_s)
        self._failures.move_to_end(prefix)
        if len(self._failures) > PREFIXES_MAX:
            self._failures.popitem(last=False)
        self._refusals.write("admin_key_refused", now_s=now_s, address=address)
        raise ProtocolError("invalid_token", "not the administration key")

    async def audit(
        self, operation: str, target: Mapping[str, str], *, status: int, address: str, request_id: str
    ) -> None:
        """As ``AdminAccess.audit``: a log line first, so that a call is known of where the database is away."""
        self._metrics.admin_calls.labels(str(status)).inc()
        named = msgspec.json.encode(dict(target)).decode()[:AUDIT_TARGET_MAX]
        self._logger.info(
            "admin_call", action=operation, target=named, status=status, address=address, request_id=request_id
        )
        entry = AuditEntry(
            audit_no=0,
            at_ms=self._clock.now_ms(),
            request_id=request_id[:AUDIT_TEXT_MAX],
            address=address[:AUDIT_TEXT_MAX],
            action=operation[:AUDIT_ACTION_MAX],
            target=named,
            status=status,
        )
        await self._administration.add_audit(entry)


class Cuts(Poll):
    """Ends the sessions that an administrator cut, and those of accounts that are disabled or deleted.

    There is one path for this node and for others: the database is asked what was cut since the last look.

    Args:
        administration: what is asked.
        sessions: what is ended.
        clock: the one ``received_at`` follows.
    """

    def __init__(self, administration: Administration, sessions: Sessions, clock: Clock) -> None:
        super().__init__(clock)
        self._administration = administration
        self._sessions = sessions

    async def _look(self, since_ms: int) -> None:
        for cut in await self._administration.cuts_since(since_ms):
            if cut.session is None:
                for session in tuple(self._sessions.sessions_of(cut.user_pk)):
                    session.end(ProtocolError("account_disabled"))
            else:
                device_pk, session_no = cut.session
                found = self._sessions.session(cut.user_pk, device_pk)
                if found is not None and found.session_no == session_no:
                    found.end(ProtocolError("session_cut"))


def deleted_accounts_step(administration: Administration) -> Step:
    """Clean-up of what is left of deleted accounts."""

    async def step(*, now_ms: int, rows_max: int) -> int:
        return await administration.remove_deleted(before_ms=now_ms - REMOVAL_DELAY_MS, rows_max=rows_max)

    return step


def administration_step(administration: Administration, days: Callable[[], int]) -> Step:
    """Clean-up of audit entries older than their days, and of cuts that have been seen."""

    async def step(*, now_ms: int, rows_max: int) -> int:
        return await administration.clean_up(
            audit_before_ms=now_ms - days() * DAY_MS, cuts_before_ms=now_ms - CUT_KEPT_MS, rows_max=rows_max
        )

    return step

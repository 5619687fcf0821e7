"""The certificate in force while the server runs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from keepstep.errors import ConfigError
from keepstep.telemetry import Metrics
from keepstep.tls import LOOK_INTERVAL_S, WARN_BEFORE_S, WARN_INTERVAL_S, ServerCertificate
from tests.support.certificates import Authority, SameThread
from tests.support.events import NOW_MS
from tests.support.parts import TestClock

NOW_S = NOW_MS // 1000
ENDS_AT_S = NOW_S + 90 * 86_400


@dataclass
class Served:
    """A certificate that is looked at."""

    certificate: ServerCertificate
    clock: TestClock
    metrics: Metrics
    lines: list[Any]

    def events(self) -> list[str]:
        """What was logged since this was asked last."""
        events = [str(line["event"]) for line in self.lines]
        self.lines.clear()
        return events

    def loads(self, result: str) -> float | None:
        """How many ended so."""
        return self.metrics.registry.get_sample_value("keepstep_tls_certificate_loads_total", {"result": result})

    def expiry(self) -> float | None:
        """As it is measured."""
        return self.metrics.registry.get_sample_value("keepstep_tls_certificate_expiry_timestamp_seconds")


@asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[Served]:
    """Looks at the files until the block ends."""
    with structlog.testing.capture_logs() as lines:
        metrics, clock = Metrics(), TestClock()
        certificate = ServerCertificate(authority.files, clock, SameThread(), metrics, structlog.get_logger())
        async with trio.open_nursery() as nursery:
            await nursery.start(certificate.run)
            yield Served(certificate, clock, metrics, lines)
            nursery.cancel_scope.cancel()


async def a_look_later() -> None:
    """Just after the next look."""
    await trio.sleep(LOOK_INTERVAL_S + 1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """With a certificate for 90 days."""
    made = Authority(tmp_path)
    made.issue(ends_at_s=ENDS_AT_S)
    return made


async def test_a_changed_file_is_taken_within_a_minute(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """A renewal needs nobody; what is served with already goes on with its own context."""
    async with serving(authority) as served:
        before = served.certificate.context
        assert served.expiry() == served.certificate.ends_at_s == ENDS_AT_S
        await a_look_later()
        assert served.certificate.context is before
        authority.issue(ends_at_s=ENDS_AT_S + 1000)
        await a_look_later()
        assert isinstance(served.certificate.context, ssl.SSLContext)
        assert served.certificate.context is not before
        assert served.expiry() == served.certificate.ends_at_s == ENDS_AT_S + 1000
        assert served.events() == ["certificate_loaded"]
        assert served.loads("loaded") == 2


async def test_files_are_read_at_once_when_somebody_asks(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Changed or not."""
    async with serving(authority) as served:
        start_s = trio.current_time()
        served.certificate.reload_now()
        await trio.testing.wait_all_tasks_blocked()
        assert served.events() == ["certificate_loaded"]
        assert trio.current_time() == start_s


async def test_files_that_cannot_be_used_change_nothing(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """Told once for each state of the files, tried at every look: of two files one is replaced first."""
    async with serving(authority) as served:
        before = served.certificate.context
        old_key = authority.files.key.read_bytes()
        authority.issue(ends_at_s=ENDS_AT_S + 1000)
        new_key = authority.files.key.read_bytes()
        authority.files.key.write_bytes(old_key)
        await a_look_later()
        await a_look_later()
        assert served.certificate.context is before
        assert served.events() == ["certificate_refused"]
        authority.files.key.unlink()
        await a_look_later()
        assert served.events() == ["certificate_refused"]
        assert served.loads("refused") == 2
        served.certificate.reload_now()
        await trio.testing.wait_all_tasks_blocked()
        assert served.events() == ["certificate_refused"]
        authority.files.key.touch(mode=0o600)
        authority.files.key.write_bytes(new_key)
        await a_look_later()
        assert served.events() == ["certificate_loaded"]
        assert served.certificate.ends_at_s == ENDS_AT_S + 1000


@pytest.mark.parametrize(
    ("now_s", "events"),
    [
        (0, ["certificate_not_valid"]),
        (ENDS_AT_S - WARN_BEFORE_S, []),
        (ENDS_AT_S - WARN_BEFORE_S + 1, ["certificate_ends_soon"]),
        (ENDS_AT_S - 1, ["certificate_ends_soon"]),
        (ENDS_AT_S, ["certificate_not_valid"]),
    ],
)
async def test_a_certificate_that_is_not_good_for_long_is_warned_of_daily(
    authority: Authority, autojump_clock: trio.testing.MockClock, now_s: int, events: list[str]
) -> None:
    """It is served with all the same: no certificate would not be better."""
    async with serving(authority) as served:
        served.clock.at_ms = now_s * 1000
        served.certificate.warn()
        assert served.events() == events
        await trio.sleep(WARN_INTERVAL_S - LOOK_INTERVAL_S)
        assert served.events() == []
        await trio.sleep(2 * LOOK_INTERVAL_S)
        assert served.events() == events


async def test_a_renewal_that_is_no_longer_good_either_is_warned_of(
    authority: Authority, autojump_clock: trio.testing.MockClock
) -> None:
    """At once, not a day later."""
    async with serving(authority) as served:
        authority.issue(ends_at_s=NOW_S + 1000)
        await a_look_later()
        assert served.events() == ["certificate_loaded", "certificate_ends_soon"]


def test_a_server_does_not_start_with_files_that_cannot_be_used(authority: Authority) -> None:
    """The same words as in the report of the configuration."""
    authority.files.key.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        ServerCertificate(authority.files, TestClock(), SameThread(), Metrics(), structlog.get_logger())

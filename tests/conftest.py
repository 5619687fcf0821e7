"""What every test shares: repeatable property tests, readable assertions in the helpers."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# Whoever starts the tests may ignore them, as shells do for what runs behind them; the programs that are interrupted
# here would inherit that, and never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

pytest.register_assert_rewrite("tests.support")
pytest_plugins = ["tests.support.fixtures"]

# The same examples on every run and machine; a failing one is printed so that it can be pasted into a test.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that was run in this process leaves no log behind that goes to where nobody writes any more."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)

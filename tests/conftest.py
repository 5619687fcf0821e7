"""What every test shares: repeatable property tests, readable assertions in the helpers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

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

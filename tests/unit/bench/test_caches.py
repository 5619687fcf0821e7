"""What a server's metrics say of its caches."""

from __future__ import annotations

import pytest

from bench.caches import found_percent, parse_lookups, read_lookups
from bench.server import BenchError
from keepstep.hits import Hits
from keepstep.telemetry import Metrics


def test_look_ups_are_read_from_what_a_server_exposes() -> None:
    """By cache and result, as it counted them."""
    metrics = Metrics()
    metrics.cache_lookups.read({"tail": Hits(found=3, missing=1)})
    lookups = parse_lookups(metrics.exposition().decode())
    assert (lookups["tail", "found"], lookups["tail", "missing"]) == (3, 1)


def test_only_what_was_asked_meanwhile_counts() -> None:
    """A cache that nobody asked has no share."""
    metrics = Metrics()
    tail = Hits(found=100, missing=100)
    metrics.cache_lookups.read({"tail": tail, "heads": Hits(found=7, missing=0)})
    before = parse_lookups(metrics.exposition().decode())
    tail.found += 3
    tail.missing += 1
    after = parse_lookups(metrics.exposition().decode())
    assert found_percent(before, after) == {"tail": 75.0}


def test_a_server_without_these_metrics_has_none() -> None:
    """As one of an older version, which a comparison runs."""
    assert found_percent(parse_lookups(""), parse_lookups("")) == {}


def test_a_server_that_is_gone_leaves_no_result() -> None:
    """And no traceback."""
    with pytest.raises(BenchError, match="does not tell its metrics"):
        read_lookups("http://127.0.0.1:1")

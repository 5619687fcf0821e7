"""How much of what a server asked of its caches they had, from its metrics."""

from __future__ import annotations

import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from bench.server import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping

METRIC: Final = "keepstep_cache_lookups"
TIMEOUT_S: Final = 10.0
CACHES: Final = ("tail", "heads", "devices")

Lookups = Counter[tuple[str, str]]
"""(cache, result: ``found`` or ``missing``) → look-ups since the server began."""


def read_lookups(rest_url: str) -> Lookups:
    """What the server at this address has counted. Blocks. Raises BenchError where it does not answer."""
    try:
        with urllib.request.urlopen(f"{rest_url}/metrics", timeout=TIMEOUT_S) as answer:  # noqa: S310
            return parse_lookups(answer.read().decode())
    except OSError as exc:
        raise BenchError(f"the server does not tell its metrics: {exc}") from exc


def parse_lookups(text: str) -> Lookups:
    """The look-ups in Prometheus' text format."""
    return Lookups(
        {
            (sample.labels["cache"], sample.labels["result"]): int(sample.value)
            for family in text_string_to_metric_families(text)
            if family.name == METRIC
            for sample in family.samples
        }
    )


def found_percent(before: Lookups, after: Lookups) -> Mapping[str, float]:
    """Cache → percent of the look-ups between two readings that found what they asked for; those that were asked."""
    between = after - before
    asked = {cache: between[cache, "found"] + between[cache, "missing"] for cache in CACHES}
    return {cache: 100 * between[cache, "found"] / count for cache, count in asked.items() if count}

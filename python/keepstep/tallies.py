"""Metrics that are counted with every message: plain numbers, read when somebody scrapes.

A counter of prometheus_client takes a lock and four Python calls for each step, because any thread may count into it.
These belong to the event loop's thread: a step is one addition, and whoever has a batch adds it at once.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from keepstep.hits import Hits

INFINITY: Final = "+Inf"


class Tally(Collector):
    """A counter without labels; ``total`` is added to.

    Args:
        name: the metric's, without ``_total``.
        text: what it counts.
        registry: where it is scraped.
    """

    __slots__ = ("name", "text", "total")
    kind: Final = "counter"
    labels: Final[tuple[str, ...]] = ()

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self.total = 0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As ``Collector.collect``."""
        yield CounterMetricFamily(self.name, self.text, value=self.total)


class LabelledTally(Collector):
    """A counter with one label; ``count`` adds to a value of it.

    Args:
        name: the metric's, without ``_total``.
        text: what it counts.
        label: its label.
        registry: where it is scraped.
    """

    __slots__ = ("_totals", "labels", "name", "text")
    kind: Final = "counter"

    def __init__(self, name: str, text: str, label: str, registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self.labels = (label,)
        self._totals: dict[str, int] = {}
        registry.register(self)

    def count(self, value: str, amount: int = 1) -> None:
        """Add to the label's value, which comes from a list of the server's own."""
        self._totals[value] = self._totals.get(value, 0) + amount

    def collect(self) -> Iterator[Metric]:
        """As ``Collector.collect``."""
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for value, total in self._totals.items():
            family.add_metric([value], total)
        yield family


class Lookups(Collector):
    """A counter of what caches had, by cache and result.

    Args:
        name: the metric's, without ``_total``.
        text: what it counts.
        registry: where it is scraped.
    """

    __slots__ = ("_hits", "name", "text")
    kind: Final = "counter"
    labels: Final = ("cache", "result")

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self._hits: Mapping[str, Hits] = {}
        registry.register(self)

    def read(self, hits: Mapping[str, Hits]) -> None:
        """Show these, by the caches' names."""
        self._hits = hits

    def collect(self) -> Iterator[Metric]:
        """As ``Collector.collect``."""
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for cache, hits in self._hits.items():
            family.add_metric([cache, "found"], hits.found)
            family.add_metric([cache, "missing"], hits.missing)
        yield family


class Distribution(Collector):
    """A histogram without labels.

    Args:
        name: the metric's.
        text: what it measures.
        bounds: of its buckets, ascending, the infinite one left out.
        registry: where it is scraped.
    """

    __slots__ = ("_bounds", "_counts", "_sum", "name", "text")
    kind: Final = "histogram"
    labels: Final[tuple[str, ...]] = ()

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe_all(self, values: Sequence[float]) -> None:
        """Count values: a step for each bucket, however many they are."""
        ordered = sorted(values)
        below = 0
        for bucket, bound in enumerate(self._bounds):
            up_to = bisect_right(ordered, bound, below)
            self._counts[bucket] += up_to - below
            below = up_to
        self._counts[-1] += len(ordered) - below
        self._sum += sum(ordered)

    def collect(self) -> Iterator[Metric]:
        """As ``Collector.collect``."""
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip([*map(floatToGoString, self._bounds), INFINITY], self._counts, strict=True):
            below += count
            buckets.append((bound, below))
        yield HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self._sum)

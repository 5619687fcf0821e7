"""Metrics of the event loop's thread: plain numbers, scraped like all others."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from keepstep.tallies import Distribution, LabelledTally, Tally


def test_a_tally_is_scraped_as_a_counter() -> None:
    """Also before anything was counted."""
    registry = CollectorRegistry()
    tally = Tally("bytes", "Bytes.", registry)
    assert registry.get_sample_value("bytes_total") == 0
    tally.total += 5
    assert registry.get_sample_value("bytes_total") == 5


def test_a_labelled_tally_counts_each_value() -> None:
    """One by default."""
    registry = CollectorRegistry()
    tally = LabelledTally("messages", "Messages.", "type", registry)
    tally.count("Ping")
    tally.count("Ping")
    tally.count("Ack", 7)
    assert registry.get_sample_value("messages_total", {"type": "Ping"}) == 2
    assert registry.get_sample_value("messages_total", {"type": "Ack"}) == 7


def test_a_distribution_has_the_buckets_of_a_histogram() -> None:
    """A bound belongs to its own bucket, and each bucket holds those below it."""
    registry = CollectorRegistry()
    distribution = Distribution("seconds", "Seconds.", (0.001, 0.5, 10.0), registry)
    for values in ([0.0005, 0.001], [], [0.3, 11.0]):
        distribution.observe_all(values)

    def below(bound: str) -> float | None:
        return registry.get_sample_value("seconds_bucket", {"le": bound})

    assert [below("0.001"), below("0.5"), below("10.0"), below("+Inf")] == [2, 3, 3, 4]
    assert registry.get_sample_value("seconds_count") == 4
    assert registry.get_sample_value("seconds_sum") == 0.0005 + 0.001 + 0.3 + 11.0

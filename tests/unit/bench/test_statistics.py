"""Figures of samples."""

from __future__ import annotations

import random

import pytest

from bench.statistics import Spread, compare, median_interval, percentile, spread


def test_percentiles_are_samples() -> None:
    """The smallest one that the share is not above."""
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, share) for share in (0.0, 0.2, 0.5, 0.99, 1.0)] == [1, 1, 3, 5, 5]


def test_a_difference_is_found_under_noise_that_pairs_share() -> None:
    """The interval holds it and leaves zero out; the noise is a hundred times as large."""
    noise = random.Random(1)
    shared = [noise.uniform(0, 1_000) for _ in range(400)]
    first = [each + 10 + noise.gauss(0, 5) for each in shared]
    second = [each + noise.gauss(0, 5) for each in shared]

    difference = compare(first, second)

    assert difference.low < difference.median < difference.high
    assert difference.low > 8
    assert difference.high < 12
    assert difference.median == pytest.approx(10, abs=1)


def test_the_same_is_not_told_apart() -> None:
    """The interval holds zero, and one sample of each helps nobody to guess."""
    noise = random.Random(2)
    first, second = ([noise.expovariate(1) for _ in range(1_000)] for _ in range(2))

    difference = compare(first, second)

    assert difference.low <= 0 <= difference.high
    assert difference.advantage < 0.06


def test_what_never_overlaps_is_always_told_apart() -> None:
    """Whichever is larger."""
    low, high = [1.0] * 20, [2.0] * 20
    assert compare(low, high).advantage == compare(high, low).advantage == 1
    assert compare(low, low).advantage == 0


def test_a_spread_is_the_median_with_the_range() -> None:
    """In the order of the repetitions; two middle values are averaged."""
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    assert spread([1.0, 2.0]).median == 1.5


def test_the_interval_of_a_median_leaves_out_what_chance_would() -> None:
    """Of six values none, of ten one at either end (binomial tails: 1/64, 11/1024)."""
    assert median_interval([6.0, 1.0, 2.0, 5.0, 3.0, 4.0]) == (3.5, 1.0, 6.0)
    assert median_interval([float(value) for value in range(10)]) == (4.5, 1.0, 8.0)


def test_five_values_have_no_interval() -> None:
    """All on one side of the median happens too often."""
    with pytest.raises(ValueError, match="5 values have no 95 % interval"):
        median_interval([1.0] * 5)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of samples whose median is known."""
    noise = random.Random(3)
    held = sum(
        low <= 0 <= high
        for _ in range(2_000)
        for _, low, high in [median_interval([noise.gauss(0, 1) for _ in range(9)])]
    )
    assert held / 2_000 > 0.94

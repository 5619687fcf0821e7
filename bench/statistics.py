"""Figures of samples, without a distribution being assumed."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

_TAIL_SHARE: Final = 0.025
_Z95: Final = 1.96
"""Standard deviations that hold 95 % of a normal distribution, which ranks of many samples come close to."""


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least ``share`` (0 to 1) of all are not above."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Difference:
    """What two kinds of samples, taken in pairs, differ by.

    Attributes:
        median: of the differences, first kind less second.
        low: end of its 95 % confidence interval, by the sign test.
        high: the other end.
        advantage: how much better than by a coin somebody tells the kinds apart by one sample of each, 0 to 1.
    """

    median: float
    low: float
    high: float
    advantage: float


def compare(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare pairs: sample i of both was taken under the same circumstances. At least 12 pairs."""
    differences = sorted(a - b for a, b in zip(first, second, strict=True))
    count = len(differences)
    reach = math.ceil(_Z95 * math.sqrt(count) / 2)
    middle = count // 2
    ordered = sorted(second)
    above = sum(bisect_left(ordered, a) + bisect_right(ordered, a) for a in first) / (2 * count * count)
    return Difference(
        median=percentile(differences, 0.5),
        low=differences[max(0, middle - reach)],
        high=differences[min(count - 1, middle + reach)],
        advantage=abs(2 * above - 1),
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over repetitions.

    Attributes:
        median: of the values; the mean of the two middle ones where their number is even.
        low: the smallest.
        high: the largest.
        values: in the order of the repetitions.
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Median and range of at least one value."""
    return Spread(median(values), min(values), max(values), tuple(values))


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median of at least six values, and the ends of its confidence interval of at least 95 %, by the sign test.

    The ends are samples: the ranks that a fair coin thrown once for each value leaves out with at most 2.5 % each.
    """
    ordered = sorted(values)
    count = len(ordered)
    left_out = 0
    chance = 0.5**count
    below = chance
    while below <= _TAIL_SHARE:
        left_out += 1
        chance = chance * (count - left_out + 1) / left_out
        below += chance
    if not left_out:
        raise ValueError(f"{count} values have no 95 % interval of their median")
    return median(ordered), ordered[left_out - 1], ordered[count - left_out]

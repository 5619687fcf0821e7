"""A soak ends red where the server's memory grows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.generator import Generator
from bench.runner import Bench
from bench.scenario import Load, Scenario
from bench.server import BenchError
from bench.soak import MIB, judge_memory, soak


def windows(seed: int, *, growth: float = 0.0) -> list[int]:
    """Memory of two hours, a minute each: caches fill in the first half hour, then noise and perhaps a leak."""
    noise = random.Random(seed)
    return [int((150 + min(minute, 30) * 2 + noise.gauss(0, 2) + minute * growth) * MIB) for minute in range(120)]


@pytest.mark.parametrize("seed", range(20))
def test_filling_caches_and_noise_are_no_growth(seed: int) -> None:
    """What has ended by the second third does not count."""
    flat, verdict = judge_memory(windows(seed))
    assert flat
    assert verdict.startswith("memory is flat: ")


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_found_under_the_same_noise(seed: int) -> None:
    """Half a MiB a minute: 1 kB for each 250 events at 2,000/s."""
    flat, verdict = judge_memory(windows(seed, growth=0.5))
    assert not flat
    assert verdict.startswith("memory GROWS: ")


def test_a_small_server_may_move_a_little() -> None:
    """5 % of little is nothing."""
    assert judge_memory([20 * MIB] * 4 + [27 * MIB] * 2)[0]


def test_too_few_windows_say_nothing(tmp_path: Path) -> None:
    """Two in each third."""
    scenario = Scenario(title="t", loads=(Load(name="l", workload="relay"),))
    bench = Bench(Generator(tmp_path), tmp_path, lambda _line: None)
    with pytest.raises(BenchError, match="6 to 10000 windows, not 5"):
        soak(scenario, bench, windows=5, window_s=60)

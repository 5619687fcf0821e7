"""Whatever the run looks like: no false alarm, and no planted fault is missed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bench.checker import Fault, check_observations
from tests.support.observed_run import ObservedRun
from tests.support.planted_faults import PLANTED, Plant


@st.composite
def runs(draw: st.DrawFn) -> ObservedRun:
    """Right runs of all shapes that have room for every fault."""
    devices = draw(st.integers(2, 4))
    return ObservedRun(
        draw(st.integers(0, 2**32)),
        users=draw(st.integers(2, 3)),
        devices=devices,
        events=devices + draw(st.integers(1, 20)),
    )


@given(run=runs())
def test_a_right_run_is_clean(run: ObservedRun) -> None:
    """No finding where there is no fault."""
    with tempfile.TemporaryDirectory() as folder:
        assert check_observations([run.write(Path(folder) / "log")]).clean


@given(run=runs(), planted=st.sampled_from(PLANTED))
def test_a_planted_fault_is_found_and_no_other(run: ObservedRun, planted: tuple[Plant, Fault]) -> None:
    """Exactly the kind of fault that was planted."""
    plant, fault = planted
    plant(run)
    with tempfile.TemporaryDirectory() as folder:
        verdict = check_observations([run.write(Path(folder) / "log")])
    assert set(verdict.counts) == {fault}, str(verdict)

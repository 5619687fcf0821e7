"""The smoke benchmark gives a result only for a run that the checker accepts, and states how durable it was."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from bench import smoke
from bench.machine import free_ports
from bench.smoke import BenchError, Result, Server, describe, run_load, table, wait_until_ready
from keepstep.postgres.durability import Durability
from tests.support.observed_run import ObservedRun
from tests.support.planted_faults import PLANTED

if TYPE_CHECKING:
    from pathlib import Path

LATENCY = {"p50": 1.5, "p90": 2.0, "p99": 3.0, "p999": 4.0, "max": 5.0, "count": 24}
REPORT = {
    "acknowledged_in_all": 24,
    "acknowledged": 24,
    "acknowledged_per_s": 2_400.0,
    "delivered_per_s": 4_800.0,
    "acknowledge_ms": LATENCY,
    "deliver_ms": LATENCY,
    "errors": {},
}
GENERATOR = """#!{python}
import json, shutil, sys
print(json.dumps({{"phase": "measuring"}}), json.dumps({{"phase": "measured"}}), sep="\\n")
shutil.copy({observations!r}, sys.argv[sys.argv.index("--observations") + 1])
print({report!r})
sys.exit({status})
"""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Stands for a server; its process is one that runs."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Server(process, "http://127.0.0.1:1", "ws://127.0.0.1:1/v1/connect#00", "0", tmp_path)


def load(run: ObservedRun, server: Server, tmp_path: Path, *, status: int = 0) -> Result:
    """Run the load with a generator that observed this run."""
    observations = run.write(tmp_path / "observed.jsonl")
    generator = tmp_path / "generator"
    generator.write_text(
        GENERATOR.format(
            python=sys.executable, observations=str(observations), report=json.dumps(REPORT), status=status
        )
    )
    generator.chmod(0o700)
    options = argparse.Namespace(connections=6, events_per_frame=1, duration_s=1)
    return run_load(generator, server, tmp_path / "copy.jsonl", options, [])


def test_a_run_that_the_checker_accepts_has_a_result(server: Server, tmp_path: Path) -> None:
    """Rates are the generator's; the observations are not kept."""
    result = load(ObservedRun(1), server, tmp_path)
    assert result.load == REPORT
    assert result.checked == 72
    assert not (tmp_path / "copy.jsonl").exists()


def test_a_run_that_the_checker_does_not_accept_has_no_result(server: Server, tmp_path: Path) -> None:
    """However fast it was."""
    run = ObservedRun(1)
    plant, fault = PLANTED[0]
    plant(run)
    with pytest.raises(BenchError, match=fault.name.lower()):
        load(run, server, tmp_path)


def test_a_run_with_fewer_observations_than_acks_has_no_result(server: Server, tmp_path: Path) -> None:
    """Otherwise a generator that observed nothing would always pass."""
    with pytest.raises(BenchError, match="does not accept"):
        load(ObservedRun(1, events=10), server, tmp_path)


def test_a_generator_that_met_errors_has_no_result(server: Server, tmp_path: Path) -> None:
    """Its exit status says so."""
    with pytest.raises(BenchError, match="ended with 1"):
        load(ObservedRun(1), server, tmp_path, status=1)


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    """The end of its log says why."""
    log = tmp_path / "server.log"
    log.write_text("the port is taken")
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(BenchError, match="the port is taken"):
            wait_until_ready(process, f"http://127.0.0.1:{port}", log)


def test_durability_is_stated_in_words() -> None:
    """No figure is to be shown without it."""
    said = describe(Durability(180_006, "on", "off", "on", ""), "ext4")
    assert said == (
        "PostgreSQL 18.6 on ext4: fsync on, full_page_writes off, synchronous_commit on, standbys waited for: none"
    )


def test_the_table_shows_rates_latencies_and_costs() -> None:
    """One column a load, narrow enough for a terminal."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(
            table({"saturation": Result(REPORT, 15.25, 9.0, 1.0, 72), "half load": Result(REPORT, 1, 2, 3, 72)})
        )
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in capture.get().splitlines()]
    assert [row for row in cells if len(row) == 3] == [
        ["acknowledged events/s", "2,400", "2,400"],
        ["delivered to others/s", "4,800", "4,800"],
        ["ack p50 / p99 ms", "1.5 / 3.0", "1.5 / 3.0"],
        ["deliver p50 / p99 ms", "1.5 / 3.0", "1.5 / 3.0"],
        ["CPU µs an event: server", "15.2", "1.0"],
        ["CPU µs an event: PostgreSQL", "9.0", "2.0"],
        ["CPU µs an event: load generator", "1.0", "3.0"],
    ]


def test_without_cargo_there_is_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what could not be done."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="cannot be built"):
        smoke.build_generator()


def test_without_a_result_the_exit_status_is_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And nothing is written."""
    monkeypatch.setenv("PATH", "")
    output = tmp_path / "results.json"
    assert smoke.main(["--output", str(output)]) == 1
    assert not output.exists()

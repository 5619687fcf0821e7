"""The smoke benchmark on a real server, with a generator that only pretends: the real one takes a release build."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from bench import enumeration, revocation, smoke
from tests.support.observed_run import ObservedRun

if TYPE_CHECKING:
    from pathlib import Path

GENERATOR = """#!{python}
import json, shutil, sys, time, urllib.request
rest = sys.argv[sys.argv.index("--rest") + 1]
assert sys.argv[sys.argv.index("--device-url") + 1].startswith("ws://127.0.0.1:")
print(json.dumps({{"phase": "measuring"}}), flush=True)
until = time.monotonic() + 0.3
while time.monotonic() < until:
    urllib.request.urlopen(rest + "/metrics").read()
print(json.dumps({{"phase": "measured"}}), flush=True)
shutil.copy({observations!r}, sys.argv[sys.argv.index("--observations") + 1])
latency = dict(p50=1.0, p99=2.0)
print(json.dumps(dict(
    acknowledged_in_all=24, acknowledged=24, acknowledged_per_s=80.0, delivered_per_s=160.0,
    acknowledge_ms=latency, deliver_ms=latency, errors={{}}, arguments=sys.argv[1:],
)))
"""


@pytest.mark.slow
def test_the_results_name_commit_machine_durability_and_costs(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both loads run on one durable server; the second at half the rate of the first."""
    observations = ObservedRun(1).write(data_dir / "observed.jsonl")
    generator = data_dir / "generator"
    generator.write_text(GENERATOR.format(python=sys.executable, observations=str(observations)))
    generator.chmod(0o700)
    monkeypatch.setattr(smoke, "build_generator", lambda: generator)
    output = data_dir / "out" / "results.json"

    assert smoke.main(["--directory", str(data_dir), "--output", str(output), "--duration-s", "1"]) == 0

    results = json.loads(output.read_text())
    assert results["durability"]["fsync"] == results["durability"]["synchronous_commit"] == "on"
    assert results["machine"]["cores"] >= 1
    assert results["version"]
    assert results["commit"]
    assert list(results["results"]) == ["saturation", "half load"]
    assert all(result["server_us"] > 0 for result in results["results"].values())
    arguments = results["results"]["half load"]["load"]["arguments"]
    assert arguments[arguments.index("--rate") + 1] == "40"
    printed = " ".join(capsys.readouterr().out.split())
    assert "fsync on, full_page_writes on, synchronous_commit on" in printed


@pytest.mark.slow
def test_a_server_that_does_not_stop_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark leaves nothing running."""
    monkeypatch.setattr(smoke, "STOP_TIMEOUT_S", 0.0)
    with smoke.running_server(data_dir) as server:
        assert server.process.poll() is None
    assert server.process.poll() is not None


def test_the_arguments_have_the_documented_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """99 connections, 10 events a frame, 10 s."""
    seen: list[argparse.Namespace] = []

    def measure(_generator: Path, _directory: Path, options: argparse.Namespace, _console: Console) -> dict[str, int]:
        seen.append(options)
        return {}

    monkeypatch.setattr(smoke, "build_generator", lambda: tmp_path)
    monkeypatch.setattr(smoke, "measure", measure)
    assert smoke.main(["--output", str(tmp_path / "results.json")]) == 0
    assert (seen[0].connections, seen[0].events_per_frame, seen[0].duration_s) == (99, 10, 10)


@pytest.mark.slow
def test_known_and_unknown_users_are_compared_in_pairs(data_dir: Path) -> None:
    """Both ways to ask give figures; what they are is for a quiet machine."""
    output = data_dir / "results.json"

    assert enumeration.main(["--count", "12", "--directory", str(data_dir), "--output", str(output)]) == 0

    results = json.loads(output.read_text())["results"]
    assert list(results) == ["handshake", "challenge"]
    for timing in results.values():
        assert timing["pairs"] == 12
        assert timing["known_p50"] > 0
        assert timing["difference_low"] <= timing["difference_p50"] <= timing["difference_high"]
        assert 0 <= timing["advantage"] <= 1


@pytest.mark.slow
def test_revoked_devices_are_timed_at_two_servers(data_dir: Path) -> None:
    """At the one that published the revocation, and at another one of the same database."""
    output = data_dir / "results.json"

    assert revocation.main(["--count", "2", "--directory", str(data_dir), "--output", str(output)]) == 0

    results = json.loads(output.read_text())["results"]
    assert list(results) == ["the same server", "another server"]
    for closing in results.values():
        assert closing["revocations"] == 2
        assert 0 < closing["p50_ms"] <= closing["p99_ms"] <= closing["max_ms"]

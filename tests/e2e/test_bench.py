"""The benchmarks on a real server, with small numbers; where figures do not matter the load generator only pretends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from bench import __main__ as command_line
from bench import backup, enumeration, growth, retention, revocation, runner, server
from bench.generator import Generator
from bench.runner import Bench, run_scenario
from bench.scenario import Load, Scenario
from keepstep.postgres.cluster import ADMIN_ROLE
from tests.support.observed_run import ObservedRun

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
latency = dict(p50=1.0, p90=1.0, p99=2.0, p999=2.0, max=2.0, count=24)
print(json.dumps(dict(
    acknowledged_in_all=24, acknowledged=24, acknowledged_per_s=80.0, delivered_per_s=160.0,
    acknowledge_ms=latency, deliver_ms=latency, late_ms=latency, errors={{}}, arguments=sys.argv[1:],
)))
"""


@pytest.fixture
def pretending(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the load generator: a program that asks the server for its metrics and has its results ready."""
    observations = ObservedRun(1).write(data_dir / "observed.jsonl")
    program = data_dir / "generator"
    program.write_text(GENERATOR.format(python=sys.executable, observations=str(observations)))
    program.chmod(0o700)
    monkeypatch.setattr(command_line, "build_generator", lambda: program)


@pytest.mark.slow
@pytest.mark.usefixtures("pretending")
def test_the_results_name_commit_machine_durability_and_costs(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both loads run on one durable server; the second at half the rate of the first, beside the disk's own fsync."""
    output = data_dir / "out"

    options = ["--directory", str(data_dir), "--output", str(output), "--duration-s", "1"]
    assert command_line.main(["run", "smoke", *options]) == 0

    results = json.loads((output / "smoke.json").read_text())
    assert results["durability"]["fsync"] == results["durability"]["synchronous_commit"] == "on"
    assert results["machine"]["cores"] >= 1
    assert results["version"]
    assert results["commit"]
    assert list(results["loads"]) == ["saturation", "half load"]
    for load in results["loads"].values():
        assert load["figures"]["server_us"]["median"] >= load["figures"]["loop_us"]["median"] * 0.9 > 0
    half = results["loads"]["half load"]
    assert half["figures"]["disk_ms_p50"]["median"] > 0
    (report,) = half["runs"]
    assert report["arguments"][report["arguments"].index("--rate") + 1] == "40"
    printed = " ".join(capsys.readouterr().out.split())
    assert "fsync on, full_page_writes on, synchronous_commit on" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("pretending")
def test_a_server_is_measured_that_has_its_wal_files(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there before the first load, to be used again: a new server would make them while it is measured."""
    ahead: list[int] = []

    def counted(measured: server.Server) -> None:
        server.use_wal_files(measured)
        with psycopg.connect(server.database_url(measured, ADMIN_ROLE), autocommit=True) as connection:
            later = "SELECT count(*) FROM pg_ls_waldir() WHERE name > pg_walfile_name(pg_current_wal_lsn())"
            ahead.extend(count for (count,) in connection.execute(later).fetchall())

    monkeypatch.setattr(runner, "use_wal_files", counted)
    load = Load(name="one", workload="relay", connections=6, events_per_frame=1)
    bench = Bench(Generator(data_dir / "generator"), data_dir, lambda _line: None)
    run_scenario("ready", Scenario(title="t", loads=(load,), repetitions=1), bench)
    (count,) = ahead
    assert count >= server.WAL_FILES // 2


@pytest.mark.slow
@pytest.mark.usefixtures("pretending")
def test_loads_that_are_compared_begin_after_a_checkpoint(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would be in the one that the first has caused, and take it for what it is compared by."""
    seen: list[tuple[object, object]] = []

    def watched(measured: server.Server) -> None:
        with psycopg.connect(server.database_url(measured), autocommit=True) as connection:
            latest = "SELECT checkpoint_lsn FROM pg_control_checkpoint()"
            before = connection.execute(latest).fetchone()
            server.checkpoint(measured)
            seen.append((before, connection.execute(latest).fetchone()))

    monkeypatch.setattr(runner, "checkpoint", watched)
    names = ("one", "other")
    loads = tuple(Load(name=name, workload="relay", connections=6, events_per_frame=1) for name in names)
    bench = Bench(Generator(data_dir / "generator"), data_dir, lambda _line: None)
    results = run_scenario("pair", Scenario(title="t", loads=loads, repetitions=1, alternate=True), bench)
    assert list(results["loads"]) == list(names)
    assert len(seen) == len(names)
    assert all(before != after for before, after in seen)


@pytest.mark.slow
def test_every_workload_of_the_real_generator_has_a_result(data_dir: Path, generator: Generator) -> None:
    """On one server: published and read back, relayed beside bad signatures, downloaded, held, connected."""
    scenario = Scenario(
        title="all of them",
        loads=(
            Load(name="publish", workload="publish", connections=6, events_per_frame=2, events_per_s_max=200),
            Load(name="relay", workload="relay", connections=6, events_per_s_max=200),
            Load(name="many streams", workload="relay", connections=6, events_per_s_max=200, streams_per_user=1_030),
            Load(
                name="spread",
                workload="publish",
                connections=2,
                events_per_s_max=200,
                streams_per_user=7,
                messages_per_stream=2,
            ),
            Load(name="open", workload="relay", connections=6, events_per_frame=2, rate=100, bad_signers=1),
            Load(name="catch-up", workload="catch-up", connections=2, events=200, downloads=2, verify=True),
            Load(name="idle", workload="idle", connections=6, subscribed=True),
            Load(name="connect", workload="connect", connections=2, at_once=2),
        ),
        repetitions=1,
        duration_s=1,
        warm_up_s=0,
    )
    said: list[str] = []

    results = run_scenario("all", scenario, Bench(generator, data_dir, said.append))

    figures = {name: load["figures"] for name, load in results["loads"].items()}
    assert figures["publish"]["acknowledged_per_s"]["median"] > 0
    for name in ("publish", "relay", "many streams", "spread", "open"):
        assert results["loads"][name]["runs"][0]["checked"] > 0
    assert figures["open"]["bad_refused"]["median"] > 0
    assert figures["open"]["deliver_ms_p99"]["median"] > 0
    assert figures["open"]["disk_ms_p50"]["median"] > 0
    assert figures["catch-up"]["downloaded_per_s"]["median"] > 0
    assert "proportional_kib" in figures["idle"]
    assert figures["connect"]["connected_per_s"]["median"] > 0
    assert figures["connect"]["per_server_cpu_s"]["median"] > 0


@pytest.fixture(scope="session")
def generator() -> Generator:
    """The real one; not optimised, as the Rust tests have built most of it."""
    command = ["cargo", "build", "--locked", "--quiet", "--package", "keepstep-loadgen", "--message-format=json"]
    built = subprocess.run(command, cwd=server.REPOSITORY, stdout=subprocess.PIPE, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    (program,) = [each["executable"] for each in messages if each.get("executable")]
    return Generator(Path(program))


@pytest.mark.slow
@pytest.mark.usefixtures("pretending")
def test_a_soak_reads_the_servers_memory_after_every_window(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And ends green where it does not grow."""
    output = data_dir / "out"

    options = ["--hours", str(6 / 3600), "--window-s", "1", "--directory", str(data_dir), "--output", str(output)]
    assert command_line.main(["soak", *options]) == 0

    results = json.loads((output / "soak.json").read_text())
    assert len(results["windows"]) == 6
    assert all(window["resident"] > 2**24 for window in results["windows"])
    assert results["windows"][0]["steady"]["acknowledge_ms_p99"] == 2.0
    assert "memory is flat" in capsys.readouterr().out


@pytest.mark.slow
def test_a_database_is_filled_for_growth(data_dir: Path) -> None:
    """With as many events as were asked for, and PostgreSQL tells what it did meanwhile."""
    with server.running_server(data_dir) as running:
        before = growth.stored(running)
        growth.fill_in(running, data_dir, 1_250)
        after = growth.stored(running)
    assert after["events"] - before["events"] == 1_250 + growth.FILLED_USERS
    assert after["bytes"] > before["bytes"]
    assert after["checkpoints"] > before["checkpoints"]


@pytest.mark.slow
def test_a_server_that_does_not_stop_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark leaves nothing running."""
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.0)
    with server.running_server(data_dir) as running:
        assert running.process.poll() is None
    assert running.process.poll() is not None


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


@pytest.mark.slow
def test_publishing_goes_on_while_old_events_go(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns with and without the clean-up; all that is too old is gone in the end, and its disk is back."""
    for name, value in (("WINDOW_S", 0.2), ("PAIRS_MIN", 1), ("PAIRS_MAX", 1)):
        monkeypatch.setattr(retention, name, value)
    output = data_dir / "results.json"
    assert retention.main(["--count", "5000", "--directory", str(data_dir), "--output", str(output)]) == 0

    without, during = json.loads(output.read_text())["results"].values()
    assert without["publishes"] > 0
    assert during["publishes"] > 0
    assert without["events"] == 5_000 > during["events"] > 4_000
    assert during["database_mib"] < without["database_mib"]


@pytest.mark.slow
def test_backups_and_the_archive_are_timed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing beside a backup, then each step by itself; what is read back from the archive verifies."""
    for name, value in (("WINDOW_S", 0.2), ("PAIRS", 1)):
        monkeypatch.setattr(backup, name, value)
    output = data_dir / "results.json"
    assert backup.main(["--count", "50", "--directory", str(data_dir), "--output", str(output)]) == 0

    results = json.loads(output.read_text())["results"]
    by_itself = ["back up", "restore and verify", "restore", "archive", "read the archive"]
    assert list(results) == ["without a backup", "beside a backup", *by_itself]
    assert all(results[name]["mib_per_s"] > 0 for name in by_itself)
    assert all(results[name]["events"] > 50 for name in by_itself)

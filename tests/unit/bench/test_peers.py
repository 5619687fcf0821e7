"""The comparison with peers: what the generators are asked for, what their reports come to, how it is shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from bench.peers import runs
from bench.peers.__main__ import main, parsed
from bench.peers.accounting import Reading, disk_figures, figures, read
from bench.peers.runs import KEEPSTEP_WORKS, run_peer
from bench.peers.servers import PEERS, Running, own
from bench.peers.tables import markdown
from bench.peers.works import CATCH_UP, IDLE, LATENCY, PUBLISH, RELAY, generator_arguments
from bench.server import BenchError
from tests.support.pretended_generator import LATENCY as MILLISECONDS
from tests.support.pretended_generator import pretended_generator

if TYPE_CHECKING:
    from pathlib import Path

REPORT: dict[str, Any] = {
    "connections": 100,
    "acknowledged": 1_000,
    "acknowledged_in_all": 1_500,
    "acknowledged_per_s": 500.0,
    "delivered": 2_000,
    "delivered_per_s": 1_000.0,
    "lost": 3,
    "duplicates": 0,
    "out_of_order": 1,
    "acknowledge_ms": MILLISECONDS,
    "deliver_ms": MILLISECONDS,
    "late_ms": MILLISECONDS | {"count": 0},
    "errors": {},
}
BEFORE = Reading(cpu_s=1.0, memory_bytes=1_024_000)
AFTER = Reading(cpu_s=1.5, memory_bytes=2_048_000)
GENERATOR = (Reading(0, 0), Reading(0.01, 0))


def test_costs_are_of_an_acknowledged_event() -> None:
    """Half a second of processor for a thousand events."""
    found = figures(REPORT, "relay", (BEFORE, AFTER), GENERATOR)
    assert (found["server_us"], found["generator_us"]) == (500.0, 10.0)
    assert (found["lost"], found["out_of_order"], found["deliver_ms_p99"]) == (3, 1, MILLISECONDS["p99"])
    assert "late_ms_p50" not in found


def test_what_nobody_is_told_of_is_no_delivery() -> None:
    """Publishing without subscribers has no rows for them."""
    found = figures(REPORT, "publish", (BEFORE, AFTER), GENERATOR)
    assert not {"delivered_per_s", "lost"} & found.keys()


def test_catching_up_costs_by_delivered_event() -> None:
    """Nothing is acknowledged in it."""
    found = figures(REPORT | {"acknowledged": 0}, "catch-up", (BEFORE, AFTER), GENERATOR)
    assert (found["server_us"], found["delivered_per_s"]) == (250.0, 1_000.0)
    assert "acknowledged_per_s" not in found


def test_bytes_on_disk_are_of_all_events_that_were_stored() -> None:
    """Those of the warm-up too, for what they had written comes to the disk some time later."""
    report = {"acknowledged_in_all": 2_000}
    assert disk_figures(report, 1_000, 501_000) == {"written_bytes": 250.0}
    assert disk_figures(report, None, None) == disk_figures({"acknowledged_in_all": 0}, 1, 2) == {}


def test_silent_connections_cost_memory() -> None:
    """A thousand KiB more for a hundred."""
    assert figures(REPORT, "idle", (BEFORE, AFTER), GENERATOR) == {"connection_kib": 10.0}


def test_where_the_process_is_unknown_nothing_is_said_of_its_cost() -> None:
    """An operator's server without its number."""
    found = figures(REPORT, "relay", None, GENERATOR)
    assert "server_us" not in found
    assert figures(REPORT, "idle", None, GENERATOR) == {}


def test_this_process_has_used_something() -> None:
    """One that is not there has used nothing."""
    found = read(os.getpid())
    assert found.cpu_s > 0
    assert found.memory_bytes > 0
    assert read(2**22 + 1) == Reading(0, 0)


@pytest.mark.parametrize("work", [work for peer in PEERS for work in peer.works], ids=lambda work: work.name)
def test_the_generator_is_asked_for_what_the_work_says(work: Any) -> None:
    """An open loop by its rate, a closed one by how many events are made beforehand, catch-up by how many are read."""
    arguments = generator_arguments(work, 10)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given["--connections"] == str(work.connections)
    assert given["--payload-bytes"] == "256"
    assert ("--rate" in given) == (work.rate is not None)
    assert ("--events-max" in given) == (work.rate is None and work.workload != "idle")


def test_a_peer_is_measured_between_the_generators_phases(tmp_path: Path) -> None:
    """Its protocol, workload and address come first."""
    generator = pretended_generator(tmp_path, None, REPORT).path
    run = run_peer(PEERS[0], Running("127.0.0.1:1", os.getpid()), PEERS[0].works[0], generator, tmp_path, 5)
    assert run.report["arguments"][:4] == ["nats", "publish", "--address", "127.0.0.1:1"]
    assert run.figures["acknowledged_per_s"] == REPORT["acknowledged_per_s"]


def test_a_generator_that_met_errors_has_no_result(tmp_path: Path) -> None:
    """A refusal is no figure."""
    generator = pretended_generator(tmp_path, None, REPORT, status=1).path
    with pytest.raises(BenchError, match="ended with 1"):
        run_peer(PEERS[0], Running("127.0.0.1:1", None), PEERS[0].works[0], generator, tmp_path, 5)


def test_keepstep_gets_every_workload_of_its_peers() -> None:
    """And says under which name its own figures are in the comparison."""
    assert {work.name for peer in PEERS for work in peer.works} <= {each.work.name for each in KEEPSTEP_WORKS}
    assert set(runs.FIGURES.values()) <= {*figures(REPORT, "relay", (BEFORE, AFTER), GENERATOR), "connection_kib"}


def test_every_peer_says_what_its_acknowledgement_means() -> None:
    """Without it a rate says nothing."""
    assert all(peer.acknowledges and peer.verifies for peer in PEERS)
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert own("strfry", "nostr", "127.0.0.1:7777", None).protocol == "nostr"
    assert {work.name for work in own("c", "centrifugo", "127.0.0.1:8000/ws", 1).works} == {
        *(PUBLISH.name, RELAY.name, LATENCY.name, IDLE.name)
    }


def results() -> dict[str, Any]:
    """Of two peers: two runs of one workload, and what only one of them was put to."""
    return {
        "commit": "0123456789abcdef",
        "commands": ["python -m bench.peers", "python -m bench.peers"],
        "duration_s": 5,
        "machine": {"processor": "P", "cores": 2, "kernel": "K", "file_system": "ext4"},
        "peers": {
            "a": {
                "title": "A",
                "verifies": "nobody",
                "acknowledges": "in memory",
                "works": {
                    "relay": {"rate": None, "figures": {"acknowledged_per_s": [1_000.0, 3_000.0], "lost": [0, 0]}},
                    "latency": {
                        "rate": 500.0,
                        "figures": {"deliver_ms_p50": [0.25], "deliver_ms_p99": [12.0]},
                    },
                },
            },
            "b": {
                "title": "B",
                "verifies": "B",
                "acknowledges": "on disk",
                "works": {"relay": {"rate": None, "figures": {"acknowledged_per_s": [20.0]}}},
            },
        },
    }


def test_the_table_says_what_an_ack_means_and_shows_medians_with_their_range() -> None:
    """A figure that a peer has not got is a dash, never a zero."""
    shown = markdown(results())
    assert "| A | nobody | in memory |" in shown
    assert "| A | 2,000 (1,000 … 3,000) | 0 |" in shown
    assert "| B | 20.0 | - |" in shown
    assert "| A | 500 | 0.25 / 12.0 |" in shown
    assert RELAY.title[1:] in shown
    assert CATCH_UP.title[1:] not in shown
    assert shown.count("python -m bench.peers") == 1


def test_quick_is_once_and_short_unless_it_is_said_otherwise() -> None:
    """What is said stands."""
    quick, whole = parsed(["--quick", "--repetitions", "2"]), parsed([])
    assert (quick.duration_s, quick.repetitions) == (5, 2)
    assert (whole.duration_s, whole.repetitions) == (10, 3)


def test_a_peer_that_cannot_be_built_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status says so, and why."""

    def fail() -> Path:
        raise BenchError("no cargo here")

    monkeypatch.setattr("bench.peers.__main__.build_peers_generator", fail)
    output = tmp_path / "peers.json"
    assert main(["--only", "nats", "--output", str(output)]) == 1
    assert "no cargo here" in capsys.readouterr().out
    assert not output.exists()

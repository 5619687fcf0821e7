"""The smallest honest benchmark: ``python -m bench.smoke`` (``make bench-smoke``).

A real server on an embedded PostgreSQL in a new directory on disk, durable as it comes; devices that relay to each
other at saturation, then at half of that rate. What the devices observed is checked afterwards: a run in which
anything was lost, duplicated, reordered or changed has no result. ``docs/how-to/run-the-benchmarks.md`` explains it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from rich.console import Console
from rich.table import Table

from bench.checker import check_observations
from bench.machine import Cost, commit, cost, describe_machine, free_ports
from keepstep.postgres.cluster import DATABASE, PORT, ROLE
from keepstep.postgres.durability import Durability, check_durability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY: Final = Path(__file__).parents[1]
OUTPUT: Final = REPOSITORY / "build" / "bench-smoke.json"
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
CONNECTIONS: Final = 99
EVENTS_PER_FRAME: Final = 10
EVENTS_PER_S_MAX: Final = 150_000
"""More than a server of this kind does on two cores: bounds the events that are signed for the closed loop."""
WARM_UP_S: Final = 2
MICROSECONDS: Final = 1e6


class BenchError(Exception):
    """There is no result; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and how to reach it."""

    process: subprocess.Popen[bytes]
    rest_url: str
    device_url: str
    version: str
    data_dir: Path


@dataclass(frozen=True, slots=True)
class Result:
    """One load: what the generator measured, what it cost, what the checker compared.

    Attributes:
        load: the generator's report.
        server_us: processor microseconds of the server per acknowledged event.
        database_us: the same of all PostgreSQL processes.
        generator_us: the same of the load generator, which shares the machine; its signing beforehand not counted.
        checked: rows that the checker compared.
    """

    load: dict[str, Any]
    server_us: float
    database_us: float
    generator_us: float
    checked: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both loads, print and write the results; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.smoke", description="relay at saturation and at half of it")
    parser.add_argument("--duration-s", type=int, default=10, help="measured seconds of each load (10)")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="a multiple of 3 (99)")
    parser.add_argument("--events-per-frame", type=int, default=EVENTS_PER_FRAME, help="in one publish message (10)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")  # noqa: S108 - a new directory is made in it
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the results go, as JSON")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        generator = build_generator()
        with tempfile.TemporaryDirectory(prefix="keepstep-bench-", dir=options.directory) as directory:
            results = measure(generator, Path(directory), options, console)
    except BenchError as exc:
        console.print(f"no result: {exc}", style="red", highlight=False)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written to {options.output}", highlight=False)
    return 0


def build_generator() -> Path:
    """The load generator, built with optimisation. Raises BenchError."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--package", "keepstep-loadgen"]
    try:
        built = subprocess.run([*command, "--message-format=json"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as exc:
        raise BenchError(f"the load generator cannot be built: {exc}") from exc
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "keepstep-loadgen":
            return Path(message["executable"])
    raise BenchError("cargo built no load generator")


def measure(generator: Path, directory: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both loads on one server; everything that belongs to the results."""
    with running_server(directory) as server:
        durability = read_durability(server)
        machine = describe_machine(directory)
        console.print(describe(durability, machine.file_system), highlight=False)
        closed_arguments = ["--events-max", str(EVENTS_PER_S_MAX * (options.duration_s + WARM_UP_S))]
        closed = run_load(generator, server, directory / "closed.jsonl", options, closed_arguments)
        half = closed.load["acknowledged_per_s"] / 2
        open_loop = run_load(generator, server, directory / "open.jsonl", options, ["--rate", f"{half:.0f}"])
    results = {"saturation": closed, "half load": open_loop}
    console.print(table(results))
    return {
        "benchmark": "smoke",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": server.version,
        "machine": dataclasses.asdict(machine),
        "durability": dataclasses.asdict(durability),
        "results": {name: dataclasses.asdict(result) for name, result in results.items()},
    }


# -- the server -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_server(directory: Path, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """``keepstep serve`` below ``directory``, with its own database, stopped afterwards. Raises BenchError.

    Args:
        directory: ``data`` in it is the data directory.
        settings: variables beside those that every benchmark takes.
    """
    rest_port, device_port = free_ports(2)
    data_dir = directory / "data"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEEPSTEP_")}
    environment.pop("DATABASE_URL", None)
    environment |= {
        "KEEPSTEP_DATA_DIR": str(data_dir),
        "KEEPSTEP_REST_PORT": str(rest_port),
        "KEEPSTEP_DEVICE_PORT": str(device_port),
        "KEEPSTEP_REGISTRATIONS_PER_ADDRESS_HOUR": "1000000",
        "KEEPSTEP_REGISTRATIONS_PER_HOUR": "1000000",
        "KEEPSTEP_LOG_LEVEL": "warning",
    } | dict(settings or {})
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "keepstep", "serve"], env=environment, stdout=output, stderr=output
        )
    try:
        about = wait_until_ready(process, f"http://127.0.0.1:{rest_port}", log)
        url = f"http://127.0.0.1:{rest_port}"
        yield Server(process, url, about["device_url"], about["version"], data_dir)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> dict[str, str]:
    """What the server says about itself once it is ready. Raises BenchError."""
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=POLL_S * 10):  # noqa: S310
                pass
            with urllib.request.urlopen(f"{url}/api/v1/server", timeout=POLL_S * 10) as answer:  # noqa: S310
                about: dict[str, str] = json.load(answer)
                return about
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_S)
    raise BenchError(f"the server does not become ready: {log.read_text(errors='replace')[-2_000:]}")


def read_durability(server: Server) -> Durability:
    """What the server's database promises, asked of the database itself."""
    place = f"host={server.data_dir / 'postgres' / 'socket'} port={PORT}"
    with psycopg.connect(f"{place} dbname={DATABASE} user={ROLE}", autocommit=True) as connection:
        return check_durability(connection, unsafe=True)


def describe(durability: Durability, file_system: str) -> str:
    """One sentence that a result must not be shown without."""
    return (
        f"PostgreSQL {durability.version // 10_000}.{durability.version % 10_000} on {file_system}: "
        f"fsync {durability.fsync}, full_page_writes {durability.full_page_writes}, "
        f"synchronous_commit {durability.synchronous_commit}, "
        f"standbys waited for: {durability.standby_names or 'none'}"
    )


# -- the load -------------------------------------------------------------------------------------------------------


def run_load(
    generator: Path, server: Server, observations: Path, options: argparse.Namespace, arguments: Sequence[str]
) -> Result:
    """One load, measured from its first to its last measured second, then checked. Raises BenchError."""
    command = [
        str(generator),
        "relay",
        *("--rest", server.rest_url),
        *("--device-url", server.device_url),
        *("--connections", str(options.connections)),
        *("--events-per-frame", str(options.events_per_frame)),
        *("--duration-s", str(options.duration_s)),
        *("--warm-up-s", str(WARM_UP_S)),
        *("--observations", str(observations)),
        *arguments,
    ]
    costs: list[tuple[Cost, Cost]] = []
    report: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            report = json.loads(line)
            if report.get("phase") in ("measuring", "measured"):
                costs.append((cost(server.process.pid), cost(process.pid)))
    if process.returncode or len(costs) != 2:
        raise BenchError(f"the load generator ended with {process.returncode}, errors {report.get('errors')}")
    verdict = check_observations([observations])
    observations.unlink()
    if not verdict.clean or verdict.acknowledged != report["acknowledged_in_all"]:
        raise BenchError(f"the checker does not accept the run:\n{verdict}")
    (server_before, generator_before), (server_after, generator_after) = costs
    used = server_after.since(server_before)
    per_event = MICROSECONDS / report["acknowledged"]
    return Result(
        load=report,
        server_us=used.server_s * per_event,
        database_us=used.database_s * per_event,
        generator_us=generator_after.since(generator_before).server_s * per_event,
        checked=verdict.delivered,
    )


def table(results: dict[str, Result]) -> Table:
    """For people: a column for each load."""
    rendered = Table(caption="relay to two other devices; every event verified, fsynced before its ack, and checked")
    rendered.add_column("")
    for name in results:
        rendered.add_column(name, justify="right")
    rows: dict[str, Callable[[Result], str]] = {
        "acknowledged events/s": lambda result: f"{result.load['acknowledged_per_s']:,.0f}",
        "delivered to others/s": lambda result: f"{result.load['delivered_per_s']:,.0f}",
        "ack p50 / p99 ms": lambda result: _milliseconds(result.load["acknowledge_ms"]),
        "deliver p50 / p99 ms": lambda result: _milliseconds(result.load["deliver_ms"]),
        "CPU µs an event: server": lambda result: f"{result.server_us:.1f}",
        "CPU µs an event: PostgreSQL": lambda result: f"{result.database_us:.1f}",
        "CPU µs an event: load generator": lambda result: f"{result.generator_us:.1f}",
    }
    for label, cell in rows.items():
        rendered.add_row(label, *(cell(result) for result in results.values()))
    return rendered


def _milliseconds(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.1f} / {latency['p99']:.1f}"


if __name__ == "__main__":
    sys.exit(main())

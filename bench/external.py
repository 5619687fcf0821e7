"""``python -m bench.external k6|artillery``: load by well-known tools on a real server, and what they say of it.

They know nothing of this project's own load generator: k6 drives REST, server-sent events and upgrades, Artillery
drives devices in JavaScript with the full handshake. ``docs/how-to/compare-with-peers.md`` explains what the rows say.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from bench.external_reports import artillery_figures, k6_figures, markdown
from bench.machine import Cost, command_line, commit, cost, describe_machine
from bench.peers.build import TOOLS, run
from bench.server import REPOSITORY, BenchError, Server, describe, new_directory, read_durability, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ARTILLERY: Final = REPOSITORY / "bench" / "artillery"
K6: Final = REPOSITORY / "bench" / "k6"
NODE: Final = REPOSITORY / "build" / "artillery"
"""npm installs there what the lock file names."""
OUTPUT: Final = REPOSITORY / "build" / "bench"
K6_SCRIPTS: Final = ("rest", "live", "upgrade")
USERS: Final = 8
BODIES: Final = 100
EVENTS_PER_BODY: Final = 10
TIMEOUT_S: Final = 900
"""Longest run of a tool: all of their loads end by themselves."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool, print and keep what it found; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.external", description="load by k6 or Artillery")
    parser.add_argument("tool", choices=("k6", "artillery"))
    parser.add_argument("--script", action="append", choices=K6_SCRIPTS, help="k6: leave the other scripts out")
    parser.add_argument("--duration-s", type=int, default=20, help="Artillery: seconds in which devices arrive (20)")
    parser.add_argument("--arrival-rate", type=int, default=20, help="Artillery: devices that arrive a second (20)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")  # noqa: S108 - a new directory is made in it
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the results, as JSON and Markdown")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        results = _measure(options, lambda line: console.print(line, highlight=False, markup=False))
    except BenchError as exc:
        console.print(f"no result: {exc}", style="red", highlight=False, markup=False)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.tool}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    table = path.with_suffix(".md")
    table.write_text(markdown(results))
    console.print(table.read_text(), highlight=False, markup=False)
    console.print(f"written to {path} and {table}", highlight=False)
    return 0


def _measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that belongs to the results. Raises BenchError."""
    build_node()
    scripts = list(options.script or K6_SCRIPTS) if options.tool == "k6" else ["devices"]
    if options.tool == "k6":
        build_k6()
    found: dict[str, Any] = {}
    place: dict[str, Any] = {}
    for script in scripts:
        say(f"{options.tool}: {script}")
        # A new server each: none meets what the one before left.
        with (
            new_directory(options.directory) as directory,
            running_server(directory) as server,
        ):
            machine = describe_machine(directory)
            durability = describe(read_durability(server), machine.file_system)
            place = {"machine": dataclasses.asdict(machine), "durability": durability, "version": server.version}
            if options.tool == "k6":
                found[script] = _run(server, lambda: run_k6(script, server, directory))  # noqa: B023 - called at once
            else:
                found[script] = _run(server, lambda: run_artillery(server, directory, options))
    tool = {"k6": k6_version, "artillery": artillery_version}[options.tool]()
    return {
        "tool": tool,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line("bench.external", sys.argv[1:]),
        "commit": commit(),
        **place,
        "runs": found,
    }


def _run(server: Server, load: Callable[[], dict[str, float]]) -> dict[str, float]:
    """One run's figures, with what server and database used meanwhile."""
    before = cost(server.process.pid)
    figures = load()
    used: Cost = cost(server.process.pid).since(before)
    return figures | {"server CPU s": used.server_s, "PostgreSQL CPU s": used.database_s}


# -- k6 ---------------------------------------------------------------------------------------------------------------


def build_k6() -> Path:
    """k6 with this project's module in it, once the module's tests pass. Raises BenchError."""
    program = TOOLS / "bin" / "k6"
    run(["go", "test", "-C", str(K6), "./..."], "k6's module")
    run(["go", "build", "-C", str(K6), "-o", str(program), "."], "k6")
    return program


def k6_version() -> str:
    """As k6 says it."""
    return run([str(TOOLS / "bin" / "k6"), "version"], "k6").strip().splitlines()[0]


def run_k6(script: str, server: Server, directory: Path) -> dict[str, float]:
    """One script; its figures. Raises BenchError where a check or threshold of it failed."""
    environment = _addresses(server) | {"NODE_PATH": str(NODE / "node_modules")}
    prepare = ["node", str(ARTILLERY / "prepare.js"), str(USERS), str(BODIES), str(EVENTS_PER_BODY)]
    users = directory / "users.json"
    users.write_text(run(prepare, "users and events for k6", environment=environment))
    summary = directory / "summary.json"
    command = [str(TOOLS / "bin" / "k6"), "run", "--quiet", "--no-usage-report", "--summary-export", str(summary)]
    given = _addresses(server) | {"USERS": str(users)}
    flags = [part for name, value in given.items() for part in ("--env", f"{name}={value}")]
    _call([*command, *flags, str(K6 / f"{script}.js")], {})
    return k6_figures(json.loads(summary.read_text()))


# -- Artillery --------------------------------------------------------------------------------------------------------


def build_node() -> None:
    """What the lock file names, below ``build/``; then the device's tests. Raises BenchError."""
    lock = (ARTILLERY / "package-lock.json").read_text()
    NODE.mkdir(parents=True, exist_ok=True)
    installed = NODE / "installed.json"
    if not installed.exists() or installed.read_text() != lock:
        for name in ("package.json", "package-lock.json"):
            (NODE / name).write_text((ARTILLERY / name).read_text())
        run(["npm", "ci", "--prefix", str(NODE), "--ignore-scripts", "--no-audit", "--no-fund"], "Artillery")
        installed.write_text(lock)
    environment = {"NODE_PATH": str(NODE / "node_modules")}
    run(["node", "--test", str(ARTILLERY)], "the device in JavaScript", environment=environment)


def artillery_version() -> str:
    """As the lock file has it, and the interpreter's."""
    packages = json.loads((ARTILLERY / "package-lock.json").read_text())["packages"]
    return (
        f"Artillery {packages['node_modules/artillery']['version']}, node {run(['node', '--version'], 'node').strip()}"
    )


def run_artillery(server: Server, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Devices that arrive, publish and leave; the figures. Raises BenchError where one of them failed."""
    report = directory / "report.json"
    environment = _addresses(server) | {
        "NODE_PATH": str(NODE / "node_modules"),
        "ARTILLERY_DISABLE_TELEMETRY": "true",
        "DURATION_S": str(options.duration_s),
        "ARRIVAL_RATE": str(options.arrival_rate),
    }
    program = NODE / "node_modules" / ".bin" / "artillery"
    _call([str(program), "run", "--quiet", "--output", str(report), str(ARTILLERY / "devices.yml")], environment)
    return artillery_figures(json.loads(report.read_text()))


def _addresses(server: Server) -> dict[str, str]:
    return {"REST_URL": server.rest_url, "DEVICE_URL": server.device_url}


def _call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a tool to its end. Raises BenchError with the end of what it printed where it failed."""
    try:
        called = subprocess.run(  # noqa: S603
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | environment
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"{command[0]}: {exc}") from exc
    if called.returncode:
        raise BenchError(f"{command[0]} ended with {called.returncode}: {(called.stdout + called.stderr)[-4_000:]}")


if __name__ == "__main__":
    sys.exit(main())

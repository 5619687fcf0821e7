"""What benchmarks of the protocol's own timing share: options, a device to begin with, and how a result is kept."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from rich.console import Console
from rich.table import Table

from bench.machine import commit, describe_machine
from bench.server import REPOSITORY, BenchError, Server, describe, new_directory, read_durability, running_server
from keepstep.client.accounts import create_user
from keepstep.client.server import find_server

if TYPE_CHECKING:
    from collections.abc import Mapping

PASSPHRASE: Final = "a passphrase for a benchmark"  # noqa: S105 - of an account that lives for minutes
Measure = Callable[[Server, Path, int], Awaitable["Mapping[str, Any]"]]
"""Gives the results by name, each a dataclass of figures."""


def run(
    name: str,
    description: str,
    measure: Measure,
    arguments: Sequence[str] | None,
    *,
    count: int,
    what: str,
    settings: Mapping[str, str] | None = None,
) -> int:
    """Measure on a server of its own, print and keep the results; the exit status.

    Args:
        name: of the benchmark.
        description: one line, for ``--help``.
        measure: does it.
        arguments: of the command line.
        count: how many by default.
        what: that is counted.
        settings: variables of the server, beside those that every benchmark takes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    parser.add_argument("--count", type=int, default=count, help=f"{what} ({count})")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")  # noqa: S108 - a new directory is made in it
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / f"bench-{name}.json")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with (
            new_directory(options.directory) as directory,
            running_server(directory, settings) as server,
        ):
            durability, machine = read_durability(server), describe_machine(directory)
            console.print(describe(durability, machine.file_system), highlight=False)
            results = trio.run(measure, server, directory, options.count)
    except BenchError as exc:
        console.print(f"no result: {exc}", style="red", highlight=False)
        return 1
    console.print(_table(results))
    kept = {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": server.version,
        "machine": dataclasses.asdict(machine),
        "durability": dataclasses.asdict(durability),
        "results": {each: dataclasses.asdict(result) for each, result in results.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(kept, indent=2) + "\n")
    console.print(f"written to {options.output}", highlight=False)
    return 0


async def make_account(server: Server, directory: Path) -> Path:
    """A user's first device, registered; its file."""
    path = directory / "phone.device"
    found = await find_server(server.device_url, rest_url=server.rest_url)
    await create_user(found, path=path, name="phone", recovery_path=directory / "recovery", passphrase=PASSPHRASE)
    return path


def _table(results: Mapping[str, Any]) -> Table:
    """A row for each figure, a column for each result."""
    rendered = Table()
    rendered.add_column("")
    for name in results:
        rendered.add_column(name, justify="right")
    figures = [dataclasses.asdict(result) for result in results.values()]
    for label in figures[0]:
        rendered.add_row(label.replace("_", " "), *(f"{each[label]:,.3f}".rstrip("0").rstrip(".") for each in figures))
    return rendered

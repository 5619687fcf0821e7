"""``python -m bench.peers``: the same workloads on keepstep and on its peers, beside each other.

``docs/how-to/compare-with-peers.md`` explains it, and how to put a server of one's own into the comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from bench.generator import Generator, build_generator
from bench.machine import command_line, commit, describe_machine
from bench.peers.build import build_peers_generator
from bench.peers.runs import KEEPSTEP_WORKS, run_keepstep, run_peer
from bench.peers.servers import PEERS, Peer, own
from bench.peers.tables import markdown
from bench.runner import Bench
from bench.server import REPOSITORY, BenchError, describe, new_directory, read_durability, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.runs import Run

OUTPUT: Final = REPOSITORY / "build" / "bench" / "peers.json"
FORMAT: Final = 1
KEEPSTEP: Final = "keepstep"
PROTOCOLS: Final = ("nats", "nostr", "centrifugo")
DURATION_S: Final = 10
REPETITIONS: Final = 3
QUICK_DURATION_S: Final = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write and print the comparison; the exit status."""
    options = parsed(arguments)
    console = Console()
    results = _begin(options)
    try:
        _run_all(options, results, lambda line: console.print(line, highlight=False, markup=False))
    except BenchError as exc:
        console.print(f"no result: {exc}", style="red", highlight=False, markup=False)
        return 1
    console.print(f"written to {options.output} and {_table(options.output)}", highlight=False)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with seconds and repetitions that it leaves out."""
    options = _parser().parse_args(arguments)
    duration_s, repetitions = (QUICK_DURATION_S, 1) if options.quick else (DURATION_S, REPETITIONS)
    if options.duration_s is None:
        options.duration_s = duration_s
    if options.repetitions is None:
        options.repetitions = repetitions
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="keepstep beside its peers")
    names = (KEEPSTEP, *(peer.name for peer in PEERS))
    parser.add_argument("--only", action="append", choices=names, metavar="PEER", help=f"of {', '.join(names)}")
    parser.add_argument("--work", action="append", metavar="WORK", help="leave the other workloads out")
    parser.add_argument("--quick", action="store_true", help="once and five seconds each, unless said otherwise")
    parser.add_argument("--duration-s", type=int, help="measured seconds of each run (10)")
    parser.add_argument("--repetitions", type=int, help="each on a new server (3)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")  # noqa: S108 - a new directory is made in it
    parser.add_argument("--output", type=Path, default=OUTPUT, help="results as JSON, with a .md beside it")
    parser.add_argument("--add", action="store_true", help="add the runs to those that the output has already")
    parser.add_argument("--own", metavar="ADDRESS", help="a server of one's own on this machine, instead of all others")
    parser.add_argument("--own-name", default="own", help="what it is called in the results")
    parser.add_argument("--own-protocol", choices=PROTOCOLS, default="nostr", help="that it speaks (nostr)")
    parser.add_argument("--own-pid", type=int, help="its process number, to read what it costs")
    return parser


def _begin(options: argparse.Namespace) -> dict[str, Any]:
    """What runs are added to."""
    command = command_line("bench.peers", sys.argv[1:])
    if options.add and options.output.exists():
        found: dict[str, Any] = json.loads(options.output.read_text())
        if found.get("format") == FORMAT:
            found["commands"].append(command)
            return found
    return {
        "format": FORMAT,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commands": [command],
        "commit": commit(),
        "machine": dataclasses.asdict(describe_machine(options.directory)),
        "duration_s": options.duration_s,
        "peers": {},
    }


def _run_all(options: argparse.Namespace, results: dict[str, Any], say: Callable[[str], None]) -> None:
    """Every repetition of every peer, on a new server each. Raises BenchError."""
    chosen = options.only or [KEEPSTEP, *(peer.name for peer in PEERS)]
    peers = [peer for peer in PEERS if peer.name in chosen]
    if options.own:
        chosen, peers = [], [own(options.own_name, options.own_protocol, options.own, options.own_pid)]
    peers_generator = build_peers_generator() if peers else Path()
    own_bench = Bench(Generator(build_generator()), options.directory, say) if KEEPSTEP in chosen else None
    for repetition in range(options.repetitions):
        if own_bench is not None:
            say(f"keepstep, repetition {repetition + 1}")
            _run_keepstep(own_bench, options, results)
        for peer in peers:
            say(f"{peer.name}, repetition {repetition + 1}")
            _run_peer(peer, peers_generator, options, results, say)


def _run_peer(
    peer: Peer, generator: Path, options: argparse.Namespace, results: dict[str, Any], say: Callable[[str], None]
) -> None:
    for work in peer.works:
        if options.work and work.name not in options.work:
            continue
        with (
            new_directory(options.directory) as directory,
            peer.start(directory) as running,
        ):
            run = run_peer(peer, running, work, generator, directory, options.duration_s)
        about = {"title": peer.title, "verifies": peer.verifies, "acknowledges": peer.acknowledges}
        _keep(options.output, results, peer.name, about, work.name, work.rate, run)
        say(f"  {work.name}: {_brief(run)}")


def _run_keepstep(bench: Bench, options: argparse.Namespace, results: dict[str, Any]) -> None:
    for each in KEEPSTEP_WORKS:
        if options.work and each.work.name not in options.work:
            continue
        with new_directory(options.directory) as directory, running_server(directory) as server:
            durability = describe(read_durability(server), describe_machine(directory).file_system)
            run = run_keepstep(each, bench, server, directory, options.duration_s)
        about = {
            "title": f"keepstep {server.version}",
            "verifies": "the server, and every receiving device: an Ed25519 signature and a hash chain",
            "acknowledges": f"on disk: the commit was fsynced ({durability})",
        }
        _keep(options.output, results, KEEPSTEP, about, each.work.name, each.load.rate, run)


def _table(output: Path) -> Path:
    return output.with_suffix(".md")


def _keep(
    output: Path,
    results: dict[str, Any],
    peer: str,
    about: dict[str, str],
    work: str,
    rate: float | None,
    run: Run,
) -> None:
    """Put a run beside the earlier ones of the same work, and write what there is: a session may end early."""
    works = results["peers"].setdefault(peer, {**about, "works": {}})["works"]
    kept = works.setdefault(work, {"rate": rate, "figures": {}, "runs": []})
    for name, value in run.figures.items():
        kept["figures"].setdefault(name, []).append(value)
    kept["runs"].append(run.report)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    _table(output).write_text(markdown(results))


def _brief(run: Run) -> str:
    return ", ".join(f"{name} {value:,.1f}" for name, value in run.figures.items())


if __name__ == "__main__":
    sys.exit(main())

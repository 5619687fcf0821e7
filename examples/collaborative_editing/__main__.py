"""``python -m examples.collaborative_editing``: play a recorded editing session through a server, and check the result.

``TRACE=file`` plays another one. Exit code 0: everybody has the same text, every chain verifies, and the server holds
nothing of the text; 1: not so, or it could not be played.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.collaborative_editing.server_process import ServerError
from examples.collaborative_editing.session import Session
from examples.collaborative_editing.trace import TraceError, load_trace
from keepstep.errors import KeepstepError

if TYPE_CHECKING:
    from examples.collaborative_editing.session import Found
    from examples.collaborative_editing.trace import Trace

DEFAULT_TRACE: Final = Path(__file__).parents[2] / "tests/data/editing-traces/friendsforever.json.gz"
MEBIBYTE: Final = 1024 * 1024
LEAKS_SHOWN: Final = 10


def main() -> int:
    """Play, print, judge."""
    console = Console()
    try:
        trace = load_trace(Path(os.environ.get("TRACE") or DEFAULT_TRACE))
        console.print(f"{trace.name}: {len(trace.steps):,} edits by {trace.authors} author(s)")
        found = _play(trace, console)
    except (TraceError, ServerError, KeepstepError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    return _judge(trace, found, console)


def _play(trace: Trace, console: Console) -> Found:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="keepstep-demo-") as directory, Progress(*columns, console=console) as bar:
        task = bar.add_task("acknowledged", total=len(trace.steps))
        session = Session(
            trace, Path(directory), tell=lambda more: bar.advance(task, more), say=lambda text: bar.console.print(text)
        )
        return trio.run(session.run)


def _judge(trace: Trace, found: Found, console: Console) -> int:
    devices = len(found.copies)
    head = found.copies[0].position
    rate = found.events / found.seconds
    console.print(
        f"[bold]{found.events:,} edits in {found.seconds:.1f} s: {rate:,.0f} events/s[/bold], each signed, end-to-end "
        f"encrypted, fsynced by the server, verified by {devices} devices",
    )
    console.print(f"  acknowledged    {found.ack}")
    if trace.authors > 1:
        console.print(f"  delivered       {found.delivery}")
    console.print(f"  late device     {found.caught_up_events:,} edits verified in {found.caught_up_seconds:.2f} s")
    console.print(f"  cut-off device  went on with {found.offline_events} edits offline, then resumed")
    same_chain = {copy.position for copy in found.copies} == {head} and head.seq == found.events
    searched = (
        f"none of {found.runs - found.innocent_runs:,} runs of 12 characters, of the text and of a marker, is in "
        f"{found.searched_bytes / MEBIBYTE:,.0f} MiB of data directory, WAL, dump and logs ({found.innocent_runs} "
        "others were there before the text was, in the database's own files)"
    )
    checks = {
        f"{devices} devices hold exactly the text of {len(trace.end_content):,} characters the session ended with": all(
            copy.text == trace.end_content for copy in found.copies
        ),
        f"each verified every event, to the same chain: {head.seq:,} {head.chain.hex()[:16]}…": same_chain,
        "no device found a lie": not any(copy.alarms for copy in found.copies),
        searched: not found.leaked,
    }
    for fact, holds in checks.items():
        console.print(f"  {'[green]yes[/green]' if holds else '[red]NO [/red]'}  {fact}", highlight=False)
    for run in sorted(found.leaked)[:LEAKS_SHOWN]:
        console.print(f"       found: {run!r}", highlight=False)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

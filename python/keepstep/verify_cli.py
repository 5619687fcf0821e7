"""``keepstep verify``: everything in the server's database, checked against what was signed."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from keepstep.cli_database import counted, server_installed, with_database
from keepstep.model import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.verification import Progress, Report

EXIT_FAULTS: Final = 1
"""Something was found: the data is not what was signed."""
PROGRESS_S: Final = 1.0
"""Seconds between two lines about how far it is."""


@click.command()
@click.option("--user", help="Only this user, by id: 64 hexadecimal digits.")
@click.option("--stream", help="Only streams of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing of how far it is.")
def verify(user: str | None, stream: str | None, as_json: bool, quiet: bool) -> None:
    """Check all that is stored against its signatures.

    Changes nothing; servers may go on meanwhile. Exits with 0 where all is as it was signed, with 1 where it is not.
    """
    user_key = None if user is None else user_key_of(user)
    reports: list[Report] = []

    def work(url: str) -> None:
        from keepstep.postgres.verification import verify_database
        from keepstep.runtime import SystemClock

        progress = None if quiet else Told()
        now_ms = SystemClock().now_ms()
        reports.append(verify_database(url, now_ms=now_ms, user_key=user_key, stream=stream, progress=progress))

    with server_installed():
        with_database(work, beside_a_server=True)
    (report,) = reports
    click.echo(as_jsons(report) if as_json else as_text(report))
    if not report.is_clean:
        sys.exit(EXIT_FAULTS)


def as_text(report: Report) -> str:
    """A report for people: one line for each fault, and what was verified."""
    lines = [str(fault) for fault in report.faults]
    if report.faults_count > len(report.faults):
        lines.append(f"and {report.faults_count - len(report.faults)} more")
    lines += [f"note: {note}" for note in report.notes]
    events, streams = counted(report.events, "event"), counted(report.streams, "stream")
    what = f"{events} in {streams} of {counted(report.users, 'user')}"
    rate = f"{report.seconds:.1f} s, {report.events_per_s} events/s"
    verdict = "all as it was signed" if report.is_clean else counted(report.faults_count, "fault")
    return "\n".join([*lines, f"verified {what} in {rate}: {verdict}"])


def as_jsons(report: Report) -> str:
    """A report for programs."""
    faults = [
        {
            "code": fault.code,
            "user": None if fault.user_key is None else fault.user_key.hex(),
            "stream": fault.stream,
            "seq": fault.seq,
            "detail": fault.detail,
        }
        for fault in report.faults
    ]
    return json.dumps(
        {
            "users": report.users,
            "streams": report.streams,
            "events": report.events,
            "seconds": round(report.seconds, 3),
            "events_per_s": report.events_per_s,
            "faults_count": report.faults_count,
            "faults": faults,
            "notes": list(report.notes),
        },
        indent=2,
    )


class Told:
    """Tells a person how far it is, at most once a second."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._next_s = monotonic_s() + PROGRESS_S

    def __call__(self, progress: Progress) -> None:
        """One more step."""
        now_s = self._monotonic_s()
        if now_s >= self._next_s:
            self._next_s = now_s + PROGRESS_S
            users, events = counted(progress.users, "user"), counted(progress.events, "event")
            click.echo(f"{users}, {events}, {counted(progress.faults, 'fault')} so far", err=True)


def user_key_of(text: str) -> bytes:
    """A user id as it is shown everywhere. Raises click.BadParameter."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise click.BadParameter("a user id has 64 hexadecimal digits", param_hint="--user")
    return key

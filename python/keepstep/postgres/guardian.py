"""Keeps a PostgreSQL program from outliving the server that started it.

A process of its own between the server and PostgreSQL: ``python -I guardian.py --directory D -- program …``. Its
standard input is a pipe that the server holds open. When that ends, whether the server closed it or was killed, the
guardian stops PostgreSQL: fast shutdown (SIGINT), after a bound immediate shutdown (SIGQUIT), after another SIGKILL,
from all of which PostgreSQL recovers at the next start. Should the guardian itself be killed, Linux sends PostgreSQL
the SIGINT (PR_SET_PDEATHSIG); elsewhere the server's next start stops it.

It prints the program's process id on a line and ends with the program's own exit status. It needs the standard
library only and has one thread, so that it starts fast and forks safely.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""The programs' whole environment: none of the server's secrets, and messages in a language we recognise."""
FAST_STOP_S: Final = 30.0
"""Seconds for PostgreSQL's fast shutdown, which writes a checkpoint: up to shared_buffers, to a slow disk."""
IMMEDIATE_STOP_S: Final = 10.0
"""Seconds for its immediate shutdown; it kills its own children after 5."""
KILL_S: Final = 10.0
"""Seconds for the kernel to end a killed process; one that hangs in the disk driver may never end."""
STOP_SIGNALS: Final = (
    (signal.SIGINT, FAST_STOP_S),
    (signal.SIGQUIT, IMMEDIATE_STOP_S),
    (signal.SIGKILL, KILL_S),
)
"""What stops a PostgreSQL program, in order, each with the seconds it is given."""
CANNOT_RUN_STATUS: Final = 126
"""Exit status where the program could not be run at all, as a shell has it."""
STILL_RUNNING_STATUS: Final = 125
"""Exit status where not even SIGKILL ended the program in time."""

_PR_SET_PDEATHSIG: Final = 1
_SIGNALS_FOR_THE_SERVER: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ignored here: the server closes the pipe once its last commit is through."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a program until it ends or standard input does; returns its exit status (128 + n where signal n ended it)."""
    parser = argparse.ArgumentParser(description="Runs a PostgreSQL program for as long as standard input is open.")
    parser.add_argument("--directory", required=True, help="the program's working directory")
    parser.add_argument("--uid", type=int, help="user to run it as, which takes root")
    parser.add_argument("--gid", type=int, help="group to run it as, which takes root")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args(arguments)
    signals = _signal_socket()
    try:
        child = subprocess.Popen(  # noqa: S603  # run by our own server only
            options.program,
            cwd=options.directory,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            preexec_fn=_stop_with_parent(),
            user=options.uid,
            group=options.gid,
            extra_groups=None if options.uid is None else [],
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return CANNOT_RUN_STATUS
    with contextlib.suppress(BrokenPipeError):  # the server is gone already: its other pipe says so too
        os.write(sys.stdout.fileno(), b"%d\n" % child.pid)
    while True:
        readable, _, _ = select.select([sys.stdin, signals], [], [])
        if sys.stdin in readable or child.poll() is not None:
            return stop(child)
        signals.recv(4_096)


def stop(child: subprocess.Popen[bytes], signals: Sequence[tuple[int, float]] = STOP_SIGNALS) -> int:
    """End a program that may have ended already, in bounded time; returns its exit status."""
    for signal_number, bound_s in signals:
        child.send_signal(signal_number)  # does nothing where the child has ended
        try:
            status = child.wait(bound_s)
        except subprocess.TimeoutExpired:
            continue
        return status if status >= 0 else 128 - status
    return STILL_RUNNING_STATUS


def _signal_socket() -> socket.socket:
    """A socket that becomes readable at every signal, of which only a child's end means anything to us."""
    readable, writable = socket.socketpair()
    writable.setblocking(False)
    signal.set_wakeup_fd(writable.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_SIGNALS_FOR_THE_SERVER):
        # A handler, for SIG_IGN would be inherited by the program.
        signal.signal(number, lambda _number, _frame: None)
    return readable


def _stop_with_parent() -> Callable[[], object] | None:
    """What the child calls before it becomes the program: have Linux send it SIGINT when the guardian is killed."""
    if sys.platform != "linux":
        return None
    return functools.partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())

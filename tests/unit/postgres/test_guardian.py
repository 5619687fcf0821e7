"""The guardian, with small programs in PostgreSQL's place: nothing that happens lets one outlive the server."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil

from keepstep.postgres import guardian

if TYPE_CHECKING:
    import pytest

WAIT_S = 60
"""Bound on every wait here; all of them take milliseconds."""
STOPPABLE = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print("ready", flush=True)
while True:
    time.sleep(60)
"""
UNSTOPPABLE = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


@contextlib.contextmanager
def guarding(*program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A guardian, killed afterwards where the test leaves one."""
    command = [sys.executable, "-I", guardian.__file__, "--directory", "/", "--", *program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        yield process


def line(stream: object) -> str:
    """The next line of a pipe."""
    assert hasattr(stream, "readline")
    text: bytes = stream.readline()
    return text.decode().strip()


def running_program(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The guarded program, once it is past its first line."""
    program = psutil.Process(int(line(process.stdout)))
    assert line(process.stderr) == "ready"
    return program


def wait_until_ended(program: psutil.Process) -> None:
    """As ``wait``, for a child of nobody: it may stay a zombie for long."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while program.status() != psutil.STATUS_ZOMBIE:
            assert time.time() - program.create_time() < WAIT_S
            time.sleep(0.005)


def test_the_programs_exit_status_is_passed_on() -> None:
    """The server sees how PostgreSQL ended."""
    with guarding(sys.executable, "-c", "raise SystemExit(5)") as process:
        assert process.wait(WAIT_S) == 5


def test_a_program_that_a_signal_ended_is_told_apart() -> None:
    """128 + n, as in a shell."""
    with guarding(sys.executable, "-c", STOPPABLE) as process:
        running_program(process).send_signal(signal.SIGKILL)
        assert process.wait(WAIT_S) == 128 + signal.SIGKILL


def test_closing_its_standard_input_stops_the_program() -> None:
    """This is how the server stops PostgreSQL, and what the kernel does when the server is killed."""
    with guarding(sys.executable, "-c", STOPPABLE) as process:
        program = running_program(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WAIT_S) == 7
        assert not program.is_running()


def test_signals_for_the_server_do_not_stop_the_program() -> None:
    """Ctrl-C and the service manager's SIGTERM are for the server, whose last commits still need PostgreSQL."""
    with guarding(sys.executable, "-c", STOPPABLE) as process:
        program = running_program(process)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        program.send_signal(signal.SIGUSR1)
        assert process.wait(WAIT_S) == 128 + signal.SIGUSR1


def test_killing_the_guardian_stops_the_program() -> None:
    """Nobody is left who could stop it later, so the kernel does."""
    with guarding(sys.executable, "-c", STOPPABLE) as process:
        program = running_program(process)
        process.kill()
        process.wait(WAIT_S)
        wait_until_ended(program)


def test_other_systems_than_linux_leave_that_to_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the server's next start finds the PostgreSQL and stops it (test_embedded)."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert guardian._stop_with_parent() is None


def test_a_program_that_cannot_be_run_is_named() -> None:
    """The message ends up in the server's own."""
    with guarding("/nonexistent/postgres") as process:
        assert process.wait(WAIT_S) == guardian.CANNOT_RUN_STATUS
        assert "/nonexistent/postgres" in line(process.stderr)


def test_the_program_sees_none_of_the_servers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of the server do not reach PostgreSQL, where SQL could read them."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@h/d")
    with guarding("/usr/bin/env") as process:
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        shown = process.stderr.read().decode().splitlines()
    assert sorted(shown) == sorted(f"{name}={value}" for name, value in guardian.ENVIRONMENT.items())


def test_a_server_that_is_gone_before_it_is_told_the_process_id_stops_the_program() -> None:
    """Both pipes end at once when the server is killed while PostgreSQL is being started."""
    with guarding("/bin/sleep", "60") as process:  # a Python that is still starting ends in many ways
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.close()
        assert process.wait(WAIT_S) == 128 + signal.SIGINT


@contextlib.contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the test's own, past its first line."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert line(process.stdout) == "ready"
        yield process


def test_a_program_that_does_not_stop_gets_the_next_signal() -> None:
    """Each signal has its time; a hung PostgreSQL ends too."""
    with child(UNSTOPPABLE) as process:
        status = guardian.stop(process, [(signal.SIGINT, 0.01), (signal.SIGQUIT, WAIT_S)])
    assert status == 128 + signal.SIGQUIT


def test_stopping_is_bounded_even_where_nothing_helps() -> None:
    """A process that hangs in the kernel cannot be ended; the guardian ends all the same and says so."""
    with child(UNSTOPPABLE) as process:
        assert guardian.stop(process, [(signal.SIGINT, 0.01)]) == guardian.STILL_RUNNING_STATUS
        process.kill()


def test_the_signals_grow_stronger() -> None:
    """Fast shutdown, immediate shutdown, kill: the order in which PostgreSQL documents them."""
    assert [number for number, _ in guardian.STOP_SIGNALS] == [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]

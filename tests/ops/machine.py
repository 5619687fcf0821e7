"""What the operations tests need of the machine: people, checkouts, toolchains, running commands."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import trio

ROOT: Final = Path(__file__).resolve().parents[2]
SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the distribution's own programs are, its Python among them."""
REGISTRY_VARIABLES: Final = ("PIP_", "SSL_CERT_", "CARGO_HTTP_", "CARGO_NET_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""How this machine reaches package registries; the only part of our own environment that others are given."""
START_TIMEOUT_S: Final = 600
"""A first build on two busy cores, with every download."""
STOP_TIMEOUT_S: Final = 60
READY: Final = "Ctrl-C stops the server"
"""The end of what the server prints once it lets devices in."""
STOPPED: Final = "server_stopped"
"""The server's last log line, after draining."""


@dataclass(frozen=True, slots=True)
class Person:
    """An account of this machine, with the environment of a fresh login."""

    name: str

    def processes(self) -> list[str]:
        """Command lines of everything this person runs; what has ended and only waits to be reaped has none."""
        uid = self.account.pw_uid
        found = [one.info for one in psutil.process_iter(["uids", "cmdline"]) if one.info["uids"] is not None]
        return [" ".join(info["cmdline"]) for info in found if info["uids"].real == uid and info["cmdline"]]

    @property
    def account(self) -> pwd.struct_passwd:
        """The account's entry in the user database."""
        return pwd.getpwnam(self.name)

    def environment(self, *, path: str = SYSTEM_PATH, **variables: str) -> dict[str, str]:
        """A clean environment: nothing of ours but how to reach the package registries."""
        ours = {key: value for key, value in os.environ.items() if key.upper().startswith(REGISTRY_VARIABLES)}
        return {**ours, "HOME": self.account.pw_dir, "LANG": "C.UTF-8", "PATH": path, "USER": self.name, **variables}

    def run(
        self, *command: str, folder: Path, environment: Mapping[str, str] | None = None, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as this person, without a terminal; its output is in ``stdout``, errors included."""
        return subprocess.run(
            command,
            cwd=folder,
            env=dict(environment or self.environment()),
            user=self.account.pw_uid,
            group=self.account.pw_gid,
            extra_groups=[],
            input=typed,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )


class Running:
    """A command that goes on: what it has printed so far, and how it ends."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.output = ""

    async def _more(self) -> bool:
        assert self.process.stdout is not None
        chunk = await self.process.stdout.receive_some()
        self.output += bytes(chunk).decode(errors="replace")
        return bool(chunk)

    async def until(self, text: str) -> str:
        """Everything printed up to and with ``text``; fails with the output when the command ends before."""
        with trio.fail_after(START_TIMEOUT_S):
            while text not in self.output:
                assert await self._more(), f"it ended without printing {text!r}:\n{self.output}"
        return self.output

    async def stop(self) -> int:
        """Interrupt it as Ctrl-C does, the whole group; the exit code, everything printed read.

        ``make`` ends by the signal it got, once its command has ended.
        """
        os.killpg(self.process.pid, signal.SIGINT)
        return await self.end()

    async def terminate(self) -> int:
        """As ``stop``, with SIGTERM to the first process only, as ``kill`` does; ``make`` passes it on."""
        self.process.terminate()
        return await self.end()

    async def end(self) -> int:
        """The exit code once it has ended, everything printed read."""
        with trio.fail_after(STOP_TIMEOUT_S):
            while await self._more():
                pass
            return await self.process.wait()


@asynccontextmanager
async def running(
    *command: str, person: Person, folder: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """A command running as a person, in a process group of its own that is killed in the end if it still runs."""
    process = await trio.lowlevel.open_process(
        command,
        cwd=folder,
        env=dict(environment or person.environment()),
        user=person.account.pw_uid,
        group=person.account.pw_gid,
        extra_groups=[],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                await process.wait()


def fresh_checkout(folder: Path, owner: Person) -> Path:
    """What a clone of this working tree would hold, owned by a person: nothing built, nothing installed."""
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    folder.mkdir(parents=True)
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    give(folder, owner)
    return folder


def give(folder: Path, owner: Person) -> None:
    """Make a person the owner of a folder and everything in it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.account.pw_uid, owner.account.pw_gid, follow_symlinks=False)


def tool_output(*command: str | Path) -> str:
    """What a program prints when run in the repository; fails with its errors when it does not succeed."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def clone_toolchain(folder: Path) -> Path:
    """The Rust toolchain in use, where every user can read it: hard links where possible, for it is large."""
    sysroot = Path(tool_output("rustc", "--print", "sysroot").strip()).resolve()
    for way in (["cp", "--archive", "--link"], ["cp", "--archive"]):
        shutil.rmtree(folder, ignore_errors=True)
        if subprocess.run([*way, str(sysroot), str(folder)], check=False, capture_output=True).returncode == 0:
            break
    return folder


def path_with(*folders: Path) -> str:
    """A search path: some folders before the system's."""
    return os.pathsep.join([*map(str, folders), SYSTEM_PATH])


def free_ports(count: int) -> Sequence[int]:
    """TCP ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def fill(disk: Path, leaving: int) -> Path:
    """A file that leaves only some bytes of a disk."""
    filler = disk / "filler"
    tool_output("fallocate", "--length", str(shutil.disk_usage(disk).free - leaving), filler)
    return filler

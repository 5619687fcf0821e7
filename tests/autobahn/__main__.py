"""Run Autobahn's own test suite: ``python -m tests.autobahn [CASES...]``; ``make test-autobahn``.

It was written for Python 2.7 (on PATH, or in ``PYTHON27``), where it is installed from a lock file into a folder of
its own. An echoing server listens on loopback, once with the sockets in the extension and once with Trio's streams.
Exit status 1 where a case failed, 2 where the suite cannot run. Its own report stays in ``build/autobahn/reports``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from keepstep.entrance import Entrance
from keepstep.websocket import serve_stream
from keepstep.websocket_connection import Limits
from tests.autobahn.verdict import Report, judge
from tests.support.echo import by_awaiting
from tests.support.websocket import Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.websocket_hub import Hub

if sys.platform == "linux":
    from keepstep.websocket_hub import Hub as SocketHub

HERE: Final = Path(__file__).parent
ROOM: Final = Path("build/autobahn")
TIMEOUT_S: Final = 900
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
LIMITS: Final = Limits(
    upgrade_timeout_s=10,
    unauthenticated_message_bytes_max=MESSAGE_BYTES_MAX,
    message_bytes_max=MESSAGE_BYTES_MAX,
    unfinished_bytes_max=2 * MESSAGE_BYTES_MAX,
)
LEFT_OUT: Final = (
    "6.*",  # which text is UTF-8: there is no text
    *(f"9.{group}.{case}" for group in (3, 4) for case in range(1, 5)),  # more than 1,024 fragments: refused
    "10.*",  # counts the frames of text that left
    "12.*",  # compression, an extension: there is none
    "13.*",
)


class CannotRunError(Exception):
    """The suite cannot run here; the message says what is missing."""


def python27() -> str:
    """The Python that the suite needs.

    Raises:
        CannotRunError: there is none.
    """
    named = os.environ.get("PYTHON27", "python2.7")
    found = shutil.which(named)
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode != 0:
        raise CannotRunError(f"Autobahn's suite needs Python 2.7, and {named} is none; name one in PYTHON27")
    return found


def installed(python: str) -> Path:
    """Install the suite for this Python, hashes checked; its interpreter."""
    environment = ROOM / "python27"
    interpreter = environment / "bin" / "python"
    if not interpreter.exists():
        maker = ROOM / "virtualenv"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        subprocess.run([*pip, "--target", str(maker), "-r", str(HERE / "virtualenv.lock")], check=True)
        make = [sys.executable, "-m", "virtualenv", "--quiet", "--no-download", "--python", python, str(environment)]
        subprocess.run(make, check=True, env={**os.environ, "PYTHONPATH": str(maker)})
    pip27 = [str(interpreter), "-W", "ignore", "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    subprocess.run([*pip27, "--no-build-isolation", "-r", str(HERE / "wstest.lock")], check=True)
    return interpreter


async def run(interpreter: Path, cases: Sequence[str]) -> Report:
    """Serve both ways, run the cases against each; what the suite reports."""
    async with trio.open_nursery() as nursery:
        ways: dict[str, Hub | None] = {"stream": None}
        if sys.platform == "linux":
            ways = {"hub": SocketHub(nursery, on_fault, unfinished_bytes_max=LIMITS.unfinished_bytes_max), **ways}
        servers = []
        for way, hub in ways.items():
            serve = partial(
                serve_stream,
                address="127.0.0.1",
                handler=by_awaiting,
                admit=lambda _: Place(),
                limits=LIMITS,
                entrance=Entrance(),
                refusals=trio.CapacityLimiter(1),
                on_fault=on_fault,
                hub=hub,
            )
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            port = listeners[0].socket.getsockname()[1]
            url = f"ws://127.0.0.1:{port}/v1/connect"
            servers.append({"agent": way, "url": url, "protocols": ["keepstep.v1"]})
        reports = ROOM / "reports"
        shutil.rmtree(reports, ignore_errors=True)
        specification = {
            "outdir": str(reports),
            "servers": servers,
            "cases": list(cases),
            "exclude-cases": list(LEFT_OUT),
            "exclude-agent-cases": {},
        }
        (ROOM / "specification.json").write_text(json.dumps(specification))
        command = [str(interpreter), str(HERE / "wstest.py"), "-m", "fuzzingclient"]
        with trio.fail_after(TIMEOUT_S):
            await trio.run_process([*command, "-s", str(ROOM / "specification.json")])
        nursery.cancel_scope.cancel()
    report: Report = json.loads((reports / "index.json").read_text())
    return report


def on_fault(error: BaseException, _address: str) -> None:
    """What the server did not expect ends the run."""
    raise error


def main(cases: Sequence[str]) -> int:
    """Install, run, judge; the exit status."""
    try:
        interpreter = installed(python27())
    except CannotRunError as error:
        print(error, file=sys.stderr)
        return 2
    faults, passed = judge(trio.run(run, interpreter, cases or ["*"]))
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{passed} passed, {len(faults)} failed")
    return 1 if faults or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

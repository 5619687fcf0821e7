"""The load generator: how it is built, called, and what its processes and the server's cost while it measures."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.server import REPOSITORY, BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.scenario import Load
    from bench.server import Target

OPTIONS: Final = (
    *("connections", "devices_per_user", "at_once", "bad_signers", "streams_per_user", "messages_per_stream"),
    *("events", "downloads", "events_per_frame", "payload_bytes", "window", "suite"),
)
"""Fields of a load that the generator takes under the same name."""
EVENTS_MAX: Final = 10_000_000
"""That the generator signs beforehand; a loop that runs out of them ends early."""


@dataclass(frozen=True, slots=True)
class Generator:
    """A load generator that was built.

    Attributes:
        path: of the program.
        target_is_mine: it may load another machine.
    """

    path: Path
    target_is_mine: bool = False


def build_generator(root: Path = REPOSITORY) -> Path:
    """The load generator of a checkout, built with optimisation. Raises BenchError."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--package", "keepstep-loadgen"]
    try:
        built = subprocess.run([*command, "--message-format=json"], cwd=root, stdout=subprocess.PIPE, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as exc:
        raise BenchError(f"the load generator cannot be built: {exc}") from exc
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "keepstep-loadgen":
            return Path(message["executable"])
    raise BenchError("cargo built no load generator")


def command_of(
    generator: Generator,
    target: Target,
    load: Load,
    *,
    duration_s: int,
    warm_up_s: int,
    rate: float | None,
    observations: Path | None,
) -> list[str]:
    """How the generator is called for a load; ``rate`` is what a share came to, or the load's own."""
    given = {name.replace("_", "-"): value for name in OPTIONS if (value := getattr(load, name)) is not None}
    if rate is not None:
        given["rate"] = f"{rate:.0f}"
    elif load.publishes:
        given["events-max"] = min(EVENTS_MAX, load.events_per_s_max * (duration_s + warm_up_s))
    if observations is not None:
        given["observations"] = observations
    given |= {
        "rest": target.rest_url,
        "device-url": target.device_url,
        "duration-s": duration_s,
        "warm-up-s": warm_up_s,
    }
    switches = {"--target-is-mine": generator.target_is_mine, "--subscribed": load.subscribed, "--verify": load.verify}
    return [
        *(str(generator.path), load.workload),
        *(part for name, value in given.items() for part in (f"--{name}", str(value))),
        *(switch for switch, is_on in switches.items() if is_on),
    ]


def run_generator(command: Sequence[str], phases: Mapping[str, Callable[[int], None]]) -> dict[str, Any]:
    """Run it to its end; its last line. Raises BenchError where it met errors or a phase did not begin.

    Args:
        command: of the generator.
        phases: called when the phase of this name begins, with the generator's process number.
    """
    report: dict[str, Any] = {}
    begun = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            for line in process.stdout:
                report = json.loads(line)
                phase = str(report.get("phase"))
                if phase in phases:
                    begun.add(phase)
                    phases[phase](process.pid)
        except BaseException:
            process.kill()  # else its end is waited for, which may be minutes
            raise
    if process.returncode or begun != set(phases):
        met = f", errors {report['errors']}" if "errors" in report else ", and says above why"
        raise BenchError(f"the load generator ended with {process.returncode}{met}")
    return report

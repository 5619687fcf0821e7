"""The image: the Dockerfile, built and run with buildah on base images that debootstrap makes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
import trio

from tests.ops.machine import READY, ROOT, STOPPED, Person, free_ports, fresh_checkout, running, tool_output

BASE: Final = f"localhost/keepstep-ops-base-{os.getpid()}"
IMAGE: Final = f"localhost/keepstep-ops-{os.getpid()}"
PACKAGES: Final = "ca-certificates,gcc,libc6-dev,python3,python3-venv"
IMAGE_UID: Final = 10001
NO_SANDBOX: Final = ("--isolation", "chroot")
"""Works inside containers and virtual machines alike; what is tested is the image, not the sandbox around it."""


@pytest.fixture(scope="session")
def base_image(root: Person) -> Iterator[str]:
    """A Debian with Python and a C compiler, in place of the public Rust and Python images."""
    container = tool_output("buildah", "from", "scratch").strip()
    try:
        folder = tool_output("buildah", "mount", container).strip()
        tool_output("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder)
        environment = root.environment(path=f"/opt/rust/bin:{root.environment()['PATH']}", CARGO_HOME="/opt/cargo")
        variables = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        tool_output("buildah", "config", *variables, container)
        tool_output("buildah", "commit", container, BASE)
    finally:
        tool_output("buildah", "rm", container)
    yield BASE
    tool_output("buildah", "rmi", BASE)


@pytest.fixture(scope="session")
def image(base_image: str, toolchain: Path, place: Path, root: Person) -> Iterator[str]:
    """The project's image, built by its own Dockerfile from what a clone holds."""
    context = fresh_checkout(place / "image", root)
    tool_output(
        *("buildah", "build", *NO_SANDBOX, "--format", "docker", "--pull-never", "--no-cache", "--tag", IMAGE),
        *("--build-arg", f"RUST_IMAGE={base_image}", "--build-arg", f"PYTHON_IMAGE={base_image}"),
        *("--volume", f"{toolchain.parent}:/opt/rust:ro", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"),
        context,
    )
    yield IMAGE
    tool_output("buildah", "rmi", IMAGE)


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the image with its data volume and ports of its own."""

    name: str
    volume: Path
    rest_port: int
    device_port: int

    def command(self, *inside: str) -> list[str]:
        """The command line that runs something in the container, as the image's own user."""
        ports = (f"KEEPSTEP_REST_PORT={self.rest_port}", f"KEEPSTEP_DEVICE_PORT={self.device_port}")
        variables = [part for variable in ports for part in ("--env", variable)]
        volume = f"{self.volume}:/var/lib/keepstep"
        return ["buildah", "run", *NO_SANDBOX, *variables, "--volume", volume, self.name, "--", *inside]


@pytest.fixture
def container(image: str, tmp_path: Path) -> Iterator[Container]:
    """A container that is removed in the end."""
    os.chown(tmp_path, IMAGE_UID, IMAGE_UID)
    rest_port, device_port = free_ports(2)
    name = tool_output("buildah", "from", "--pull-never", image).strip()
    yield Container(name, tmp_path, rest_port, device_port)
    tool_output("buildah", "rm", name)


def configuration(image: str) -> dict[str, object]:
    """What the image says about itself."""
    described = json.loads(tool_output("buildah", "inspect", "--type", "image", image))
    return dict(described["Docker"]["config"])


def test_the_image_holds_no_build_tools_and_no_privilege(image: str, container: Container) -> None:
    """It runs as a user without privileges, and neither pip nor sources nor the Rust toolchain came along."""
    assert configuration(image)["User"] == "keepstep"
    assert tool_output(*container.command("id", "-u")).strip() == str(IMAGE_UID)
    listing = tool_output(*container.command("ls", "/", "/opt", "/opt/keepstep/bin"))
    assert {"src", "build", "wheels", "cargo", "pip"}.isdisjoint(listing.split())


def is_server(process: psutil.Process) -> bool:
    """Whether a process is the image's entry point, not buildah around it or a program that it started."""
    command = [str(part) for part in process.cmdline()]
    return command[-2:] == ["/opt/keepstep/bin/keepstep", "serve"] and Path(process.exe()).name.startswith("python")


async def test_the_image_serves_healthily_and_keeps_its_data(image: str, container: Container, root: Person) -> None:
    """Entry point and command start it on the embedded PostgreSQL, its health check passes, SIGTERM stops it."""
    described = configuration(image)
    entry = [*map(str, described["Entrypoint"] or ()), *map(str, described["Cmd"] or ())]  # type: ignore[call-overload]
    health = list(described["Healthcheck"]["Test"][1:])  # type: ignore[index]
    assert described["StopSignal"] == "SIGTERM"
    for _ in range(2):
        async with running(*container.command(*entry), person=root, folder=ROOT) as server:
            await server.until(READY)
            await trio.run_process(container.command(*health))
            inside = [one for one in psutil.Process(server.process.pid).children(recursive=True) if is_server(one)]
            assert [one.uids().real for one in inside] == [IMAGE_UID]
            inside[0].send_signal(signal.SIGTERM)  # what an engine sends, to the container's first process only
            assert await server.end() == 0, server.output
            assert STOPPED in server.output
    assert {path.stat().st_uid for path in container.volume.rglob("*")} == {IMAGE_UID}

"""Builds the load generator for peers, and the peers that public registries have, below ``target/``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.server import REPOSITORY, BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOOLS: Final = REPOSITORY / "target" / "tools"
"""Programs of others, in ``bin`` below it; nothing of theirs is in the repository."""
NATS_VERSION: Final = "2.12.15"
NOSTR_VERSION: Final = "0.8.12"


def build_peers_generator() -> Path:
    """``keepstep-peers``, built with optimisation. Raises BenchError."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--package", "keepstep-peers"]
    for line in run([*command, "--message-format=json"], "the load generator for peers").splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "keepstep-peers":
            return Path(message["executable"])
    raise BenchError("cargo built no load generator for peers")


def build_nats() -> Path:
    """``nats-server`` of the pinned version, from the Go module proxy. Raises BenchError."""
    program = TOOLS / "bin" / "nats-server"
    if f"v{NATS_VERSION}" not in version_of(program):
        module = f"github.com/nats-io/nats-server/v2@v{NATS_VERSION}"
        run(["go", "install", module], "nats-server", environment={"GOBIN": str(program.parent)})
    return program


def build_nostr() -> Path:
    """``nostr-rs-relay`` of the pinned version, from Rust's registry. Raises BenchError.

    Not with ``--locked``: its lock file names releases that compilers of today refuse.
    """
    program = TOOLS / "bin" / "nostr-rs-relay"
    if NOSTR_VERSION not in version_of(program):
        place = ["--root", str(TOOLS), "--target-dir", str(REPOSITORY / "target" / "peers")]
        command = ["cargo", "install", "--quiet", "nostr-rs-relay", "--version", NOSTR_VERSION, *place]
        run(command, "nostr-rs-relay")
    return program


def version_of(program: Path) -> str:
    """What a program says of its version; nothing where it is not there."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""


def run(command: Sequence[str], what: str, *, environment: Mapping[str, str] | None = None) -> str:
    """Run a build to its end; what it printed. Raises BenchError."""
    try:
        built = subprocess.run(  # noqa: S603
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | dict(environment or {}),
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise BenchError(f"{what} cannot be built: {exc}") from exc
    return built.stdout

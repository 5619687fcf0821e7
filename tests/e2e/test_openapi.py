"""A running server against its own OpenAPI document: schemathesis, with all its checks, as every kind of caller."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import msgspec
import pytest

from keepstep import admin
from tests.support import fuzzing
from tests.support.events import DeviceFixture, UserFixture
from tests.support.server_thread import ServerAddress, server_in_thread
from tests.support.tokens import bearer

if TYPE_CHECKING:
    from collections.abc import Mapping

ADMIN_KEY: Final = "correct-horse-battery-staple-0123456789"
SEED: Final = 1
EXAMPLES_MAX: Final = 5
"""Random requests for each endpoint, beside those that cover each limit of its schema."""
ACCEPTED: Final = ("2xx", "3xx", "401", "403", "404", "409", "429")
"""Answers to a request of the documented form; a schema cannot say what there is and who may have it."""
ACCEPTED_TOO: Final = {
    "^/api/v1/accounts": "400",  # what the bytes of a signed event mean is no matter of a schema
    "^/admin/(invites|keys/tokens/rotate)$": "422",  # a key that was used for another request
    "^/admin/accounts/import$": "422",  # likewise of an account file
    "^/admin/users/[^/]+/quota$": "400",  # 82.0 is an integer to JSON Schema, and none to the server
}
RUN_S: Final = 180
"""Longest run; it takes about half a minute."""


def register(rest_url: str, device: DeviceFixture) -> None:
    """Make an account."""
    genesis = device.genesis()
    body = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
    headers = {"content-type": "application/msgpack"}
    assert httpx.post(f"{rest_url}/api/v1/accounts", content=body, headers=headers, timeout=60).status_code == 201


@dataclass(frozen=True)
class Fuzzed:
    """A server that is asked, and the program that asks.

    Attributes:
        address: the server's.
        folder: where the program writes.
    """

    address: ServerAddress
    folder: Path

    def run(self, authorizations: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ask every endpoint that is not left out by ``arguments``; ``authorizations`` are by pattern of its path."""
        config = self.folder / "schemathesis.toml"
        config.write_text(
            f"hooks = {json.dumps(str(Path(fuzzing.__file__)))}\n"
            + "".join(
                f"[[operations]]\ninclude-path-regex = {json.dumps(pattern)}\n"
                f"checks.positive_data_acceptance.expected-statuses = {json.dumps([*ACCEPTED, status])}\n"
                for pattern, status in ACCEPTED_TOO.items()
            )
            + "".join(
                f"[[operations]]\ninclude-path-regex = {json.dumps(pattern)}\n"
                f"headers = {{ Authorization = {json.dumps(value)} }}\n"
                for pattern, value in authorizations.items()
            )
        )
        limits = ["--checks=all", f"--max-examples={EXAMPLES_MAX}", f"--seed={SEED}", "--generation-database=none"]
        return subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "run"),
                *(f"{self.address.rest_url}/openapi.json", *limits, "--no-color", *arguments),
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )


@pytest.mark.slow
def test_the_server_is_what_its_document_says(
    data_dir: Path, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is sent: no failure, no 500, no answer that is not documented."""
    monkeypatch.setattr(admin, "FAILURES_MAX", 1_000_000)  # wrong keys are part of it
    settings: dict[str, Any] = {
        "admin_api_key": ADMIN_KEY,
        "rest_calls_per_user_minute": 1_000_000,
        "rest_calls_per_address_minute": 1_000_000,
    }
    device = DeviceFixture(UserFixture("ada"), "phone")
    with server_in_thread(data_dir, database_url=database_url, **settings) as address:
        register(address.rest_url, device)
        fuzzed = Fuzzed(address, tmp_path)

        everything = fuzzed.run(
            {
                "^/api/v1/(?!auth/revoke)": bearer(address.rest_url, device),
                "^/api/v1/auth/revoke$": bearer(address.rest_url, device),
                "^/admin/": f"Bearer {ADMIN_KEY}",
            },
            "--exclude-path=/admin/keys/tokens/rotate",
        )
        assert everything.returncode == 0, everything.stdout + everything.stderr
        at_last = fuzzed.run({"^/admin/": f"Bearer {ADMIN_KEY}"}, "--include-path=/admin/keys/tokens/rotate")
        assert at_last.returncode == 0, at_last.stdout + at_last.stderr

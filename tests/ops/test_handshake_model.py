"""The handshake's symbolic proof: docs/reference/handshake.vp, checked by Verifpal with an active attacker."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.ops.machine import ROOT, tool_output

MODEL: Final = ROOT / "docs" / "reference" / "handshake.vp"
MEMORY_BYTES_MAX: Final = 4 << 30
"""A search that explodes ends with an error instead of the machine's memory."""


@pytest.fixture(scope="session")
def verifpal() -> Path:
    """Verifpal, which ``make test-ops`` builds from crates.io: on a busy machine that takes longer than a test may."""
    binary = ROOT / "target" / "tools" / "bin" / "verifpal"
    assert binary.exists(), "run `make test-ops`, which builds it"
    return binary


def test_no_attack_is_found_on_the_handshake(verifpal: Path) -> None:
    """Secrecy, authentication and freshness all hold against an active attacker in two parallel sessions."""
    result = tool_output("prlimit", f"--as={MEMORY_BYTES_MAX}", verifpal, "verify", "--result-code", "--quiet", MODEL)
    assert result.split()[-1] == "c0c0a0a0a0f0", result


def test_the_proof_notices_a_handshake_without_the_servers_signature(verifpal: Path, tmp_path: Path) -> None:
    """The model is no tautology: when the device does not check the server's signature, attacks are found."""
    text = MODEL.read_text(encoding="utf-8")
    checks = [line for line in text.splitlines() if "SIGNVERIF(" in line and "srv_pk" in line]
    assert len(checks) == 1, "the model checks the server's signature in one place"
    weakened = tmp_path / "weakened.vp"
    weakened.write_text(text.replace(checks[0], checks[0].replace(")?", ")")), encoding="utf-8")
    command = ["prlimit", f"--as={MEMORY_BYTES_MAX}", str(verifpal), "verify", "--sessions", "1", "--fail-on-attack"]
    result = subprocess.run([*command, str(weakened)], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stdout
    assert "FAIL x confidentiality? publish" in result.stdout

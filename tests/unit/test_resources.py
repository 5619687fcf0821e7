"""What the operating system lets the server have."""

from __future__ import annotations

import resource

import pytest
import structlog

from keepstep.resources import SPARE_DESCRIPTORS, claim_descriptors


class FileLimit:
    """A process's limit of open files."""

    def __init__(self, soft: int, hard: int, *, refuses: bool = False) -> None:
        self.now = (soft, hard)
        self.refuses = refuses

    def getrlimit(self, _kind: int) -> tuple[int, int]:
        """As ``resource.getrlimit``."""
        return self.now

    def setrlimit(self, _kind: int, limits: tuple[int, int]) -> None:
        """As ``resource.setrlimit``."""
        if self.refuses:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


@pytest.mark.parametrize(
    ("limit", "in_force", "warns"),
    [
        (FileLimit(256, 4_096), 4_096, False),
        (FileLimit(4_096, 4_096), 4_096, False),
        (FileLimit(256, 512), 512, True),
        (FileLimit(256, 4_096, refuses=True), 256, True),
        (FileLimit(256, resource.RLIM_INFINITY), resource.RLIM_INFINITY, False),
        (FileLimit(1_000 + SPARE_DESCRIPTORS, 1_000 + SPARE_DESCRIPTORS), 1_000 + SPARE_DESCRIPTORS, False),
        (FileLimit(999 + SPARE_DESCRIPTORS, 999 + SPARE_DESCRIPTORS), 999 + SPARE_DESCRIPTORS, True),
    ],
)
def test_as_many_files_as_the_system_grants(
    monkeypatch: pytest.MonkeyPatch, limit: FileLimit, in_force: int, warns: bool
) -> None:
    """And a warning where that is below what the settings promise."""
    monkeypatch.setattr(resource, "getrlimit", limit.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limit.setrlimit)

    with structlog.testing.capture_logs() as lines:
        assert claim_descriptors(1_000, structlog.get_logger()) == in_force

    assert [line["event"] for line in lines] == ["file_descriptors_short"] * warns
    assert [(line["count"], line["needed"]) for line in lines] == [(in_force, 1_000 + SPARE_DESCRIPTORS)] * warns

"""The regression gate: no hot function may take notably more instructions than what is kept in the repository."""

from __future__ import annotations

from bench.instructions import main


def test_no_hot_function_got_dearer() -> None:
    """Counted by callgrind, so the same on a busy machine; `python -m bench.instructions` prints the table."""
    assert main([]) == 0

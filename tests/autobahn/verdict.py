"""What a report of Autobahn's test suite comes to."""

from __future__ import annotations

from typing import Final

Report = dict[str, dict[str, dict[str, object]]]
"""Server → number of the case → its row, of which ``behavior`` and ``behaviorClose`` count."""
GOOD: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
"""Not strict: the connection was failed before the echo of a message that came in the same segment."""


def judge(report: Report) -> tuple[list[str], int]:
    """Each case that failed, as a line; how many passed."""
    faults = []
    passed = 0
    for server, cases in report.items():
        for number, row in cases.items():
            if row["behavior"] in GOOD and row["behaviorClose"] in GOOD:
                passed += 1
            else:
                faults.append(f"{number} ({server}): {row['behavior']}, close {row['behaviorClose']}")
    return sorted(faults), passed

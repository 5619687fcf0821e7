"""The verdict on what Autobahn's suite reports."""

from __future__ import annotations

from tests.autobahn.verdict import judge


def row(behavior: str, close: str = "OK") -> dict[str, object]:
    """A case's row, as Autobahn writes it."""
    return {"behavior": behavior, "behaviorClose": close, "remoteCloseCode": 1000}


def test_failures_are_named_with_their_server() -> None:
    """Wrong frames and a wrong close count alike."""
    report = {
        "stream": {"2.1": row("FAILED"), "2.2": row("OK")},
        "hub": {
            "7.1.1": row("OK", "UNCLEAN"),
            "3.2": row("NON-STRICT"),
            "7.1.6": row("INFORMATIONAL", "INFORMATIONAL"),
        },
    }
    assert judge(report) == (["2.1 (stream): FAILED, close OK", "7.1.1 (hub): OK, close UNCLEAN"], 3)


def test_nothing_that_ran_is_nothing_that_passed() -> None:
    """The run is red then."""
    assert judge({"hub": {}}) == ([], 0)

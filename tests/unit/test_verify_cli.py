"""``keepstep verify`` as a person and a program see it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from keepstep import verify_cli
from keepstep.verification import Fault, Progress, Report
from keepstep.verify_cli import verify

USER = b"\xab" * 32
FAULT = Fault("bad_signature", USER, "notes", 7, "it is not signed by the device 00")
CLEAN = Report(2, 3, 5000, 2.0, (), 0)
FAULTY = Report(2, 3, 5000, 2.0, (FAULT,), 3, ("user ab has 3 devices, and its quota is 2",))


class Asked:
    """Answers in place of a database, and remembers what it was asked."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.arguments: dict[str, Any] = {}

    def __call__(self, url: str, **arguments: Any) -> Report:
        """As ``verify_database``."""
        self.arguments = arguments
        assert url == "postgresql://somewhere"
        return self._report


@pytest.fixture
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the command asks, with the report that a test names."""
    asked = Asked(getattr(request, "param", CLEAN))
    monkeypatch.setattr("keepstep.postgres.verification.verify_database", asked)
    monkeypatch.setattr(verify_cli, "with_database", lambda work, **_: work("postgresql://somewhere"))
    return asked


def test_a_clean_database_is_one_line_and_code_0(asked: Asked) -> None:
    """With the rate that was seen."""
    result = CliRunner().invoke(verify)
    assert result.exit_code == 0
    assert result.output == (
        "verified 5000 events in 3 streams of 2 users in 2.0 s, 2500 events/s: all as it was signed\n"
    )
    assert (asked.arguments["user_key"], asked.arguments["stream"]) == (None, None)


@pytest.mark.parametrize("asked", [FAULTY], indirect=True)
def test_faults_are_a_line_each_and_code_1(asked: Asked) -> None:
    """Those that are not listed are counted; notes are told apart from them."""
    result = CliRunner().invoke(verify, ["--user", USER.hex(), "--stream", "notes", "--quiet"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        str(FAULT),
        "and 2 more",
        "note: user ab has 3 devices, and its quota is 2",
        "verified 5000 events in 3 streams of 2 users in 2.0 s, 2500 events/s: 3 faults",
    ]
    assert asked.arguments["user_key"] == USER
    assert (asked.arguments["stream"], asked.arguments["progress"]) == ("notes", None)


@pytest.mark.parametrize("asked", [FAULTY], indirect=True)
def test_programs_get_json(asked: Asked) -> None:
    """The same, by names."""
    result = CliRunner().invoke(verify, ["--json"])
    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "users": 2,
        "streams": 3,
        "events": 5000,
        "seconds": 2.0,
        "events_per_s": 2500,
        "faults_count": 3,
        "faults": [
            {
                "code": "bad_signature",
                "user": USER.hex(),
                "stream": "notes",
                "seq": 7,
                "detail": "it is not signed by the device 00",
            }
        ],
        "notes": ["user ab has 3 devices, and its quota is 2"],
    }


@pytest.mark.parametrize("user", ["ab", "zz" * 32, ""])
def test_a_user_id_that_is_none_is_wrong_usage(asked: Asked, user: str) -> None:
    """Before the database is asked."""
    result = CliRunner().invoke(verify, ["--user", user])
    assert result.exit_code == 2
    assert "64 hexadecimal digits" in result.output
    assert asked.arguments == {}


def test_how_far_it_is_is_told_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, so that the report can be piped."""
    now_s = 100.0
    told = verify_cli.Told(lambda: now_s)
    for step in range(5):
        told(Progress(1, step, 0))
        now_s += 0.5
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == [
        "1 user, 2 events, 0 faults so far",
        "1 user, 4 events, 0 faults so far",
    ]

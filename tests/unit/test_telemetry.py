"""Metrics and logs: their names, and what never gets into a log."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from keepstep.errors import KeepstepError, ProtocolError
from keepstep.hits import Hits
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate, ResultError
from keepstep.protocol.results import count_results
from keepstep.telemetry import FRAMES_MAX, LOG_FIELDS, BoundedLines, Metrics, configure_logging, describe

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
PACKAGE = Path(__file__).parents[2] / "python" / "keepstep"
LOG_METHODS = {"bind", "debug", "info", "warning", "error"}


@pytest.fixture(autouse=True)
def logging_as_before() -> object:
    """Logging is set up for the whole process; put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_the_reference_lists_every_metric_and_log_field() -> None:
    """``docs/reference/metrics.md`` is what ``Metrics().reference()`` gives."""
    assert REFERENCE.read_text() == Metrics().reference()


def test_every_metric_is_exposed_under_its_documented_name() -> None:
    """A scrape holds each name of the reference, with our prefix."""
    metrics = Metrics()
    families = {family.name for family in text_string_to_metric_families(metrics.exposition().decode())}
    documented = {
        line.split("`")[1].removesuffix("_total")
        for line in metrics.reference().splitlines()
        if line.startswith("| `keepstep_")
    }
    assert families == documented
    assert len(documented) > 20


def test_two_servers_in_one_process_count_apart() -> None:
    """Each has its own registry."""
    one, other = Metrics(), Metrics()
    one.faults.inc()
    assert other.registry.get_sample_value("keepstep_faults_total") == 0


def test_caches_are_told_apart_by_what_they_had() -> None:
    """Two series for each cache, as they stand when somebody scrapes."""
    metrics = Metrics()
    tail = Hits(found=3)
    metrics.cache_lookups.read({"tail": tail})
    tail.missing += 1
    labels = ({"cache": "tail", "result": result} for result in ("found", "missing"))
    assert [metrics.registry.get_sample_value("keepstep_cache_lookups_total", each) for each in labels] == [3, 1]


def test_answers_are_counted_by_what_became_of_the_events() -> None:
    """A run of accepted events counts as many as it holds."""
    metrics = Metrics()
    results: list[Result] = [
        ResultAccepted(5, 1, 1_000, bytes(32)),
        ResultDuplicate(None, None, None),
        ResultError("out_of_order", [0, bytes(32)]),
        ResultAccepted(2, 6, 1_000, bytes(32)),
    ]
    metrics.answered_together([0.003], count_results(results))
    value = metrics.registry.get_sample_value
    assert value("keepstep_events_total", {"result": "accepted"}) == 7
    assert value("keepstep_events_total", {"result": "duplicate"}) == 1
    assert value("keepstep_events_total", {"result": "out_of_order"}) == 1
    assert value("keepstep_ack_seconds_count") == 1
    metrics.appended(100, 0.002)
    assert value("keepstep_batch_events_sum") == 100


def test_json_lines_carry_time_level_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, on standard error."""
    log = configure_logging("info", "json")
    log.debug("not_this")
    log.info("session_open", request_id="00ff", user_pk=1)
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {"event": "session_open", "level": "info", "request_id": "00ff", "user_pk": 1}


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Without colours where nobody looks."""
    configure_logging("info", "console").info("session_open", user_pk=1)
    err = capsys.readouterr().err
    assert "session_open" in err
    assert "user_pk=1" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_reaches_a_log(capsys: pytest.CaptureFixture[str], form: str) -> None:
    """Neither as a field that is not in the list, nor as bytes in one that is, nor in the text of an exception."""
    log = configure_logging("debug", form)  # type: ignore[arg-type]
    secret = "c2VjcmV0"
    log.info("event", payload=secret, token=secret, server_secret=secret, detail=secret.encode())
    try:
        raise ValueError(f"password {secret}")
    except ValueError as error:
        log.error("fault", **describe(error))
        logging.getLogger("library").exception("it said %s", secret)
    logging.getLogger("library").warning("it said %s", secret)
    written = capsys.readouterr()
    assert secret not in written.err + written.out
    assert written.err.count("library: ") == 2
    assert "ValueError" in written.err


def test_libraries_are_heard_from_warnings_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Their name and level, not their words."""
    configure_logging("debug", "json")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").error("trouble")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["detail"].startswith("library: error in ")


def given_fields() -> set[str]:
    """The names of all fields that the package gives to its log."""
    given = set(describe(KeepstepError()))
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name == "write" or name.rpartition(".")[2] in LOG_METHODS:
                given |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    return given


def test_the_listed_log_fields_are_those_that_are_given() -> None:
    """One that is not listed is dropped: why the embedded PostgreSQL does not start once never reached the log."""
    assert given_fields() == set(LOG_FIELDS)


def test_every_log_field_says_what_it_is() -> None:
    """No field without a meaning."""
    assert all(meaning.strip() for meaning in LOG_FIELDS.values())


def test_an_exception_of_ours_tells_its_fixed_text() -> None:
    """And where it was raised."""
    try:
        raise ProtocolError("malformed", "no array")
    except ProtocolError as error:
        fields = describe(error)
    assert fields["error"] == "ProtocolError: malformed: no array"
    assert fields["frames"][0].startswith("test_telemetry.py:")


def test_a_group_tells_the_types_in_it() -> None:
    """Sorted, each once; never their texts."""
    fields = describe(ExceptionGroup("words", [KeyError("x"), ValueError("y"), KeyError("z")]))
    assert fields == {"error": "ExceptionGroup of KeyError, ValueError", "frames": []}


def test_a_deep_traceback_is_cut_to_its_innermost_frames() -> None:
    """A log line stays bounded."""

    def dive(depth: int) -> None:
        if depth == 0:
            raise RuntimeError
        dive(depth - 1)

    with pytest.raises(RuntimeError) as caught:
        dive(100)
    frames = describe(caught.value)["frames"]
    assert len(frames) == FRAMES_MAX
    assert all(frame.endswith(" dive") for frame in frames)


def test_strangers_write_so_many_lines_and_no_more() -> None:
    """The first line of the next interval comes after how many were left out."""
    with structlog.testing.capture_logs() as lines:
        bounded = BoundedLines(structlog.get_logger(), lines_max=2, interval_s=60)
        for now_s in (0, 1, 2, 3, 59, 60, 61, 200):
            bounded.write("handshake_refused", now_s=now_s, code="timeout")

    shown = [line.get("count", line.get("code")) for line in lines]
    assert shown == ["timeout", "timeout", 3, "timeout", "timeout", "timeout"]

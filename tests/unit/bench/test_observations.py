"""The observation log is written once, read strictly and line by line."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from bench.observations import (
    LINE_BYTES_MAX,
    InvalidObservationsError,
    ObservationWriter,
    Received,
    Start,
    read_observations,
)
from tests.support.observed_run import ObservedRun

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Every kind of record survives the round trip in order."""
    run = ObservedRun(1)
    path = run.write(tmp_path / "log")
    start, *records = read_observations([path])
    assert start == Start(1, "test")
    assert records == list(run.records())


def test_a_line_is_a_json_array_with_base64_bytes(tmp_path: Path) -> None:
    """The documented form, for writers in other languages."""
    path = tmp_path / "log"
    with ObservationWriter(path, "test") as writer:
        writer.write(Received(bytes(16), "notes", 7, [(bytes([1] * 16), 3, 1_000, bytes([2] * 32))], bytes([3] * 32)))
    first, second = path.read_text().splitlines()
    assert json.loads(first) == ["keepstep-observations", 1, "test"]
    text = [
        base64.b64encode(value).decode() for value in (bytes(16), bytes([1] * 16), bytes([2] * 32), bytes([3] * 32))
    ]
    assert json.loads(second) == ["received", text[0], "notes", 7, [[text[1], 3, 1_000, text[2]]], text[3]]


def test_an_existing_log_is_never_overwritten(tmp_path: Path) -> None:
    """Observations of one run are not mixed with another's."""
    path = ObservedRun(1).write(tmp_path / "log")
    with pytest.raises(FileExistsError):
        ObservationWriter(path, "test")


START = '["keepstep-observations",1,"test"]\n'
DEVICE = '["device","AAAAAAAAAAAAAAAAAAAAAA==","AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]\n'
INVALID = {
    "empty": "",
    "no start": DEVICE,
    "two starts": START + START,
    "another version": '["keepstep-observations",2,"test"]\n',
    "not JSON": START + "hello\n",
    "a truncated line": START + DEVICE[:-10],
    "an unknown record": START + '["dropped"]\n',
    "a device id of another length": START + '["complete","AAAA","notes"]\n',
    "a negative position": START + '["subscribed","AAAAAAAAAAAAAAAAAAAAAA==","notes",-1,null]\n',
    "a page without rows": START + DEVICE.replace("device", "received").replace('"]', '",1,[],"AAAA"]'),
    "an endless line": START + '["device","' + "A" * LINE_BYTES_MAX + '"]\n',
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
def test_what_is_no_observation_log_is_refused(text: str, tmp_path: Path) -> None:
    """The file and line are named."""
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(InvalidObservationsError, match="log"):
        list(read_observations([path]))

"""``keepstep check-config``: what it prints, for people and for programs, and its exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from keepstep import cli, config, keys
from keepstep.config import Settings
from keepstep.runtime import SystemRandomness

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path) -> Run:
    """Run the command with variables: exit code, output, errors."""
    for name in [*map(config.variable, Settings.model_fields), config.FILE_VARIABLE, *config.USUAL_VARIABLES]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.setenv("KEEPSTEP_DATA_DIR", str(data_dir))

    def run(*options: str, **variables: str) -> tuple[int, str, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            cli.main(["check-config", *options])
        written = capsys.readouterr()
        return int(caught.value.code or 0), written.out, written.err

    return run


def test_every_setting_is_printed_with_where_it_comes_from(run: Run, tmp_path: Path) -> None:
    """By the names of the variables; secrets masked wherever they come from."""
    file, secret = tmp_path / "keepstep.toml", tmp_path / "secret"
    file.write_text('drain_timeout_s = "15s"\nunsafe = true\n')
    secret.write_text("hunter2" * 8)
    secret.chmod(0o600)
    code, out, err = run(
        "--offline",
        KEEPSTEP_CONFIG=str(file),
        ADMIN_API_KEY_FILE=str(secret),
        DATABASE_URL="postgresql://me:hunter2@nowhere.invalid/db",
        KEEPSTEP_REST_PORT="1234",
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(Settings.model_fields)
    for line in (
        "KEEPSTEP_DATABASE_URL=***  # DATABASE_URL",
        f"KEEPSTEP_ADMIN_API_KEY=***  # {secret}, which ADMIN_API_KEY_FILE names",
        "KEEPSTEP_REST_PORT=1234  # KEEPSTEP_REST_PORT",
        "KEEPSTEP_DEVICE_PORT=8441  # default",
        f"KEEPSTEP_DRAIN_TIMEOUT_S=15.0  # {file}",
        f"KEEPSTEP_UNSAFE=true  # {file}",
        "KEEPSTEP_PUBLIC_DEVICE_URL=  # default",
    ):
        assert line in lines
    assert "hunter2" not in out


def test_programs_get_the_same_as_json(run: Run) -> None:
    """Numbers as numbers, what is not set as null."""
    code, out, _ = run("--offline", "--json", KEEPSTEP_REST_PORT="1234", ADMIN_API_KEY="hunter2" * 8)
    told = json.loads(out)
    assert (code, told["checks"]) == (0, [])
    settings = {one["name"]: one for one in told["settings"]}
    assert settings["rest_port"] == {
        "name": "rest_port",
        "variable": "KEEPSTEP_REST_PORT",
        "value": 1234,
        "from": "KEEPSTEP_REST_PORT",
        "changes_by": "restart",
    }
    assert settings["admin_api_key"]["value"] == "***"
    assert settings["database_url"]["value"] is None
    assert settings["log_level"]["changes_by"] == "reload"
    assert "hunter2" not in out


def test_programs_get_the_problems_as_json_too(run: Run) -> None:
    """People get them on standard error as always, and the exit code is the same."""
    code, out, err = run("--json", KEEPSTEP_REST_PORT="0", KEEPSTEP_PIPELINES="99")
    assert code == 78
    assert json.loads(out) == {
        "problems": [
            "KEEPSTEP_REST_PORT=0: must be a whole number from 1 up to 65_535",
            "KEEPSTEP_PIPELINES=99: must be a whole number from 1 up to 16",
        ]
    }
    assert "KEEPSTEP_PIPELINES=99" in err


def test_before_the_first_start_there_is_nothing_to_ask(run: Run, data_dir: Path) -> None:
    """And nothing is made."""
    code, out, _ = run()
    assert code == 0
    assert out.splitlines()[-2:] == [
        f"server key: none in {data_dir} yet; the first start makes it",
        f"database: the embedded PostgreSQL in {data_dir / 'postgres'}: the first start makes it",
    ]
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("below", ["", "below/it"])
def test_a_data_directory_that_cannot_be_is_a_problem(run: Run, tmp_path: Path, below: str) -> None:
    """There is a file in its place, or on the way there."""
    file = tmp_path / "file"
    file.touch()
    code, out, _ = run(KEEPSTEP_DATA_DIR=str(file / below))
    assert code == 1
    assert f"PROBLEM data directory: {file} is no directory\n" in out


def test_a_data_directory_of_another_user_is_a_problem(
    run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a start with sudo: nothing could be written there, and what is there cannot be seen."""
    asked = []

    def access(path: Path, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setattr("keepstep.config_check.os.access", access)
    code, out, _ = run(KEEPSTEP_DATA_DIR=str(data_dir / "not" / "yet"))
    assert code == 1
    assert f"PROBLEM data directory: this user may not write into {data_dir}\n" in out
    assert asked == [(data_dir, os.R_OK | os.W_OK | os.X_OK)]
    assert "server key" not in out


def test_an_embedded_database_that_does_not_run_is_left_alone(run: Run, data_dir: Path) -> None:
    """The check starts nothing."""
    (data_dir / "postgres").mkdir()
    _, out, _ = run()
    assert out.endswith("it does not run, so it was not asked\n")


def test_a_key_that_is_no_pair_is_a_problem(run: Run, data_dir: Path) -> None:
    """A digit that changed makes another key of the secret, but not of the public key beside it."""
    key = keys.load_or_create(data_dir, SystemRandomness())
    path = data_dir / keys.FILE_NAME
    code, out, _ = run()
    assert (code, f"server key: {key.public.hex()}\n" in out) == (0, True)
    text = path.read_text()
    path.write_text(("1" if text[0] == "0" else "0") + text[1:])
    code, out, err = run()
    assert code == 1
    assert f"PROBLEM server key: the server key {path} is damaged: its two lines" in out
    assert err == "keepstep: a server cannot start like this: see above\n"


def test_a_successor_that_is_not_the_one_announced_is_a_problem(run: Run, data_dir: Path) -> None:
    """It could not take over when its time comes."""
    keys.load_or_create(data_dir, SystemRandomness())
    keys.announce_successor(data_dir, SystemRandomness(), from_ms=0, until_ms=1)
    assert run()[0] == 0
    (data_dir / keys.NEXT_FILE_NAME).write_text(f"{'00' * 32}\n")
    code, out, _ = run()
    assert code == 1
    assert "server.key.next is not the key that was announced" in out


def test_a_database_that_does_not_answer_is_a_problem(run: Run) -> None:
    """Said without its password."""
    code, out, _ = run(DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/db")
    assert code == 1
    assert "PROBLEM database: the PostgreSQL database db at 127.0.0.1 cannot be used: " in out
    assert "hunter2" not in out

"""The command line: what a person sees, and the exit codes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import trio

import keepstep
from bench.machine import free_ports
from keepstep import cli, keys
from keepstep.client import crypto
from keepstep.errors import ConfigError, ProtocolError, StartupError
from keepstep.protocol.succession import verify_announcement
from keepstep.runtime import SystemRandomness

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path) -> Run:
    """Run a command in this process, with a clean environment: exit code, output, errors."""
    for name in list(os.environ):
        if name.startswith("KEEPSTEP_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("KEEPSTEP_DATA_DIR", str(data_dir))
    monkeypatch.setattr("keepstep.telemetry.configure_logging", lambda *_: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return int(caught.value.code or 0), written.out, written.err

    return run


def failing(error: BaseException) -> click.Command:
    """A command that fails."""

    @click.command("failing")
    def command() -> None:
        raise error

    return command


# -- in general -----------------------------------------------------------------------------------------------------


def test_the_version_is_the_packages(run: Run) -> None:
    """On standard output."""
    assert run("--version") == (0, f"keepstep, version {keepstep.__version__}\n", "")


def test_help_lists_the_commands_of_server_and_device(run: Run) -> None:
    """In one list."""
    code, out, _ = run("--help")
    assert code == 0
    commands = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()]
    assert commands == [
        "admin",
        "archive",
        "backup",
        "check-config",
        "database",
        "delete-account",
        "device",
        "export-account",
        "import-account",
        "keys",
        "link",
        "migrate",
        "publish",
        "recover",
        "retention",
        "serve",
        "tail",
        "token",
        "verify",
    ]


def test_help_says_what_each_command_does_in_a_whole_sentence(run: Run) -> None:
    """None is cut off, in any list of commands."""
    for group in ((), ("admin",), ("backup",), ("database",), ("device",), ("keys",), ("migrate",)):
        _, out, _ = run(*group, "--help")
        summaries = [line for line in out.partition("Commands:")[2].splitlines() if line.strip()]
        assert [line for line in summaries if not re.search(r"[^.]\.$", line)] == []


@pytest.mark.parametrize("arguments", [("unknown",), ("serve", "--unknown"), ("migrate", "down"), ("keys",)])
def test_wrong_usage_is_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    """With what is allowed."""
    code, out, err = run(*arguments)
    assert code == 2
    assert "Usage: keepstep" in err + out


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("the configuration cannot be used:\n  X"), 78, "keepstep: the configuration cannot be used:\n  X"),
        (StartupError("port 1 is in use"), 1, "keepstep: port 1 is in use"),
        (ProtocolError("rate_limited"), 1, "keepstep: rate_limited: too many requests"),
        (ExceptionGroup("in a nursery", [ExceptionGroup("deeper", [StartupError("no disk")])]), 1, "keepstep: no disk"),
        (ExceptionGroup("two", [StartupError("a"), ConfigError("b")]), 78, "keepstep: a\nkeepstep: b"),
        (PermissionError(13, "Permission denied", "/etc/x"), 1, "keepstep: /etc/x cannot be used: Permission denied"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("in a nursery", [KeyboardInterrupt()]), 130, ""),
        (click.Abort(), 130, ""),
        (click.UsageError("not so"), 2, "Error: not so"),
    ],
)
def test_every_error_of_ours_is_plain_words_and_a_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    """Also where it comes out of nurseries."""
    monkeypatch.setitem(cli.commands.commands, "failing", failing(error))
    exit_code, out, err = run("failing")
    assert (exit_code, out) == (code, "")
    assert text in err


def test_a_fault_of_ours_names_places_and_no_contents(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was raised, for a report; not what was being worked on."""
    monkeypatch.setitem(cli.commands.commands, "failing", failing(ExceptionGroup("", [KeyError("secret")])))
    code, _, err = run("failing")
    assert code == 70
    assert "a fault of keepstep itself: KeyError at " in err
    assert "secret" not in err
    assert "please report it" in err


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_a_reader_that_stops_reading_is_no_fault() -> None:
    """``keepstep … | head -0``: nothing on standard error, also where it shows inside a nursery."""
    done = python(
        "from keepstep import cli\n"
        "@cli.commands.command('piped')\n"
        "def piped():\n"
        "    print('x' * 100)\n"
        "    raise ExceptionGroup('in a nursery', [BrokenPipeError()])\n"
        "cli.main(['piped'])\n"
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_without_the_servers_packages_the_server_says_what_to_install() -> None:
    """The client library alone is enough for the device's commands."""
    done = python(
        "import sys\n"
        "for name in ('pydantic', 'psycopg', 'structlog'): sys.modules[name] = None\n"
        "from keepstep.cli import main\n"
        "for line in ('serve', 'migrate status', 'keys show', 'check-config', 'device --help'):\n"
        "    try: main(line.split())\n"
        "    except SystemExit as exc: print('code', exc.code)\n"
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 1"] * 4 + ["code 0"]
    assert done.stderr.count('pip install "keepstep[server]"') == 4
    assert "Traceback" not in done.stderr


def test_a_missing_module_of_another_kind_is_a_fault(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing the server would not help."""

    def broken() -> None:
        raise ModuleNotFoundError(name="keepstep.nothing")

    monkeypatch.setattr("keepstep.config.read", broken)
    assert run("check-config")[0] == 70


# -- configuration and keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("serve",), ("check-config",), ("keys", "show"), ("migrate", "status")])
def test_a_wrong_setting_is_code_78(run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """Before anything opens."""
    monkeypatch.setenv("KEEPSTEP_REST_PORT", "0")
    code, _, err = run(*command)
    assert code == 78
    assert "KEEPSTEP_REST_PORT=0" in err


def test_keys_show_prints_the_public_key(run: Run, data_dir: Path) -> None:
    """And never the secret; without one it says who makes it."""
    code, _, err = run("keys", "show")
    assert (code, "keepstep serve" in err) == (1, True)
    key = keys.load_or_create(data_dir, SystemRandomness())
    code, out, err = run("keys", "show")
    assert (code, out, err) == (0, f"{key.public.hex()}\n", "")


# -- migrate --------------------------------------------------------------------------------------------------------


def test_migrations_go_up_and_down(run: Run, monkeypatch: pytest.MonkeyPatch, empty_database_url: str) -> None:
    """Each step says what it did; down asks first."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert "0001_log  pending" in run("migrate", "status")[1]
    planned = run("migrate", "up", "--dry-run")[1]
    assert "would apply 0001_log  (tried and rolled back)\n" in planned
    assert planned.endswith("nothing was changed\n")
    assert "applied 0001_log" in run("migrate", "up")[1]
    assert run("migrate", "up")[1] == "nothing to apply\n"
    assert "0001_log  applied 2" in run("migrate", "status")[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run("migrate", "down", "--to", "0")[0] == 130
    assert "would undo 0001_log" in run("migrate", "down", "--to", "0", "--dry-run")[1]
    assert run("migrate", "up", "--dry-run")[1] == "nothing to apply\n"
    assert "undone 0001_log" in run("migrate", "down", "--to", "0", "--yes")[1]
    assert run("migrate", "down", "--to", "0", "--yes")[1] == "nothing to undo\n"


def test_a_new_migration_is_two_files(run: Run, tmp_path: Path) -> None:
    """Named as they were written, to be copied."""
    code, out, _ = run("migrate", "new", "colours", "--folder", str(tmp_path))
    files = [tmp_path / f"0001_colours.{direction}.sql" for direction in ("up", "down")]
    assert (code, out) == (0, "".join(f"wrote {file}\n" for file in files))
    assert all(file.read_text().startswith("-- ") for file in files)


def test_a_schema_that_cannot_be_used_is_shown_and_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """With the problem beside the version."""
    from keepstep.postgres import migrate

    rows = [migrate.Status(9, "future", None, "unknown to this keepstep")]
    monkeypatch.setattr(migrate, "status", lambda _url: rows)
    monkeypatch.setenv("DATABASE_URL", database_url)
    code, out, err = run("migrate", "status")
    assert (code, "0009_future  pending  PROBLEM: unknown" in out) == (1, True)
    assert "cannot be used" in err


def test_the_embedded_database_is_started_for_migrations(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the settings name no other."""
    from contextlib import asynccontextmanager

    from keepstep.postgres import embedded, migrate

    urls: list[str] = []

    @asynccontextmanager
    async def running(_settings: object) -> Any:
        await trio.lowlevel.checkpoint()
        yield "postgresql://its/own"

    def up(url: str, **_arguments: object) -> list[object]:
        urls.append(url)
        return []

    monkeypatch.setattr(embedded, "running", running)
    monkeypatch.setattr(migrate, "up", up)
    assert run("migrate", "up")[0] == 0
    assert urls == ["postgresql://its/own"]


@pytest.mark.parametrize(("is_reached", "urls"), [(True, ["running"]), (False, ["started"])])
def test_what_only_reads_works_beside_a_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_reached: bool, urls: list[str]
) -> None:
    """On the embedded database of the server that runs, or on one that is started where none does."""
    from contextlib import asynccontextmanager
    from types import SimpleNamespace

    from keepstep.postgres import backups, embedded, migrate

    asked: list[str] = []

    @asynccontextmanager
    async def running(_settings: object) -> Any:
        await trio.lowlevel.checkpoint()
        yield "started"

    monkeypatch.setattr(embedded, "running", running)
    monkeypatch.setattr(backups, "find_source", lambda _settings: SimpleNamespace(owner_url="running"))
    monkeypatch.setattr(backups, "is_reached", lambda _url: is_reached)

    def status(url: str) -> list[object]:
        asked.append(url)
        return []

    monkeypatch.setattr(migrate, "status", status)
    assert run("migrate", "status")[0] == 0
    assert asked == urls


def test_a_database_is_verified(run: Run, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """An empty one has no fault."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert out.startswith("verified 0 events in 0 streams of 0 users in ")


def test_an_unreachable_database_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/db")
    # Ports are bound first, and a server of the developer's own may have the default ones.
    for setting, port in zip(("KEEPSTEP_REST_PORT", "KEEPSTEP_DEVICE_PORT"), free_ports(2), strict=True):
        monkeypatch.setenv(setting, str(port))
    for command in (("migrate", "up"), ("migrate", "status"), ("serve",)):
        code, _, err = run(*command)
        assert code == 1
        assert "127.0.0.1" in err
        assert "hunter2" not in err


# -- how it was called ----------------------------------------------------------------------------------------------


def test_commands_are_printed_as_they_can_be_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By name where that is found, by path where it is not."""
    program = tmp_path / "bin" / "keepstep"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert cli._program() == "keepstep"
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli._program() == "bin/keepstep"
    monkeypatch.chdir("/")
    assert cli._program() == str(program).removeprefix("/")
    monkeypatch.chdir(tmp_path / "bin")
    monkeypatch.setattr(sys, "argv", ["/elsewhere/keepstep"])
    assert cli._program() == "/elsewhere/keepstep"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert cli._program() == "keepstep"


def test_the_next_server_key_is_announced_from_the_command_line(run: Run, data_dir: Path) -> None:
    """It prints the new public key; the one in force stays, and a second announcement is refused."""
    code, _, err = run("keys", "announce")
    assert code == 1
    assert "there is no server key" in err
    key = keys.load_or_create(data_dir, SystemRandomness())
    code, out, _ = run("keys", "announce", "--from-days", "1", "--overlap-days", "2")
    assert code == 0
    succession = verify_announcement(crypto, keys.load_announcements(data_dir)[0])
    assert (succession.old_key, succession.new_key.hex()) == (key.public, out.strip())
    assert succession.until_ms - succession.from_ms == 2 * 24 * 60 * 60 * 1000
    assert run("keys", "show")[1].strip() == key.public.hex()
    assert run("keys", "announce")[0] == 1

"""What is printed for wrong configurations: one table of what people get wrong, and the exact lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from keepstep import cli, config
from keepstep.config import Settings

Environment = dict[str, str]

TABLE: list[tuple[str, Environment, list[str]]] = [
    (
        "a port out of range",
        {"KEEPSTEP_REST_PORT": "99999"},
        ["KEEPSTEP_REST_PORT=99999: must be a whole number from 1 up to 65_535"],
    ),
    (
        "a port that is none",
        {"KEEPSTEP_DEVICE_PORT": "https"},
        ["KEEPSTEP_DEVICE_PORT=https: must be a whole number from 1 up to 65_535"],
    ),
    (
        "a host with a port",
        {"KEEPSTEP_REST_HOST": "0.0.0.0:8440"},
        ["KEEPSTEP_REST_HOST=0.0.0.0:8440: must be an IP address or a host name"],
    ),
    (
        "an address that is none",
        {"KEEPSTEP_DEVICE_HOST": "192.168.1.300"},
        ["KEEPSTEP_DEVICE_HOST=192.168.1.300: must be an IP address or a host name"],
    ),
    (
        "a secret in a configuration file for everybody",
        {"KEEPSTEP_CONFIG": "{folder}/open.toml"},
        ["admin_api_key in {folder}/open.toml=***: every user of this machine can read it; chmod o-r the file"],
    ),
    (
        "one port for both servers",
        {"KEEPSTEP_REST_PORT": "8441"},
        [
            (
                "KEEPSTEP_REST_HOST=127.0.0.1, KEEPSTEP_REST_PORT=8441, KEEPSTEP_DEVICE_HOST=127.0.0.1, "
                "KEEPSTEP_DEVICE_PORT=8441: rest_port and device_port must differ on one address: each has its own "
                "server"
            )
        ],
    ),
    (
        "a database of another kind",
        {"DATABASE_URL": "mysql://u:hunter2@h/x"},
        [
            (
                "DATABASE_URL=***: must be postgresql://user:password@host:port/database, or not set for the embedded "
                "PostgreSQL"
            )
        ],
    ),
    (
        "a database URL without a database",
        {"KEEPSTEP_DATABASE_URL": "postgresql://u:hunter2@h:5432"},
        [
            (
                "KEEPSTEP_DATABASE_URL=***: must be postgresql://user:password@host:port/database, or not set for the "
                "embedded PostgreSQL"
            )
        ],
    ),
    (
        "an administration key that can be guessed",
        {"ADMIN_API_KEY": "hunter2"},
        ["ADMIN_API_KEY=***: must be 32 to 256 printable ASCII characters without a space"],
    ),
    (
        "two administration keys",
        {"ADMIN_API_KEY": "hunter2" * 8, "KEEPSTEP_ADMIN_API_KEY": "hunter3" * 8},
        ["KEEPSTEP_ADMIN_API_KEY=***, ADMIN_API_KEY=***: must not be set to different values: which one counts?"],
    ),
    (
        "a secret and its file",
        {"ADMIN_API_KEY": "hunter2" * 8, "ADMIN_API_KEY_FILE": "{folder}/secret"},
        ["ADMIN_API_KEY=***, ADMIN_API_KEY_FILE={folder}/secret: must not both be set: which one counts?"],
    ),
    (
        "a secret in no file",
        {"KEEPSTEP_ADMIN_API_KEY_FILE": "{folder}/none"},
        [
            (
                "KEEPSTEP_ADMIN_API_KEY_FILE={folder}/none: must be the path of a file with the secret in it; "
                "reading it failed: No such file or directory"
            )
        ],
    ),
    (
        "a secret in a file for everybody",
        {"DATABASE_URL_FILE": "{folder}/readable"},
        [
            (
                "DATABASE_URL_FILE={folder}/readable: must be the path of a file with the secret in it; "
                "every user of this machine can read it (mode 0644); chmod o-r it"
            )
        ],
    ),
    (
        "a weak secret in a file",
        {"ADMIN_API_KEY_FILE": "{folder}/secret"},
        [
            (
                "ADMIN_API_KEY_FILE={folder}/secret with ADMIN_API_KEY=***: must be 32 to 256 printable ASCII "
                "characters without a space"
            )
        ],
    ),
    (
        "a secret file that is a folder",
        {"ADMIN_API_KEY_FILE": "{folder}"},
        [
            (
                "ADMIN_API_KEY_FILE={folder}: must be the path of a file with the secret in it; reading it failed: "
                "Is a directory"
            )
        ],
    ),
    (
        "an origin with a path",
        {"KEEPSTEP_CORS_ORIGINS": "https://a.example/"},
        [
            (
                "KEEPSTEP_CORS_ORIGINS=https://a.example/: must be origins separated by commas, each http:// or "
                "https:// "
                "with a host in lower case and nothing after it"
            )
        ],
    ),
    (
        "every origin",
        {"KEEPSTEP_CORS_ORIGINS": "*"},
        [
            (
                "KEEPSTEP_CORS_ORIGINS=*: must be origins separated by commas, each http:// or https:// with a host in "
                "lower case and nothing after it"
            )
        ],
    ),
    (
        "a device URL for the browser",
        {"KEEPSTEP_PUBLIC_DEVICE_URL": "https://sync.example/v1/connect"},
        [
            (
                "KEEPSTEP_PUBLIC_DEVICE_URL=https://sync.example/v1/connect: must be ws:// or wss:// with a host and a "
                "path, without credentials, query or fragment"
            )
        ],
    ),
    (
        "a REST URL with a path",
        {"KEEPSTEP_PUBLIC_REST_URL": "https://sync.example/api"},
        [
            (
                "KEEPSTEP_PUBLIC_REST_URL=https://sync.example/api: must be http:// or https:// with a host and "
                "nothing "
                "after it but perhaps a port"
            )
        ],
    ),
    (
        "a duration of another kind",
        {"KEEPSTEP_IDLE_TIMEOUT_S": "2 minutes"},
        ["KEEPSTEP_IDLE_TIMEOUT_S=2 minutes: must be a number of seconds above 0 up to 86_400 (up to 1d)"],
    ),
    (
        "a duration without end",
        {"KEEPSTEP_IDLE_TIMEOUT_S": "inf"},
        ["KEEPSTEP_IDLE_TIMEOUT_S=inf: must be a number of seconds above 0 up to 86_400 (up to 1d)"],
    ),
    (
        "a duration of nothing",
        {"KEEPSTEP_HANDSHAKE_TIMEOUT_S": "0s"},
        ["KEEPSTEP_HANDSHAKE_TIMEOUT_S=0s: must be a number of seconds above 0 up to 300 (up to 5m)"],
    ),
    (
        "a duration that is too long, in another unit",
        {"KEEPSTEP_ACCESS_TOKEN_LIFETIME_S": "2d"},
        ["KEEPSTEP_ACCESS_TOKEN_LIFETIME_S=2d: must be a whole number of seconds from 60 up to 86_400 (1m to 1d)"],
    ),
    (
        "a part of a day",
        {"KEEPSTEP_AUDIT_RETENTION_DAYS": "36h"},
        ["KEEPSTEP_AUDIT_RETENTION_DAYS=36h: must be a whole number of days from 1 up to 3_650 (1d to 3650d)"],
    ),
    (
        "a size as salesmen write it",
        {"KEEPSTEP_PAYLOAD_BYTES_MAX": "1MB"},
        ["KEEPSTEP_PAYLOAD_BYTES_MAX=1MB: must be a whole number of bytes from 1_024 up to 16_777_216 (1KiB to 16MiB)"],
    ),
    (
        "a size below nothing",
        {"KEEPSTEP_TAIL_BYTES_MAX": "-1"},
        ["KEEPSTEP_TAIL_BYTES_MAX=-1: must be a whole number of bytes from 0 up to 68_719_476_736 (up to 64GiB)"],
    ),
    (
        "a count with a unit",
        {"KEEPSTEP_CONNECTIONS_MAX": "10k"},
        ["KEEPSTEP_CONNECTIONS_MAX=10k: must be a whole number from 1 up to 1_000_000"],
    ),
    (
        "a payload that no transaction takes",
        {"KEEPSTEP_PAYLOAD_BYTES_MAX": "4MiB"},
        [
            (
                "KEEPSTEP_PAYLOAD_BYTES_MAX=4MiB, KEEPSTEP_BATCH_BYTES_MAX=4194304: batch_bytes_max must be at least "
                "payload_bytes_max + 4096: the largest event must fit in a transaction"
            )
        ],
    ),
    (
        "access that outlives what renews it",
        {"KEEPSTEP_ACCESS_TOKEN_LIFETIME_S": "1h", "KEEPSTEP_REFRESH_TOKEN_LIFETIME_S": "1h"},
        [
            (
                "KEEPSTEP_ACCESS_TOKEN_LIFETIME_S=1h, KEEPSTEP_REFRESH_TOKEN_LIFETIME_S=1h: access_token_lifetime_s "
                "must "
                "be below refresh_token_lifetime_s: nothing would be left to refresh with"
            )
        ],
    ),
    (
        "a lock that outlives its statement",
        {"KEEPSTEP_LOCK_TIMEOUT_MS": "20s"},
        [
            (
                "KEEPSTEP_LOCK_TIMEOUT_MS=20s, KEEPSTEP_STATEMENT_TIMEOUT_MS=15000: lock_timeout_ms must be at most "
                "statement_timeout_ms: the statement would always be cut off first"
            )
        ],
    ),
    (
        "an address that may do more than all",
        {"KEEPSTEP_REGISTRATIONS_PER_HOUR": "1"},
        [
            (
                "KEEPSTEP_REGISTRATIONS_PER_ADDRESS_HOUR=20, KEEPSTEP_REGISTRATIONS_PER_HOUR=1: "
                "registrations_per_address_hour must be at most registrations_per_hour: it is a share of it"
            )
        ],
    ),
    (
        "strangers that crowd out devices",
        {"KEEPSTEP_CONNECTIONS_MAX": "100"},
        [
            (
                "KEEPSTEP_UNAUTHENTICATED_CONNECTIONS_MAX=256, KEEPSTEP_CONNECTIONS_MAX=100: "
                "unauthenticated_connections_max must be at most connections_max: it is a share of it"
            )
        ],
    ),
    (
        "a choice that is none",
        {"KEEPSTEP_REGISTRATION": "invited"},
        ["KEEPSTEP_REGISTRATION=invited: must be open or invite or closed"],
    ),
    (
        "yes or no in other words",
        {"KEEPSTEP_UNSAFE": "maybe"},
        ["KEEPSTEP_UNSAFE=maybe: must be true or false"],
    ),
    (
        "a name that is off by a letter",
        {"KEEPSTEP_LOG_LEVLE": "info"},
        ["KEEPSTEP_LOG_LEVLE: there is no such setting; did you mean KEEPSTEP_LOG_LEVEL?"],
    ),
    (
        "a file of what is no secret",
        {"KEEPSTEP_LOG_LEVEL_FILE": "{folder}/secret"},
        ["KEEPSTEP_LOG_LEVEL_FILE: there is no such setting; did you mean KEEPSTEP_LOG_LEVEL?"],
    ),
    (
        "a directory below the home of nobody",
        {"KEEPSTEP_DATA_DIR": "~nobody-of-that-name/keepstep"},
        ["KEEPSTEP_DATA_DIR=~nobody-of-that-name/keepstep: must be the path of a directory"],
    ),
    (
        "a configuration file that opens brackets without end",
        {"KEEPSTEP_CONFIG": "{folder}/deep.toml"},
        [
            (
                "KEEPSTEP_CONFIG={folder}/deep.toml: must be the path of a TOML file; reading it failed: "
                "it is nested too deep"
            )
        ],
    ),
    (
        "a configuration file that is not there",
        {"KEEPSTEP_CONFIG": "{folder}/none.toml"},
        ["KEEPSTEP_CONFIG={folder}/none.toml: must be the path of a TOML file; there is no file there"],
    ),
    (
        "a configuration file of another kind",
        {"KEEPSTEP_CONFIG": "{folder}/broken.toml"},
        [
            (
                "KEEPSTEP_CONFIG={folder}/broken.toml: must be the path of a TOML file; reading it failed: "
                "Invalid value (at line 1, column 13)"
            )
        ],
    ),
    (
        "wrong values in the configuration file",
        {"KEEPSTEP_CONFIG": "{folder}/wrong.toml"},
        [
            "rest_prot in {folder}/wrong.toml: there is no such setting; did you mean rest_port?",
            "server_name in {folder}/wrong.toml=' padded\\n': must be 1 to 64 printable characters",
            "pipelines in {folder}/wrong.toml=99: must be a whole number from 1 up to 16",
        ],
    ),
    (
        "several at once: names, values, files, rules",
        {
            "KEEPSTEP_XYZZY": "1",
            "KEEPSTEP_REST_PORT": "0",
            "ADMIN_API_KEY_FILE": "{folder}/none",
            "KEEPSTEP_IDLE_TIMEOUT_S": "5",
        },
        [
            "KEEPSTEP_XYZZY: there is no such setting",
            (
                "ADMIN_API_KEY_FILE={folder}/none: must be the path of a file with the secret in it; "
                "reading it failed: No such file or directory"
            ),
            "KEEPSTEP_REST_PORT=0: must be a whole number from 1 up to 65_535",
            (
                "KEEPSTEP_HANDSHAKE_TIMEOUT_S=10, KEEPSTEP_IDLE_TIMEOUT_S=5: handshake_timeout_s must be at most "
                "idle_timeout_s: the handshake would be cut off as idle"
            ),
        ],
    ),
]
"""What somebody got wrong, their environment, and what they are told; ``{folder}`` has the files of ``folder``."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that the table names, in an environment without settings."""
    for name in [*map(config.variable, Settings.model_fields), config.FILE_VARIABLE, *config.USUAL_VARIABLES]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "readable").write_text("postgresql://u:hunter2@h/d")
    (tmp_path / "readable").chmod(0o644)
    (tmp_path / "open.toml").write_text(f'admin_api_key = "{"hunter2" * 8}"\n')
    (tmp_path / "open.toml").chmod(0o644)
    (tmp_path / "broken.toml").write_text("rest_port = \n")
    (tmp_path / "deep.toml").write_text(f"x = {'[' * 100_000}")
    (tmp_path / "wrong.toml").write_text('rest_prot = 1\npipelines = 99\nserver_name = " padded\\n"\n')
    return tmp_path


@pytest.mark.parametrize(("environment", "told"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_a_wrong_configuration_prints(
    environment: Environment,
    told: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of it and nothing else, on standard error, with exit code 78, and never a secret."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("{folder}", str(folder)))
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve"])
    written = capsys.readouterr()
    lines = [f"  {line.replace('{folder}', str(folder))}" for line in told]
    assert written.err.splitlines() == ["keepstep: the configuration cannot be used:", *lines]
    assert (caught.value.code, written.out) == (78, "")
    assert "hunter2" not in written.err


def test_the_table_has_at_least_thirty_rows() -> None:
    """Each different from the others."""
    assert len({name for name, _, _ in TABLE}) == len(TABLE) >= 30

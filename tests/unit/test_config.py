"""The configuration: what is refused, how it is said, and where values come from."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from keepstep import config
from keepstep.config import Settings, load
from keepstep.errors import ConfigError
from keepstep.settings import describing
from keepstep.settings.units import unit_of

COUNTS = {"pipelines", "partitions_ahead", "read_connections", "backups_kept"}
"""Numbers whose names are what they count."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from where the tests run."""
    for name in [*map(config.variable, Settings.model_fields), config.FILE_VARIABLE, *config.USUAL_VARIABLES]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def problems() -> list[str]:
    """What ``load`` finds wrong, a line each."""
    with pytest.raises(ConfigError) as caught:
        load()
    first, *lines = str(caught.value).splitlines()
    assert first == "the configuration cannot be used:"
    return [line.strip() for line in lines]


def write_file(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TOML file that the configuration is read from."""
    path = folder / "keepstep.toml"
    path.write_text(text)
    path.chmod(0o640)
    monkeypatch.setenv("KEEPSTEP_CONFIG", str(path))
    return path


def test_defaults_are_allowed() -> None:
    """A server starts without any setting."""
    settings = load()
    assert settings == Settings()
    assert (settings.rest_port, settings.device_port) == (8440, 8441)
    assert settings.database_url is None
    assert settings.data_dir == Path.cwd() / "data"


def test_settings_are_frozen() -> None:
    """Nothing changes the configuration of a running server."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().rest_port = 1


def test_settings_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made directly, settings hold what they are given and defaults: never a database that happens to be set."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/production")
    monkeypatch.setenv("KEEPSTEP_REST_PORT", "1234")
    assert Settings() == Settings(rest_port=8440, database_url=None)


def test_environment_goes_before_file_before_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest value wins."""
    write_file(tmp_path, "rest_port = 1001\ndevice_port = 1002\n", monkeypatch)
    monkeypatch.setenv("KEEPSTEP_REST_PORT", "2001")
    settings = load()
    assert (settings.rest_port, settings.device_port, settings.pipelines) == (2001, 1002, 2)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and unit files pass variables on that nobody has set."""
    monkeypatch.setenv("KEEPSTEP_REST_PORT", "")
    monkeypatch.setenv("KEEPSTEP_CONFIG", "")
    monkeypatch.setenv("DATABASE_URL", "")
    assert load() == Settings()


def test_plain_database_url_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosting platforms set DATABASE_URL; the one with our prefix goes before it."""
    monkeypatch.setenv("DATABASE_URL", "postgres://u:p@h/plain")
    assert load().database_url == SecretStr("postgres://u:p@h/plain")
    monkeypatch.setenv("KEEPSTEP_DATABASE_URL", "postgresql://u:p@h/prefixed")
    assert load().database_url == SecretStr("postgresql://u:p@h/prefixed")


def test_the_administration_key_has_its_usual_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may say the same; there is none by default."""
    assert load().admin_api_key is None
    monkeypatch.setenv("ADMIN_API_KEY", "a" * 32)
    assert load().admin_api_key == SecretStr("a" * 32)
    monkeypatch.setenv("KEEPSTEP_ADMIN_API_KEY", "a" * 32)
    assert load().admin_api_key == SecretStr("a" * 32)
    monkeypatch.delenv("ADMIN_API_KEY")
    assert load().admin_api_key == SecretStr("a" * 32)


@pytest.mark.parametrize("key", ["short-secret", "secret" * 50, "secret " * 6, "sécret" * 6])
def test_a_weak_administration_key_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the variable and what is allowed, and not the key."""
    monkeypatch.setenv("ADMIN_API_KEY", key)
    with pytest.raises(ConfigError, match=r"ADMIN_API_KEY=\*\*\*: must be 32 to 256 printable ASCII") as refused:
        load()
    assert key not in str(refused.value)


def test_database_url_of_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL is environment too."""
    write_file(tmp_path, 'database_url = "postgresql://h/file"\n', monkeypatch)
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/environment")
    assert load().database_url == SecretStr("postgresql://h/environment")


def test_every_problem_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run shows all there is to mend: names, values of both sources, rules between values."""
    path = write_file(tmp_path, 'pipelines = 99\nlog_fromat = "json"\n', monkeypatch)
    for name, value in {
        "KEEPSTEP_REST_PORT": "99999",
        "KEEPSTEP_DEVICE_PROT": "8441",
        "KEEPSTEP_UNSAFE": "maybe",
        "KEEPSTEP_LOG_LEVEL": "loud",
        "KEEPSTEP_IDLE_TIMEOUT_S": "nan",
        "KEEPSTEP_LOCK_TIMEOUT_MS": "60000",
        "DATABASE_URL": "mysql://u:secret@h/x",
    }.items():
        monkeypatch.setenv(name, value)
    assert set(problems()) == {
        "KEEPSTEP_DEVICE_PROT: there is no such setting; did you mean KEEPSTEP_DEVICE_PORT?",
        f"log_fromat in {path}: there is no such setting; did you mean log_format?",
        f"pipelines in {path}=99: must be a whole number from 1 up to 16",
        "KEEPSTEP_REST_PORT=99999: must be a whole number from 1 up to 65_535",
        "KEEPSTEP_UNSAFE=maybe: must be true or false",
        "KEEPSTEP_LOG_LEVEL=loud: must be debug or info or warning or error",
        "KEEPSTEP_IDLE_TIMEOUT_S=nan: must be a number of seconds above 0 up to 86_400 (up to 1d)",
        f"DATABASE_URL=***: must be {config.allowed('database_url')}",
        (
            "KEEPSTEP_LOCK_TIMEOUT_MS=60000, KEEPSTEP_STATEMENT_TIMEOUT_MS=15000: "
            "lock_timeout_ms must be at most statement_timeout_ms: the statement would always be cut off first"
        ),
    }


def test_an_unknown_variable_like_no_other_is_refused_without_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess that is far off would mislead."""
    monkeypatch.setenv("KEEPSTEP_XYZZY", "1")
    assert problems() == ["KEEPSTEP_XYZZY: there is no such setting"]


def test_an_unknown_name_is_refused_when_made_directly() -> None:
    """A typing error in code does not go unnoticed either."""
    with pytest.raises(ValidationError, match="rest_prot"):
        Settings.model_validate({"rest_prot": 1})


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if "number" in config.allowed(name)])
def test_numbers_are_bounded_on_both_sides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number may be negative, endless, or no number."""
    for value in ("-1", "1e99", "inf", "nan", "many"):
        monkeypatch.setenv(config.variable(name), value)
        assert problems()[0] == f"{config.variable(name)}={value}: must be {config.allowed(name)}"


@pytest.mark.parametrize(
    "name", [name for name in Settings.model_fields if re.search(r"(?<!_offset)_(s|ms|port)$", name)]
)
def test_times_and_ports_are_above_zero(name: str) -> None:
    """A timeout of 0 would mean never or at once, depending on the library."""
    with pytest.raises(ValidationError):
        Settings.model_validate({name: 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("archive_url", "relative/path"),
        ("archive_url", "s3://Bucket"),
        ("archive_url", "s3://bucket/prefix?versions"),
        ("archive_url", "file://host/path"),
        ("archive_url", "https://bucket.example"),
        ("archive_s3_region", "Europe"),
        ("rest_host", ""),
        ("rest_host", "two words"),
        ("rest_host", "0.0.0.0:8440"),
        ("rest_host", "300.0.0.1"),
        ("rest_host", "-h"),
        ("rest_host", f"{'h' * 64}.example"),
        ("device_host", "h" * 256),
        ("server_name", "n" * 65),
        ("server_name", " padded "),
        ("server_name", "line\nbreak"),
        ("embedded_user", "no body"),
        ("embedded_user", "x" * 33),
        ("data_dir", "nul\0byte"),
        ("database_url", "postgresql://h"),
        ("database_url", "postgresql://h/"),
        ("database_url", "postgresql://h:99999/d"),
        ("database_url", "postgresql://h/d#f"),
        ("database_url", "host=h password=secret"),
        ("public_device_url", "https://h/v1/connect"),
        ("public_device_url", "wss:///v1/connect"),
        ("public_device_url", "wss://user@h/v1/connect"),
        ("public_device_url", "wss://two words/v1/connect"),
        ("public_device_url", "wss://h"),
        ("public_device_url", "wss://h/v1/connect?x=1"),
        ("public_device_url", "wss://h/v1/connect#key"),
        ("public_device_url", "wss://h:99999/v1/connect"),
        ("cors_origins", "https://a.example/"),
        ("cors_origins", "https://A.example"),
        ("cors_origins", "https://*.example"),
        ("cors_origins", "https://user@a.example"),
        ("cors_origins", "https://a.example, https://b.example"),
        ("cors_origins", "https://a.example:x"),
        ("cors_origins", "*"),
        ("public_rest_url", "wss://h"),
        ("public_rest_url", "https://h/path"),
        ("public_rest_url", "https://user@h"),
    ],
)
def test_texts_are_checked(name: str, value: str) -> None:
    """Hosts, names, accounts, paths and URLs have a form."""
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rest_host", "::1"),
        ("rest_host", "fe80::1%eth0"),
        ("device_host", "devices.example.org"),
        ("device_host", "my_service.internal."),
        ("server_name", "Küche"),
        ("embedded_user", "_postgres"),
        ("public_device_url", "wss://example.org/v1/connect"),
        ("cors_origins", "https://a.example,http://localhost:5173"),
        ("public_device_url", "ws://[::1]:8441/v1/connect"),
        ("public_rest_url", "https://example.org:8443"),
        ("archive_url", "/srv/archive"),
        ("archive_url", "file:///srv/archive"),
        ("archive_url", "s3://bucket/a/prefix"),
        ("archive_s3_region", "eu-central-1"),
    ],
)
def test_ordinary_texts_are_allowed(name: str, value: str) -> None:
    """What people have is accepted as it is."""
    assert getattr(Settings.model_validate({name: value}), name) == value


def test_data_dir_is_absolute() -> None:
    """Where a relative path leads is decided once, and the home directory may be written as ~."""
    assert Settings(data_dir=Path("~/keepstep")).data_dir == Path.home() / "keepstep"
    assert Settings(data_dir=Path("here")).data_dir == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"rest_port": 8441}, "rest_port and device_port must differ"),
        ({"rest_port": 8441, "rest_host": "::"}, "rest_port and device_port must differ"),
        ({"payload_bytes_max": 1 << 20, "batch_bytes_max": 1 << 20}, "batch_bytes_max must be at least"),
        ({"unacked_bytes_max": 1 << 18, "page_bytes_max": 1 << 18}, "unacked_bytes_max must be at least"),
        ({"unacked_bytes_max": 1 << 19}, "page_bytes_max must be at most unacked_bytes_max"),
        ({"archive_s3_access_key_id": "id"}, "archive_s3_access_key_id and archive_s3_secret_access_key must be set"),
        ({"archive_url": "/archive", "archive_s3_endpoint": "https://s3.example"}, "archive_s3_endpoint needs"),
        ({"batch_events_max": 100}, "publish_events_max must be at most batch_events_max"),
        ({"tail_bytes_max": 0}, "tail_stream_bytes_max must be at most tail_bytes_max"),
        ({"registrations_per_hour": 1}, "registrations_per_address_hour must be at most"),
        ({"unauthenticated_connections_max": 2}, "unauthenticated_connections_per_address_max must be at most"),
        ({"connections_max": 100}, "unauthenticated_connections_max must be at most connections_max"),
        ({"refresh_token_lifetime_s": 3_600}, "access_token_lifetime_s must be below refresh_token_lifetime_s"),
        ({"lock_timeout_ms": 20_000}, "lock_timeout_ms must be at most statement_timeout_ms"),
        ({"idle_timeout_s": 1}, "handshake_timeout_s must be at most idle_timeout_s"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, object], fragment: str) -> None:
    """Each is allowed by itself; together they make no sense."""
    with pytest.raises(ValidationError, match=fragment):
        Settings.model_validate(values)


def test_one_port_on_two_addresses_is_allowed() -> None:
    """Two interfaces have each their own ports."""
    assert Settings(rest_host="127.0.0.1", device_host="127.0.0.2", rest_port=9, device_port=9).rest_port == 9


def test_a_rule_is_not_reported_where_one_of_its_values_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wrong value was meant to be is not guessed."""
    monkeypatch.setenv("KEEPSTEP_LOCK_TIMEOUT_MS", "60000")
    monkeypatch.setenv("KEEPSTEP_STATEMENT_TIMEOUT_MS", "never")
    assert problems() == [
        f"KEEPSTEP_STATEMENT_TIMEOUT_MS=never: must be {config.allowed('statement_timeout_ms')}",
    ]


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what is printed of settings, not in an error, not in an error's cause."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h/d")
    assert "hunter2" not in repr(load())
    monkeypatch.setenv("DATABASE_URL", "nonsense://u:hunter2@h")
    with pytest.raises(ConfigError) as caught:
        load()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(ValidationError) as direct:
        Settings(database_url=SecretStr("nonsense://u:hunter2@h"))
    assert "hunter2" not in str(direct.value)


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was meant to be read is not left out in silence."""
    monkeypatch.setenv("KEEPSTEP_CONFIG", str(tmp_path / "none.toml"))
    (line,) = problems()
    assert line.endswith("none.toml: must be the path of a TOML file; there is no file there")


@pytest.mark.parametrize("content", [b"rest_port = \n", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says where the file stops making sense."""
    write_file(tmp_path, "", monkeypatch).write_bytes(content)
    (line,) = problems()
    assert "must be the path of a TOML file; reading it failed: " in line


def test_a_long_or_unprintable_value_is_shown_cut_and_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error message stays a line, whatever was in the variable."""
    monkeypatch.setenv("KEEPSTEP_REST_HOST", "two words\n" * 300)
    (line,) = problems()
    assert line.startswith(r"KEEPSTEP_REST_HOST='two words\ntwo words\n")
    assert line.endswith("…: must be an IP address or a host name")
    assert len(line) < 400


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is_for_and_what_it_may_be(name: str) -> None:
    """Unit, bound and reason stand beside each: in its name, its type and its description."""
    description = Settings.model_fields[name].description or ""
    assert description[:1].isupper() or description.startswith("``")
    assert description.endswith(".")
    said = config.allowed(name)
    if "number" in said:
        assert re.search(r"(from|above) [0-9_]+ up to [0-9_]+", said), said
        unit = unit_of(name)
        assert unit or "_max" in name or name in COUNTS, "a number says in its name what it counts"


def test_every_section_has_its_title() -> None:
    """The comments in the source and the headings of the documentation are the same."""
    source = inspect.getsource(Settings)
    found = re.findall(r"^    # -- (.+)\n    ([a-z_]+):", source, re.MULTILINE)
    assert {name: title[0].upper() + title[1:] for title, name in found} == config.SECTIONS
    assert source.count("\n    # -- ") == len(found)


def test_no_setting_is_taken_for_the_file_of_a_secret() -> None:
    """``KEEPSTEP_X_FILE`` means one thing."""
    secrets = {name for name in Settings.model_fields if describing.is_secret(Settings, name)}
    assert {"database_url", "admin_api_key"} <= secrets
    assert not {f"{name}_file" for name in secrets} & Settings.model_fields.keys()


def test_the_reference_lists_every_setting_as_it_is() -> None:
    """The document ends with ``config.reference()``, after the heading; put its output there when a setting changes."""
    assert DOCUMENT.read_text().partition("## All settings\n\n")[2] == config.reference()

"""The configuration: every setting with its unit, bounds and reason, checked before anything opens.

``load`` takes values from the environment (``KEEPSTEP_…``; ``DATABASE_URL`` and ``ADMIN_API_KEY`` are understood too,
and a secret is read from the file that its name with ``_FILE`` names), then from the TOML file that ``KEEPSTEP_CONFIG``
names, then from the defaults here. An empty variable counts as not set. Every problem is reported at once, each with
the variable, the value (secrets masked) and what is allowed. What is ``Reloadable`` may change while the server runs:
``keepstep.reloading``.

``Settings(...)`` takes only what it is given, so that a test never picks up its surroundings by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from keepstep.settings import describing, edge, loading, units
from keepstep.settings.describing import variable as variable
from keepstep.settings.loading import FILE_VARIABLE as FILE_VARIABLE
from keepstep.settings.types import (
    GIB,
    KIB,
    MIB,
    AccountName,
    AdminKey,
    ArchiveUrl,
    DatabaseUrl,
    DeviceUrl,
    Directory,
    File,
    Host,
    Networks,
    Origins,
    Port,
    PrintableName,
    Reloadable,
    RestUrl,
    Rule,
    RulesBrokenError,
    S3Region,
    S3Secret,
    at_most,
)

if TYPE_CHECKING:
    from keepstep.settings.loading import Loaded

USUAL_VARIABLES: Final = {"DATABASE_URL": "database_url", "ADMIN_API_KEY": "admin_api_key"}
"""What hosting platforms call some settings; the variable with our prefix wins where both are set."""
ONE_VALUE: Final = frozenset({"admin_api_key"})
"""An old key left in one of its two variables is a mistake; ``DATABASE_URL`` is often there for other programs."""
EVENT_OVERHEAD_BYTES_MAX: Final = 4_096
"""Most that an event's header, signature and framing take beside its payload, in the rules between limits."""


SECTIONS: Final = {
    "data_dir": "Where things are",
    "rest_host": "Listening",
    "tls_certificate_file": "TLS and proxies",
    "cors_origins": "REST",
    "registration": "Accounts",
    "admin_api_key": "Administration",
    "publish_events_max": "Publishing",
    "page_events_max": "Reading",
    "connections_max": "Connections",
    "read_connections": "The database",
    "head_interval_s": "Periodic work",
    "disk_free_bytes_min": "Disk",
    "backup_dir": "Backups",
    "archive_url": "The archive",
    "log_level": "Logs",
}
"""Titles of the sections below in the documentation, by the first setting of each."""


class Settings(BaseSettings):
    """All settings of one server. Frozen; made by ``load`` outside tests."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    # -- where things are
    data_dir: Directory = Path("data")
    """Everything the server keeps on its own disk: keys and the embedded PostgreSQL. Relative to where it starts."""
    database_url: DatabaseUrl | None = None
    """A PostgreSQL 15 to 18. Not set: the server runs its own in ``data_dir``. ``DATABASE_URL`` is understood too."""
    migrate_at_start: bool = True
    """Bring the schema up to date when the server starts. Off: it refuses to start until ``migrate up`` ran."""
    embedded_user: AccountName = "nobody"
    """The account the embedded PostgreSQL runs as when the server is started by root, which PostgreSQL refuses."""
    unsafe: bool = False
    """Start even where PostgreSQL would not fsync what it acknowledges. For experiments; health and bench report it."""
    server_name: PrintableName = "keepstep"
    """What the server calls itself to people."""

    # -- listening
    rest_host: Host = "127.0.0.1"
    """Address REST listens on; ``0.0.0.0`` or ``::`` for all. Loopback by default: others reach it with TLS."""
    rest_port: Port = 8440
    """TCP port of REST."""
    device_host: Host = "127.0.0.1"
    """Address the device WebSocket listens on."""
    device_port: Port = 8441
    """TCP port of the device WebSocket; its own, so that REST's server never has to speak WebSocket."""
    public_device_url: DeviceUrl | None = None
    """Where devices reach the WebSocket, as told to them; not set: made of ``device_host`` and ``device_port``."""

    public_rest_url: RestUrl | None = None
    """Where devices reach REST, as they sign it; not set: beside ``public_device_url``, else from ``rest_host``."""

    # -- TLS and proxies
    tls_certificate_file: File | None = None
    """PEM file: the certificate for both ports, then its authorities'. Not set: no TLS here. Read again on change."""
    tls_key_file: File | None = None
    """PEM file: the certificate's private key, which not every user of the machine may read."""
    tls_key_password_file: File | None = None
    """File with the password that opens the private key, where it is encrypted."""
    trusted_proxies: Reloadable[Networks] = ""
    """Proxies that are believed about the client's address; limits per address count that, not the proxy's."""
    forwarded_header: Reloadable[Literal["x-forwarded-for", "forwarded"]] = "x-forwarded-for"
    """Where trusted proxies write it. Only this one is read: they may pass the other on as the client sent it."""
    proxy_protocol: bool = False
    """Every connection, on both ports, begins with a PROXY header (version 1 or 2) of a trusted proxy."""

    # -- REST
    cors_origins: Reloadable[Origins] = ""
    """Whose web pages may call REST from a browser: exact origins. None by default."""
    rest_connections_max: int = Field(default=1_024, ge=1, le=100_000)
    """REST sockets in all; one more is closed as it comes, so that devices and the database keep theirs."""
    rest_calls_per_user_minute: Reloadable[int] = Field(default=1_200, ge=1, le=1_000_000)
    """REST calls of one user's devices per minute, which may come at once: a reader that polls needs a few a second."""
    rest_calls_per_address_minute: Reloadable[int] = Field(default=600, ge=1, le=1_000_000)
    """REST calls per address prefix and minute that come without a valid token."""

    access_token_lifetime_s: Reloadable[int] = Field(default=3_600, ge=60, le=86_400)
    """Seconds an access token is good for; a replaced signing key is kept as long as the largest value."""
    refresh_token_lifetime_s: Reloadable[int] = Field(default=2_592_000, ge=300, le=31_536_000)
    """Seconds a refresh token is good for; a REST client that was away longer signs a challenge again."""
    challenge_lifetime_s: Reloadable[int] = Field(default=60, ge=5, le=600)
    """Seconds a device has to sign a challenge."""

    # -- accounts
    registration: Reloadable[Literal["open", "invite", "closed"]] = "open"
    """Whether new accounts may be made: by everybody, by who has an invite, or by nobody."""
    registrations_per_address_hour: Reloadable[int] = Field(default=20, ge=1, le=1_000_000)
    """New accounts per address prefix and hour: a household sets up in minutes, a script does not fill the disk."""
    registrations_per_hour: Reloadable[int] = Field(default=1_000, ge=1, le=10_000_000)
    """New accounts per hour from all addresses."""
    bytes_per_user_max: int | None = Field(default=None, ge=KIB, le=2**53 - 1)
    """Bytes a user without a quota of its own may store outside ``$devices`` and ``$keys``; not set: no bound."""
    streams_per_user_max: int = Field(default=10_000, ge=3, le=1_000_000)
    """Streams of one user, ``$devices`` and ``$keys`` among them: each costs a row, a head and a cache entry."""
    devices_per_user_max: Reloadable[int] = Field(default=64, ge=1, le=1_024)
    """Live devices of one user: each is listed in every account check and gets every content key wrapped."""

    # -- administration
    admin_api_key: Reloadable[AdminKey | None] = None
    """Opens ``/admin``; not set: there is no ``/admin``. ``ADMIN_API_KEY`` is understood too. Choose it at random."""
    audit_retention_days: Reloadable[int] = Field(default=365, ge=1, le=3_650)
    """Days for which every call of an administrator stays recorded."""

    # -- publishing
    publish_events_max: Reloadable[int] = Field(default=256, ge=1, le=4_096)
    """Events in one publish message: bounds what one message makes the server parse and verify."""
    payload_bytes_max: Reloadable[int] = Field(default=256 * KIB, ge=KIB, le=16 * MIB)
    """Bytes of one event's payload, as sealed."""
    inflight_publishes_max: Reloadable[int] = Field(default=64, ge=1, le=1_024)
    """Publish messages of one session that wait for their answer; the session is not read from above it."""
    pipelines: int = Field(default=2, ge=1, le=16)
    """Commit pipelines, sharded by user: one commits while another waits for the disk. Each holds one connection."""
    pipeline_queue_max: int = Field(default=8_192, ge=1, le=65_536)
    """Submissions that wait for one pipeline; above it the sessions that publish are not read, which costs more than
    the waiting: it is for thousands of sessions that publish at once."""
    pipeline_queue_bytes_max: int = Field(default=64 * MIB, ge=KIB, le=16 * GIB)
    """Bytes they take; above it the sessions that publish are not read either."""
    batch_events_max: int = Field(default=1_000, ge=1, le=10_000)
    """Events in one transaction: above a thousand an ack waits longer and nothing gets cheaper."""
    batch_bytes_max: int = Field(default=4 * MIB, ge=64 * KIB, le=64 * MIB)
    """Bytes that the publish messages of one transaction take."""

    # -- reading
    page_events_max: Reloadable[int] = Field(default=1_000, ge=1, le=10_000)
    """Events in one page read from the log."""
    page_bytes_max: Reloadable[int] = Field(default=MIB, ge=KIB, le=32 * MIB)
    """Bytes of one page; a page holds at least one event."""
    unacked_bytes_max: Reloadable[int] = Field(default=8 * MIB, ge=KIB, le=256 * MIB)
    """Bytes sent to one session and not acknowledged by it; above it the session waits, others do not."""
    heal_window_s: int = Field(default=600, ge=10, le=86_400)
    """After a restore: how long an account's devices may take to hand in what was lost, from the first one's connection
    on; until then nothing new is taken from them."""
    tail_bytes_max: int = Field(default=64 * MIB, ge=0, le=64 * GIB)
    """Memory for the newest events of all streams, from which live devices are served without the database."""
    tail_stream_bytes_max: int = Field(default=4 * MIB, ge=0, le=GIB)
    """The share of one stream in it."""
    subscriptions_per_session_max: Reloadable[int] = Field(default=10_000, ge=1, le=100_000)
    """Streams one session follows."""

    # -- connections
    connections_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Device connections at a time: each costs about 20 KiB and a file descriptor."""
    unauthenticated_connections_max: int = Field(default=256, ge=1, le=100_000)
    """Connections that have not finished their handshake, so that strangers never crowd out devices."""
    unauthenticated_connections_per_address_max: int = Field(default=64, ge=1, le=100_000)
    """The share of one address prefix in them."""
    unfinished_bytes_max: int = Field(default=256 * MIB, ge=8 * MIB, le=16 * GIB)
    """Bytes of messages that are not whole yet, of all devices; above it the one that began first is closed. Not with
    TLS of keepstep's own or the PROXY protocol."""
    handshake_timeout_s: float = Field(default=10, gt=0, le=300)
    """Seconds from the accepted connection to the authenticated device."""
    send_timeout_s: Reloadable[float] = Field(default=30, gt=0, le=3_600)
    """Seconds one message to a device may take to leave before the connection is closed."""
    idle_timeout_s: Reloadable[float] = Field(default=120, gt=0, le=86_400)
    """Seconds without a message from a device before the connection is closed; devices ping well within it."""
    drain_timeout_s: Reloadable[float] = Field(default=10, gt=0, le=600)
    """Seconds that publishes under way get to finish when the server is told to stop."""

    # -- the database
    read_connections: int = Field(default=4, ge=1, le=32)
    """Connections, and threads, for reading pages. With ``pipelines`` they stay below the embedded server's 64."""
    statement_timeout_ms: int = Field(default=15_000, ge=100, le=600_000)
    """Milliseconds for one statement: a thread that waits for the database cannot be cancelled otherwise."""
    lock_timeout_ms: int = Field(default=2_000, ge=10, le=60_000)
    """Milliseconds to wait for another transaction's lock before the batch is decided again."""
    database_connect_timeout_s: int = Field(default=5, ge=2, le=60)
    """Seconds for a new connection to PostgreSQL; libpq takes whole ones and treats 1 as 2."""
    slow_query_ms: int = Field(default=1_000, ge=10, le=600_000)
    """Milliseconds from which the embedded PostgreSQL writes a statement and its plan into its log, without values."""

    # -- periodic work
    head_interval_s: float = Field(default=60, gt=0, le=86_400)
    """Seconds between signed heads to a session, by which a device notices that events are withheld."""
    reread_interval_s: float = Field(default=30, gt=0, le=3_600)
    """Seconds after which a session looks at the log again without a hint: hints may be lost."""
    cleanup_interval_s: float = Field(default=60, gt=0, le=86_400)
    """Seconds between runs of the clean-up."""
    session_kept_days: Reloadable[int] = Field(default=90, ge=1, le=3_650)
    """Days for which a session that was closed stays recorded, of each device the last 1,000 at most."""
    invite_kept_days: Reloadable[int] = Field(default=90, ge=1, le=3_650)
    """Days for which an invite that was used or ran out stays recorded."""
    device_inactive_days: Reloadable[int | None] = Field(default=None, ge=30, le=36_500)
    """Days unseen after which a device loses positions, tokens and its inbox, but not its access; not set: never."""
    partitions_ahead: int = Field(default=3, ge=1, le=52)
    """Partitions of each event table made ahead of time."""
    retention_days: Reloadable[int | None] = Field(default=None, ge=1, le=36_500)
    """Days after which events go, a week of them at a time; not set: they stay. 90 is a usual choice."""
    clock_offset_interval_s: float = Field(default=60, gt=0, le=3_600)
    """Seconds between measurements of the database's clock, which ``received_at`` follows."""

    # -- disk
    disk_free_bytes_min: int = Field(default=512 * MIB, ge=0, le=1024 * GIB)
    """Bytes free in ``data_dir`` below which publishing waits, so that a database there never runs full; 0: off."""

    # -- backups
    backup_dir: Directory | None = None
    """Where backups go, best another disk or machine's; not set: this server makes none. Nodes share it."""
    backup_interval_s: Reloadable[int] = Field(default=86_400, ge=3_600, le=2_678_400)
    """Seconds between whole backups; what is written in between is kept as write-ahead log."""
    backup_offset_s: Reloadable[int] = Field(default=10_800, ge=0, le=2_678_400)
    """Seconds by which backups come after each multiple of ``backup_interval_s``: of a day at 03:00 UTC by default."""
    backups_kept: Reloadable[int] = Field(default=7, ge=1, le=1_000)
    """Newest backups that are never removed, whatever their age."""
    backup_kept_days: Reloadable[int] = Field(default=7, ge=0, le=3_650)
    """Days for which every backup is kept, and with it every second in between to which it can be restored."""
    backup_wal_interval_s: Reloadable[int] = Field(default=10, ge=1, le=3_600)
    """Seconds between copies of what was written since: what is lost at most where the server's disk is lost."""
    backup_bytes_per_s_max: Reloadable[int | None] = Field(default=None, ge=32 * KIB, le=1024 * MIB)
    """Bytes of the database a second that a whole backup reads at most; not set: as many as disk and cores can."""
    backup_key_file: File | None = None
    """File of the key backups are encrypted with (``keepstep backup keygen``); not set: they are not encrypted."""
    backup_verify: Reloadable[bool] = True
    """Restore each scheduled backup into a scratch server and verify all of it; takes the database's size on disk."""
    backup_scratch_dir: Directory | None = None
    """Where backups are restored to be verified; not set: in ``data_dir``."""
    backup_database_url: DatabaseUrl | None = None
    """``database_url`` as a role with REPLICATION, where that one has not got it. Of no use to the embedded one."""

    # -- the archive
    archive_url: ArchiveUrl | None = None
    """A directory (``/path``, ``file:///path``) or ``s3://bucket/prefix``: events go there before they are pruned, and
    are read from there. Not set: what is pruned is gone. Nodes share it."""
    archive_s3_endpoint: RestUrl | None = None
    """Where an S3-compatible store that is not Amazon's is: ``https://host:port``."""
    archive_s3_region: S3Region | None = None
    """Region of the bucket; not set: ``AWS_REGION``, or what the machine's surroundings say."""
    archive_s3_access_key_id: PrintableName | None = None
    """Of the credentials for the bucket; not set: what AWS's own variables or the machine's role give."""
    archive_s3_secret_access_key: S3Secret | None = None
    """The secret that belongs to it."""
    archive_timeout_s: float = Field(default=10, ge=1, le=300)
    """Seconds one request to the bucket may take, and as long again its retries: a reader waits for it."""
    archive_segment_events_max: int = Field(default=10_000, ge=1, le=65_536)
    """Events in one segment."""
    archive_segment_bytes_max: int = Field(default=8 * MIB, ge=64 * KIB, le=32 * MIB)
    """Bytes of one segment before it is compressed; one event above it still goes. A reader fetches whole segments."""
    archive_cache_bytes_max: int = Field(default=64 * MIB, ge=0, le=16 * GIB)
    """Memory for segments that were read last, so that pages of one are not each fetched again."""

    # -- logs
    log_level: Reloadable[Literal["debug", "info", "warning", "error"]] = "info"
    """The least severe line that is written."""
    log_format: Literal["console", "json"] = "console"
    """For people or for machines."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: ``load`` reads the surroundings, and knows for each value where it came from."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _read_units(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``15m`` and ``64MiB`` as numbers of each setting's unit."""
        return units.parse_all(values)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule for rule in _RULES if rule.broken(self)] + edge.certificate_problems(self)
        if broken:
            raise RulesBrokenError(broken)
        return self


def _event_fits(limit: str, why: str) -> Rule:
    return Rule(
        ("payload_bytes_max", limit),
        f"{limit} must be at least payload_bytes_max + {EVENT_OVERHEAD_BYTES_MAX}: {why}",
        lambda settings: bool(getattr(settings, limit) < settings.payload_bytes_max + EVENT_OVERHEAD_BYTES_MAX),
    )


_RULES: Final = (
    Rule(
        ("rest_host", "rest_port", "device_host", "device_port"),
        "rest_port and device_port must differ on one address: each has its own server",
        lambda settings: (
            settings.rest_port == settings.device_port
            and (
                settings.rest_host == settings.device_host
                or bool({settings.rest_host, settings.device_host} & {"0.0.0.0", "::"})  # noqa: S104  # compared only
            )
        ),
    ),
    _event_fits("batch_bytes_max", "the largest event must fit in a transaction"),
    _event_fits("unacked_bytes_max", "the largest event must be deliverable"),
    at_most("page_bytes_max", "unacked_bytes_max", "a session could never take a whole page"),
    at_most("publish_events_max", "batch_events_max", "a publish is decided in one transaction"),
    at_most("tail_stream_bytes_max", "tail_bytes_max", "it is a share of it"),
    at_most("registrations_per_address_hour", "registrations_per_hour", "it is a share of it"),
    at_most("unauthenticated_connections_per_address_max", "unauthenticated_connections_max", "it is a share of it"),
    at_most("unauthenticated_connections_max", "connections_max", "it is a share of it"),
    at_most("lock_timeout_ms", "statement_timeout_ms", "the statement would always be cut off first"),
    Rule(
        ("access_token_lifetime_s", "refresh_token_lifetime_s"),
        "access_token_lifetime_s must be below refresh_token_lifetime_s: nothing would be left to refresh with",
        lambda settings: settings.access_token_lifetime_s >= settings.refresh_token_lifetime_s,
    ),
    at_most("backup_offset_s", "backup_interval_s", "it shifts each backup within its interval"),
    at_most("backup_wal_interval_s", "backup_interval_s", "the log is kept in between backups"),
    Rule(
        ("backup_dir", "backup_key_file"),
        "backup_key_file must be outside backup_dir: whoever has the backups would have the key",
        lambda settings: (
            settings.backup_dir is not None
            and settings.backup_key_file is not None
            and settings.backup_key_file.is_relative_to(settings.backup_dir)
        ),
    ),
    Rule(
        ("backup_dir", "data_dir"),
        "backup_dir must be outside data_dir: it is there for when that is lost",
        lambda settings: settings.backup_dir is not None and settings.backup_dir.is_relative_to(settings.data_dir),
    ),
    Rule(
        ("archive_s3_access_key_id", "archive_s3_secret_access_key"),
        "archive_s3_access_key_id and archive_s3_secret_access_key must be set together: neither is of use alone",
        lambda settings: (settings.archive_s3_access_key_id is None) != (settings.archive_s3_secret_access_key is None),
    ),
    Rule(
        ("archive_url", "archive_s3_endpoint"),
        "archive_s3_endpoint needs an archive_url of the form s3://bucket/prefix",
        lambda settings: (
            settings.archive_s3_endpoint is not None and not (settings.archive_url or "").startswith("s3://")
        ),
    ),
    at_most("handshake_timeout_s", "idle_timeout_s", "the handshake would be cut off as idle"),
    *edge.RULES,
)


def load() -> Settings:
    """The settings of this process. Raises ConfigError with every problem found, one a line."""
    return read().settings


def read() -> Loaded[Settings]:
    """As ``load``, with where each setting comes from."""
    return loading.load(Settings, USUAL_VARIABLES, ONE_VALUE)


def merged(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some of them changed. Raises ConfigError where those contradict the others."""
    return loading.merged(Settings, settings, changes)


def allowed(name: str) -> str:
    """What a setting may be, in words."""
    return describing.allowed(Settings, name)


def shown(name: str, value: object) -> str:
    """A setting's value as it may be shown: never a secret."""
    return describing.shown(Settings, name, value)


def reloadable(name: str) -> bool:
    """Whether a setting may change while the server runs."""
    return describing.is_reloadable(Settings, name)


def reference() -> str:
    """All settings and rules in Markdown: the end of ``docs/reference/configuration.md``."""
    return describing.reference(Settings, SECTIONS, _RULES)

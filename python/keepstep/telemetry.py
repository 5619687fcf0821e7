"""Every metric and every log field of the server, by name; with ``tallies`` all that knows prometheus_client.

No key, token or payload can reach a log: a line holds only the fields listed here, never bytes, and of an exception
only its type and where it was raised, unless it is one of ours, whose text is fixed.
"""

from __future__ import annotations

import logging
import math
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from keepstep.errors import KeepstepError
from keepstep.tallies import Distribution, LabelledTally, Lookups, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence


Log = structlog.typing.FilteringBoundLogger

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
FRAMES_MAX: Final = 20
"""Frames of a traceback in a log line, the innermost ones."""
STRANGERS_LINES_MAX: Final = 60
STRANGERS_LINES_S: Final = 60.0
"""Lines in so many seconds about connections that were refused: whoever connects writes none without bound."""

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

LOG_FIELDS: Final[Mapping[str, str]] = {
    "action": "what an administrator did: the endpoint's name",
    "address": "IP address of a peer",
    "api_version": "version of the REST interface that was asked",
    "code": "a code of the error table",
    "count": "how many, of what the event says",
    "detail": "a fixed sentence about the event",
    "device_pk": "row number of a device",
    "duration_ms": "milliseconds",
    "error": "type of an exception; of our own also its text",
    "exit_status": "how a process ended: its exit code, or a signal as a negative number",
    "frames": "where an exception was raised: file, line, function",
    "free_bytes": "bytes that may still be written to a disk",
    "job": "name of a periodic job",
    "method": "HTTP method",
    "needed": "how many it takes, of what the event says",
    "new": "what a setting is now, or would be after a restart; secrets masked",
    "old": "what a setting was; secrets masked",
    "partitions": "names of partitions of the event tables",
    "place": "which directory: data, backups",
    "problems": "what is wrong with a configuration, secrets masked",
    "process_id": "of a process of this machine",
    "request_id": "id of a REST request, also in its answer",
    "retry_after_s": "seconds until the next attempt",
    "route": "pattern of a REST path",
    "rows": "rows removed one by one",
    "session_no": "how many sessions the device has had",
    "setting": "name of a setting",
    "status": "HTTP status",
    "target": "what an administrator did it to: path parameters, as JSON",
    "user_pk": "row number of a user",
    "version": "version of keepstep",
}
"""Every field a log line may have beside ``event``, ``level``, ``logger`` and ``timestamp``."""


# A series beside each counter and histogram, of when it was made: twice the size of a scrape for nothing.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Every metric, in a registry of its own, so that two servers in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._make_edge_metrics()
        self._make_session_metrics()
        self._make_log_metrics()
        self._make_account_metrics()
        self._make_backup_metrics()
        self._make_server_metrics()
        self._make_storage_metrics()
        self._make_archive_metrics()

    def _make_edge_metrics(self) -> None:
        """Configuration, sockets, TLS."""
        self.configuration_reloads = self._counter(
            "configuration_reloads", "Configurations read again, by what became of them.", ["result"]
        )
        self.settings_changed = self._counter(
            "settings_changed", "Settings that were changed while the server ran.", ["setting"]
        )
        self.setting_restart_needed = self._gauge(
            "setting_restart_needed", "1 where a setting was changed that takes a restart.", ["setting"]
        )
        self.connections = self._gauge("connections", "Open device sockets.")
        self.unauthenticated_connections = self._gauge(
            "unauthenticated_connections", "Device sockets that have not finished their handshake."
        )
        self.connections_refused = self._counter(
            "connections_refused", "Device sockets refused because a cap was reached."
        )
        self.rest_connections = self._gauge("rest_connections", "Open REST sockets.")
        self.rest_connections_refused = self._counter(
            "rest_connections_refused", "REST sockets closed as they came because a cap was reached."
        )
        self.entrance_refusals = self._counter(
            "entrance_refusals",
            "Connections of both ports closed before HTTP: no PROXY header of a trusted proxy (proxy_header), no TLS "
            "handshake (tls), or not in time (timeout).",
            ["reason"],
        )
        self.tls_certificate_expiry_timestamp_seconds = self._gauge(
            "tls_certificate_expiry_timestamp_seconds", "End of the TLS certificate in force, unix time; 0 without TLS."
        )
        self.tls_certificate_loads = self._counter(
            "tls_certificate_loads", "TLS certificates read from their files: loaded, or refused.", ["result"]
        )

    def _make_session_metrics(self) -> None:
        """Handshakes and sessions."""
        self.sessions = self._gauge("sessions", "Authenticated device sessions.")
        self.session_users = self._gauge("session_users", "Users with at least one session.")
        self.handshakes = LabelledTally(
            "keepstep_handshakes", "Handshakes by how they ended: ready, or an error code.", "result", self.registry
        )
        self.handshake_seconds = Distribution(
            "keepstep_handshake_seconds", "From the accepted socket to Ready, seconds.", _SECONDS, self.registry
        )
        self.session_ends = LabelledTally(
            "keepstep_session_ends",
            "Sessions by how they ended: bye, lost, stopped, fault, or an error code.",
            "reason",
            self.registry,
        )
        self.messages_received = LabelledTally(
            "keepstep_messages_received", "Messages received in sessions, by type.", "type", self.registry
        )
        self.received_bytes = self._tally("received_bytes", "Bytes of records received in sessions.")
        self.sent_records = self._tally("sent_records", "Records sent in sessions.")
        self.sent_bytes = self._tally("sent_bytes", "Bytes of records sent in sessions.")

    def _make_log_metrics(self) -> None:
        """Publishing and relaying."""
        self.events = LabelledTally(
            "keepstep_events",
            "Published events by what became of them: accepted, duplicate, or an error code.",
            "result",
            self.registry,
        )
        self.batch_events = self._histogram("batch_events", "Events in one append.", _EVENTS)
        self.append_seconds = self._histogram(
            "append_seconds", "One append to the log, commit included, seconds.", _SECONDS
        )
        self.ack_seconds = Distribution(
            "keepstep_ack_seconds",
            "From a submission's entry into its queue to its answer, seconds.",
            _SECONDS,
            self.registry,
        )
        self.submissions_waiting = self._gauge("submissions_waiting", "Submissions that wait for a pipeline.")
        self.suspects_held_back = self._counter(
            "suspects_held_back", "Publishes that waited or were refused because their devices sent bad signatures."
        )
        self.tail_bytes = self._gauge("tail_bytes", "Memory that the newest events of all streams take up.")
        self.cache_lookups = Lookups(
            "keepstep_cache_lookups",
            "What was asked of a cache, found or missing: heads (of streams) and devices (of users) by batches; tail: "
            "pages with events by sessions, of which the database answers what is missing.",
            self.registry,
        )
        self.database_away = self._gauge(
            "database_away", "1 while the database is not asked because it did not answer."
        )
        self.relayed_events = self._tally("relayed_events", "Events sent to sessions.")

    def _make_account_metrics(self) -> None:
        """Accounts, periodic work, administration."""
        self.registrations = self._counter(
            "registrations", "Registrations by how they ended: created, duplicate, or an error code.", ["result"]
        )
        self.tokens = self._counter(
            "tokens", "What became of REST tokens: issued, refreshed, refused, reused, revoked.", ["result"]
        )
        self.jobs = self._counter("jobs", "Runs of periodic jobs.", ["job", "result"])
        self.expired_payloads = self._counter("expired_payloads", "Payloads dropped because their TTL ran out.")
        self.pruned_events = self._counter("pruned_events", "Events that left their streams with a beginning.")
        self.pruned_rows = self._counter("pruned_rows", "Rows of pruned events removed one by one.")
        self.dropped_partitions = self._counter("dropped_partitions", "Partitions of events dropped as a whole.")
        self.oldest_event_seconds = self._gauge("oldest_event_seconds", "Age of the oldest event that may be pruned.")
        self.retention_overdue_seconds = self._gauge(
            "retention_overdue_seconds", "For how long the oldest event that should be gone is overdue."
        )
        self.pruned_rows_waiting = self._gauge("pruned_rows_waiting", "Rows of pruned events that wait to be removed.")
        self.compacted_payloads = self._counter("compacted_payloads", "Payloads dropped because they lost their key.")
        self.acked_payloads = self._counter(
            "acked_payloads", "Payloads dropped from inboxes after they were acknowledged."
        )
        self.partitions_made = self._counter("partitions_made", "Event partitions made ahead of time.")
        self.admin_calls = self._counter(
            "admin_calls", "Calls of /admin with the right key, by HTTP status.", ["status"]
        )
        self.admin_refusals = self._counter("admin_refusals", "Calls of /admin refused for their key.")

    def _make_backup_metrics(self) -> None:
        """Backups."""
        self.backup_last_timestamp = self._gauge(
            "backup_last_timestamp_seconds", "When the newest backup was begun, unix seconds; 0: there is none."
        )
        self.backup_last_bytes = self._gauge("backup_last_bytes", "Size of the newest backup on the disk.")
        self.backup_last_seconds = self._gauge("backup_last_seconds", "How long making the newest backup took.")
        self.backup_verified_timestamp = self._gauge(
            "backup_verified_timestamp_seconds",
            "When the newest backup was begun that was restored and verified, unix seconds; 0: there is none.",
        )
        self.backup_verified_age_seconds = self._gauge(
            "backup_verified_age_seconds", "Seconds since the newest verified backup was begun; +Inf: there is none."
        )
        self.backup_wal_timestamp = self._gauge(
            "backup_wal_timestamp_seconds", "When the write-ahead log was last kept in the backups, unix seconds."
        )
        self.backup_wal_gap = self._gauge(
            "backup_wal_gap",
            "1: write-ahead log since the newest backup is missing, and nothing after it can be restored; 0: none is.",
        )
        self.backup_wal_bytes = self._counter("backup_wal_bytes", "Bytes written of kept write-ahead log.")
        self.backup_failures = self._counter(
            "backup_failures", "What failed of backups, by step: make, verify, wal, journal.", ["step"]
        )

    def _make_storage_metrics(self) -> None:
        """The database's size, its clean-up, and the disks."""
        self.disk_free_bytes = self._gauge(
            "disk_free_bytes", "Bytes free on the disk of a directory: data (with the journal), backups.", ["place"]
        )
        self.publishing_stopped = self._gauge(
            "publishing_stopped", "1 while publishing is answered unavailable because a disk is nearly full."
        )
        self.database_bytes = self._gauge("database_bytes", "Size of the database.")
        self.database_growth_bytes = self._gauge(
            "database_growth_bytes", "Growth of the database in bytes a day, over the last day or since the start."
        )
        self.table_bytes = self._gauge("table_bytes", "Size of a table with indexes and partitions.", ["table"])
        self.table_rows = self._gauge("table_rows", "Rows of a table, as the database estimates.", ["table"])
        self.table_dead_rows = self._gauge(
            "table_dead_rows", "Rows of a table that vacuum has still to free, as the database estimates.", ["table"]
        )
        self.oldest_event_timestamp = self._gauge(
            "oldest_event_timestamp_seconds",
            "Where the oldest partition of application events with rows begins, unix seconds; 0: there is none.",
        )
        self.cleaned_up_rows = self._counter("cleaned_up_rows", "Rows that clean-up dropped, by step.", ["step"])
        self.clean_up_done_timestamp = self._gauge(
            "clean_up_done_timestamp_seconds",
            "When a step of clean-up last left nothing to do on this node, unix seconds; older: it lags behind.",
            ["step"],
        )

    def _make_archive_metrics(self) -> None:
        """The archive."""
        self.archived_events = self._counter("archived_events", "Events written to the archive.")
        self.archive_segments = self._gauge("archive_segments", "Segments in the archive.")
        self.archive_bytes = self._gauge("archive_bytes", "Size of the segments in the archive.")
        self.archive_overdue_seconds = self._gauge(
            "archive_overdue_seconds",
            "For how long the oldest event that should be in the archive is overdue; nothing of it is pruned before.",
        )
        self.archive_read_events = self._counter("archive_read_events", "Events read out of the archive for readers.")
        self.archive_failures = self._counter(
            "archive_failures",
            "What failed: write, read and erase of segments, or verify, of events that are not archived because they "
            "are not as they were signed.",
            ["step"],
        )

    def _make_server_metrics(self) -> None:
        """REST, and the server as a whole."""
        self.clock_offset_seconds = self._gauge(
            "clock_offset_seconds", "The database's clock minus this machine's, seconds."
        )
        self.rest_requests = self._counter("rest_requests", "REST requests.", ["method", "route", "status"])
        self.rest_seconds = self._histogram("rest_seconds", "REST requests, seconds.", _SECONDS, ["route"])
        self.faults = self._counter("faults", "Connections and requests ended by a fault of this server.")
        self.draining = self._gauge("draining", "1 while the server is going down.")
        self.unsafe = self._gauge("unsafe", "1 where the server was told to go on although commits are not durable.")

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"keepstep_{name}", text, labels, registry=self.registry)

    def _tally(self, name: str, text: str) -> Tally:
        return Tally(f"keepstep_{name}", text, self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"keepstep_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(f"keepstep_{name}", text, labels, registry=self.registry, buckets=buckets)

    def appended(self, events: int, seconds: float) -> None:
        """One append was committed."""
        self.batch_events.observe(events)
        self.append_seconds.observe(seconds)

    def answered_together(self, seconds: Sequence[float], counts: Mapping[str, int]) -> None:
        """Submissions were answered: after so long each, and so many of their events by result."""
        self.ack_seconds.observe_all(seconds)
        for result, events in counts.items():
            self.events.count(result, events)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def reference(self) -> str:
        """``docs/reference/metrics.md``: every metric and log field, from this file."""
        lines = ["# Metrics and log fields", "", "`GET /metrics` of the REST port; logs go to standard error.", ""]
        lines += ["## Metrics", "", "| name | type | labels | meaning |", "|---|---|---|---|"]
        for name, kind, labels, text in sorted(self._all()):
            full = f"{name}_total" if kind == "counter" else name
            lines.append(f"| `{full}` | {kind} | {', '.join(labels)} | {text} |")
        lines += ["", "## Log fields", "", "A log line has no other fields.", "", "| name | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in LOG_FIELDS.items()]
        return "\n".join(lines) + "\n"

    def _all(self) -> list[tuple[str, str, Sequence[str], str]]:
        """Name, type, labels and meaning of every metric."""
        found: list[tuple[str, str, Sequence[str], str]] = []
        for each in vars(self).values():
            if isinstance(each, (Counter, Gauge, Histogram)):
                found.append((each._name, each._type, each._labelnames, each._documentation))
            elif isinstance(each, (Tally, LabelledTally, Lookups, Distribution)):
                found.append((each.name, each.kind, each.labels, each.text))
        return found


class BoundedLines:
    """Log lines that strangers cause: so many in an interval, the rest only counted.

    Args:
        logger: where they go.
        lines_max: in an interval.
        interval_s: its length, seconds.
    """

    def __init__(
        self, logger: Log, *, lines_max: int = STRANGERS_LINES_MAX, interval_s: float = STRANGERS_LINES_S
    ) -> None:
        self._logger = logger
        self._lines_max = lines_max
        self._interval_s = interval_s
        self._since_s = -math.inf
        self._lines = 0
        self._left_out = 0

    def write(self, event: str, *, now_s: float, **fields: object) -> None:
        """Write or count one line; the first of an interval comes after how many the one before left out.

        Args:
            event: what happened, the same for all lines of this object.
            now_s: of any clock that does not go back.
            fields: of ``LOG_FIELDS``.
        """
        if now_s - self._since_s >= self._interval_s:
            if self._left_out:
                self._logger.info(event, count=self._left_out, detail="lines like this were left out")
            self._since_s, self._lines, self._left_out = now_s, 0, 0
        if self._lines >= self._lines_max:
            self._left_out += 1
            return
        self._lines += 1
        self._logger.info(event, **fields)


def configure_logging(level: Literal["debug", "info", "warning", "error"], form: Literal["console", "json"]) -> Log:
    """The server's log, to standard error; also takes what libraries log, from warnings up.

    Args:
        level: the least severe line that is written.
        form: for people or for machines.
    """
    renderer: Callable[..., Any] = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_known_fields,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    log: Log = structlog.get_logger()
    root = logging.getLogger()
    root.handlers = [_LibraryHandler(log)]
    root.setLevel(logging.WARNING)
    return log


def _only_known_fields(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Whatever is not in the list, or is bytes, does not leave."""
    kept = {"event", "level", "timestamp", *LOG_FIELDS}
    return {name: value for name, value in fields.items() if name in kept and not isinstance(value, (bytes, bytearray))}


class _LibraryHandler(logging.Handler):
    """Libraries' own log records: who logged and how bad, never their text, which may repeat what a peer sent."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = describe(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        self._log.warning("library", detail=f"{record.name}: {record.levelname.lower()} in {record.funcName}", **error)


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as the fields ``error`` and ``frames``."""
    text = str(error) if isinstance(error, KeepstepError) else ""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    name = type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        name = f"{name} of {', '.join(sorted({type(one).__name__ for one in error.exceptions}))}"
    return {
        "error": f"{name}: {text}" if text else name,
        "frames": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    }

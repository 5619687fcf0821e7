"""``keepstep admin …``: administration of a running server, over its ``/admin`` with the administration key.

The key is taken from ``ADMIN_API_KEY`` (or ``KEEPSTEP_ADMIN_API_KEY``), never from an argument, which other users of
the machine could read. Tables are for people; ``--json`` prints what the server answered, for programs.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
import trio
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keepstep.account_file import CONTENT_TYPE as ACCOUNT_FILE
from keepstep.client.http import raise_for_problem, request
from keepstep.client.server import DEFAULT_REST_URL
from keepstep.errors import ClientError, ProtocolError
from keepstep.settings import units

KEY_VARIABLES: Final = ("KEEPSTEP_ADMIN_API_KEY", "ADMIN_API_KEY")
PAGE_LIMIT: Final = 500
"""Entries asked for at a time."""
ENTRIES_MAX_DEFAULT: Final = 100
RESPONSE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Largest answer taken, bytes: a page of entries."""
PIPED_WIDTH: Final = 400
"""Characters in a line where nobody looks at it on a terminal: ids are not broken."""
DAY_S: Final = 24 * 60 * 60
IMPORT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest account file that a server takes over REST."""
IMPORT_TIMEOUT_S: Final = 900.0
"""As long as the server may take for the file to arrive and to be read in, seconds."""

Json = dict[str, Any]
Column = tuple[str, Callable[[Json], object]]


class _Server:
    """The running server, as an administrator asks it.

    Args:
        url: of its REST.
        as_json: whether answers are printed as they are.
    """

    def __init__(self, url: str, *, as_json: bool) -> None:
        self._url = url.rstrip("/")
        self.as_json = as_json

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Ask once; the answer, empty where there is none. Raises as ``send``."""
        if body is None:
            return self.send(method, path, b"", None)
        return self.send(method, path, json.dumps(body).encode(), "application/json")

    def send(
        self, method: str, path: str, body: bytes, content_type: str | None, *, within_s: float | None = None
    ) -> Json:
        """Ask once, with a body of that type, and have the answer within so many seconds.

        Raises:
            ClientError: the server cannot be reached, or refuses; the message says what to do.
        """
        key = next(filter(None, map(os.environ.get, KEY_VARIABLES)), None)
        if key is None:
            raise ClientError("set ADMIN_API_KEY to the server's administration key")
        if not (key.isascii() and key.isprintable()):
            raise ClientError("ADMIN_API_KEY holds characters that no administration key has")

        async def ask() -> Json:
            response = await request(
                method,
                self._url + path,
                body=body,
                content_type=content_type,
                headers={"Authorization": f"Bearer {key}"},
                response_bytes_max=RESPONSE_BYTES_MAX,
                within_s=within_s,
            )
            try:
                raise_for_problem(response)
            except ProtocolError as error:
                raise ClientError(_explain(error.code, response.body)) from error
            try:
                return dict(json.loads(response.body)) if response.body else {}
            except (ValueError, TypeError, RecursionError) as error:
                raise ClientError(f"what answers at {self._url} is not a keepstep server") from error

        return trio.run(ask)

    def pages(self, path: str, name: str, *, limit: int, query: Mapping[str, str]) -> Iterator[Json]:
        """The entries of a list, page by page, at most ``limit``."""
        cursor: dict[str, str] = {}
        while limit > 0:
            asked = {**query, "limit": str(min(limit, PAGE_LIMIT)), **cursor}
            answer = self.call("GET", f"{path}?{urlencode(asked)}")
            yield from answer[name]
            limit -= len(answer[name])
            if answer["next_cursor"] is None:
                return
            cursor = {"cursor": answer["next_cursor"]}

    def show_list(self, path: str, name: str, columns: Sequence[Column], *, limit: int, **query: str) -> None:
        """Print a list."""
        entries = list(self.pages(path, name, limit=limit, query=query))
        if self.as_json:
            click.echo(json.dumps(entries, indent=2))
            return
        table = Table(*(title for title, _ in columns), box=SIMPLE)
        for entry in entries:
            table.add_row(*(Text(_shown(value(entry)), no_wrap=True) for _, value in columns))
        _print(table)
        if len(entries) == limit:
            click.echo(f"the first {limit}; more with --limit", err=True)

    def show(self, answer: Json, columns: Sequence[Column]) -> None:
        """Print one thing."""
        if self.as_json:
            click.echo(json.dumps(answer, indent=2))
            return
        table = Table(box=None, show_header=False)
        for title, value in columns:
            table.add_row(Text(title), Text(_shown(value(answer)), no_wrap=True))
        _print(table)


def _explain(code: str, problem: bytes) -> str:
    """A refusal in words that help; ``problem`` is its problem document."""
    detail = json.loads(problem).get("detail")
    return {
        "invalid_token": "the server refuses ADMIN_API_KEY: it is another key than the server's",
        "rate_limited": "too many calls, or too many wrong keys from here: try again in a minute",
        "unexpected": "the next server key is announced already; it takes over first",
        "not_found": "there is no such thing; or the server was started without ADMIN_API_KEY and has no /admin",
    }.get(code, f"the server refuses: {code}" + (f": {_shown(detail)}" if detail else ""))


def _print(table: Table) -> None:
    """On a terminal as wide as it is, elsewhere as wide as it takes."""
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def _shown(value: object) -> str:
    """A cell; nothing in it steers a terminal."""
    text = "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text.isprintable() else ascii(text)


def _field(name: str) -> Callable[[Json], object]:
    return lambda entry: entry[name]


def _time(name: str) -> Callable[[Json], object]:
    """A moment, in UTC."""

    def shown(entry: Json) -> object:
        at_ms = entry[name]
        return None if at_ms is None else f"{dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC):%Y-%m-%d %H:%M:%S}"

    return shown


_USER: Final[Sequence[Column]] = (
    ("user", _field("user_id")),
    ("made", _time("created_at_ms")),
    ("disabled", _time("disabled_at_ms")),
    ("devices", _field("devices")),
    ("streams", _field("streams")),
    ("streams quota", lambda user: user["quota"]["streams_max"]),
    ("devices quota", lambda user: user["quota"]["devices_max"]),
    ("bytes", _field("stored_bytes")),
    ("bytes quota", lambda user: user["quota"]["bytes_max"]),
    ("retention days", lambda user: user["quota"]["retention_days"]),
)
_DEVICE: Final[Sequence[Column]] = (
    ("device", _field("device_id")),
    ("may", _field("capabilities")),
    ("enrolled", _time("issued_at_ms")),
    ("expires", _time("expires_at_ms")),
    ("revoked", _time("revoked_at_ms")),
    ("last seen", _time("last_seen_ms")),
)
_STREAM: Final[Sequence[Column]] = (
    ("stream", _field("stream")),
    ("events", lambda stream: stream["head"]["seq"]),
    ("bytes", _field("stored_bytes")),
    ("policy", _field("policy")),
    ("retention", _field("retention_class")),
)
_SESSION: Final[Sequence[Column]] = (
    ("session", _field("session_id")),
    ("user", _field("user_id")),
    ("device", _field("device_id")),
    ("opened", _time("opened_at_ms")),
)
_INVITE: Final[Sequence[Column]] = (
    ("invite", _field("invite_id")),
    ("note", _field("note")),
    ("expires", _time("expires_at_ms")),
    ("used", _time("used_at_ms")),
    ("by", _field("used_by")),
)
_AUDIT: Final[Sequence[Column]] = (
    ("at", _time("at_ms")),
    ("action", _field("action")),
    ("target", _field("target")),
    ("status", _field("status")),
    ("address", _field("address")),
    ("request", _field("request_id")),
)
_STATISTICS: Final = tuple(
    (name.replace("_", " "), _field(name))
    for name in ("users", "disabled_users", "devices", "streams", "events", "open_sessions", "database_bytes")
)

limit_option = click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=ENTRIES_MAX_DEFAULT,
    show_default=True,
    help="Most entries shown.",
)
pass_server = click.make_pass_decorator(_Server)


def _take_json(context: click.Context, _option: click.Parameter, given: bool) -> None:
    server = context.find_object(_Server)
    if given and server is not None:
        server.as_json = True


class _Command(click.Command):
    """A command that takes ``--json`` after its name as the group takes it before."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_take_json, help="Print what the server answers."
            )
        )


def _default_url() -> str:
    """The server on this machine, on the port that its own setting names."""
    port = os.environ.get("KEEPSTEP_REST_PORT")
    return f"http://127.0.0.1:{port}" if port else DEFAULT_REST_URL


class _Group(click.Group):
    command_class = _Command


@click.group("admin", cls=_Group)
@click.option(
    "--server",
    "url",
    metavar="URL",
    default=_default_url,
    show_default="http://127.0.0.1 and KEEPSTEP_REST_PORT, else 8440",
    help="Where the server answers REST.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the server answers.")
@click.pass_context
def admin(context: click.Context, url: str, as_json: bool) -> None:
    """Administrate a running server. ADMIN_API_KEY in the environment opens it."""
    context.obj = _Server(url, as_json=as_json)


def _user_path(user_id: str, rest: str = "") -> str:
    return f"/admin/users/{quote(user_id, safe='')}{rest}"


@admin.command()
@limit_option
@pass_server
def users(server: _Server, limit: int) -> None:
    """List the accounts."""
    server.show_list("/admin/users", "users", _USER, limit=limit)


@admin.command()
@click.argument("user_id")
@pass_server
def user(server: _Server, user_id: str) -> None:
    """Show one account."""
    server.show(server.call("GET", _user_path(user_id)), _USER)


@admin.command()
@click.argument("user_id")
@pass_server
def disable(server: _Server, user_id: str) -> None:
    """Let nothing of an account in any more.

    What it has stays; `enable` lets it in again.
    """
    server.show(server.call("PATCH", _user_path(user_id), {"disabled": True}), _USER)


@admin.command()
@click.argument("user_id")
@pass_server
def enable(server: _Server, user_id: str) -> None:
    """Let an account in again."""
    server.show(server.call("PATCH", _user_path(user_id), {"disabled": False}), _USER)


def _bytes_of(text: str) -> int:
    """A size as settings take it. Raises click.BadParameter."""
    number = units.parse("bytes", text)
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if not isinstance(number, int):
        raise click.BadParameter("a size is a number of bytes, or one with B, KiB, MiB, GiB or TiB behind it")
    return number


@admin.command()
@click.argument("user_id")
@click.option("--streams", type=int, help="Most streams, $devices and $keys among them; the server's limit by default.")
@click.option("--devices", type=int, help="Most live devices; the server's limit by default.")
@click.option(
    "--bytes",
    "bytes_",
    metavar="SIZE",
    callback=lambda _context, _parameter, text: None if text is None else _bytes_of(text),
    help="Most bytes outside $devices and $keys, as 500MiB; the server's limit by default.",
)
@click.option("--retention-days", type=int, help="Days for which its events stay; the server's by default.")
@pass_server
def quota(
    server: _Server,
    user_id: str,
    streams: int | None,
    devices: int | None,
    bytes_: int | None,
    retention_days: int | None,
) -> None:
    """Say what an account may have. What is not named goes back to the server's own limit."""
    body = {"streams_max": streams, "devices_max": devices, "bytes_max": bytes_, "retention_days": retention_days}
    answer = server.call("PUT", _user_path(user_id, "/quota"), body)
    columns = (
        ("streams", _field("streams_max")),
        ("devices", _field("devices_max")),
        ("bytes", _field("bytes_max")),
        ("retention days", _field("retention_days")),
    )
    server.show(answer, columns)


@admin.command()
@click.argument("user_id")
@limit_option
@pass_server
def devices(server: _Server, user_id: str, limit: int) -> None:
    """List the devices of an account."""
    server.show_list(_user_path(user_id, "/devices"), "devices", _DEVICE, limit=limit)


@admin.command()
@click.argument("user_id")
@limit_option
@pass_server
def streams(server: _Server, user_id: str, limit: int) -> None:
    """List the streams of an account and their sizes."""
    server.show_list(_user_path(user_id, "/streams"), "streams", _STREAM, limit=limit)


@admin.command("import-account")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--verify", is_flag=True, help="Only verify the file.")
@pass_server
def import_account(server: _Server, file: Path, verify: bool) -> None:
    """Read in an account of another server.

    This one goes on meanwhile. Nothing is stored unless all of it verifies. May be repeated, also with a newer file.
    """
    if file.stat().st_size > IMPORT_BYTES_MAX:
        raise ClientError(
            f"{file} is larger than {IMPORT_BYTES_MAX // 1024 // 1024} MiB: read it in on the server's machine, with "
            "`keepstep import-account`"
        )
    path = f"/admin/accounts/import?verify_only={json.dumps(verify)}"
    answer = server.send("POST", path, file.read_bytes(), ACCOUNT_FILE, within_s=IMPORT_TIMEOUT_S)
    columns = (
        ("user", _field("user_id")),
        ("streams", _field("streams")),
        ("events that verify", _field("events")),
        ("new here", _field("stored")),
    )
    server.show(answer, columns)


@admin.command()
@click.option("--user", "user_id", metavar="USER_ID", help="Of this account; of all by default.")
@limit_option
@pass_server
def sessions(server: _Server, user_id: str | None, limit: int) -> None:
    """List the open sessions."""
    query = {} if user_id is None else {"user_id": user_id}
    server.show_list("/admin/sessions", "sessions", _SESSION, limit=limit, **query)


@admin.command()
@click.argument("session_id")
@pass_server
def cut(server: _Server, session_id: str) -> None:
    """End a session; its device may connect again."""
    server.call("DELETE", f"/admin/sessions/{quote(session_id, safe='')}")


@admin.command()
@limit_option
@pass_server
def invites(server: _Server, limit: int) -> None:
    """List the invites to register."""
    server.show_list("/admin/invites", "invites", _INVITE, limit=limit)


@admin.command()
@click.option("--note", default="", help="A reminder whom it is for.")
@click.option("--days", type=click.IntRange(1, 365), default=7, show_default=True, help="How long it is good for.")
@pass_server
def invite(server: _Server, note: str, days: int) -> None:
    """Make an invite for one account. Its code is shown this once."""
    answer = server.call("POST", "/admin/invites", {"note": note, "lifetime_s": days * DAY_S})
    columns = (("code", _field("code")), ("invite", _field("invite_id")), ("expires", _time("expires_at_ms")))
    server.show(answer, columns)


@admin.command("delete-invite")
@click.argument("invite_id")
@pass_server
def delete_invite(server: _Server, invite_id: str) -> None:
    """Take an invite back."""
    server.call("DELETE", f"/admin/invites/{quote(invite_id, safe='')}")


@admin.command()
@limit_option
@pass_server
def audit(server: _Server, limit: int) -> None:
    """Show what administrators did, the newest first."""
    server.show_list("/admin/audit", "entries", _AUDIT, limit=limit)


@admin.command()
@pass_server
def statistics(server: _Server) -> None:
    """Show what the server holds."""
    server.show(server.call("GET", "/admin/statistics"), _STATISTICS)


@admin.command()
@pass_server
def retention(server: _Server) -> None:
    """Show what is removed when, and the state of backups."""
    columns: Sequence[Column] = (
        ("events are kept", lambda state: _days(state["events_days"])),
        ("calls of administrators", lambda state: _days(state["audit_days"])),
        ("newest backup", lambda state: "none by this server" if state["backup"] is None else _backup(state)),
        ("newest that was verified", lambda state: state["backup"] and _time("verified_at_ms")(state["backup"])),
    )
    server.show(server.call("GET", "/admin/retention"), columns)


def _days(days: int | None) -> str:
    return "for ever" if days is None else f"{days} days"


def _backup(state: Json) -> object:
    return _time("at_ms")(state["backup"])


@admin.command()
@pass_server
def keys(server: _Server) -> None:
    """Show the server's keys."""
    columns: Sequence[Column] = (
        ("server key", _field("server_key")),
        ("next server key", lambda shown: "none" if shown["successor"] is None else shown["successor"]["server_key"]),
        ("token keys", _field("token_keys")),
    )
    server.show(server.call("GET", "/admin/keys"), columns)


@admin.command("announce-server-key")
@click.option("--from-days", default=7, show_default=True, type=click.IntRange(0, 3650), help="When it may take over.")
@click.option("--overlap-days", default=90, show_default=True, type=click.IntRange(1, 3650), help="Both are accepted.")
@pass_server
def announce_server_key(server: _Server, from_days: int, overlap_days: int) -> None:
    """Make the next server key and announce it.

    Devices are told at once. Restart the server after --from-days to have it take over.
    """
    body = {"from_days": from_days, "overlap_days": overlap_days}
    columns = (("next server key", _field("server_key")), ("from", _time("from_ms")), ("both until", _time("until_ms")))
    server.show(server.call("POST", "/admin/keys/server/announce", body), columns)


@admin.command("rotate-token-key")
@click.option("--stolen", is_flag=True, help="Refuse at once everything signed with the keys so far.")
@pass_server
def rotate_token_key(server: _Server, stolen: bool) -> None:
    """Let a new key sign access tokens."""
    server.show(server.call("POST", "/admin/keys/tokens/rotate", {"stolen": stolen}), (("key", _field("kid")),))

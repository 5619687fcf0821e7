"""The commands of a device: ``keepstep device new | device list | publish | tail | token``.

Devices live in ``$KEEPSTEP_HOME`` (``~/.local/share/keepstep`` by default): ``devices/NAME.sqlite3``, one file each,
and ``recovery-NAME.txt`` for the user that the device NAME began. Errors are ``KeepstepError``, which ``keepstep.cli``
prints.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from keepstep.client import accounts, device, restdevice, server
from keepstep.client.listing import list_devices_of
from keepstep.client.notices import describe_day, describe_notice
from keepstep.client.recovery import COST, PASSPHRASE_CHARACTERS_MIN, Cost
from keepstep.client.safekeeping import Safekeeping
from keepstep.client.store import open_store
from keepstep.client.worker import open_nursery
from keepstep.errors import ClientError, KeepstepError, ProtocolError, StoreError
from keepstep.model import Capability

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.client.device import Device
    from keepstep.client.listing import DeviceInfo
    from keepstep.client.publication import Publication, Receipt
    from keepstep.client.store import Store
    from keepstep.client.subscription import Event

EXIT_WAITING: Final = 75
"""``EX_TEMPFAIL``: the event is safe in the outbox, the server has not got it yet."""
SERVER_WAIT_S: Final = 10.0
"""How long ``publish`` waits for the server before it leaves the event in the outbox, seconds."""
STDIN: Final = 0
READ_BYTES: Final = 16 * 1024
NOTICES_SHOWN: Final = 5
"""Notices in the list of devices: the newest."""
SUFFIX: Final = ".sqlite3"
_NAME: Final = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_STEERING: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but the tab, and what turns the direction of a line."""


def program() -> str:
    """How this program was called, so that what is printed can be copied."""
    return click.get_current_context().find_root().info_name or "keepstep"


def home() -> Path:
    """Where this user's devices are."""
    return Path(os.environ.get("KEEPSTEP_HOME") or Path.home() / ".local" / "share" / "keepstep")


def device_path(name: str) -> Path:
    """The file of a device.

    Raises:
        ClientError: that is no name for a device here.
    """
    if not _NAME.match(name):
        raise ClientError(f"{name!r} is no name for a device: use letters, digits and . _ -, at most 64, no sign first")
    return home() / "devices" / f"{name}{SUFFIX}"


def device_names() -> list[str]:
    """The devices on this machine."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (home() / "devices").glob(f"*{SUFFIX}"))


def choose(name: str | None) -> Path:
    """The file of the named device, or of the only one."""
    if name is not None:
        path = device_path(name)
        if not path.is_file():
            raise ClientError(f"there is no device {name} here; there are: {', '.join(device_names()) or 'none'}")
        return path
    names = device_names()
    if not names:
        raise ClientError(f"there is no device here yet: make one with `{program()} device new NAME`")
    if len(names) > 1:
        raise ClientError(f"which device? say --device with one of: {', '.join(names)}")
    return device_path(names[0])


@click.group()
def commands() -> None:
    """The commands of a device."""


@commands.group("device")
def device_group() -> None:
    """The devices of a user on this machine.

    They are in $KEEPSTEP_HOME, ~/.local/share/keepstep where that is not set.
    """


device_option = click.option(
    "--device",
    "name",
    metavar="NAME",
    envvar="KEEPSTEP_DEVICE",
    show_envvar=True,
    help="Which device; the only one by default.",
)


# -- device new -------------------------------------------------------------------------------------------------------


@device_group.command("new")
@click.argument("name")
@click.option("--by", metavar="OTHER", help="Enrol it by this device, for the same user.")
@click.option("--new-user", is_flag=True, help="Begin another user although there are devices here.")
@click.option("--server", "address", metavar="ADDRESS", help="ws://host:port/v1/connect#key, or http(s)://host:port.")
@click.option("--rest", "rest_url", metavar="URL", help="Where a ws:// server has its REST, if not beside it.")
@click.option("--recovery", "recovery_path", type=click.Path(path_type=Path), help="Where the recovery file goes.")
@click.option("--invite", metavar="CODE", help="The code of an invite, where the server asks for one.")
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the recovery file's passphrase from the first line; asked for otherwise.",
)
@click.option(
    "--manage",
    is_flag=True,
    help="With --by: the new device may enrol and revoke others; a third such device after 24 hours.",
)
def device_new(
    name: str,
    by: str | None,
    new_user: bool,
    address: str | None,
    rest_url: str | None,
    recovery_path: Path | None,
    invite: str | None,
    passphrase_file: Path | None,
    manage: bool,
) -> None:
    """Make a device: a new user's first, or with --by another.

    The first one also makes the user's recovery file, recovery-NAME.txt beside the devices unless --recovery says
    otherwise. Without --server it looks for a server on this machine.
    """
    path = device_path(name)
    if path.exists():
        raise ClientError(f"there is a device {name} here already; if it was revoked, delete {path} to use its name")
    if by is not None:
        if new_user or address or rest_url or recovery_path or invite or passphrase_file:
            raise click.UsageError("with --by, user and server are those of that device: only --manage goes with it")
        capabilities = Capability.PUBLISH | Capability.SUBSCRIBE | (Capability.MANAGE if manage else Capability(0))
        trio.run(_enrol, choose(by), path, name, capabilities)
        click.echo(f"device {name} is enrolled. Try: {program()} tail notes --device {name}")
        return
    if manage:
        raise click.UsageError("--manage goes with --by only: the first device of a user may always enrol others")
    if device_names() and not new_user:
        raise ClientError(
            f"there are devices here already: {', '.join(device_names())}. Say --by with one of them to give its user "
            "another device, or --new-user to begin another user"
        )
    recovery_path = recovery_path or home() / f"recovery-{name}.txt"
    found = _find_server(address, rest_url)
    click.echo(f"server    {found}")
    passphrase = ask_passphrase(passphrase_file, is_new=True)
    for directory in (home(), path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    trio.run(
        functools.partial(
            accounts.create_user,
            found,
            path=path,
            name=name,
            recovery_path=recovery_path,
            passphrase=passphrase,
            cost=cost(),
            invite=invite,
        )
    )
    click.echo(f"device    {path}\n          It holds secret keys; only you can read it.")
    click.echo(
        f"recovery  {recovery_path}\n          Keep it and its passphrase elsewhere: it alone replaces lost devices."
    )
    click.echo(f"\nNext: {program()} device new phone --by {name}")


def _find_server(address: str | None, rest_url: str | None) -> server.Server:
    if address is not None:
        return trio.run(functools.partial(server.find_server, address, rest_url=rest_url))
    try:
        return trio.run(server.find_server)
    except ClientError as exc:
        raise ClientError(f"{exc}. Start a server with `{program()} serve`, or name one with --server") from exc


def cost() -> Cost:
    """What a guess of the passphrase costs."""
    return COST


def ask_passphrase(file: Path | None, *, is_new: bool) -> str:
    """The passphrase of a recovery file: from a file, or asked for; a new one twice."""
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except UnicodeDecodeError as exc:
            raise ClientError(f"{file} is not UTF-8 text") from exc
    try:
        return str(
            click.prompt(
                f"Passphrase for the recovery file (at least {PASSPHRASE_CHARACTERS_MIN} characters)"
                if is_new
                else "Passphrase of the recovery file",
                hide_input=True,
                confirmation_prompt=is_new,
                value_proc=_long_enough if is_new else None,
            )
        )
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise ClientError(
            "nobody is here to ask for a passphrase: name a file that has it, --passphrase-file"
        ) from None


def _long_enough(passphrase: str) -> str:
    """Ask again at once, not after it was typed twice."""
    if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
        raise click.BadParameter(f"fewer than {PASSPHRASE_CHARACTERS_MIN} characters")
    return passphrase


async def _enrol(by: Path, path: Path, name: str, capabilities: Capability) -> None:
    async with device.open_device(by) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(report_trouble, manager)
        await manager.enrol(path, name, capabilities=capabilities)
        nursery.cancel_scope.cancel()


# -- device list ------------------------------------------------------------------------------------------------------


@device_group.command("list")
def device_list() -> None:
    """The devices on this machine."""
    names = device_names()
    if not names:
        click.echo(f"no devices here yet: make one with `{program()} device new NAME`")
    for name in names:
        for line in _describe(name, device_path(name)):
            click.echo(line)


def _describe(name: str, path: Path) -> list[str]:
    """A line for the device, and one for each notice that its user should know of."""
    try:
        store = open_store(path)
    except StoreError as exc:
        return [f"{name:20}  {'in use by another keepstep' if 'in use' in str(exc) else exc}"]
    try:
        if store.revoked_at_ms() is not None:
            return [f"{name:20}  revoked: its keys are gone"]
        devices = list_devices_of(store)
        notices = [f"  {describe_notice(each, devices, program())}" for each in store.notices()[-NOTICES_SHOWN:]]
        others = _others(store, devices)
        also = [f"  elsewhere: {', '.join(others)}"] if others else []
        return [f"{name:20}  {_state(store)}", *also, *notices]
    finally:
        store.close()


def _others(store: Store, devices: Sequence[DeviceInfo]) -> list[str]:
    """The live devices of the same user that are not on this machine, as far as their names tell."""
    here = {store.identity.name, *device_names()}
    seen = store.seen()
    names = [(each.name or each.device_id.hex(), seen.get(each.device_id)) for each in devices if each.ended is None]
    return [_with_last_seen(name, seen_ms) for name, seen_ms in names if name not in here]


def _with_last_seen(name: str, seen_ms: int | None) -> str:
    return name if seen_ms is None else f"{name} (the server saw it last {describe_day(seen_ms)})"


def _state(store: Store) -> str:
    identity = store.identity
    may = "+".join((capability.name or "").lower() for capability in identity.capabilities)
    waiting = store.row("SELECT count(*) FROM outbox")[0]
    fallen = sum(each.events for each in Safekeeping(store).fallen())
    unsafe = f"  {fallen} let go before a backup had them" if fallen else ""
    return f"user {identity.user_key.hex()[:16]}  {may}  {identity.device_url}  {waiting} waiting to be sent{unsafe}"


# -- publish ----------------------------------------------------------------------------------------------------------


@commands.command("publish")
@click.argument("stream")
@click.argument("text")
@device_option
def publish(stream: str, text: str, name: str | None) -> None:
    """Publish TEXT into STREAM.

    Where TEXT is -, each line of standard input is published. Prints the place of each event once the server has it on
    its disk.

    Exit code 75: the server cannot be reached; the text is safe in the outbox and goes out the next time.
    """
    sys.exit(trio.run(_publish, choose(name), stream, text))


async def _publish(path: Path, stream: str, text: str) -> int:
    async with device.open_device(path) as opened:
        with trio.move_on_after(SERVER_WAIT_S) as scope:
            await opened.wait_until_ready()
        if scope.cancelled_caught:
            why = opened.last_problem or "no answer"
            raise ClientError(f"nothing is published: a new device has to reach its server once before it can ({why})")
        # Bounded by the outbox: what is acknowledged is printed and gone.
        waiting, acknowledged = trio.open_memory_channel["Publication"](math.inf)
        patience = trio.CancelScope()
        async with open_nursery() as nursery:
            nursery.start_soon(_put_into_outbox, opened, stream, text, waiting, patience)
            with patience:
                async for publication in acknowledged:
                    receipt = await _accepted(opened, publication)
                    click.echo(f"{stream} #{receipt.seq}")
        if patience.cancelled_caught:
            click.echo(f"keepstep: not sent yet ({_reason(opened)}); it is in the outbox", err=True)
            return EXIT_WAITING
    return 0


def _reason(opened: Device) -> str:
    """Why what is in the outbox has no answer yet."""
    if opened.last_problem:
        return opened.last_problem
    if opened.is_healing:
        return "the server was restored and waits for your other devices"
    return opened.postponed or "no answer"


async def _accepted(opened: Device, publication: Publication) -> Receipt:
    """Wait for the receipt; where the server does not let the device in, say that the text is not lost."""
    try:
        return await publication.accepted()
    except KeepstepError as exc:
        is_wiped = isinstance(exc, ProtocolError) and exc.code == "revoked"
        if opened.failure is not None and not is_wiped:
            click.echo("keepstep: not sent; it is in the outbox and goes out once the device is let in", err=True)
        raise


async def _put_into_outbox(
    opened: Device, stream: str, text: str, out: trio.MemorySendChannel[Publication], patience: trio.CancelScope
) -> None:
    """Publish everything; when it is in the outbox, the acknowledgements get a limited time."""
    # What is no UTF-8 comes from the shell as surrogates, and is published as it was typed.
    lines, rest = await _lines(b"") if text == "-" else ([text.encode(errors="surrogateescape")], None)
    with out:
        while True:
            for publication in await opened.publish_many(stream, lines):
                out.send_nowait(publication)
            if rest is None:
                break
            lines, rest = await _lines(rest)
    patience.deadline = trio.current_time() + SERVER_WAIT_S


async def _lines(rest: bytes) -> tuple[list[bytes], bytes | None]:
    """The lines of standard input that are there at once, and the beginning of the next one; ``None`` at the end."""
    chunk = await _read_input()
    if not chunk:
        return [rest] if rest else [], None
    *lines, rest = (rest + chunk).split(b"\n")
    return [line.rstrip(b"\r") for line in lines], rest


async def _read_input() -> bytes:
    """What standard input has, ``b""`` at its end. A cancellation does not wait for it: Ctrl-C works at a terminal."""
    with contextlib.suppress(PermissionError):  # a regular file, for which nobody has to wait
        await trio.lowlevel.wait_readable(STDIN)
    return os.read(STDIN, READ_BYTES)


# -- token ------------------------------------------------------------------------------------------------------------


@commands.command("token")
@device_option
@click.option("--rest", "rest_url", metavar="URL", help="Where REST is, if not where the device knows it.")
def token(name: str | None, rest_url: str | None) -> None:
    """Print an access token for REST.

    It stands for the device, for an hour: curl -H "Authorization: Bearer $(keepstep token)" ...
    """
    click.echo(trio.run(_token, choose(name), rest_url))


async def _token(path: Path, rest_url: str | None) -> str:
    async with restdevice.open_rest_device(path, rest_url=rest_url) as opened:
        return await opened.client.access_token()


# -- tail -------------------------------------------------------------------------------------------------------------


@commands.command("tail")
@click.argument("stream")
@device_option
@click.option(
    "--from",
    "start",
    type=click.Choice(["start", "end"]),
    default="end",
    help="With the first event, or with what comes after what this device has read (the default).",
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many events.")
def tail(stream: str, name: str | None, start: str, count: int | None) -> None:
    """Print the events of STREAM as they come.

    Each is verified and decrypted. Ctrl-C stops it.
    """
    trio.run(_tail, choose(name), stream, start == "start", count)


async def _tail(path: Path, stream: str, from_start: bool, count: int | None) -> None:
    async with device.open_device(path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(report_trouble, opened)
        nursery.start_soon(_print_notices, opened, program())
        subscription = await opened.subscribe(stream, start="start" if from_start else "end")
        shown = 0
        while count is None or shown < count:
            event = await anext(subscription)
            shown += 1
            click.echo(_format(event, await opened.devices()))
        nursery.cancel_scope.cancel()


async def _print_notices(opened: Device, program_name: str) -> None:
    """Say what happens to the user's devices from now on."""
    known = await opened.warnings()
    with contextlib.suppress(KeepstepError):  # the subscription says so too
        async for notice in opened.notices(after=known[-1].number if known else 0):
            click.echo(f"keepstep: {describe_notice(notice, await opened.devices(), program_name)}", err=True)


async def report_trouble(opened: Device) -> None:
    """Say once, each time it changes, why there is no connection."""
    told = ""
    while opened.failure is None:
        problem = await opened.wait_for_problem(told)
        if problem and opened.failure is None:
            click.echo(f"keepstep: {problem}; trying again", err=True)
        elif told and not problem:
            click.echo("keepstep: connected", err=True)
        told = problem


def _format(event: Event, devices: list[DeviceInfo]) -> str:
    try:
        when = f"{dt.datetime.fromtimestamp(event.received_at_ms / 1000).astimezone():%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError):  # no year of a calendar, and yet a time that a server can state
        when = f"{event.received_at_ms} ms"
    names = [each.name for each in devices if each.device_id == event.device_id]
    name = (names[0] if names else None) or event.device_id.hex()[:8]
    if event.data is None:
        text = f"({event.problem})"
    else:
        # What another device wrote must not steer this terminal.
        text = _STEERING.sub("\N{REPLACEMENT CHARACTER}", event.data.decode(errors="replace"))
    return f"{when}  {name}  {text}"

"""The commands of a device: ``keepstep device new | device list | publish | tail``.

Devices live in ``$KEEPSTEP_HOME`` (``~/.local/share/keepstep`` by default): ``devices/NAME.sqlite3``, one file each,
and ``recovery-NAME.txt`` for the user that the device NAME began. Errors are ``KeepstepError``, which ``keepstep.cli``
prints.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click
import trio

from keepstep.client import accounts, device, server
from keepstep.client.recovery import COST, PASSPHRASE_CHARACTERS_MIN, Cost
from keepstep.client.store import open_store
from keepstep.errors import ClientError, StoreError
from keepstep.model import Capability

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    from keepstep.client.device import Device, DeviceInfo
    from keepstep.client.publication import Publication
    from keepstep.client.subscription import Event

EXIT_WAITING: Final = 75
"""``EX_TEMPFAIL``: the event is safe in the outbox, the server has not got it yet."""
SERVER_WAIT_S: Final = 10.0
"""How long ``publish`` waits for the server before it leaves the event in the outbox, seconds."""
READ_BYTES: Final = 16 * 1024
SUFFIX: Final = ".sqlite3"
_NAME: Final = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def home() -> Path:
    """Where this user's devices are."""
    return Path(os.environ.get("KEEPSTEP_HOME") or Path.home() / ".local" / "share" / "keepstep")


def device_path(name: str) -> Path:
    """The file of a device.

    Raises:
        ClientError: that is no name for a device here.
    """
    if not _NAME.match(name):
        raise ClientError(f"{name!r} is no name for a device: use letters, digits, dots, dashes; at most 64")
    return home() / "devices" / f"{name}{SUFFIX}"


def device_names() -> list[str]:
    """The devices on this machine."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (home() / "devices").glob(f"*{SUFFIX}"))


def _choose(name: str | None) -> Path:
    """The file of the named device, or of the only one."""
    if name is not None:
        path = device_path(name)
        if not path.is_file():
            raise ClientError(f"there is no device {name} here; there are: {', '.join(device_names()) or 'none'}")
        return path
    names = device_names()
    if not names:
        raise ClientError("there is no device here yet: make one with `keepstep device new NAME`")
    if len(names) > 1:
        raise ClientError(f"which device? say --device with one of: {', '.join(names)}")
    return device_path(names[0])


@click.group()
def commands() -> None:
    """The commands of a device."""


@commands.group("device")
def device_group() -> None:
    """The devices of a user on this machine."""


# -- device new -------------------------------------------------------------------------------------------------------


@device_group.command("new")
@click.argument("name")
@click.option("--by", metavar="OTHER", help="Enrol it by this device, for the same user.")
@click.option("--new-user", is_flag=True, help="Begin another user although there are devices here.")
@click.option("--server", "address", metavar="ADDRESS", help="ws://host:port/v1/connect#key, or http(s)://host:port.")
@click.option("--rest", "rest_url", metavar="URL", help="Where a ws:// server has its REST, if not beside it.")
@click.option("--recovery", "recovery_path", type=click.Path(path_type=Path), help="Where the recovery file goes.")
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the recovery file's passphrase from the first line; asked for otherwise.",
)
@click.option("--manage", is_flag=True, help="With --by: the new device may enrol others (two devices at most).")
def device_new(
    name: str,
    by: str | None,
    new_user: bool,
    address: str | None,
    rest_url: str | None,
    recovery_path: Path | None,
    passphrase_file: Path | None,
    manage: bool,
) -> None:
    """Make a device: the first one of a new user, or with --by another one of the same user."""
    path = device_path(name)
    if path.exists():
        raise ClientError(f"there is a device {name} here already")
    if by is not None:
        capabilities = Capability.PUBLISH | Capability.SUBSCRIBE | (Capability.MANAGE if manage else Capability(0))
        trio.run(_enrol, _choose(by), path, name, capabilities)
        click.echo(f"device {name} is enrolled. Try: keepstep tail notes --device {name}")
        return
    if device_names() and not new_user:
        raise ClientError(
            f"there are devices here already: {', '.join(device_names())}. Say --by with one of them to give its user "
            "another device, or --new-user to begin another user"
        )
    recovery_path = recovery_path or home() / f"recovery-{name}.txt"
    found = _find_server(address, rest_url)
    click.echo(f"server    {found}")
    passphrase = _passphrase(passphrase_file)
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
            cost=_cost(),
        )
    )
    click.echo(f"device    {path} (holds secret keys; only you can read it)")
    click.echo(f"recovery  {recovery_path} (keep it and its passphrase somewhere else: it is all that can replace")
    click.echo("          lost devices)")
    click.echo(f"\nNext: keepstep device new phone --by {name}")


def _find_server(address: str | None, rest_url: str | None) -> server.Server:
    if address is not None:
        return trio.run(functools.partial(server.find_server, address, rest_url=rest_url))
    try:
        return trio.run(server.find_server)
    except ClientError as exc:
        raise ClientError(f"{exc}. Start a server with `keepstep serve`, or name one with --server") from exc


def _cost() -> Cost:
    """What a guess of the passphrase costs."""
    return COST


def _passphrase(file: Path | None) -> str:
    if file is not None:
        return file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    return str(
        click.prompt(
            f"Passphrase for the recovery file (at least {PASSPHRASE_CHARACTERS_MIN} characters)",
            hide_input=True,
            confirmation_prompt=True,
        )
    )


async def _enrol(by: Path, path: Path, name: str, capabilities: Capability) -> None:
    async with device.open_device(by) as manager, trio.open_nursery() as nursery:
        nursery.start_soon(_report_trouble, manager)
        await manager.enrol(path, name, capabilities=capabilities)
        nursery.cancel_scope.cancel()


# -- device list ------------------------------------------------------------------------------------------------------


@device_group.command("list")
def device_list() -> None:
    """The devices on this machine."""
    names = device_names()
    if not names:
        click.echo("no devices here yet: make one with `keepstep device new NAME`")
    for name in names:
        click.echo(f"{name:20}  {_describe(device_path(name))}")


def _describe(path: Path) -> str:
    try:
        store = open_store(path)
    except StoreError as exc:
        return "in use by another keepstep" if "in use" in str(exc) else str(exc)
    try:
        identity = store.identity
        may = "+".join((capability.name or "").lower() for capability in identity.capabilities)
        waiting = store.row("SELECT count(*) FROM outbox")[0]
        return f"user {identity.user_key.hex()[:16]}  {may}  {identity.device_url}  {waiting} waiting to be sent"
    finally:
        store.close()


# -- publish ----------------------------------------------------------------------------------------------------------


@commands.command("publish")
@click.argument("stream")
@click.argument("text")
@click.option("--device", "name", envvar="KEEPSTEP_DEVICE", help="Which device; the only one by default.")
def publish(stream: str, text: str, name: str | None) -> None:
    """Publish TEXT into STREAM, or each line of standard input where TEXT is -.

    Exit code 75: the server cannot be reached; the text is safe in the outbox and goes out the next time.
    """
    groups = _lines() if text == "-" else iter([[text.encode()]])
    sys.exit(trio.run(_publish, _choose(name), stream, groups))


def _lines() -> Iterator[list[bytes]]:
    """Lines of standard input, those together that are there at once."""
    # The stubs do not know that standard input is buffered.
    stdin = cast("io.BufferedReader", sys.stdin.buffer)
    rest = b""
    while chunk := stdin.read1(READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield [line.rstrip(b"\r") for line in lines]
    yield [rest] if rest else []


async def _publish(path: Path, stream: str, groups: Iterator[list[bytes]]) -> int:
    async with device.open_device(path) as opened:
        with trio.move_on_after(SERVER_WAIT_S):
            await opened.wait_until_ready()
        publications: list[Publication] = []
        while (group := await trio.to_thread.run_sync(next, groups, None)) is not None:
            publications += await opened.publish_many(stream, group)
        with trio.move_on_after(SERVER_WAIT_S) as scope:
            receipts = [await publication.accepted() for publication in publications]
        if scope.cancelled_caught:
            click.echo(f"keepstep: not sent yet ({opened.last_problem or 'no answer'}); it is in the outbox", err=True)
            return EXIT_WAITING
        for receipt in receipts:
            click.echo(f"{stream} #{receipt.seq}")
    return 0


# -- tail -------------------------------------------------------------------------------------------------------------


@commands.command("tail")
@click.argument("stream")
@click.option("--device", "name", envvar="KEEPSTEP_DEVICE", help="Which device; the only one by default.")
@click.option(
    "--from",
    "start",
    type=click.Choice(["start", "end"]),
    default="end",
    help="With the first event, or with what comes after what this device has read (the default).",
)
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many events.")
def tail(stream: str, name: str | None, start: str, count: int | None) -> None:
    """Print the events of STREAM as they come, verified and decrypted; Ctrl-C stops it."""
    trio.run(_tail, _choose(name), stream, start == "start", count)


async def _tail(path: Path, stream: str, from_start: bool, count: int | None) -> None:
    async with device.open_device(path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(_report_trouble, opened)
        subscription = await opened.subscribe(stream, start="start" if from_start else "end")
        shown = 0
        while count is None or shown < count:
            event = await anext(subscription)
            shown += 1
            click.echo(_format(event, await opened.devices()))
        nursery.cancel_scope.cancel()


async def _report_trouble(opened: Device) -> None:
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
    when = dt.datetime.fromtimestamp(event.received_at_ms / 1000).astimezone()
    names = [each.name for each in devices if each.device_id == event.device_id]
    name = (names[0] if names else None) or event.device_id.hex()[:8]
    if event.data is None:
        text = f"({event.problem})"
    else:
        # What another device wrote must not steer this terminal.
        text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", event.data.decode(errors="replace"))
    return f"{when:%Y-%m-%d %H:%M:%S}  {name}  {text}"

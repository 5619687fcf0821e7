"""The commands for a device that is lost: ``keepstep device revoke``, ``keepstep recover``."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from keepstep.client import cli, device, server
from keepstep.client.listing import list_devices_of
from keepstep.client.notices import describe_time
from keepstep.client.recovering import recover
from keepstep.client.recovery import read_recovery_file
from keepstep.client.safekeeping import Safekeeping
from keepstep.client.store import open_store
from keepstep.errors import ClientError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

commands = cli.commands


@cli.device_group.command("revoke")
@click.argument("lost", metavar="NAME")
@cli.device_option
def device_revoke(lost: str, name: str | None) -> None:
    """End the device NAME of the same user, for good.

    The device that does it (--device) has to be one that manages. The server closes the connections of the revoked one
    within a second; when it comes back it is told, and wipes itself. What it wrote until now stays; what is published
    from now on it cannot read.

    NAME may also be the device's id, 32 hexadecimal digits.
    """
    trio.run(_revoke, cli.choose(name), lost)
    click.echo(f"{lost} is revoked")


async def _revoke(path: Path, lost: str) -> None:
    async with device.open_device(path) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(cli.report_trouble, opened)
        await opened.wait_until_ready()
        names = {each.name for each in await opened.devices()}
        try:
            await opened.revoke(lost if lost in names else _id(lost))
        except ProtocolError as exc:
            if exc.code != "forbidden":
                raise
            raise ClientError(
                f"{lost} is not revoked: the last device that manages cannot revoke itself, "
                "and one that manages no more cannot revoke others"
            ) from exc
        nursery.cancel_scope.cancel()


@cli.device_group.command("restorations")
@click.option("--end", is_flag=True, help="Wait no longer for the other devices to hand in what they hold.")
@cli.device_option
def device_restorations(name: str | None, *, end: bool) -> None:
    """Show what a restore of the server lost.

    And what came of it: in its place again, appended anew, or nowhere. Until all devices that were seen lately have
    handed in what they hold, or the time for it is over, the server takes nothing new. A device that manages can end
    that with --end.
    """
    trio.run(_restorations, cli.choose(name), end)


async def _restorations(path: Path, end: bool) -> None:
    async with device.open_device(path) as opened:
        if end:
            await opened.wait_until_connected()
            await opened.end_healing()
        for each in await opened.restorations():
            click.echo(
                f"{each.stream}: as it was up to {each.common_seq} of {each.held_seq}; handed in {each.handed_in}, "
                f"appended or published again {each.anew}, lost {each.lost}"
            )


@cli.device_group.command("safety")
@cli.device_option
def device_safety(name: str | None) -> None:
    """Show what a restore of the server could cost.

    As this device knew when it was last connected. The server tells up to when everything is in a verified backup of
    it. What came later the device keeps, at most 30 days and 256 MiB, so that it can bring it back; what it had to let
    go before that is counted.
    """
    with contextlib.closing(open_store(cli.choose(name))) as store:
        found = Safekeeping(store).safety()
    if found.safe_at_ms is None:
        click.echo("the server has told of no verified backup")
    else:
        click.echo(f"in a verified backup: what the server received until {describe_time(found.safe_at_ms)}")
    for stream, events in sorted(found.unsafe.items()):
        click.echo(f"{stream}: held here and in none {events}")
    for each in found.fallen:
        click.echo(
            f"{each.stream}: let go before they were in one {each.events}, last {describe_time(each.last_at_ms)}"
        )


def _id(text: str) -> bytes | str:
    """An id that was typed, or a name that nothing has."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text


@commands.command("recover")
@click.argument("recovery_path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="What the new device is called.")
@click.option(
    "--keep",
    multiple=True,
    metavar="DEVICE",
    help="A device that stays, by its name, or its id where no device here knows the name.",
)
@click.option("--server", "address", metavar="ADDRESS", help="Where the server is now, if not where the file says.")
@click.option("--moved", is_flag=True, help="The account was moved to the server that --server names with its key.")
@click.option("--rest", "rest_url", metavar="URL", help="Where the server has its REST, if not beside it.")
@click.option(
    "--recovery",
    "new_recovery_path",
    type=click.Path(path_type=Path),
    help="Where the new recovery file goes; recovery-NAME.txt beside the devices by default.",
)
@click.option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the passphrase from the first line; asked for otherwise.",
)
def recover_command(
    recovery_path: Path,
    name: str,
    keep: Sequence[str],
    address: str | None,
    moved: bool,
    rest_url: str | None,
    new_recovery_path: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Replace all devices with the recovery file.

    For when every device is lost, or when one that manages was stolen: whatever a thief did, this ends it. It makes a
    new device with the recovery file FILE and ends all others; those that are still yours stay with --keep. FILE is
    void afterwards: a new recovery file with the same passphrase takes its place.
    """
    if moved and "#" not in (address or ""):
        raise ClientError("with --moved, name the server and its key: --server ADDRESS#KEY")
    path = cli.device_path(name)
    kept = [_kept(each) for each in keep]
    passphrase = cli.ask_passphrase(passphrase_file, is_new=False)
    found = trio.run(_find_server, recovery_path, passphrase, address, rest_url)
    new_recovery_path = new_recovery_path or cli.home() / f"recovery-{name}.txt"
    for directory in (cli.home(), path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = functools.partial(
        recover,
        recovery_path,
        passphrase,
        path=path,
        name=name,
        new_recovery_path=new_recovery_path,
        keep=kept,
        server=found,
        moved=moved,
        cost=cli.cost(),
    )
    trio.run(run)
    click.echo(f"device    {path}")
    click.echo(f"recovery  {new_recovery_path}\n          Keep it elsewhere; {recovery_path} is void.")
    click.echo(f"\nNext: {cli.program()} device list")


async def _find_server(
    recovery_path: Path, passphrase: str, address: str | None, rest_url: str | None
) -> server.Server:
    if address is None:
        old = await trio.to_thread.run_sync(read_recovery_file, recovery_path, passphrase)
        address = f"{old.server_url}#{old.server_key.hex()}"
    found = await server.find_server(address, rest_url=rest_url)
    try:
        await server.find_server(found.rest_url)
    except ClientError as exc:
        raise ClientError(f"there is no REST at {found.rest_url} ({exc}): say with --rest where it is") from exc
    return found


def _kept(text: str) -> bytes:
    """The id of a device that stays: the name of one here or of one that a device here knows, or an id."""
    named = _id(text)
    if isinstance(named, bytes):
        return named
    names = cli.device_names()
    found: set[bytes] = set()
    for each in [text] if text in names else names:
        store = open_store(cli.device_path(each))
        with contextlib.closing(store):
            if each == text:
                return store.identity.device_id
            found |= {known.device_id for known in list_devices_of(store) if known.name == text}
    if len(found) != 1:
        raise ClientError(f"there is no device {text} here: name the id of a device that is elsewhere")
    return found.pop()

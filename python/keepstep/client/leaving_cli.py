"""The commands for leaving a server: ``keepstep export-account``, ``device move``, ``delete-account``."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import BinaryIO, Final

import click
import trio

from keepstep.client import cli, restdevice
from keepstep.client.http import raise_for_problem
from keepstep.client.moving import move_device
from keepstep.client.server import find_server
from keepstep.client.store import open_store
from keepstep.errors import ClientError

_LENGTH_BYTES: Final = 4
_LINE_BYTES_MAX: Final = 64
"""The file's first line is shorter."""
_LAST_FRAME: Final = b"\x92\x04"
"""How the last frame of an account file begins (docs/reference/account-file.md)."""


@click.command("export-account")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@cli.device_option
def export_account(file: Path, name: str | None) -> None:
    """Write the whole account into FILE, sealed as it is.

    Another server reads it in with `keepstep import-account`. The device has to be one that manages.
    """
    path = cli.choose(name)
    if file.exists():
        raise ClientError(f"{file} is there already")
    draft = file.with_name(f"{file.name}.part")
    with draft.open("xb") as opened:
        try:
            size = trio.run(_export, path, opened)
            opened.flush()
            os.fsync(opened.fileno())
            draft.rename(file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    click.echo(f"{file}: {size} bytes")


async def _export(path: Path, file: BinaryIO) -> int:
    async with restdevice.open_rest_device(path) as opened:

        async def write(piece: bytes) -> None:
            await trio.to_thread.run_sync(file.write, piece)

        response = await opened.client.request("GET", "/api/v1/account/export", sink=write)
        raise_for_problem(response)
    return await trio.to_thread.run_sync(_check_whole, file)


def _check_whole(file: BinaryIO) -> int:
    """The size of an account file that goes up to its last frame; the server that reads it in looks at the rest."""
    with Path(file.name).open("rb") as written:
        file.flush()
        size = os.fstat(written.fileno()).st_size
        written.readline(_LINE_BYTES_MAX)
        frame = b""
        while length := int.from_bytes(written.read(_LENGTH_BYTES), "big"):
            frame = written.read(len(_LAST_FRAME))
            written.seek(length - len(frame), os.SEEK_CUR)
        if frame != _LAST_FRAME or written.tell() != size:
            raise ClientError("the server ended the file before its end: try again")
    return size


@cli.device_group.command("move")
@click.argument("address")
@click.option("--rest", "rest_url", metavar="URL", help="Where the server has its REST, if not beside it.")
@click.option("--yes", is_flag=True, help="Ask nothing: ADDRESS names the key, and it is right.")
@cli.device_option
def device_move(address: str, rest_url: str | None, yes: bool, name: str | None) -> None:
    """Have a device go on at another server.

    That is where its account has been imported. ADDRESS is what that server's `keepstep serve` prints, with its key
    behind #: whoever names another key here hands the device to another server, so take it from the server's operator.
    The device stays where it is unless the server has everything that the device knows of. Do it for every device.
    """
    path = cli.choose(name)
    if yes and "#" not in address:
        raise ClientError("with --yes the address names the server's key: ADDRESS#KEY")
    found = trio.run(functools.partial(find_server, address, rest_url=rest_url))
    with contextlib.closing(open_store(path)) as store:
        mine = store.identity
    click.echo(f"from  {mine.device_url}\n      {mine.server_key.hex()}")
    click.echo(f"to    {found.device_url}\n      {found.server_key.hex()}")
    if not yes:
        click.confirm("Is that the other server's key?", abort=True)
    trio.run(move_device, path, found)
    click.echo(f"{mine.name} belongs to {found.device_url}")


@click.command("delete-account")
@cli.device_option
@click.option("--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Where the server's receipt goes.")
@click.confirmation_option(
    prompt="This deletes the account on the server, with all devices and everything they wrote, for ever. Go on?"
)
def delete_account(name: str | None, receipt: Path | None) -> None:
    """Delete the account on the server, for ever.

    Devices keep what they have. The device has to be one that manages. The server's answer is a signed receipt.
    """
    path = cli.choose(name)
    if receipt is not None:
        receipt.open("x").close()  # first of all: once the account is gone, nothing gives the receipt a second time
    try:
        data, sig = trio.run(_delete, path)
    except BaseException:
        if receipt is not None:
            receipt.unlink()
        raise
    if receipt is not None:
        receipt.write_text(f"{data.hex()}\n{sig.hex()}\n", encoding="ascii")
    click.echo("the account is deleted")


async def _delete(path: Path) -> tuple[bytes, bytes]:
    async with restdevice.open_rest_device(path) as opened:
        return await opened.client.delete_account()

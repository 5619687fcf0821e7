"""The commands that link a new device: ``keepstep link show`` on a trusted one, ``keepstep link accept`` on it."""

from __future__ import annotations

import functools
import io
import sys
from typing import TYPE_CHECKING

import click
import trio

from keepstep.client import cli, device, linking, server
from keepstep.client.worker import open_nursery
from keepstep.errors import ClientError
from keepstep.model import Capability

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@click.group("link")
def link_group() -> None:
    """Link a new device, elsewhere, to this user.

    One side shows an invitation, the other accepts it; six digits that the new device shows are typed into the other.
    """


# -- link show --------------------------------------------------------------------------------------------------------


@link_group.command("show")
@cli.device_option
@click.option("--manage", is_flag=True, help="The new device may enrol and revoke others.")
def link_show(name: str | None, manage: bool) -> None:
    """Show an invitation for a new device, and let it in.

    It is good for one device and two minutes. Whoever sees it can take part, so show it to nobody else; but only the
    device whose six digits you type is let in. It needs a device that manages (--device).
    """
    capabilities = Capability.PUBLISH | Capability.SUBSCRIBE | (Capability.MANAGE if manage else Capability(0))
    trio.run(_show, cli.choose(name), capabilities)


async def _show(path: Path, capabilities: Capability) -> None:
    async with device.open_device(path) as opened, open_nursery() as nursery:
        nursery.start_soon(cli.report_trouble, opened)
        await opened.wait_until_ready()
        async with linking.offer_link(opened, capabilities=capabilities) as offer:
            _print_code(offer.invitation)
            click.echo(f"On the new device: {cli.program()} link accept '{offer.invitation}' NAME\n")
            candidate = await offer.wait_for_device()
            click.echo(f"device    {candidate.name}")
            click.echo(f"platform  {candidate.platform}")
            click.echo(f"address   {candidate.address}")
            await _ask_code(offer)
            if not await _ask(functools.partial(click.confirm, f"Let {candidate.name} read everything?")):
                raise ClientError("the device was not let in")
            await offer.enrol()
        click.echo(f"{candidate.name} is linked")
        nursery.cancel_scope.cancel()


async def _ask_code(offer: linking.LinkOffer) -> None:
    """Ask until the code is right. Raises WrongCode where it never was."""
    while True:
        typed = await _ask(functools.partial(click.prompt, "The six digits that it shows"))
        try:
            offer.check_code(str(typed))
        except linking.WrongCode as error:
            if not error.tries_left:
                raise
            tries = "try" if error.tries_left == 1 else "tries"
            click.echo(f"That is another code; {error.tries_left} more {tries}.", err=True)
        else:
            return


async def _ask(question: Callable[[], object]) -> object:
    """Ask at the terminal; Ctrl-C does not wait for an answer."""
    try:
        return await trio.to_thread.run_sync(question, abandon_on_cancel=True)
    except click.Abort:
        raise ClientError("nobody answered: no device was let in") from None


def _print_code(invitation: str) -> None:
    """The invitation as a QR code, where there is somebody to see it and a library to draw it."""
    if not sys.stdout.isatty():
        return
    try:
        import segno
    except ImportError:
        click.echo("For a QR code here: pip install 'keepstep[qr]'\n", err=True)
        return
    drawn = io.StringIO()
    segno.make_qr(invitation, error="l").terminal(drawn, compact=True)
    click.echo(drawn.getvalue())


# -- link accept ------------------------------------------------------------------------------------------------------


@link_group.command("accept")
@click.argument("invitation")
@click.argument("name")
@click.option("--server", "address", metavar="ADDRESS", help="Where the server is, if not where the invitation says.")
@click.option("--rest", "rest_url", metavar="URL", help="Where a ws:// server has its REST, if not beside it.")
def link_accept(invitation: str, name: str, address: str | None, rest_url: str | None) -> None:
    """Make this machine the device NAME of the user who shows INVITATION.

    It shows six digits; type them into the device that shows the invitation, and nowhere else.
    """
    path = cli.device_path(name)
    for directory in (cli.home(), path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    at = None if address is None else trio.run(functools.partial(server.find_server, address, rest_url=rest_url))
    trio.run(functools.partial(linking.accept_link, invitation, path=path, name=name, show_code=_show_digits, at=at))
    click.echo(f"device {name} is linked. Try: {cli.program()} tail notes --device {name}")


def _show_digits(code: str) -> None:
    click.echo(f"Type this into the device that shows the invitation: {code[:3]} {code[3:]}")

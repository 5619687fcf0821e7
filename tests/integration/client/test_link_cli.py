"""The commands that link a device, as a person types them at two terminals."""

from __future__ import annotations

import builtins
import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import trio
from click.testing import CliRunner

from keepstep.client import ClientError, ProtocolError, blocking, cli, link_cli, linking, open_device
from keepstep.model import Capability
from keepstep.protocol.linking import format_invitation
from tests.support.device_server import CHEAP, PASSPHRASE
from tests.support.linking import invitation
from tests.support.server_thread import ServerAddress

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: ServerAddress) -> Path:
    """Where a laptop is that manages."""
    monkeypatch.setenv("KEEPSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEEPSTEP_DEVICE", raising=False)
    monkeypatch.setattr(cli, "cost", lambda: CHEAP)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(f"{PASSPHRASE}\n")
    made = ["device", "new", "laptop", "--server", address.rest_url, "--passphrase-file", str(passphrase)]
    assert CliRunner().invoke(cli.commands, made).exit_code == 0
    return tmp_path / "home"


class Terminals:
    """Two terminals side by side: what was printed, and what is typed at the first.

    Attributes:
        printed: every line.
        typed: what the person answers, given what is on the screens; taken in order.
        errors: what the two programs ended with.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *typed: Callable[[str], object]) -> None:
        self.printed: list[str] = []
        self.typed = list(typed)
        self.errors: list[Exception] = []
        self._news = trio.Event()
        monkeypatch.setattr(click, "echo", self._echo)
        monkeypatch.setattr(cli, "program", lambda: "keepstep")
        monkeypatch.setattr(link_cli, "_ask", self._ask)

    @property
    def text(self) -> str:
        """Both screens."""
        return "\n".join(self.printed)

    def _echo(self, text: str, **_options: bool) -> None:
        self.printed.append(text)
        self._news.set()

    async def _ask(self, _question: object) -> object:
        return self.typed.pop(0)(await self.see(r"invitation: (\d{3} \d{3})"))

    async def see(self, pattern: str) -> str:
        """Wait for something on a screen."""
        while not (found := re.search(pattern, self.text)):
            self._news = trio.Event()
            await self._news.wait()
        return found[1]


async def link(home: Path, screens: Terminals, name: str = "phone", *, manage: bool = False) -> None:
    """Show on one terminal, accept on the other."""
    capabilities = Capability.PUBLISH | Capability.SUBSCRIBE | (Capability.MANAGE if manage else Capability(0))
    path = home / "devices" / f"{name}.sqlite3"

    async def show() -> None:
        try:
            await link_cli._show(home / "devices" / "laptop.sqlite3", capabilities)
        except ClientError as error:
            screens.errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        text = await screens.see(r"accept '(keepstep:[\w-]+)'")
        try:
            await linking.accept_link(text, path=path, name=name, show_code=link_cli._show_digits)
        except ProtocolError as error:
            screens.errors.append(error)


async def test_a_device_is_linked_from_two_terminals(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invitation on one, six digits on the other, a yes, and it is there."""
    screens = Terminals(monkeypatch, str, lambda _: True)
    await link(home, screens)
    assert screens.printed[-1] == "phone is linked"
    for what in (r"device    phone", r"platform  .+", r"address   127\.0\.0\.1"):
        assert re.search(what, screens.text)
    async with open_device(home / "devices" / "phone.sqlite3") as phone:
        await phone.wait_until_ready()


async def test_a_typing_error_may_be_mended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program says how often."""
    screens = Terminals(monkeypatch, lambda _: "", str, lambda _: True)
    await link(home, screens)
    assert "That is another code; 2 more tries." in screens.printed
    assert screens.printed[-1] == "phone is linked"


async def test_three_typing_errors_are_the_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both programs."""
    screens = Terminals(monkeypatch, *[lambda _: ""] * 3)
    await link(home, screens)
    assert sorted(type(error).__name__ for error in screens.errors) == ["ProtocolError", "WrongCode"]


async def test_a_no_lets_nobody_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the code was right."""
    screens = Terminals(monkeypatch, str, lambda _: False)
    await link(home, screens)
    assert sorted(map(str, screens.errors)) == [
        "forbidden: the trusted device refused the link",
        "the device was not let in",
    ]


async def test_nobody_at_the_terminal_lets_nobody_in() -> None:
    """As where standard input is at its end."""

    def leave() -> object:
        raise click.Abort

    with pytest.raises(ClientError, match="nobody answered"):
        await link_cli._ask(functools.partial(leave))
    assert await link_cli._ask(functools.partial(str, "answer")) == "answer"


@pytest.mark.parametrize("has_library", [True, False])
def test_an_invitation_is_drawn_where_somebody_can_see_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_library: bool
) -> None:
    """At a terminal, with the library that draws it; else how to get that."""
    text = format_invitation(invitation())
    link_cli._print_code(text)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    real_import = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "segno":
            raise ImportError
        return real_import(name, *arguments)

    if not has_library:
        monkeypatch.setattr(builtins, "__import__", without)
    link_cli._print_code(text)
    shown = capsys.readouterr()
    assert ("█" in shown.out or "▀" in shown.out) == has_library
    assert ("keepstep[qr]" in shown.err) == (not has_library)


@pytest.mark.slow
async def test_the_programs_do_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each a process of its own, with its own standard input."""
    program = [sys.executable, "-W", "error", "-m", "keepstep", "link"]
    with trio.fail_after(60):
        show = await trio.lowlevel.open_process([*program, "show", "--manage"], stdin=-1, stdout=-1)
        assert show.stdout is not None
        assert show.stdin is not None
        (text,) = await read_until(show.stdout, r"'(keepstep:[\w-]+)'")
        accept = await trio.lowlevel.open_process([*program, "accept", text, "phone"], stdout=-1)
        assert accept.stdout is not None
        first, second = await read_until(accept.stdout, r"(\d{3}) (\d{3})")
        await show.stdin.send_all(f"{first}{second}\ny\n".encode())
        await read_until(show.stdout, r"(phone is linked)")
        await read_until(accept.stdout, r"(device phone is linked)")
        assert (await show.wait(), await accept.wait()) == (0, 0)
        for stream in (show.stdin, show.stdout, accept.stdout):
            await stream.aclose()


async def read_until(stream: trio.abc.ReceiveStream, pattern: str) -> tuple[str, ...]:
    """What a program prints, up to something."""
    text = ""
    while not (found := re.search(pattern, text)):
        chunk = await stream.receive_some()
        assert chunk, text
        text += bytes(chunk).decode()
    return found.groups()


def test_a_script_that_cannot_be_linked_says_why(home: Path, address: ServerAddress) -> None:
    """The command and the library without Trio: another server, or no invitation."""
    text = format_invitation(invitation())
    refused = CliRunner().invoke(link_cli.link_group, ["accept", text, "phone", "--server", address.rest_url])
    assert isinstance(refused.exception, ClientError)
    assert "another server" in str(refused.exception)
    with pytest.raises(ClientError, match="cannot be linked"):
        blocking.accept_link("nothing", path=home / "devices" / "phone.sqlite3", name="phone", show_code=print)

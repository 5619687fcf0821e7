"""Listening sockets, and what is said where one cannot be had."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from keepstep import listening
from keepstep.errors import StartupError
from keepstep.listening import bind, find_owner


def close(sockets: list[socket.socket]) -> None:
    """Let ports go."""
    for sock in sockets:
        sock.close()


def test_port_zero_takes_a_free_one() -> None:
    """And the socket does not listen yet: nobody can connect before the server is ready."""
    (sock,) = bind("127.0.0.1", 0, setting="KEEPSTEP_REST_PORT")
    address = sock.getsockname()
    with socket.socket() as client:
        assert address[1] > 0
        assert client.connect_ex(address) == errno.ECONNREFUSED
    sock.close()


def test_a_name_is_listened_on_at_each_of_its_addresses() -> None:
    """All with the same port."""
    sockets = bind("localhost", 0, setting="KEEPSTEP_REST_PORT")
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    assert "127.0.0.1" in {sock.getsockname()[0] for sock in sockets}
    close(sockets)


def test_an_unknown_host_is_named() -> None:
    """With the setting it came from."""
    with pytest.raises(StartupError, match="'no such host'"):
        bind("no such host", 0, setting="KEEPSTEP_REST_HOST")


def test_a_busy_port_names_the_setting_and_the_owner() -> None:
    """Here the owner is this very process."""
    sockets = bind("127.0.0.1", 0, setting="KEEPSTEP_DEVICE_PORT")
    sockets[0].listen(1)
    port = sockets[0].getsockname()[1]
    with pytest.raises(StartupError) as caught:
        bind("127.0.0.1", port, setting="KEEPSTEP_DEVICE_PORT")
    assert f"port {port} is in use" in str(caught.value)
    assert f"(process {os.getpid()})" in str(caught.value)
    assert "KEEPSTEP_DEVICE_PORT" in str(caught.value)
    close(sockets)


def test_a_busy_port_whose_owner_cannot_be_seen_still_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For instance another user's process."""
    monkeypatch.setattr(listening, "find_owner", lambda _: None)
    sockets = bind("127.0.0.1", 0, setting="KEEPSTEP_DEVICE_PORT")
    sockets[0].listen(1)
    port = sockets[0].getsockname()[1]
    with pytest.raises(StartupError, match=rf"port {port} is in use\.\nStop that, or set KEEPSTEP_DEVICE_PORT"):
        bind("127.0.0.1", port, setting="KEEPSTEP_DEVICE_PORT")
    close(sockets)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "may not listen on port 80.\nSet KEEPSTEP_REST_PORT to a port from 1024 up"),
        (errno.EADDRNOTAVAIL, r"cannot listen on 127.0.0.1 port 80 \(KEEPSTEP_REST_PORT\)"),
    ],
)
def test_what_the_system_refuses_is_said_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    """A privileged port, an address of another machine."""

    class Refusing(socket.socket):
        """A socket that the system does not let have its port."""

        def bind(self, _address: object) -> None:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(StartupError, match=message):
        bind("127.0.0.1", 80, setting="KEEPSTEP_REST_PORT")


@pytest.mark.parametrize(("host", "only"), [("::", 0), ("::1", 1)])
def test_everywhere_in_ipv6_is_everywhere_in_ipv4_too(monkeypatch: pytest.MonkeyPatch, host: str, only: int) -> None:
    """Any other IPv6 address is itself alone, so that an IPv4 address can have the same port."""
    options: dict[tuple[int, int], int] = {}

    class Recording:
        """A socket, as far as it is asked."""

        def __init__(self, *_arguments: object) -> None:
            self.address = ("", 0)

        def setsockopt(self, level: int, name: int, value: int) -> None:
            options[level, name] = value

        def bind(self, address: tuple[str, int]) -> None:
            self.address = address

        def getsockname(self) -> tuple[str, int]:
            return self.address

    found = [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, 8440, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", Recording)
    bind(host, 8440, setting="KEEPSTEP_REST_PORT")
    assert options[socket.IPPROTO_IPV6, socket.IPV6_V6ONLY] == only


def write_proc(proc: Path, *, inode: int, port: int, state: str = "0A") -> None:
    """A /proc with one socket in one process."""
    (proc / "net").mkdir(parents=True)
    (proc / "net" / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        f"   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0 0 {inode} 1\n"
    )
    for name, target in (("41", "/dev/null"), ("42", "socket:[777]")):
        (proc / name / "fd").mkdir(parents=True)
        (proc / name / "fd" / "3").symlink_to(target)
        (proc / name / "comm").write_text("postgres\n")
    (proc / "self").mkdir()


def test_the_owner_of_a_port_is_found_by_its_socket(tmp_path: Path) -> None:
    """In proc(5)'s tables, the way from port to inode to process."""
    write_proc(tmp_path, inode=777, port=8441)
    assert find_owner(8441, proc=tmp_path) == "postgres (process 42)"
    assert find_owner(8442, proc=tmp_path) is None


def test_an_owners_name_does_not_steer_the_terminal(tmp_path: Path) -> None:
    """Every process names itself, in any bytes."""
    write_proc(tmp_path, inode=777, port=8441)
    (tmp_path / "42" / "comm").write_bytes(b"\x1b[31m\xff\n")
    assert find_owner(8441, proc=tmp_path) == r"'\x1b[31m\\xff' (process 42)"


def test_a_socket_that_does_not_listen_owns_no_port(tmp_path: Path) -> None:
    """A client's end may have the same number."""
    write_proc(tmp_path, inode=777, port=8441, state="01")
    assert find_owner(8441, proc=tmp_path) is None


def test_an_owner_that_cannot_be_seen_is_none(tmp_path: Path) -> None:
    """The socket is there, but in no process whose descriptors may be read; or there is no /proc at all."""
    write_proc(tmp_path / "proc", inode=778, port=8441)
    assert find_owner(8441, proc=tmp_path / "proc") is None
    assert find_owner(8441, proc=tmp_path / "none") is None

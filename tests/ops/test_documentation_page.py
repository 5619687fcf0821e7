"""The page at /docs in a real browser: it draws every operation, asks no other host, and nothing of it is refused."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import trio

from keepstep.rest.table import ENDPOINTS
from tests.support.server import running_server

DRAWN_WITHIN_MS: Final = 30_000
"""Of the page's own time, which passes as fast as it can be drawn."""
DEADLINE_S: Final = 120
"""For the browser, on a busy machine."""
FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # the operations tests are run by root, for whom the browser has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    f"--virtual-time-budget={DRAWN_WITHIN_MS}",
)
_CONSOLE: Final = re.compile(r"CONSOLE[^\]]*\] (.*)")


def browse(url: str, folder: Path) -> tuple[str, list[str], set[str]]:
    """Open a page: what it became, what it wrote to the console, and the hosts that it asked."""
    network = folder / "network.json"
    command = [
        "chromium",
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={network}",
        "--dump-dom",
        url,
    ]
    browser = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    return browser.stdout, _CONSOLE.findall(browser.stderr), hosts_asked(msgspec.json.decode(network.read_bytes()))


def hosts_asked(network: Any) -> set[str]:
    """Hosts of every request that a page began, from the browser's record; what the browser asks for itself apart."""
    hosts = set()
    for event in network["events"]:
        parameters = event.get("params", {})
        if "url" in parameters and parameters.get("initiator", "not an origin") != "not an origin":
            hosts.add(urlsplit(parameters["url"]).netloc)
    return hosts


async def test_the_page_draws_every_operation_and_asks_no_other_host(tmp_path: Path) -> None:
    """Under the policy that the server sends with it, from which a browser would report what it refuses."""
    async with running_server(tmp_path / "data") as server:
        page, console, hosts = await trio.to_thread.run_sync(
            partial(browse, f"{server.rest_url}/docs", tmp_path), abandon_on_cancel=True
        )
    drawn = set(re.findall(r'id="operations-[^"]*?-((?:get|post|put|patch|delete)_[a-z0-9_]+)"', page))
    assert drawn == {endpoint.operation for endpoint in ENDPOINTS}
    assert console == []
    assert hosts == {urlsplit(server.rest_url).netloc}


async def test_what_the_policy_refuses_would_be_seen(tmp_path: Path) -> None:
    """A page whose script asks another host: the browser says so, and the record has it."""
    page = tmp_path / "page.html"
    page.write_text("<script>fetch('http://192.0.2.1/').catch(() => console.error('refused'))</script>")
    _, console, hosts = await trio.to_thread.run_sync(partial(browse, page.as_uri(), tmp_path), abandon_on_cancel=True)
    assert console
    assert hosts == {"192.0.2.1"}

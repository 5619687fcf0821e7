"""Finding a server by its address."""

from __future__ import annotations

import pytest

from keepstep.client import crypto
from keepstep.client import server as servers
from keepstep.client.http import Response
from keepstep.client.server import Server, find_server
from keepstep.errors import ClientError
from tests.support.device_server import DeviceServer

KEY = DeviceServer().server_key
OTHER = crypto.ed25519_public(bytes(32))
DEVICE_URL = f"ws://server.test:8441/v1/connect#{KEY.hex()}"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ``GET /api/v1/server`` answers, to be changed by the test; then the addresses that were asked."""
    asked = [f'{{"device_url": "{DEVICE_URL}", "version": "1"}}']

    async def request(method: str, url: str, **_: object) -> Response:
        assert method == "GET"
        asked.append(url)
        return Response(200, "application/json", asked[0].encode(errors="surrogateescape"))

    monkeypatch.setattr(servers, "request", request)
    return asked


async def test_a_rest_address_leads_to_the_server(told: list[str]) -> None:
    """It tells where devices connect, and its key."""
    found = await find_server("http://server.test:8440/")
    assert found == Server("ws://server.test:8441/v1/connect", "http://server.test:8440", KEY)
    assert str(found) == DEVICE_URL
    assert told[1:] == ["http://server.test:8440/api/v1/server"]


async def test_a_key_that_is_known_is_checked(told: list[str]) -> None:
    """Another server at that address is not taken."""
    assert (await find_server(f"http://server.test#{KEY.hex()}")).server_key == KEY
    with pytest.raises(ClientError, match="another key"):
        await find_server(f"http://server.test#{OTHER.hex()}")


@pytest.mark.parametrize(
    "answer", ["oops", "{}", '{"device_url": "http://x"}', '{"device_url": "\udcff"}', '{"x": ' + "[" * 100_000]
)
async def test_what_is_no_keepstep_server_is_told_apart(told: list[str], answer: str) -> None:
    """No JSON, another JSON, an address that is none, bytes that are no text, and arrays without end."""
    told[0] = answer
    with pytest.raises(ClientError, match="not a keepstep server"):
        await find_server("http://server.test")


@pytest.mark.parametrize(
    ("address", "rest_url", "expected"),
    [
        (DEVICE_URL, None, "http://server.test:8440"),
        (DEVICE_URL, "http://rest.test", "http://rest.test"),
        (f"wss://server.test/v1/connect#{KEY.hex()}", None, "https://server.test:443"),
        (f"ws://[::1]:8441/v1/connect#{KEY.hex()}", None, "http://[::1]:8440"),
    ],
)
async def test_a_device_address_needs_no_question(address: str, rest_url: str | None, expected: str) -> None:
    """It names everything but REST, which is beside it unless said otherwise."""
    assert (await find_server(address, rest_url=rest_url)).rest_url == expected


async def test_an_address_without_a_key_is_refused() -> None:
    """A device trusts no unknown server; and what is no address at all is told the same way."""
    for address in ("ws://server.test:8441/v1/connect", "ws://["):
        with pytest.raises(ClientError, match="no server's address"):
            await find_server(address)

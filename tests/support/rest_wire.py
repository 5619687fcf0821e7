"""A REST client and a REST application in memory, with the wire between them in a test's hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from keepstep.client import accounts, repinning, rest
from keepstep.client.environment import SYSTEM
from keepstep.client.http import Response
from keepstep.client.store import Identity
from keepstep.model import Capability, Position
from tests.support.events import DeviceFixture
from tests.support.parts import SERVER_KEY, Parts
from tests.support.rest import Site, site
from tests.support.tokens import ORIGIN, make_tokens

if TYPE_CHECKING:
    from keepstep.client.environment import Environment


def identity_of(device: DeviceFixture, *, server_key: bytes = SERVER_KEY) -> Identity:
    """What the device's file says."""
    return Identity(
        name=device.name,
        user_key=device.user.user_key,
        device_id=device.device_id,
        device_secret=device.device_secret,
        box_secret=device.box_secret,
        capabilities=Capability.PUBLISH | Capability.SUBSCRIBE,
        device_url="ws://here:8441/v1/connect",
        rest_url=ORIGIN,
        server_key=server_key,
        handed_over=Position(0, b""),
    )


@dataclass
class Wire:
    """What goes between a client and a server in memory.

    Attributes:
        here: the server.
        asked: the last part of each path that was asked for.
        answers: what comes instead of the server's answer, path by path; the server is not asked.
        change: what becomes of the server's answer on its way, given the path.
    """

    here: Site
    asked: list[str] = field(default_factory=list)
    answers: dict[str, Response] = field(default_factory=dict)
    change: Callable[[str, Response], Response] = lambda _path, response: response

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        **_more: Any,
    ) -> Response:
        """As ``http.request``."""
        assert url.startswith(ORIGIN)
        path = url.removeprefix(ORIGIN)
        self.asked.append(path.partition("?")[0].rpartition("/")[2])
        if path in self.answers:
            return self.answers[path]
        sent = dict(headers or {}) | ({"content-type": content_type} if content_type else {})
        answer = await self.here.http.request(method, path, content=body, headers=sent)
        response = Response(answer.status_code, answer.headers.get("content-type", ""), answer.content)
        return self.change(path, response)


@asynccontextmanager
async def wired(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Wire, DeviceFixture, Environment]]:
    """A server with a device; the clock is the server's."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    tokens = make_tokens(parts)
    async with site(parts=parts, auth=tokens, tokens=tokens) as here:
        wire = Wire(here)
        monkeypatch.setattr(rest, "request", wire.request)
        monkeypatch.setattr(accounts, "request", wire.request)
        monkeypatch.setattr(repinning, "request", wire.request)
        yield wire, phone, replace(SYSTEM, now_ms=parts.clock.now_ms)

"""The token service over a server's parts in memory, and devices that sign its challenges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import httpx
import structlog

from keepstep.accesstokens import SigningKey
from keepstep.client import crypto
from keepstep.memory import MemoryTokens
from keepstep.protocol.challenge import Purpose, Statement, sign_statement
from keepstep.runtime import WorkerThreads
from keepstep.tokens import TokenLifetimes, Tokens
from keepstep.validation import format_base64url, parse_base64url
from tests.support.events import seed
from tests.support.parts import SERVER_KEY, Parts

if TYPE_CHECKING:
    from keepstep.model import Principal
    from keepstep.tokens import Grant
    from keepstep.tokenstore import TokenKeys, TokenStore
    from tests.support.events import DeviceFixture

ORIGIN: Final = "https://rest.example.org"
ISSUER: Final = f"keepstep:{SERVER_KEY.hex()}"


class ListedKeys:
    """Keys in a list, the one that signs first; ``others`` are those that another process has made."""

    def __init__(self) -> None:
        self.keys = [SigningKey.from_secret(seed("token key"))]
        self.others: list[SigningKey] = []
        self.reloads = 0

    @property
    def current(self) -> SigningKey:
        """See ``tokenstore.TokenKeys``."""
        return self.keys[0]

    def valid(self, now_ms: int) -> list[SigningKey]:
        """See ``tokenstore.TokenKeys``."""
        del now_ms
        return self.keys

    def reload(self) -> None:
        """See ``tokenstore.TokenKeys``."""
        self.reloads += 1
        self.keys = [*self.others, *self.keys]
        self.others = []

    def rotate(self, now_ms: int, *, overlap_ms: int) -> None:
        """See ``tokenstore.TokenKeys``."""
        new = SigningKey.from_secret(seed(f"token key {now_ms} {len(self.keys)}"))
        self.keys = [new, *(self.keys if overlap_ms else [])]


def make_tokens(parts: Parts, *, store: TokenStore | None = None, keys: TokenKeys | None = None) -> Tokens:
    """A node's token service."""
    return Tokens(
        store or MemoryTokens(parts.database),
        parts.accounts,
        parts.log,
        keys or ListedKeys(),
        parts.clock,
        parts.randomness,
        WorkerThreads(),
        server_key=SERVER_KEY,
        origin=ORIGIN,
        lifetimes=TokenLifetimes(),
        metrics=parts.metrics,
        logger=structlog.get_logger(),
    )


def sign_challenge(
    device: DeviceFixture,
    nonce: bytes,
    purpose: Purpose = Purpose.TOKEN,
    *,
    origin: str = ORIGIN,
    server_key: bytes = SERVER_KEY,
) -> bytes:
    """The device's signature over a challenge."""
    statement = Statement(server_key, origin, device.user.user_key, device.device_id, nonce, purpose)
    return sign_statement(crypto, device.device_secret, statement)


async def prove(tokens: Tokens, device: DeviceFixture, purpose: Purpose = Purpose.TOKEN) -> Principal:
    """A device that signed a challenge."""
    challenge = await tokens.challenge(device.user.user_key, device.device_id, purpose)
    return await tokens.take_challenge(
        challenge.nonce,
        user_key=device.user.user_key,
        device_id=device.device_id,
        purpose=purpose,
        signature=sign_challenge(device, challenge.nonce, purpose),
        device_key=device.device_key,
    )


async def sign_in(tokens: Tokens, device: DeviceFixture) -> Grant:
    """The tokens of a device that signed a challenge."""
    return await tokens.begin(await prove(tokens, device))


def bearer(rest_url: str, device: DeviceFixture) -> str:
    """An ``Authorization`` header of a device, from a real server. Blocks."""
    names = {"user_id": device.user.user_key.hex(), "device_id": str(UUID(bytes=device.device_id))}
    with httpx.Client(base_url=f"{rest_url}/api/v1/auth", timeout=60) as http:
        challenge = http.post("/challenge", json=names).json()
        signature = sign_challenge(
            device,
            parse_base64url(challenge["nonce"], bytes_max=32, what="nonce"),
            origin=challenge["origin"],
            server_key=bytes.fromhex(challenge["server_key"]),
        )
        proof = {"nonce": challenge["nonce"], "signature": format_base64url(signature)}
        answer = http.post("/token", json=names | proof | {"device_key": device.device_key.hex()})
    assert answer.status_code == 200, answer.text
    return f"Bearer {answer.json()['access_token']}"

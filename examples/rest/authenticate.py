"""How a device gets an access token, byte by byte, for whoever writes it in another language.

``python -m examples.rest.authenticate DEVICE_FILE [REST_URL]`` prints the token. Nothing but the standard library and
Ed25519 (here PyNaCl) is needed; docs/reference/protocol.md, section 2, "Over REST", says what is signed, and
tests/vectors/challenge.json holds examples of it.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import sys
import urllib.request
import uuid
from typing import Any

from nacl.signing import SigningKey

PURPOSE = "token"


def sized(value: bytes) -> bytes:
    """With its length before it, 16 bits, big-endian."""
    return len(value).to_bytes(2, "big") + value


def post(url: str, body: dict[str, Any]) -> Any:
    """Post JSON, read JSON."""
    request = urllib.request.Request(  # noqa: S310 - the address is the user's own
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def authenticate(device_file: str, rest_url: str | None) -> str:
    """An access token for the device in a file that ``keepstep device new`` made."""
    connection = sqlite3.connect(device_file)
    user_key, device_id, device_secret, known_rest_url, server_key = connection.execute(
        "SELECT user_key, device_id, device_secret, rest_url, server_key FROM device"
    ).fetchone()
    connection.close()
    origin = rest_url or known_rest_url
    device = SigningKey(device_secret)
    who = {"user_id": user_key.hex(), "device_id": str(uuid.UUID(bytes=device_id))}

    challenge = post(f"{origin}/api/v1/auth/challenge", who | {"purpose": PURPOSE})
    if challenge["server_key"] != server_key.hex():
        raise SystemExit("that is another server than the one this device belongs to")
    nonce = base64.urlsafe_b64decode(challenge["nonce"] + "=")

    statement = (
        b"keepstep/v1/rest-auth\0"
        + server_key
        + sized(origin.encode())  # our own idea of where the server is, not what it told us
        + user_key
        + device_id
        + nonce
        + sized(PURPOSE.encode())
    )
    signature = device.sign(statement).signature
    tokens = post(
        f"{origin}/api/v1/auth/token",
        who
        | {
            "device_key": device.verify_key.encode().hex(),
            "nonce": challenge["nonce"],
            "signature": base64.urlsafe_b64encode(signature).rstrip(b"=").decode(),
        },
    )
    return str(tokens["access_token"])


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit("usage: python -m examples.rest.authenticate DEVICE_FILE [REST_URL]")
    print(authenticate(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))

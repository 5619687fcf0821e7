"""How to check and decrypt what ``GET /api/v1/events`` answers, for a device that holds the keys."""

from __future__ import annotations

import base64
import json
import uuid
from typing import TYPE_CHECKING, Any

from keepstep.client import crypto
from keepstep.client.keys import Keyring
from keepstep.client.payload import Place
from keepstep.client.store import open_store
from keepstep.errors import KeepstepError
from keepstep.protocol.account import AccountLog
from keepstep.protocol.account_state import decode_account_state
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.event import decode_header, verify_event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def open_page(device_file: Path, body: bytes, chain: bytes | None = None) -> Iterator[tuple[int, bytes]]:
    """Seq and plaintext of the events in an answer.

    Args:
        device_file: of a device that has read its account: it knows the authors' keys and the content keys.
        body: the answer.
        chain: the stream's chain where the page begins; ``None`` at its beginning.

    Raises:
        KeepstepError: something does not verify or does not open.
    """
    page = json.loads(body)
    store = open_store(device_file)
    user_key = store.identity.user_key
    keyring = Keyring(store.content_keys())
    account = AccountLog(crypto, user_key, decode_account_state(store.account() or b""))
    store.close()
    chain = chain or crypto.blake3_derive("keepstep/v1/chain-0", user_key + page["stream"].encode())
    for event in page["events"]:
        device_id = uuid.UUID(event["device_id"]).bytes
        header_bytes, sig, payload = (unbase64(event[name]) for name in ("header", "sig", "payload"))
        header = decode_header(header_bytes)
        # Who wrote it: the author's key is the one that $devices lists, which this device has verified.
        verify_event(
            crypto,
            device_key=account.devices[device_id].entry.device_key,
            user_key=user_key,
            device_id=device_id,
            header=header_bytes,
            sig=sig,
        )
        # What was written, and where: the header names the payload's hash, the chain holds the order.
        if header.stream != page["stream"] or crypto.blake3(payload) != header.payload_hash:
            raise KeepstepError(f"event {event['seq']} is not what its author signed")
        chain = chain_next(crypto, chain, event["seq"], event["received_at_ms"], event_hash(crypto, header_bytes, sig))
        yield event["seq"], keyring.open(Place(user_key, header.stream, device_id, header.n), payload)
    if chain.hex() != page["chain"]:
        raise KeepstepError("the chain does not recompute: something is missing, added or reordered")


def unbase64(text: Any) -> bytes:
    """Bytes from base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

"""Vectors of what devices say to each other past the log: linking, presence, signals. Made by ``generate``."""

from __future__ import annotations

import base64
from typing import Any

from keepstep.client import crypto
from tests.vectors.generate import (
    BOX_KEY,
    BOX_SECRET,
    DEVICE_ID,
    DEVICE_KEY,
    DEVICE_SECRET,
    NOW_MS,
    PHONE_ID,
    SERVER_KEY,
    USER_KEY,
    H,
    pack,
    seal,
    secret,
)

SUITE = 2


def linking_vectors() -> Any:
    """One link, every intermediate value included."""
    trusted_secret, new_secret = secret("trusted ephemeral"), secret("new ephemeral")
    trusted_nonce, new_nonce = secret("trusted nonce"), secret("new nonce")
    link_id, psk = secret("link id")[:16], secret("link secret")
    trusted_key, new_key = crypto.x25519_public(trusted_secret), crypto.x25519_public(new_secret)
    rest_url, device_url = "https://keepstep.example", "wss://keepstep.example/v1/connect"
    invitation = pack([1, rest_url, device_url, USER_KEY, SERVER_KEY, link_id, psk, trusted_key])
    commitment = H("keepstep/v1/link-commit", link_id + new_key + new_nonce)
    th1 = H("keepstep/v1/link-th1", crypto.blake3(invitation) + commitment + trusted_nonce)
    th2 = H("keepstep/v1/link-th2", th1 + new_key + new_nonce)
    shared = crypto.x25519(new_secret, trusted_key)
    keys = crypto.hkdf_sha256(th2, shared + psk, b"keepstep/v1/link", 96)
    from_new, from_trusted, code_key = keys[:32], keys[32:64], keys[64:]
    sig = crypto.ed25519_sign(DEVICE_SECRET, b"keepstep/v1/link-device\0" + th2)
    introduction = pack([DEVICE_ID, DEVICE_KEY, BOX_KEY, "phone", "Linux", sig])
    sealed = seal(SUITE, from_new, 0, th2, introduction)
    th3 = H("keepstep/v1/link-th3", th2 + sealed)
    number = int.from_bytes(H("keepstep/v1/link-code", code_key + th3)[:8], "big") % 1_000_000
    handover = pack([[DEVICE_ID, DEVICE_KEY, BOX_KEY, 3, NOW_MS, None, b"label"], [3, secret("chain")], {}])
    return {
        "rest_url": rest_url,
        "device_url": device_url,
        "user_key": USER_KEY,
        "server_key": SERVER_KEY,
        "link_id": link_id,
        "secret": psk,
        "trusted_ephemeral_secret": trusted_secret,
        "trusted_nonce": trusted_nonce,
        "new_ephemeral_secret": new_secret,
        "new_nonce": new_nonce,
        "device_id": DEVICE_ID,
        "device_secret": DEVICE_SECRET,
        "box_secret": BOX_SECRET,
        "name": "phone",
        "platform": "Linux",
        "invitation": "keepstep:" + base64.urlsafe_b64encode(invitation).rstrip(b"=").decode(),
        "th1": th1,
        "th2": th2,
        "th3": th3,
        "shared": shared,
        "from_new": from_new,
        "from_trusted": from_trusted,
        "code_key": code_key,
        "introduction": introduction,
        "code": f"{number:06}",
        "handover": handover,
        "messages": {
            "new_0": pack([0, commitment]),
            "trusted_0": pack([1, trusted_nonce]),
            "new_1": pack([2, new_key, new_nonce, sealed]),
            "trusted_1": seal(SUITE, from_trusted, 0, th2, pack([3, True, handover])),
            "new_2": seal(SUITE, from_new, 1, th2, pack([5])),
            "refusal": seal(SUITE, from_trusted, 0, th2, pack([4])),
        },
    }


def live_vectors() -> Any:
    """Presence and a signal."""
    content_key = secret("content key")
    content_epoch = H("keepstep/v1/content-key", content_key)[:16]
    session, peer_session = secret("live session")[:16], secret("live session of the other")[:16]
    vectors = []
    for label, to, to_session, plaintext, counter in (
        ("keepstep/v1/presence", None, None, pack([NOW_MS, b"reading"]), 1),
        ("keepstep/v1/presence", None, None, pack([NOW_MS, None]), 2),
        ("keepstep/v1/signal", PHONE_ID, peer_session, b"ring", 3),
    ):
        nonce = secret(f"live nonce {counter}")[:24]
        aad = pack([label, USER_KEY, DEVICE_ID, to, to_session, content_epoch, session, counter])
        padded = (b"\0" + len(plaintext).to_bytes(4, "big") + plaintext).ljust(64, b"\0")
        ciphertext = crypto.xchacha_seal(content_key, nonce, aad, padded)
        vectors.append(
            {
                "label": label,
                "content_key": content_key,
                "user_key": USER_KEY,
                "from": DEVICE_ID,
                "to": to,
                "to_session": to_session,
                "session": session,
                "counter": counter,
                "nonce": nonce,
                "plaintext": plaintext,
                "aad": aad,
                "padded": padded,
                "sealed": pack([1, content_epoch, session, counter, nonce, ciphertext]),
            }
        )
    return vectors

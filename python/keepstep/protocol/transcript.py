"""What both sides of the handshake compute: transcript hashes, signed bytes, keys (protocol.md section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keepstep.model import KEY_BYTES

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

VERSION: Final = 1
"""The only protocol version; the WebSocket subprotocol ``keepstep.v1`` names the same one."""

TH1_CONTEXT: Final = "keepstep/v1/th1"
TH2_CONTEXT: Final = "keepstep/v1/th2"
TH3_CONTEXT: Final = "keepstep/v1/th3"
SERVER_AUTH_PREFIX: Final = b"keepstep/v1/server-auth\0"
DEVICE_AUTH_PREFIX: Final = b"keepstep/v1/device-auth\0"
HANDSHAKE_INFO: Final = b"keepstep/v1/hs"
SESSION_INFO: Final = b"keepstep/v1/ap"


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """Secrets of one session, 32 bytes each; without a ``repr``, so that no log shows them.

    Attributes:
        device: ap_c, under which the device seals from counter 0 on.
        server: ap_s, under which the server seals; Ready is its counter 0.
        exporter: for bindings outside this protocol.
    """

    device: bytes
    server: bytes
    exporter: bytes


def th1(primitives: Primitives, client_hello: bytes, server_core: bytes) -> bytes:
    """Hash of ClientHello as sent and ServerHello's core."""
    return primitives.blake3_derive(TH1_CONTEXT, client_hello + server_core)


def th2(primitives: Primitives, first: bytes, server_signature: bytes, client_core: bytes) -> bytes:
    """Hash of th1, s_sig and ClientAuth's core."""
    return primitives.blake3_derive(TH2_CONTEXT, first + server_signature + client_core)


def th3(primitives: Primitives, second: bytes, device_signature: bytes) -> bytes:
    """Hash of th2 and c_sig."""
    return primitives.blake3_derive(TH3_CONTEXT, second + device_signature)


def handshake_key(primitives: Primitives, first: bytes, shared: bytes) -> bytes:
    """hs_c, under which ClientAuth is sealed at counter 0 with AAD th1.

    The expansion gives hs_c and then hs_s; nothing in version 1 is sealed under hs_s.
    """
    return primitives.hkdf_sha256(first, shared, HANDSHAKE_INFO, 2 * KEY_BYTES)[:KEY_BYTES]


def session_keys(primitives: Primitives, third: bytes, shared: bytes) -> SessionKeys:
    """ap_c, ap_s and the exporter, cut in this order from one expansion of 96 bytes."""
    okm = primitives.hkdf_sha256(third, shared, SESSION_INFO, 3 * KEY_BYTES)
    return SessionKeys(device=okm[:KEY_BYTES], server=okm[KEY_BYTES : 2 * KEY_BYTES], exporter=okm[2 * KEY_BYTES :])

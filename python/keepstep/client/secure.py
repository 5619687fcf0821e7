"""TLS to a server, for REST and sessions alike, and in words why it did not come about."""

from __future__ import annotations

import ssl
from typing import TypeAlias

import trio

SecureStream: TypeAlias = trio.SSLStream[trio.SocketStream]


async def open_secure(host: str, port: int, tls: ssl.SSLContext | None) -> SecureStream:
    """A connection in TLS, after its handshake; the caller sets a deadline.

    Args:
        host: name or address, which the certificate has to be for.
        port: 1 to 65535.
        tls: whom to trust; ``None``: the system's authorities, or those that ``SSL_CERT_FILE`` names.

    Raises:
        OSError: there is no connection, or no TLS on it; the text says why.
    """
    stream = await trio.open_ssl_over_tcp_stream(
        host, port, ssl_context=tls or ssl.create_default_context(), https_compatible=True
    )
    try:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as exc:
            raise ConnectionError(_why(exc.__cause__)) from exc
    except BaseException:
        with trio.CancelScope(shield=True):  # closing a socket by force takes no time
            await trio.aclose_forcefully(stream)
        raise
    return stream


def _why(cause: BaseException | None) -> str:
    match cause:
        case ssl.SSLCertVerificationError(verify_message=message):
            return f"its certificate is not trusted here: {message} (SSL_CERT_FILE can name its authority)"
        case ssl.SSLError(reason=str(reason)) if not isinstance(cause, ssl.SSLEOFError):
            return f"it does not speak TLS: {reason.replace('_', ' ').lower()}"
        case _:
            return "it ended the connection before TLS was agreed on"

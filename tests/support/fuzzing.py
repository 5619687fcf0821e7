"""What schemathesis does not know by itself: bodies that are bytes. Loaded by it, see ``tests.e2e.test_openapi``."""

from __future__ import annotations

import schemathesis


@schemathesis.serializer("application/msgpack", "application/vnd.keepstep.account")
def send_bytes(_context: object, value: object) -> bytes:
    """A body as it was made up, whatever it is."""
    return value if isinstance(value, bytes) else str(value).encode()

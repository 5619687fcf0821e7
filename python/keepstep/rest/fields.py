"""The forms of values in paths, queries and bodies, as they stand in the OpenAPI document.

Ids and keys are lower-case hexadecimal digits (a device id: a UUID), signed bytes base64url without padding, times
unix milliseconds. Handlers turn them into bytes with the ``parse_`` functions of ``keepstep.validation``, which look
closer than a pattern can.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from keepstep.model import STREAM_NAME_BYTES_MAX
from keepstep.protocol.messages import INTEGER_MAX

PAGE_LIMIT_MAX: Final = 1_000
"""Most entries of one page."""
PAGE_LIMIT_DEFAULT: Final = 100
CURSOR_CHARACTERS_MAX: Final = 512

_EXAMPLE_KEY: Final = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

Hex32 = Annotated[
    str,
    Meta(
        min_length=64,
        max_length=64,
        pattern="^[0-9a-f]{64}$",
        description="32 bytes as lower-case hexadecimal digits",
        examples=[_EXAMPLE_KEY],
    ),
]
UserId = Annotated[
    str,
    Meta(
        min_length=64,
        max_length=64,
        pattern="^[0-9a-f]{64}$",
        description="A user id: the user's genesis root key as lower-case hexadecimal digits",
        examples=[_EXAMPLE_KEY],
    ),
]
DeviceId = Annotated[
    str,
    Meta(
        min_length=36,
        max_length=36,
        pattern="^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        description="A device id: a hyphenated UUID in lower case",
        examples=["0f8fad5b-d9cb-469f-a165-70867728950e"],
    ),
]
StreamName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=STREAM_NAME_BYTES_MAX,
        pattern="^[A-Za-z0-9._:@/$-]+$",
        description="A stream's name; those that begin with `$` are the protocol's own",
        examples=["notes/kitchen"],
    ),
]
_BASE64: Final = "[A-Za-z0-9_-]"
_TWO_BITS: Final = "[AQgw]"
"""What a last character can be that carries two bits: the others of it are zero, so that bytes have one spelling."""
_FOUR_BITS: Final = "[AEIMQUYcgkosw048]"
_CANONICAL: Final = f"^(?:{_BASE64}{{4}})*(?:{_BASE64}{{2}}{_FOUR_BITS}|{_BASE64}{_TWO_BITS})?$"

Base64url = Annotated[
    str,
    Meta(
        pattern=_CANONICAL,
        description="Bytes as base64url without padding (RFC 4648 section 5)",
        examples=["AQID"],
    ),
]
Base64url32 = Annotated[
    str,
    Meta(
        min_length=43,
        max_length=43,
        pattern=f"^{_BASE64}{{42}}{_FOUR_BITS}$",
        description="32 bytes as base64url without padding",
    ),
]
Base64url64 = Annotated[
    str,
    Meta(
        min_length=86,
        max_length=86,
        pattern=f"^{_BASE64}{{85}}{_TWO_BITS}$",
        description="64 bytes as base64url without padding",
    ),
]
Milliseconds = Annotated[int, Meta(ge=0, le=INTEGER_MAX, description="Unix milliseconds", examples=[1_767_225_600_000])]
Seq = Annotated[int, Meta(ge=0, le=INTEGER_MAX, description="A position in a stream; 0 is before the first event")]
PageLimit = Annotated[int, Meta(ge=1, le=PAGE_LIMIT_MAX, description="Most entries of the answer")]
Cursor = Annotated[
    str,
    Meta(
        min_length=2,
        max_length=CURSOR_CHARACTERS_MAX,
        pattern=_CANONICAL,
        description="`next_cursor` of the page before; opaque",
    ),
]

"""Pages of lists that are in memory: where a page begins, and the cursor that says where the next one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from keepstep.rest.endpoints import RequestBody
from keepstep.rest.fields import CURSOR_CHARACTERS_MAX, PAGE_LIMIT_DEFAULT, Cursor, PageLimit
from keepstep.validation import format_base64url, parse_base64url

T = TypeVar("T")

NUMBER_BYTES: Final = 8
NUMBER_MAX: Final = (1 << 63) - 1
"""What PostgreSQL counts with."""


class PageQuery(RequestBody, frozen=True, kw_only=True):
    """Which page of a list."""

    cursor: Cursor | None = None
    limit: PageLimit = PAGE_LIMIT_DEFAULT


def cut_page(items: Sequence[T], query: PageQuery, *, key: Callable[[T], bytes]) -> tuple[Sequence[T], str | None]:
    """One page of items that are sorted by ``key``, and the cursor of the next one, ``None`` at the end.

    What is added or goes between two calls shifts nothing: a cursor names the last item seen, whether or not it is
    still there, and so any cursor means a place in the list.

    Args:
        items: all of them, ascending and each with a key of its own.
        query: the page.
        key: of an item, bytes that sort as the items do.

    Raises:
        ProtocolError: ``malformed``: the cursor is no base64url.
    """
    if query.cursor is not None:
        last = after_key(query)
        items = [item for item in items if key(item) > last]
    return first_page(items, query, key=key)


def after_key(query: PageQuery) -> bytes:
    """Where a page begins in a list that is read from the database by key: after this one; empty at the beginning.

    Raises:
        ProtocolError: ``malformed``: the cursor is no base64url.
    """
    if query.cursor is None:
        return b""
    return parse_base64url(query.cursor, bytes_max=CURSOR_CHARACTERS_MAX, what="a cursor")


def key_number(key: bytes) -> int:
    """The number that a key stands for, whatever a client made of it."""
    return min(int.from_bytes(key[:NUMBER_BYTES].ljust(NUMBER_BYTES, b"\0"), "big"), NUMBER_MAX)


def first_page(items: Sequence[T], query: PageQuery, *, key: Callable[[T], bytes]) -> tuple[Sequence[T], str | None]:
    """As ``cut_page``, of items that begin after the cursor already and are one more than wanted where there are."""
    page = items[: query.limit]
    return page, format_base64url(key(page[-1])) if len(items) > query.limit else None


def number_key(number: int) -> bytes:
    """A number as the key of an item."""
    return number.to_bytes(NUMBER_BYTES, "big")

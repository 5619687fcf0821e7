"""Recorded editing sessions in the format of github.com/josephg/editing-traces.

``txns[i] = {parents: [indices], agent: number, patches: [[position, deleted, inserted], …]}``; ``parents`` name the
transactions that its author had seen, positions count the characters of the text in that state. Where there are no
parents and agents, one person wrote everything in sequence.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

TRACE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Largest trace, bytes, unpacked."""

Patch = tuple[int, int, str]
"""``[position, deleted, inserted]``, in characters."""


class TraceError(Exception):
    """The file is no trace; the message says why."""


class _Transaction(msgspec.Struct):
    patches: list[Patch]
    parents: list[int] | None = None
    agent: int = 0


class _File(msgspec.Struct, rename="camel"):
    end_content: str
    txns: list[_Transaction]
    start_content: str = ""


class Step(msgspec.Struct, frozen=True):
    """One transaction, with what its author has to take in before.

    Attributes:
        index: its number in the trace.
        author: who writes it.
        merges: the transactions of others that its author sees for the first time here, in order.
        patches: what changes.
    """

    index: int
    author: int
    merges: tuple[int, ...]
    patches: list[Patch]


class Trace(msgspec.Struct, frozen=True):
    """A whole session.

    Attributes:
        name: of its file.
        authors: how many.
        steps: in an order in which parents come first.
        is_ascii: nothing but ASCII is typed.
        end_content: what everybody has in the end.
    """

    name: str
    authors: int
    steps: list[Step]
    is_ascii: bool
    end_content: str


def load_trace(path: Path) -> Trace:
    """Read a trace, packed with gzip or not.

    Raises:
        TraceError: it is not there, not a trace, or too large.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            content = file.read(TRACE_BYTES_MAX + 1)
        if len(content) > TRACE_BYTES_MAX:
            raise TraceError(f"{path} is larger than {TRACE_BYTES_MAX} bytes")
        recorded = msgspec.json.decode(content, type=_File)
    except (OSError, EOFError, msgspec.DecodeError) as exc:
        raise TraceError(f"{path} is not an editing trace: {exc}") from exc
    transactions = recorded.txns
    if recorded.start_content:
        transactions = _with_start(recorded.start_content, transactions)
    authors, steps = _plan(transactions, path)
    is_ascii = all(inserted.isascii() for each in transactions for _, _, inserted in each.patches)
    return Trace(path.name, authors, steps, is_ascii, recorded.end_content)


def _with_start(content: str, transactions: list[_Transaction]) -> list[_Transaction]:
    """The text that was there at the beginning, as a transaction before all others."""
    first = _Transaction(patches=[(0, 0, content)], parents=[])
    for each in transactions:
        if each.parents is not None:
            each.parents = [parent + 1 for parent in each.parents] or [0]
    return [first, *transactions]


def _plan(transactions: list[_Transaction], path: Path) -> tuple[int, list[Step]]:
    """How many authors, and their steps."""
    authors = 1 + max((each.agent for each in transactions), default=0)
    seen: list[set[int]] = [set() for _ in range(authors)]
    parents: list[list[int]] = []
    steps: list[Step] = []
    for index, each in enumerate(transactions):
        parents.append([index - 1][:index] if each.parents is None else each.parents)
        if each.agent < 0 or any(not 0 <= parent < index for parent in parents[index]):
            raise TraceError(f"{path} is not an editing trace: transaction {index} comes before its parents")
        merges = _unseen(index, parents, seen[each.agent])
        seen[each.agent].update(merges, (index,))
        steps.append(Step(index, each.agent, tuple(sorted(merges)), each.patches))
    return authors, steps


def _unseen(index: int, parents: list[list[int]], seen: set[int]) -> set[int]:
    """The ancestors of a transaction that its author had not seen before it."""
    found: set[int] = set()
    waiting = list(parents[index])
    while waiting:
        ancestor = waiting.pop()
        if ancestor not in seen and ancestor not in found:
            found.add(ancestor)
            waiting += parents[ancestor]
    return found

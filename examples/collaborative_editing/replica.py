"""One person's copy of the text: a CRDT that takes in the updates of others and gives the update of each own edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pycrdt import Doc, Text

if TYPE_CHECKING:
    from pycrdt import TransactionEvent

    from examples.collaborative_editing.trace import Patch

TEXT_NAME: Final = "text"


class Replica:
    """A text that several people edit.

    Args:
        author: a number from 0 on; where two insert at the same place, it decides who comes first, as in the trace.
            ``None`` for one that only reads.
        is_ascii: nothing but ASCII is ever typed, so that a character is a byte.
    """

    def __init__(self, author: int | None, *, is_ascii: bool) -> None:
        self._doc: Doc[Text] = Doc(client_id=None if author is None else author + 1)
        self._text = self._doc.get(TEXT_NAME, type=Text)
        self._is_ascii = is_ascii
        self._update = b""
        self._doc.observe(self._keep_update)

    def _keep_update(self, event: TransactionEvent) -> None:
        self._update = event.update

    def __str__(self) -> str:
        return str(self._text)

    def merge(self, update: bytes) -> None:
        """Take in somebody's edit."""
        self._doc.apply_update(update)

    def edit(self, patches: list[Patch]) -> bytes:
        """Change the text.

        Returns:
            the update of this one transaction, for everybody else.
        """
        with self._doc.transaction():
            for position, deleted, inserted in patches:
                start, end = self._offset(position), self._offset(position + deleted)
                if deleted:
                    del self._text[start:end]
                if inserted:
                    self._text.insert(start, inserted)
        return self._update

    def _offset(self, position: int) -> int:
        """Where a character begins: the trace counts characters, the CRDT bytes of UTF-8."""
        return position if self._is_ascii else len(str(self._text)[:position].encode())

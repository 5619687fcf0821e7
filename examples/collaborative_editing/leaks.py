"""Looks for plaintext where there must be none: in every file of a data directory, in a dump, in logs.

Looked for is every run of 12 characters of a text, as it is, in hexadecimal and in base64 (at each of its three
alignments, both alphabets). A run may occur for innocent reasons: a database brings English words of its own. So the
same search is made before the text exists, in the same places, and the runs found then are left out and counted.

To be quick in Python, files are not looked at byte by byte. Every spelling of a run is at least 12 bytes long, so it
holds 8 bytes that begin at a multiple of 4, whatever its place: two arrays of 64-bit numbers over a file show all of
these, and only files in which one is found are looked at closely.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

RUN_CHARACTERS: Final = 12
CHUNK_BYTES: Final = 1024 * 1024
"""Read at a time; chunks overlap by more than the longest spelling of a run."""
OVERLAP_BYTES: Final = 64
GRAM_BYTES: Final = 8
BASE64_CERTAIN_CHARACTERS: Final = 14
"""Of the base64 of 12 bytes at an unknown place, this many characters depend on nothing else."""


@dataclass(frozen=True, slots=True)
class Searched:
    """What was found where.

    Attributes:
        size_bytes: looked at.
        runs: found, whatever their spelling.
    """

    size_bytes: int
    runs: frozenset[bytes]


class Needles:
    """The runs of some texts in all their spellings."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._runs: dict[bytes, bytes] = {}
        for text in texts:
            for run, spelling in _spellings(text.encode()):
                self._runs[spelling] = run
        self._lengths = sorted({len(spelling) for spelling in self._runs})
        self._grams = {
            int.from_bytes(spelling[at : at + GRAM_BYTES], "little") for spelling in self._runs for at in range(4)
        }

    @property
    def runs(self) -> int:
        """How many different runs are looked for."""
        return len(set(self._runs.values()))

    def search(self, paths: Iterable[Path]) -> Searched:
        """Look through files; directories are looked through with all that is in them. Raises OSError."""
        found: set[bytes] = set()
        size = 0
        for file in _files(paths):
            for chunk in _chunks(file):
                size += len(chunk)
                found.update(self._find(chunk))
        return Searched(size, frozenset(found))

    def _find(self, chunk: bytes) -> Iterator[bytes]:
        padded = chunk + bytes(2 * GRAM_BYTES - len(chunk) % GRAM_BYTES)
        for shift in (0, GRAM_BYTES // 2):
            numbers = memoryview(padded)[shift : shift + len(padded) - GRAM_BYTES].cast("Q").tolist()
            if self._grams.isdisjoint(numbers):
                continue
            for index, number in enumerate(numbers):
                if number in self._grams:
                    yield from self._around(chunk, shift + index * GRAM_BYTES)

    def _around(self, chunk: bytes, at: int) -> Iterator[bytes]:
        """The runs whose spelling begins 0 to 3 bytes before ``at``."""
        for start in range(max(0, at - 3), at + 1):
            for length in self._lengths:
                run = self._runs.get(chunk[start : start + length])
                if run is not None:
                    yield run


def _spellings(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every run of a text with each way it can be written."""
    for start in range(len(text) - RUN_CHARACTERS + 1):
        run = text[start : start + RUN_CHARACTERS]
        yield run, run
        yield run, run.hex().encode()
        yield run, run.hex().upper().encode()
        for before in range(3):
            # The characters that also depend on what comes before and after the run are cut off.
            first = -(-before * 8 // 6)
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                written = encode(bytes(before) + run)
                yield run, written[first : first + BASE64_CERTAIN_CHARACTERS]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        else:
            yield path


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        overlap = b""
        while chunk := opened.read(CHUNK_BYTES):
            yield overlap + chunk
            overlap = (overlap + chunk)[-OVERLAP_BYTES:]

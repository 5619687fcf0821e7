"""The files that the schema is the sum of: read, checked, and the pair for a new one written.

``migrations/NNNN_name.up.sql`` and its ``.down.sql`` are numbered from 0001 without a gap. Lines of their own at the
top of a file say what the runner has to know:

``-- compatible-with: N``, in an up file: a keepstep which knows only versions up to N may go on working with it.
``-- no-transaction``, in both files of a pair: the statements cannot run in a transaction, and each can be repeated.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keepstep.errors import StartupError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

FILE_BYTES_MAX: Final = 1_048_576
"""A larger migration file is a mistake: data belongs elsewhere."""

_NAME: Final = re.compile(r"[a-z0-9_]{1,60}")
_FILE_NAME: Final = re.compile(rf"(?P<version>\d{{4}})_(?P<name>{_NAME.pattern})\.(?P<direction>up|down)\.sql")
_COMPATIBLE_WITH: Final = re.compile(r"^-- compatible-with: (\d+)$", re.MULTILINE)
_NO_TRANSACTION: Final = re.compile(r"^-- no-transaction$", re.MULTILINE)
_TRANSACTION_CONTROL: Final = re.compile(
    r"^\s*(BEGIN|START|COMMIT|ROLLBACK)(\s+(TRANSACTION|WORK))?\s*;", re.IGNORECASE | re.MULTILINE
)
_COMMENT: Final = re.compile(r"^\s*--.*$", re.MULTILINE)
_QUOTED_BODY: Final = re.compile(r"\$\w*\$")
_STATEMENT_END: Final = re.compile(r";[ \t]*$", re.MULTILINE)
_ONCE_ONLY: Final = re.compile(
    r"CREATE\s+(UNIQUE\s+)?INDEX(?!\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS)|"
    r"DROP\s+INDEX(?!\s+CONCURRENTLY\s+IF\s+EXISTS)|"
    r"CREATE\s+TABLE(?!\s+IF\s+NOT\s+EXISTS)|DROP\s+(TABLE|COLUMN)(?!\s+IF\s+EXISTS)|"
    r"ADD\s+COLUMN(?!\s+IF\s+NOT\s+EXISTS)|ADD\s+VALUE(?!\s+IF\s+NOT\s+EXISTS)",
    re.IGNORECASE,
)

_UP_TEMPLATE: Final = """\
-- What it adds, in a sentence (the document that says why).
-- compatible-with: {previous}

"""
_DOWN_TEMPLATE: Final = """\
-- Takes it away again, and what is lost with it.

"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema, as its two files have it.

    Attributes:
        version: 1, 2, 3 …
        name: what it does, in one word or a few.
        checksum: SHA-256 of the up file, in hex.
        compatible_with: the oldest version a keepstep may know and still use the schema.
        up_sql: the statements.
        down_sql: what undoes them, data in what they made included.
        in_transaction: whether each direction runs in one transaction; else statement by statement.
    """

    version: int
    name: str
    checksum: str
    compatible_with: int
    up_sql: str = field(repr=False)
    down_sql: str = field(repr=False)
    in_transaction: bool = True

    @property
    def down_checksum(self) -> str:
        """SHA-256 of the down file, in hex."""
        return _checksum(self.down_sql)

    def __str__(self) -> str:
        return f"{self.version:04}_{self.name}"


def read_migrations(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """All migrations, ascending: those of this keepstep, or of another folder.

    Raises:
        StartupError: a file is not what it should be: its name, a gap, a pair that is not one, its contents.
    """
    found: dict[tuple[int, str], tuple[str, str]] = {}
    for file in sorted((folder or _own_folder()).iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise StartupError(f"migration file {file.name}: its name must be NNNN_name.up.sql or NNNN_name.down.sql")
        key = int(match["version"]), match["direction"]
        if key in found:
            raise StartupError(f"migration file {file.name}: there is another one with this number")
        found[key] = match["name"], _read_sql(file)
    versions = sorted({version for version, _ in found})
    if versions != list(range(1, len(versions) + 1)):
        raise StartupError(f"the migrations must be numbered 1, 2, 3 … without a gap, and are {versions}")
    return tuple(_pair(version, found.get((version, "up")), found.get((version, "down"))) for version in versions)


def new(name: str, folder: Path | None = None) -> tuple[Path, Path]:
    """Write the two files of the next migration, each with its header; returns (up, down).

    Raises:
        StartupError: the name is not one, the migrations that are there are not in order, or they cannot be written to.
        OSError: the folder cannot be written to.
    """
    if _NAME.fullmatch(name) is None:
        raise StartupError(f"{name!r} is no name for a migration: at most 60 of a-z, 0-9 and _")
    place = folder or _own_folder()
    if not isinstance(place, Path):
        raise StartupError("this keepstep's migrations are inside an archive: name a folder")
    previous = len(read_migrations(place))
    stem = f"{previous + 1:04}_{name}"
    up_file, down_file = place / f"{stem}.up.sql", place / f"{stem}.down.sql"
    with up_file.open("x", encoding="utf-8") as file:
        file.write(_UP_TEMPLATE.format(previous=previous) if previous else _UP_TEMPLATE.partition("\n")[0] + "\n\n")
    with down_file.open("x", encoding="utf-8") as file:
        file.write(_DOWN_TEMPLATE)
    return up_file, down_file


def statements(sql: str) -> tuple[str, ...]:
    """The statements of a file that runs one by one, in order, without its comments."""
    parts = _STATEMENT_END.split(_COMMENT.sub("", sql))
    return tuple(part.strip() for part in parts if part.strip())


def _own_folder() -> Traversable:
    return files("keepstep") / "migrations"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_sql(file: Traversable) -> str:
    """The text of a migration file. Raises StartupError."""
    data = file.read_bytes()
    if len(data) > FILE_BYTES_MAX:
        raise StartupError(
            f"migration file {file.name}: it has {len(data)} bytes, at most {FILE_BYTES_MAX} are allowed"
        )
    text = data.decode()
    if not text.strip():
        raise StartupError(f"migration file {file.name}: it is empty")
    if _TRANSACTION_CONTROL.search(text):
        raise StartupError(f"migration file {file.name}: it must not begin or end transactions, it runs in one")
    return text


def _pair(version: int, up_file: tuple[str, str] | None, down_file: tuple[str, str] | None) -> Migration:
    """The migration of two files, each (name, text). Raises StartupError."""
    if up_file is None or down_file is None or up_file[0] != down_file[0]:
        raise StartupError(f"migration {version:04}: it needs an .up.sql and a .down.sql of the same name")
    name, up_sql = up_file
    down_sql = down_file[1]
    declared = _COMPATIBLE_WITH.search(up_sql)
    compatible_with = int(declared[1]) if declared else version
    if not 1 <= compatible_with <= version:
        raise StartupError(f"migration {version:04}_{name}: compatible-with must be from 1 to {version}")
    apart = [_NO_TRANSACTION.search(text) is not None for text in (up_sql, down_sql)]
    if apart[0] != apart[1]:
        raise StartupError(f"migration {version:04}_{name}: both of its files say -- no-transaction, or neither")
    if apart[0]:
        _check_repeatable(f"{version:04}_{name}", up_sql, down_sql)
    return Migration(version, name, _checksum(up_sql), compatible_with, up_sql, down_sql, in_transaction=not apart[0])


def _check_repeatable(name: str, *texts: str) -> None:
    """What is not undone when it fails half way is done again. Raises StartupError."""
    for statement in (statement for text in texts for statement in statements(text)):
        if _QUOTED_BODY.search(statement):
            raise StartupError(f"migration {name}: without a transaction it cannot have a body between $$")
        once = _ONCE_ONLY.search(statement)
        if once is not None:
            raise StartupError(
                f"migration {name}: without a transaction each statement must be one that can be repeated: "
                f"{once[0].upper()} needs IF [NOT] EXISTS, and an index CONCURRENTLY"
            )

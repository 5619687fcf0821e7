"""The file of statements."""

from __future__ import annotations

import re
from pathlib import Path

import keepstep.postgres
from keepstep.model import RetentionClass
from keepstep.postgres import queries

FOLDER = Path(keepstep.postgres.__file__).parent
USE = re.compile(r"""(?:query|numbered|_rows|_value|_one|_run|_rows_of)\(\s*"(\w+)\"""")
NAME = re.compile(r'"(\w+)"')


def test_every_statement_is_used_and_every_use_has_one() -> None:
    """Nothing is left over, nothing is missing."""
    sources = [file.read_text(encoding="utf-8") for file in FOLDER.glob("*.py")]
    used = {name for source in sources for name in USE.findall(source)}
    named = {name for source in sources for name in NAME.findall(source)}

    assert used <= set(queries._STATEMENTS) <= named


def test_comments_are_for_people() -> None:
    """What is sent holds the statement only, one of them, for the table that was asked for."""
    for name, text in queries._STATEMENTS.items():
        classes = list(RetentionClass) if "events_of_class" in text else [None]
        for retention_class in classes:
            sent = queries.query(name, retention_class).decode()
            assert "--" not in sent
            assert ";" not in sent
            assert "events_of_class" not in sent
            assert sent.split()[0] in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "COPY"}
            if retention_class is not None:
                assert queries.EVENT_TABLES[retention_class] in sent

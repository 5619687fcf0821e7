"""What is passed on from one PostgreSQL to another of a different version."""

from __future__ import annotations

from io import BytesIO

from keepstep.postgres.moving import _pass_on

OF_ONE_VERSION = (
    b"SET transaction_timeout = 0;\nALTER TABLE ONLY public.notes ALTER COLUMN n SET (pg_attver=24786488);\n"
)


def test_what_one_version_alone_knows_is_left_out_but_never_a_row() -> None:
    """A row may read like it."""
    rows = b"COPY public.notes (text) FROM stdin;\n" + OF_ONE_VERSION + b"\\.\n"
    passed = BytesIO()
    _pass_on(BytesIO(b"SET row_security = off;\n" + OF_ONE_VERSION + rows + OF_ONE_VERSION + b"COMMIT;\n"), passed)
    assert passed.getvalue() == b"SET row_security = off;\n" + rows + b"COMMIT;\n"

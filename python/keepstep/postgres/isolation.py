"""The second wall between users: reading connections are shown the rows of one user at a time, by row-level security.

They become ``READER_ROLE``, which owns nothing, and name the user before they ask. A statement that forgot its filter
gets that user's rows, and none where no user was named (migration 0006, docs/adr/0150).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg

from keepstep.errors import StartupError

if TYPE_CHECKING:
    from psycopg import Connection

READER_ROLE: Final = "keepstep_reader"
"""As migration 0006 names it. It cannot log in."""
_BECOME: Final = "SELECT set_config('role', %s, true)"
_OPEN_TABLES: Final = """
SELECT c.oid::regclass::text
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'user_pk'
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND NOT row_security_active(c.oid)
ORDER BY 1
"""
_MAY_READ: Final = "SELECT has_table_privilege('streams', 'SELECT')"


def check_isolation(connection: Connection) -> None:
    """The wall stands, seen as the role that reads.

    Args:
        connection: in a transaction, which this leaves open, as that role.

    Raises:
        StartupError: the server may not become the role, or the role sees the rows of all users, or none ever.
        psycopg.Error: the connection failed.
    """
    try:
        connection.execute(_BECOME, [READER_ROLE])
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue) as error:
        raise StartupError(
            f"the server's database role may not become {READER_ROLE}, as which it reads: as a superuser run "
            f"CREATE ROLE {READER_ROLE} NOLOGIN (where it is not there) and GRANT {READER_ROLE} TO the server's role"
        ) from error
    unprotected = [str(row[0]) for row in connection.execute(_OPEN_TABLES)]
    if unprotected:
        raise StartupError(
            f"the role {READER_ROLE} would be shown the rows of all users in {', '.join(unprotected)}: it must own no "
            "table and be neither a superuser nor BYPASSRLS, and the tables must have row-level security enabled"
        )
    if connection.execute(_MAY_READ).fetchone() != (True,):
        raise StartupError(
            f"the role {READER_ROLE} may not read the tables, which a restored copy may have lost: "
            "apply the migration 0006 again (keepstep migrate down --to 5, then up)"
        )

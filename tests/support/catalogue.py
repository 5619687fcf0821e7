"""What a database's schema consists of, as text: for comparing the sum of all migrations with what was meant.

``python -m tests.support.catalogue`` writes it anew, to be read in the change that a migration comes with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg

EXPECTED: Final = Path(__file__).parents[1] / "data" / "schema.txt"
"""The schema of all migrations, as it was last read by somebody."""

_QUERY: Final = r"""
WITH ours AS (
    SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'schema\_%'
)
SELECT 'table ' || c.relname || ' kind ' || c.relkind::text || coalesce(' ' || c.reloptions::text, '')
    || CASE WHEN c.relrowsecurity THEN ' row security' ELSE '' END
    || coalesce(' partitioned ' || pg_get_partkeydef(c.oid), '')
    || coalesce(' partition ' || pg_get_expr(c.relpartbound, c.oid), '')
    || coalesce(' grants ' || array_to_string(ARRAY(
        SELECT a.grantee::regrole::text || ':' || a.privilege_type FROM aclexplode(c.relacl) a
        WHERE a.grantee <> c.relowner ORDER BY 1), ','), '')
    || coalesce(' -- ' || obj_description(c.oid, 'pg_class'), '')
FROM ours c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S')
UNION ALL
SELECT 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
    || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END || ' storage ' || a.attstorage::text
    || CASE WHEN a.attidentity <> '' THEN ' identity ' || a.attidentity::text ELSE '' END
    || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
    || coalesce(' -- ' || col_description(c.oid, a.attnum), '')
FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind IN ('r', 'p', 'v', 'm')
UNION ALL
SELECT 'constraint ' || c.relname || '.' || k.conname || ' ' || pg_get_constraintdef(k.oid)
    || coalesce(' -- ' || obj_description(k.oid, 'pg_constraint'), '')
FROM ours c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype <> 'n'
UNION ALL
SELECT 'index ' || c.relname || ' ' || pg_get_indexdef(i.indexrelid)
    || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
FROM ours c JOIN pg_index i ON i.indexrelid = c.oid
UNION ALL
SELECT 'policy ' || c.relname || '.' || p.polname || ' ' || p.polcmd::text
    || coalesce(' using ' || pg_get_expr(p.polqual, p.polrelid), '')
    || coalesce(' check ' || pg_get_expr(p.polwithcheck, p.polrelid), '')
FROM ours c JOIN pg_policy p ON p.polrelid = c.oid
UNION ALL
SELECT 'domain ' || t.typname || ' ' || format_type(t.typbasetype, t.typtypmod)
    || coalesce(' ' || k.conname || ' ' || pg_get_constraintdef(k.oid), '')
    || coalesce(' -- ' || obj_description(k.oid, 'pg_constraint'), '')
FROM pg_type t LEFT JOIN pg_constraint k ON k.contypid = t.oid AND k.contype <> 'n'
WHERE t.typnamespace = 'public'::regnamespace AND t.typtype IN ('d', 'e')
UNION ALL
SELECT 'function ' || p.oid::regprocedure::text || ' ' || md5(p.prosrc)
FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger ' || c.relname || '.' || t.tgname || ' ' || pg_get_triggerdef(t.oid)
FROM ours c JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
"""


def catalogue(url: str) -> list[str]:
    """One line for each table, column, constraint, index, policy, domain, function and trigger, sorted.

    The runner's own tables are left out. An order of columns is none of it: a database that went down and up again has
    another one.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        return sorted(row for (row,) in connection.execute(_QUERY))


def expected() -> list[str]:
    """What it should be."""
    return EXPECTED.read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Write what all migrations make."""
    from keepstep.postgres import migrate
    from tests.support.database import running_postgres

    with running_postgres() as server, server.database("template1") as url:
        migrate.up(url)
        EXPECTED.write_text("\n".join(catalogue(url)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

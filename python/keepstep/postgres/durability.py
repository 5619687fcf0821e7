"""Whether a PostgreSQL keeps what it acknowledges. A server that may lose it is refused, unless told ``unsafe``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg

from keepstep.errors import StartupError

VERSION_MIN: Final = 15
VERSION_MAX: Final = 18
"""Major versions of PostgreSQL that the tests run with."""
_VERSION_UNIT: Final = 10_000
"""PostgreSQL tells its version as major * 10000 + minor."""
_REQUIRED: Final = ("fsync", "full_page_writes", "synchronous_commit")
_READ: Final = """
SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
       current_setting('synchronous_standby_names'), pg_is_in_recovery()
"""


class NotDurableError(psycopg.OperationalError):
    """A new connection leads to a database that may lose what it acknowledges; the message says why."""


@dataclass(frozen=True, slots=True)
class Durability:
    """What health reports and benchmarks say about the database.

    Attributes:
        version: PostgreSQL's, as 180006 for 18.6.
        fsync: ``on`` or ``off``.
        full_page_writes: ``on`` or ``off``.
        synchronous_commit: for connections like the one that was asked.
        standby_names: which standbys a commit waits for; empty where none, so that a fail-over may lose the last acks.
    """

    version: int
    fsync: str
    full_page_writes: str
    synchronous_commit: str
    standby_names: str

    @property
    def release(self) -> str:
        """PostgreSQL's version as people write it: 18.6."""
        major, minor = divmod(self.version, _VERSION_UNIT)
        return f"{major}.{minor}"

    @property
    def unsafe_settings(self) -> tuple[str, ...]:
        """Names of the settings under which a crash may lose what was acknowledged; empty where it may not."""
        return tuple(name for name in _REQUIRED if getattr(self, name) == "off")


def check_durability(connection: psycopg.Connection, *, unsafe: bool) -> Durability:
    """What this database promises, asked on a connection like those that append (settings differ by role).

    Args:
        connection: in autocommit or not; a transaction that this begins is left open.
        unsafe: accept a database that may lose what it acknowledged.

    Raises:
        StartupError: a version that is not supported, a standby, or settings that are not durable.
        psycopg.Error: the connection failed.
    """
    version = connection.info.server_version
    if not VERSION_MIN <= version // _VERSION_UNIT <= VERSION_MAX:
        raise StartupError(
            f"the database is PostgreSQL {version // _VERSION_UNIT}; keepstep works with {VERSION_MIN} to {VERSION_MAX}"
        )
    row = connection.execute(_READ).fetchone()
    assert row is not None
    *settings, is_standby = row
    if is_standby:
        raise StartupError("the database is a standby, which cannot be written: set DATABASE_URL to the primary")
    durability = Durability(version, *settings)
    if durability.unsafe_settings and not unsafe:
        raise StartupError(
            f"the database may lose what it acknowledged, for it has {', '.join(durability.unsafe_settings)} off: "
            "turn it on (for the role too), or set KEEPSTEP_UNSAFE=true where losing events does not matter"
        )
    return durability


def require_durability(connection: psycopg.Connection) -> None:
    """The same of a connection that is made later: what is behind an address may change, as by a failover.

    Raises:
        NotDurableError: the database may lose what it acknowledges, is a standby or of a version that is not supported.
        psycopg.Error: the connection failed.
    """
    try:
        check_durability(connection, unsafe=False)
    except StartupError as error:
        raise NotDurableError(str(error)) from error

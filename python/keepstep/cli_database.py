"""What commands that work on the server's own database share: is the server installed, and where is the database."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from keepstep.config import Settings

SERVER_PACKAGES: Final = frozenset(
    {
        "cryptography",
        "flask_swagger_ui",
        "hypercorn",
        "jwt",
        "obstore",
        "prometheus_client",
        "psutil",
        "psycopg",
        "pydantic",
        "pydantic_settings",
        "pyrage",
        "quart",
        "quart_trio",
        "structlog",
        "zstandard",
    }
)


@contextmanager
def server_installed() -> Iterator[None]:
    """Say plainly that the server's packages are missing, where they are."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in SERVER_PACKAGES:
            raise
        raise StartupError(
            'only the device part is installed here; for the server: pip install "keepstep[server]"'
        ) from exc


def counted(count: int, what: str) -> str:
    """``1 user``, ``2 users``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def with_database(work: Callable[[str], None], *, beside_a_server: bool = False) -> None:
    """Run ``work`` in a worker thread with the URL of the settings' database, which is started where it is ours.

    Args:
        work: blocks; gets the URL of the tables' owner.
        beside_a_server: whether it may run while a server runs on the embedded database; else that is refused.

    Raises:
        StartupError: the server is not installed, or the database does not start; and what ``work`` raises.
        ConfigError: a setting is wrong.
    """
    with server_installed():
        from keepstep import config, telemetry

        settings = config.load()
        telemetry.configure_logging("warning", settings.log_format)
        trio.run(_work_on_database, settings, work, beside_a_server)


async def _work_on_database(settings: Settings, work: Callable[[str], None], beside_a_server: bool) -> None:
    """Cancel-safe up to where ``work`` begins; then it is waited for."""
    async with database_url(settings, beside_a_server=beside_a_server) as url:
        await trio.to_thread.run_sync(work, url)


@asynccontextmanager
async def database_url(settings: Settings, *, beside_a_server: bool) -> AsyncIterator[str]:
    """The URL of the tables' owner; the embedded database runs meanwhile, started here where no server has it.

    Args:
        settings: of the server.
        beside_a_server: whether a server may be running on the embedded database; else that is refused.

    Raises:
        StartupError: the database does not start, or a server runs on it and ``beside_a_server`` is not set.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from keepstep.postgres import backups, embedded

    if beside_a_server:
        url = backups.find_source(settings).owner_url
        if await trio.to_thread.run_sync(backups.is_reached, url):
            yield url
            return
    async with embedded.running(settings) as url:
        yield url

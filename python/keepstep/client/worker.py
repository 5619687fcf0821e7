"""Where blocking calls run, one at a time, and nurseries that raise the error itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")

CLEANUP_S: Final = 5.0
"""How long a cancelled or failed step may take to leave things tidy, seconds."""


class Worker(Protocol):
    """Runs blocking calls, one at a time."""

    async def run(self, function: Callable[[], T]) -> T:
        """The result of ``function``, which is never abandoned half-way: a cancellation waits for its end."""


class ThreadWorker:
    """Runs them in a worker thread."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, function: Callable[[], T]) -> T:
        """As ``Worker.run``."""
        return await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=False)


@contextlib.asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose failure is raised as the one error that began it, not as a group.

    Where several tasks failed, the first that is no mere consequence of a cut connection counts; the others stay
    visible as the group that is its context.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        errors = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
        if not errors or any(not isinstance(error, Exception) for error in errors):
            raise
        raise min(errors, key=lambda error: isinstance(error, ConnectionError)) from None


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    else:
        yield error

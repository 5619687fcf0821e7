"""Takes over what may change while the server runs, when it is told to (SIGHUP), and names what needs a restart.

A setting that may change is marked ``Reloadable`` in ``keepstep.config``; the part that uses it is registered here by
``Reloads.on`` where the part is built. A new configuration is taken over as a whole or not at all: it is read and
checked first, then checked together with the settings that stay as they are until a restart, then every part is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from keepstep.config import Settings, merged, reloadable, shown
from keepstep.errors import ConfigError

if TYPE_CHECKING:
    from keepstep.interfaces import Threads
    from keepstep.telemetry import Log, Metrics

PROBLEMS_MAX: Final = 64
"""Problems of a refused configuration that one log line repeats."""

Apply = Callable[[Settings], None]
"""Tells a part its new settings; must not fail, since the settings are checked, and must not wait."""


class ReloadRequests:
    """That the configuration should be read again: by whoever is told so, for a server that may not run yet.

    Requests that come while one waits or is worked on are one request.

    Args:
        load: reads the configuration as at the start; blocks, raises ConfigError.
    """

    def __init__(self, load: Callable[[], Settings]) -> None:
        self.load = load
        self._wanted = trio.Event()

    def request(self) -> None:
        """Have the configuration read again as soon as the server runs."""
        self._wanted.set()

    async def wait(self) -> None:
        """Until it is requested; takes the request. Cancel-safe: a request is not lost."""
        await self._wanted.wait()
        self._wanted = trio.Event()


class Reloads:
    """The settings that are in force, and the parts that are told when some change.

    Args:
        settings: those the server was started with.
        threads: where files are read.
        metrics: counted into.
        logger: told of every change.
    """

    def __init__(self, settings: Settings, threads: Threads, metrics: Metrics, logger: Log) -> None:
        self._settings = settings
        self._threads = threads
        self._metrics = metrics
        self._logger = logger
        self._limiter = trio.CapacityLimiter(1)
        self._parts: list[tuple[frozenset[str], Apply]] = []
        self._always: list[Callable[[], None]] = []

    @property
    def settings(self) -> Settings:
        """Those in force: what was reloaded is new, the rest is as at the start."""
        return self._settings

    @property
    def registered(self) -> frozenset[str]:
        """Names of the settings that some part takes over."""
        return frozenset().union(*(names for names, _ in self._parts))

    def on(self, names: Iterable[str], apply: Apply) -> None:
        """Call ``apply`` with the settings in force whenever one of ``names`` has changed."""
        self._parts.append((frozenset(names), apply))

    def read_at_use(self, *names: str) -> None:
        """Some part reads these from ``settings`` whenever it uses them."""
        self._parts.append((frozenset(names), lambda _: None))

    def every_time(self, look: Callable[[], None]) -> None:
        """Call ``look`` at every reload that is not refused: for files that change without their path."""
        self._always.append(look)

    async def run(
        self, requests: ReloadRequests, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reload at every request, until cancelled. Cancel-safe: nothing is taken over by half."""
        task_status.started()
        while True:
            await requests.wait()
            try:
                settings = await self._threads.run(requests.load, limiter=self._limiter)
                self.take_over(settings)
            except ConfigError as refused:
                self._metrics.configuration_reloads.labels("refused").inc()
                self._logger.error(
                    "configuration_refused",
                    detail="nothing was changed",
                    problems=[line.strip() for line in str(refused).splitlines()[1 : 1 + PROBLEMS_MAX]],
                )
            except Exception as fault:  # nothing that a reload meets may end a server that runs
                self._metrics.configuration_reloads.labels("refused").inc()
                self._logger.error("configuration_refused", detail="nothing was changed", error=type(fault).__name__)

    def take_over(self, settings: Settings) -> None:
        """Put new settings in force, as far as that needs no restart.

        Raises:
            ConfigError: they contradict what stays as it is until a restart; nothing was changed.
        """
        before = self._settings
        different = [name for name in Settings.model_fields if getattr(before, name) != getattr(settings, name)]
        changed = [name for name in different if reloadable(name)]
        after = merged(before, {name: getattr(settings, name) for name in changed})
        self._settings = after
        concerned = [apply for names, apply in self._parts if not names.isdisjoint(changed)]
        try:
            for apply in concerned:
                apply(after)
        except Exception:
            self._settings = before
            for apply in concerned:
                apply(before)
            raise
        for look in self._always:
            look()
        self._report(before, settings, changed, [name for name in different if not reloadable(name)])

    def _report(self, before: Settings, settings: Settings, changed: list[str], waiting: list[str]) -> None:
        self._metrics.setting_restart_needed.clear()
        for names, event in ((changed, "setting_changed"), (waiting, "setting_needs_restart")):
            for name in names:
                self._logger.info(
                    event,
                    setting=name,
                    old=shown(name, getattr(before, name)),
                    new=shown(name, getattr(settings, name)),
                )
        for name in changed:
            self._metrics.settings_changed.labels(name).inc()
        for name in waiting:
            self._metrics.setting_restart_needed.labels(name).set(1)
        self._metrics.configuration_reloads.labels("applied" if changed else "unchanged").inc()
        self._logger.info("configuration_reloaded", count=len(changed), needed=len(waiting))

"""The server's TLS certificate while it runs: what new connections are served with, and when its files change.

A renewed certificate needs nobody: the files are looked at now and then, and at once when somebody asks. Connections
go on with what they began with. Files that cannot be used leave the certificate in force as it is.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from keepstep import certificates
from keepstep.errors import ConfigError

if TYPE_CHECKING:
    from keepstep.certificates import Certificate, CertificateFiles
    from keepstep.interfaces import Clock, Threads
    from keepstep.telemetry import Log, Metrics

LOOK_INTERVAL_S: Final = 60.0
"""Between two looks at the files."""
WARN_BEFORE_S: Final = 14 * 24 * 60 * 60
"""How long before its end a certificate is warned of: who renews automatically has done it by then."""
WARN_INTERVAL_S: Final = 24 * 60 * 60.0
"""Between two warnings."""


class ServerCertificate:
    """The certificate in force.

    Args:
        files: where it is.
        clock: tells whether it is good now.
        threads: files are read there.
        metrics: told its end.
        logger: told of its end, and of files that were taken or could not be.

    Raises:
        ConfigError: the files cannot be used.
    """

    def __init__(self, files: CertificateFiles, clock: Clock, threads: Threads, metrics: Metrics, logger: Log) -> None:
        self._files = files
        self._clock = clock
        self._threads = threads
        self._limiter = trio.CapacityLimiter(1)
        self._metrics = metrics
        self._logger = logger
        self._fingerprint = files.fingerprint()
        self._refused_fingerprint: object = None
        self._asked = trio.Event()
        self._force = False
        self._take(certificates.load(files))

    @property
    def context(self) -> ssl.SSLContext:
        """For a new connection."""
        return self._certificate.context

    @property
    def ends_at_s(self) -> int:
        """Unix seconds until which it is good."""
        return self._certificate.ends_at_s

    def reload_now(self) -> None:
        """Read the files soon, changed or not."""
        self._force = True
        self._asked.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the files until cancelled."""
        task_status.started()
        warned_at_s = trio.current_time()
        while True:
            with trio.move_on_after(LOOK_INTERVAL_S):
                await self._asked.wait()
            self._asked = trio.Event()
            if await self._look() or trio.current_time() - warned_at_s >= WARN_INTERVAL_S:
                self.warn()
                warned_at_s = trio.current_time()

    async def _look(self) -> bool:
        """Take the files where they have changed, or somebody asked; whether there is another certificate now."""
        force, self._force = self._force, False
        fingerprint = await self._threads.run(self._files.fingerprint, limiter=self._limiter)
        if fingerprint == self._fingerprint and not force:
            return False
        # The fingerprint is of before the read: what changes meanwhile is noticed at the next look.
        try:
            certificate = await self._threads.run(lambda: certificates.load(self._files), limiter=self._limiter)
        except ConfigError as error:
            # Tried again at every look, since of two files one is replaced first; told once.
            if force or fingerprint != self._refused_fingerprint:
                self._refused_fingerprint = fingerprint
                self._metrics.tls_certificate_loads.labels("refused").inc()
                self._logger.error("certificate_refused", error=str(error), detail="the one before stays in force")
            return False
        self._fingerprint, self._refused_fingerprint = fingerprint, None
        self._take(certificate)
        self._logger.info("certificate_loaded")
        return True

    def _take(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._metrics.tls_certificate_loads.labels("loaded").inc()
        self._metrics.tls_certificate_expiry_timestamp_seconds.set(certificate.ends_at_s)

    def warn(self) -> None:
        """Say it where the certificate is not good now, or not for long."""
        now_s = self._clock.now_ms() // 1000
        if now_s < self._certificate.begins_at_s:
            self._logger.warning("certificate_not_valid", detail="the TLS certificate is not valid yet")
        elif now_s >= self.ends_at_s:
            self._logger.warning("certificate_not_valid", detail="the TLS certificate has expired")
        elif self.ends_at_s - now_s < WARN_BEFORE_S:
            days = (self.ends_at_s - now_s) // (24 * 60 * 60)
            self._logger.warning("certificate_ends_soon", detail="days until the TLS certificate expires", count=days)

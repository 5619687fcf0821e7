"""Builds the server's edge from its settings: how connections come in, who may, and where devices are told to go."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from keepstep.admission import Admission
from keepstep.entrance import Entrance
from keepstep.proxies import TrustedProxies, parse_networks
from keepstep.rest.serving import RestServer
from keepstep.settings.edge import certificate_files
from keepstep.tls import ServerCertificate
from keepstep.validation import URL_PATH, parse_origin, rest_url_beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.config import Settings
    from keepstep.interfaces import Clock, Threads
    from keepstep.reloading import Reloads
    from keepstep.telemetry import Log, Metrics


def server_certificate(
    settings: Settings, clock: Clock, threads: Threads, metrics: Metrics, logger: Log
) -> ServerCertificate | None:
    """The TLS certificate, ``None`` where TLS is off. Warns where it is not good. Raises ConfigError."""
    files = certificate_files(settings)
    if files is None:
        return None
    certificate = ServerCertificate(files, clock, threads, metrics, logger)
    certificate.warn()
    return certificate


def build_entrance(
    settings: Settings, certificate: ServerCertificate | None, metrics: Metrics, reloads: Reloads
) -> Entrance:
    """What comes before HTTP on both ports; follows a reloaded configuration, as the certificate does."""
    entrance = Entrance(
        _trusted_proxies(settings),
        proxy_protocol=settings.proxy_protocol,
        certificate=certificate,
        on_refused=lambda reason: metrics.entrance_refusals.labels(reason).inc(),
    )
    reloads.on(("trusted_proxies", "forwarded_header"), lambda changed: entrance.believe(_trusted_proxies(changed)))
    if certificate is not None:
        reloads.every_time(certificate.reload_now)
    return entrance


def _trusted_proxies(settings: Settings) -> TrustedProxies:
    return TrustedProxies(parse_networks(settings.trusted_proxies), header=settings.forwarded_header)


def device_admission(settings: Settings, entrance: Entrance, metrics: Metrics) -> Admission:
    """Who may open a device socket."""
    return Admission(
        connections_max=settings.connections_max,
        unauthenticated_max=settings.unauthenticated_connections_max,
        unauthenticated_per_address_max=settings.unauthenticated_connections_per_address_max,
        on_refused=metrics.connections_refused.inc,
        is_proxy=entrance.is_proxy,
    )


def rest_server(
    settings: Settings, application: Callable[..., Awaitable[object]], entrance: Entrance, metrics: Metrics
) -> RestServer:
    """REST's server, with caps of its own: a rush at one port does not close the other."""
    admission = Admission(
        connections_max=settings.rest_connections_max,
        unauthenticated_max=settings.unauthenticated_connections_max,
        unauthenticated_per_address_max=settings.unauthenticated_connections_per_address_max,
        on_refused=metrics.rest_connections_refused.inc,
        is_proxy=entrance.is_proxy,
    )
    metrics.rest_connections.set_function(lambda: admission.connections)
    return RestServer(
        application, admission=admission, entrance=entrance, entrance_timeout_s=settings.handshake_timeout_s
    )


def local_url(scheme: str, host: str, sockets: list[socket.socket]) -> str:
    """Where sockets bound for ``host`` are reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
    netloc = f"[{host}]" if ":" in host else host
    return f"{scheme}://{netloc}:{sockets[0].getsockname()[1]}"


def device_url(settings: Settings, sockets: list[socket.socket]) -> str:
    """Where devices connect, as they are told."""
    if settings.public_device_url is not None:
        return settings.public_device_url
    scheme = "ws" if settings.tls_certificate_file is None else "wss"
    return local_url(scheme, settings.device_host, sockets) + URL_PATH


def local_rest_url(settings: Settings, sockets: list[socket.socket]) -> str:
    """Where REST is reached from this machine."""
    scheme = "http" if settings.tls_certificate_file is None else "https"
    return local_url(scheme, settings.rest_host, sockets)


def rest_origin(settings: Settings, sockets: list[socket.socket]) -> str:
    """Where devices reach REST, by the rule that they follow themselves."""
    if settings.public_rest_url is not None:
        return settings.public_rest_url
    if settings.public_device_url is not None:
        return parse_origin(rest_url_beside(settings.public_device_url))
    return local_rest_url(settings, sockets)

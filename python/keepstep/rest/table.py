"""Every endpoint there is. Routes, the OpenAPI document and the tests of access all derive from this table."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from keepstep.rest import (
    account,
    admin,
    auth,
    deletion,
    events,
    export,
    importing,
    links,
    live,
    operation,
    presence,
    publishing,
    registration,
    snapshots,
    streams,
    system,
)
from keepstep.rest.documentation import documentation_endpoints
from keepstep.rest.openapi import encode

if TYPE_CHECKING:
    from keepstep.rest.endpoints import Endpoint


@cache
def document() -> bytes:
    """The OpenAPI document of them all."""
    return encode(ENDPOINTS)


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *system.ENDPOINTS,
    *registration.ENDPOINTS,
    *auth.ENDPOINTS,
    *account.ENDPOINTS,
    *deletion.ENDPOINTS,
    *export.ENDPOINTS,
    *streams.ENDPOINTS,
    *events.ENDPOINTS,
    *live.ENDPOINTS,
    *presence.ENDPOINTS,
    *links.ENDPOINTS,
    *publishing.ENDPOINTS,
    *snapshots.ENDPOINTS,
    *admin.ENDPOINTS,
    *importing.ENDPOINTS,
    *operation.ENDPOINTS,
    *documentation_endpoints(document),
)

assert len({(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}) == len(ENDPOINTS)

"""The caller's whole account as one file (``keepstep.account_file``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from keepstep.account_file import CONTENT_TYPE, AccountExport
from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.rest.endpoints import Access, Binary, Call, Endpoint, NoParameters, Reply
from keepstep.rest.events import check_standing

if TYPE_CHECKING:
    from keepstep.rest.waiting import Watch


class _Pieces(AsyncIterator[bytes]):
    """The file; where it cannot be written on it ends without its last frame, which its reader misses.

    It takes the place of a request that waits, so that one user does not have the log read without end.
    """

    def __init__(self, call: Call[NoParameters, NoParameters, None]) -> None:
        services = call.services
        self._watches, self._user_pk = services.watches, call.principal.user_pk
        self._watch: Watch | None = None
        generation = services.log.generation()
        self._pieces = AccountExport(
            services.log,
            services.signer,
            call.principal,
            services.clock,
            server_key=services.info.server_key,
            check=lambda: check_standing(call, generation=generation),
        )

    async def __anext__(self) -> bytes:
        try:
            if self._watch is None:
                self._watch = self._watches.add(self._user_pk)
            return await anext(self._pieces)
        except ProtocolError:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Give the place back. May be called again."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._watches.remove(self._user_pk, watch)


async def _export(call: Call[NoParameters, NoParameters, None]) -> Reply:
    with call.services.watches.watch(call.principal.user_pk):
        pass  # one too many is a problem, and not a file that ends at once
    disposition = f'attachment; filename="{call.principal.user_key.hex()[:16]}.keepstep"'
    return Reply(_Pieces(call), headers={"Content-Disposition": disposition})


ENDPOINTS: Final = (
    Endpoint(
        method="GET",
        path="/api/v1/account/export",
        access=Access.DEVICE,
        summary="The whole account as one file",
        description=(
            "Every stream with its signed head and all events, sealed as they are, inboxes of other devices too. "
            "`keepstep import-account` of another server verifies it and reads it in, each event at its place, with "
            "its time and chain. A file without its last frame was cut short and is refused there."
        ),
        handler=_export,
        answers={200: Binary(CONTENT_TYPE, "The file: a line and length-prefixed MessagePack frames")},
        errors=("limit_exceeded",),
        capability=Capability.SUBSCRIBE | Capability.MANAGE,
        concurrency_max=16,
        concurrency_per_user_max=2,
    ),
)

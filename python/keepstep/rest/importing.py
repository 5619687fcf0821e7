"""An account of another server, read in from its file (``keepstep.account_file``)."""

from __future__ import annotations

from typing import Final

from keepstep.account_file import CONTENT_TYPE, AccountFileError
from keepstep.rest.account import EXAMPLE_KEY
from keepstep.rest.admin import TAG
from keepstep.rest.endpoints import Access, AnswerBody, BadRequest, Binary, Call, Endpoint, Example, Reply, RequestBody
from keepstep.rest.fields import Seq, UserId

FILE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest file taken over REST, bytes: it is held in memory while it verifies, as often as its events take."""
FILE_TIMEOUT_S: Final = 300.0
"""For the file to arrive: as much as a line of one megabit per second takes for the largest one."""
IMPORT_TIMEOUT_S: Final = 600.0
"""For verifying and storing it. What is stored by then is the beginning of the account; the same call goes on."""


class ImportQuery(RequestBody, frozen=True, kw_only=True):
    """Whether the file is only verified."""

    verify_only: bool = False


class ImportedAccount(AnswerBody, frozen=True, kw_only=True):
    """What an account file holds. `stored`: those of its events that are new here; null where it was only verified."""

    user_id: UserId
    streams: Seq
    events: Seq
    stored: Seq | None


async def _import(call: Call[RequestBody, ImportQuery, bytes]) -> Reply:
    verify_only = call.query.verify_only
    try:
        imported = await call.services.account_intake.take(call.body, verify_only=verify_only)
    except AccountFileError as error:
        raise BadRequest(f"the file: {error}", code="unprocessable") from error
    return Reply(
        ImportedAccount(
            user_id=imported.user_key.hex(),
            streams=imported.streams,
            events=imported.events,
            stored=None if verify_only else imported.stored,
        )
    )


ENDPOINTS: Final = (
    Endpoint(
        method="POST",
        path="/admin/accounts/import",
        access=Access.ADMIN,
        summary="Read in an account that another server exported",
        description=(
            "The file of `GET /api/v1/account/export`. Every event and head in it is verified before any is stored, "
            "each at its place, with its time and chain; nothing is stored of a file that does not verify. May be "
            "repeated, also with a newer file: only what is new is stored. A file of more than "
            f"{FILE_BYTES_MAX // 1024 // 1024} MiB is read in with `keepstep import-account` on the server's machine."
        ),
        handler=_import,
        answers={200: ImportedAccount},
        query_type=ImportQuery,
        binary_body=Binary(CONTENT_TYPE, "The file: a line and length-prefixed MessagePack frames"),
        errors=("unprocessable",),
        body_bytes_max=FILE_BYTES_MAX,
        body_timeout_s=FILE_TIMEOUT_S,
        timeout_s=IMPORT_TIMEOUT_S,
        concurrency_max=1,
        tag=TAG,
        example=Example(
            query={"verify_only": False},
            answer={"user_id": EXAMPLE_KEY, "streams": 7, "events": 1_204, "stored": 1_204},
        ),
    ),
)

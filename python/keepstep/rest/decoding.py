"""A request's path, query and body as the Structs that its endpoint declares; everything else is ``malformed``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import msgspec

from keepstep.rest.endpoints import JSON, BadRequest

if TYPE_CHECKING:
    from msgspec import Struct

    from keepstep.rest.endpoints import Endpoint

S = TypeVar("S", bound="Struct")

QUERY_FIELDS_MAX: Final = 32
"""Fields of one query that are looked at."""


class UnsupportedMediaType(Exception):
    """The body is of a content type that the endpoint does not take; HTTP has a status of its own for it.

    Attributes:
        wanted: the content types that it takes.
    """

    http_status: ClassVar[int] = 415

    def __init__(self, wanted: Sequence[str]) -> None:
        super().__init__(wanted)
        self.wanted = tuple(wanted)


def decode_parameters(struct: type[S], values: Mapping[str, str], where: str) -> S:
    """Path parameters or a query, which are text, as a Struct of numbers, booleans and texts.

    Raises:
        BadRequest: a field is missing, unknown, or not of its form.
    """
    try:
        return msgspec.convert(values, struct, strict=False)
    except msgspec.ValidationError as exc:
        raise BadRequest(f"{where}: {exc}") from exc


def decode_query(struct: type[S], fields: Sequence[tuple[str, str]]) -> S:
    """As ``decode_parameters``, where a name may not come twice.

    Raises:
        BadRequest: as ``decode_parameters``.
    """
    values = dict(fields[:QUERY_FIELDS_MAX])
    if len(values) != len(fields):
        raise BadRequest("the query: a name comes twice, or there are too many")
    return decode_parameters(struct, values, "the query")


def decode_body(endpoint: Endpoint, content_type: str, body: bytes) -> Any:
    """The body as the endpoint declares it: a Struct, bytes, or ``None`` where it takes none.

    Args:
        endpoint: what is called.
        content_type: of the body, without parameters, lower-case.
        body: as it came; bounded before.

    Raises:
        BadRequest: it is not of the documented form.
        UnsupportedMediaType: the endpoint takes no such body.
    """
    if not endpoint.takes_body:
        if body:
            raise BadRequest("the body: this endpoint takes none")
        return None
    if endpoint.binary_body is not None and content_type == endpoint.binary_body.content_type:
        return body
    if endpoint.body_type is None or content_type != JSON:
        raise UnsupportedMediaType(endpoint.body_content_types)
    try:
        try:
            return msgspec.json.decode(body, type=endpoint.body_type)
        except msgspec.ValidationError:
            return msgspec.convert(_integers(msgspec.json.decode(body)), endpoint.body_type)
    except (ValueError, RecursionError) as exc:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        detail = str(exc) if isinstance(exc, msgspec.ValidationError) else "not JSON"
        raise BadRequest(f"the body: {detail}") from exc


def _integers(value: Any) -> Any:
    """The value with 7.0 as 7: JSON has one kind of number, and a schema's integer is one without a fraction."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _integers(item) for name, item in value.items()}
        case list():
            return [_integers(item) for item in value]
    return value

"""What an endpoint is, declared once: routes, checks, OpenAPI and the tests of all of them derive from it.

An endpoint names what it takes and what it answers as msgspec Structs, and its handler as a plain function of a
``Call``. Nothing here knows the web framework, so that the table is importable without a server (``rest.table``).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from msgspec import Struct

from keepstep.errors import ERRORS, ProtocolError
from keepstep.rest.guard import BODY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keepstep.model import Capability, Principal
    from keepstep.rest.services import RestServices

BODY_BYTES_MAX: Final = 64 * 1024
"""Largest request body of an endpoint that does not say otherwise."""
REQUEST_TIMEOUT_S: Final = 20.0
"""For one request of an endpoint that does not say otherwise; a commit that has begun is waited for all the same."""
CONCURRENCY_MAX: Final = 64
"""Requests of one endpoint that are answered at the same time, where it does not say otherwise."""
CONCURRENCY_PER_USER_MAX: Final = 16
"""Those of one user, so that none takes all places."""
MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"

PathT = TypeVar("PathT")
QueryT = TypeVar("QueryT")
BodyT = TypeVar("BodyT")

_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")


class Access(enum.Enum):
    """Who may call an endpoint."""

    PUBLIC = "public"
    """Anybody; rates count by address."""
    DEVICE = "device"
    """A device's access token; ``Call.principal`` says whose."""
    ADMIN = "admin"
    """The administration key."""


class RequestBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a client sends: path, query and body; a field we do not know is refused as a typing error."""


class AnswerBody(Struct, frozen=True, kw_only=True):
    """Base of what is answered."""


class NoParameters(RequestBody, frozen=True):
    """No path parameters, or no query."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A body that is no JSON.

    Attributes:
        content_type: media type.
        description: what the bytes are, for people.
    """

    content_type: str
    description: str


@dataclass(frozen=True, slots=True)
class Example:
    """A call as it could be made, as JSON values; checked against the endpoint's Structs by a test.

    Attributes:
        path: by parameter.
        query: by parameter.
        body: of the request; ``None`` where there is none or it is binary.
        answer: of the endpoint's first answer; ``None`` where there is none or it is binary.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    answer: Any = None


@dataclass(frozen=True, slots=True)
class Call(Generic[PathT, QueryT, BodyT]):
    """One checked request.

    Attributes:
        services: the rest of the server.
        path: the path parameters.
        query: the query.
        body: the decoded JSON body; ``bytes`` where it came as the endpoint's ``Binary``.
        headers: by lower-case name; the first one where a name repeats.
        address: the peer's.
        request_id: of this request.
    """

    services: RestServices
    path: PathT
    query: QueryT
    body: BodyT
    headers: Mapping[str, str]
    address: str
    request_id: str
    device: Principal | None = None

    @property
    def principal(self) -> Principal:
        """The device whose token came with the request; only at endpoints of ``Access.DEVICE``."""
        assert self.device is not None, "an endpoint for anybody asks who called"
        return self.device


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers.

    Attributes:
        body: as the endpoint declares it for this status: a Struct, bytes, pieces that come one after the other, or
            nothing.
        status: one that the endpoint declares.
        headers: beside those of every answer.
        version: what the ``ETag`` is made of where the body also holds what changes with every answer; ``None``: the
            body.
    """

    body: Struct | bytes | AsyncIterator[bytes] | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    version: bytes | None = None


Handler = Callable[[Call[Any, Any, Any]], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
        path: ``/api/v1/streams/{stream}``; a stream's name holds slashes, so ``{stream}`` comes last.
        access: who may call it.
        summary: one line, for the reference.
        handler: answers a checked call; raises ProtocolError for everything else.
        answers: by status, the first one is the usual: a Struct, ``Binary`` or ``None`` for no content.
        path_type: Struct of the path parameters, named as in ``path``.
        query_type: Struct of the query; its fields are scalars.
        body_type: Struct of a JSON body.
        binary_body: a body that is no JSON, instead of ``body_type`` or as the other choice.
        errors: codes of ``errors.ERRORS`` beyond those that ``codes`` adds of itself.
        request_headers: what the endpoint looks at beyond what all do: name and what it means.
        capability: everything that the device must be able to do, else ``forbidden``; only for ``Access.DEVICE``.
        description: more than the summary, Markdown.
        example: one call.
        body_bytes_max: largest body, bytes; only a path without parameters may ask for more than ``BODY_BYTES_MAX``,
            and gets it of an administrator's endpoint only with the key.
        body_timeout_s: for a body of more than ``BODY_BYTES_MAX`` to arrive, of an administrator's endpoint, seconds.
        timeout_s: for the handler, seconds; then ``unavailable``. Pieces of an answer come after it.
        concurrency_max: calls at the same time; above it ``unavailable``.
        concurrency_per_user_max: those of one user among them; above it ``rate_limited``.
        concurrency_per_address_max: those of one address prefix among them, where anybody may call; above it
            ``rate_limited``. ``None``: as many as in all.
        limited: whether calls are counted by the rate limiter.
        etag: whether answers carry an ``ETag``, by which ``If-None-Match`` is answered 304.
        idempotent: whether an ``Idempotency-Key`` makes a second call answer what the first one did.
        tag: the section of the reference; by default the first word of the path after the version.
    """

    method: str
    path: str
    access: Access
    summary: str
    handler: Handler
    answers: Mapping[int, type[Struct] | Binary | None]
    path_type: type[RequestBody] = NoParameters
    query_type: type[RequestBody] = NoParameters
    body_type: type[RequestBody] | None = None
    binary_body: Binary | None = None
    errors: tuple[str, ...] = ()
    request_headers: Mapping[str, str] = field(default_factory=dict)
    capability: Capability | None = None
    description: str = ""
    example: Example = field(default_factory=Example)
    body_bytes_max: int = BODY_BYTES_MAX
    body_timeout_s: float = BODY_TIMEOUT_S
    timeout_s: float = REQUEST_TIMEOUT_S
    concurrency_max: int = CONCURRENCY_MAX
    concurrency_per_user_max: int = CONCURRENCY_PER_USER_MAX
    concurrency_per_address_max: int | None = None
    limited: bool = True
    etag: bool = False
    idempotent: bool = False
    tag: str = ""

    def __post_init__(self) -> None:
        assert set(self.parameters) == set(self.path_type.__struct_fields__), f"{self.path}: parameters without a type"
        assert set(self.errors) <= ERRORS.keys(), f"{self.path}: an unknown error code"
        assert self.answers, f"{self.path} answers nothing"
        assert self.body_bytes_max <= BODY_BYTES_MAX or not self.parameters, f"{self.path}: body_bytes_max"
        assert self.concurrency_per_address_max is None or self.access is Access.PUBLIC, f"{self.path}: concurrency"
        assert self.capability is None or self.access is Access.DEVICE, f"{self.path}: capability"

    @property
    def parameters(self) -> list[str]:
        """Names of the path parameters, in order."""
        return _PARAMETER.findall(self.path)

    @property
    def operation(self) -> str:
        """Unique name: ``get_streams_by_stream``."""
        words = re.sub(r"\{([a-z_]+)\}", r"by_\1", self.path.removeprefix("/api/v1"))
        return f"{self.method.lower()}_{re.sub(r'[^a-z0-9]+', '_', words.lower()).strip('_')}"

    @property
    def codes(self) -> list[str]:
        """Every code of the error table that it can answer, in the table's order."""
        codes = {
            "user_id_header",
            "unsupported_version",
            "malformed",
            "too_large",
            "timeout",
            "unavailable",
            "internal",
        }
        if self.limited or self.access is Access.DEVICE:
            codes.add("rate_limited")
        if self.access is not Access.PUBLIC:
            codes.add("invalid_token")
        if self.access is Access.ADMIN:
            codes.add("not_found")
        if self.capability is not None:
            codes.add("forbidden")
        if self.idempotent:
            codes.add("key_reused")
        return [code for code in ERRORS if code in codes or code in self.errors]

    @property
    def takes_body(self) -> bool:
        """Whether a body is looked at."""
        return bool(self.body_content_types)

    @property
    def body_content_types(self) -> list[str]:
        """Content types of the bodies that it takes."""
        json = [] if self.body_type is None else [JSON]
        return json if self.binary_body is None else [*json, self.binary_body.content_type]


class BadRequest(ProtocolError):
    """A request does not have the documented form.

    Attributes:
        where: what is wrong and where in the request, in words that name nothing of the server; told to the client.
    """

    def __init__(self, where: str, *, code: str = "malformed") -> None:
        super().__init__(code, where)
        self.where = where

"""The OpenAPI 3.1 document, made from the table of endpoints; ``python -m keepstep.rest`` prints it."""

from __future__ import annotations

import http
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from keepstep.errors import ERRORS
from keepstep.rest.endpoints import JSON, Access, AnswerBody, Binary
from keepstep.rest.headers import API_VERSION, IDEMPOTENCY_HEADER, VERSION_HEADER
from keepstep.rest.problems import CONTENT_TYPE

if TYPE_CHECKING:
    from keepstep.rest.endpoints import Endpoint

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_HEADER_FORMS: Final = {
    IDEMPOTENCY_HEADER: {"pattern": "^[A-Za-z0-9._-]{1,64}$"},
    "Last-Event-ID": {"pattern": "^[0-9]{1,15}$"},
}
"""What a client must send in headers that have a form; every other text is taken as it is."""
_SECURITY: Final[Mapping[Access, list[Json]]] = {
    Access.PUBLIC: [],
    Access.DEVICE: [{"device": []}],
    Access.ADMIN: [{"admin": []}],
}
_SCHEMES: Final = {
    "device": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token, from `/api/v1/auth/token` or `keepstep token`",
    },
    "admin": {"type": "http", "scheme": "bearer", "description": "The server's administration key"},
}
_DESCRIPTION: Final = (
    "What devices and administrators ask a keepstep server over HTTP. Events are signed and sealed by devices: the "
    "server verifies, orders and keeps them, and can neither read nor make one. Ids and keys are lower-case "
    "hexadecimal digits, signed bytes base64url without padding, times unix milliseconds. Every error is a problem "
    "document (RFC 9457) whose `code` is a row of the error table."
)
_TAGS: Final[Mapping[str, str]] = {
    "health": "Whether the process answers and should be asked",
    "metrics": "For Prometheus",
    "server": "What a device needs to know before it connects",
    "accounts": "Making an account",
    "auth": "Access tokens",
    "account": "The caller's account",
    "devices": "The account's devices",
    "streams": "The account's streams",
    "events": "Publishing and reading events",
    "snapshots": "Sealed states that stand for the events before them",
    "presence": "Which devices are there",
    "links": "Linking a new device",
    "admin": "For administrators, with the administration key",
    "documentation": "This interface",
}


class Problem(AnswerBody, frozen=True, kw_only=True):
    """An error (RFC 9457). `code` is missing where HTTP's own status says everything (404, 405, 415)."""

    type: str
    title: str
    status: int
    request_id: str
    code: str | None = None
    detail: str | None = None
    retry_after_ms: int | None = None


def openapi(endpoints: Sequence[Endpoint]) -> Json:
    """The document of these endpoints."""
    structs = _structs(endpoints)
    schemas, components = msgspec.json.schema_components(structs, ref_template=_REF)
    refs = dict(zip(structs, schemas, strict=True))
    paths: dict[str, Json] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, refs)
    tags = {_tag(endpoint) for endpoint in endpoints}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "keepstep",
            "version": API_VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items() if name in tags],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": dict(sorted(_problems(endpoints, refs).items())),
            "securitySchemes": _SCHEMES,
            "headers": _HEADERS,
            "examples": _examples(endpoints),
        },
    }


def encode(endpoints: Sequence[Endpoint]) -> bytes:
    """The document as it is served and checked in: indented, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(openapi(endpoints)), indent=2) + b"\n"


def _structs(endpoints: Iterable[Endpoint]) -> list[type[Struct]]:
    """Every Struct of a body or an answer, each once."""
    found: dict[type[Struct], None] = {Problem: None}
    for endpoint in endpoints:
        for struct in (endpoint.body_type, *endpoint.answers.values()):
            if isinstance(struct, type):
                found[struct] = None
    return list(found)


def _tag(endpoint: Endpoint) -> str:
    return endpoint.tag or endpoint.path.removeprefix("/api/v1").split("/")[1]


def _operation(endpoint: Endpoint, refs: Mapping[type[Struct], Json]) -> Json:
    tag = _tag(endpoint)
    assert tag in _TAGS, f"{endpoint.path}: a section without a description"
    operation: Json = {
        "operationId": endpoint.operation,
        "tags": [tag],
        "summary": endpoint.summary,
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    parameters = _parameters(endpoint)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.takes_body:
        operation["requestBody"] = {"required": True, "content": _request_content(endpoint, refs)}
    operation["responses"] = _responses(endpoint, refs)
    operation["security"] = _SECURITY[endpoint.access]
    return operation


# -- what is asked --------------------------------------------------------------------------------------------------


def _parameters(endpoint: Endpoint) -> list[Json]:
    example = endpoint.example
    parameters = [
        *_fields(endpoint.path_type, "path", example.path),
        *_fields(endpoint.query_type, "query", example.query),
    ]
    names = dict(endpoint.request_headers)
    if endpoint.idempotent:
        names[IDEMPOTENCY_HEADER] = "1 to 64 of `A-Za-z0-9._-`; a second call with it answers what the first one did"
    if endpoint.etag:
        names["If-None-Match"] = "The `ETag` of an answer the client has: 304 where it still holds"
    return parameters + [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": text,
            "schema": {"type": "string"} | _HEADER_FORMS.get(name, {}),
        }
        for name, text in names.items()
    ]


def _fields(struct: type[Struct], place: str, example: Mapping[str, Any]) -> list[Json]:
    """The fields of a Struct as parameters."""
    _, components = msgspec.json.schema_components([struct], ref_template=_REF)
    schema = components[struct.__name__]
    required = schema.get("required", [])
    parameters = []
    for name, field in schema["properties"].items():
        parameter: Json = {"name": name, "in": place, "required": name in required, "schema": _without_null(field)}
        if name in example:
            parameter["example"] = example[name]
        parameters.append(parameter)
    return parameters


def _without_null(schema: Json) -> Json:
    """A parameter is text or it is not there: no parameter is null."""
    if "anyOf" not in schema:
        return schema
    (only,) = (choice for choice in schema["anyOf"] if choice != {"type": "null"})
    return dict(only)


def _request_content(endpoint: Endpoint, refs: Mapping[type[Struct], Json]) -> Json:
    content: Json = {}
    if endpoint.body_type is not None:
        content[JSON] = {"schema": refs[endpoint.body_type]}
        if endpoint.example.body is not None:
            content[JSON]["example"] = endpoint.example.body
    if endpoint.binary_body is not None:
        content[endpoint.binary_body.content_type] = _binary(endpoint.binary_body)
    return content


def _binary(binary: Binary) -> Json:
    return {"schema": {"description": binary.description, "contentMediaType": binary.content_type}}


# -- what is answered -----------------------------------------------------------------------------------------------

_HEADERS: Final = {
    VERSION_HEADER: {"description": "The version that answered", "schema": {"type": "string", "const": API_VERSION}},
    "X-Request-ID": {"description": "Also in the server's log", "schema": {"type": "string"}},
    "RateLimit": {"description": "What the caller has left", "schema": {"type": "string"}},
    "RateLimit-Policy": {"description": "How often the caller may call", "schema": {"type": "string"}},
    "ETag": {"description": "For `If-None-Match`", "schema": {"type": "string"}},
    "Retry-After": {"description": "Whole seconds", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "How to prove oneself", "schema": {"type": "string"}},
}


def _header_refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _responses(endpoint: Endpoint, refs: Mapping[type[Struct], Json]) -> Json:
    """By status: what is declared, then the problems; a status may be both."""
    responses: dict[int, Json] = {}
    for index, (status, declared) in enumerate(endpoint.answers.items()):
        example = endpoint.example.answer if index == 0 else None
        responses[status] = _answer(endpoint, status, declared, refs, example)
    if endpoint.etag:
        responses[304] = {"description": "The client has it", "headers": _common_headers(endpoint, "ETag")}
    for status, codes in _codes_by_status(endpoint).items():
        if status in responses:
            responses[status]["content"] |= _problem(endpoint, status, codes, refs)["content"]
        else:
            responses[status] = {"$ref": f"#/components/responses/{_problem_name(endpoint, status, codes)}"}
    return {str(status): responses[status] for status in sorted(responses)}


def _codes_by_status(endpoint: Endpoint) -> dict[int, list[str]]:
    codes: dict[int, list[str]] = {}
    for code in endpoint.codes:
        codes.setdefault(ERRORS[code].http_status, []).append(code)
    if endpoint.takes_body:
        codes.setdefault(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, [])
    return codes


def _problems(endpoints: Sequence[Endpoint], refs: Mapping[type[Struct], Json]) -> Json:
    """Every problem that some endpoint answers, by name: many answer the same ones."""
    return {
        _problem_name(endpoint, status, codes): _problem(endpoint, status, codes, refs)
        for endpoint in endpoints
        for status, codes in _codes_by_status(endpoint).items()
        if status not in endpoint.answers
    }


def _problem_name(endpoint: Endpoint, status: int, codes: Sequence[str]) -> str:
    return "-".join([str(int(status)), *codes, *([] if endpoint.limited else ["unlimited"])])


def _common_headers(endpoint: Endpoint, *more: str) -> Json:
    rates = ("RateLimit", "RateLimit-Policy") if endpoint.limited else ()
    return _header_refs(VERSION_HEADER, "X-Request-ID", *rates, *more)


def _answer(
    endpoint: Endpoint,
    status: int,
    declared: type[Struct] | Binary | None,
    refs: Mapping[type[Struct], Json],
    example: Any,
) -> Json:
    phrase = http.HTTPStatus(status).phrase
    answer: Json = {
        "description": phrase,
        "headers": _common_headers(endpoint, *(["ETag"] if endpoint.etag else [])),
    }
    if isinstance(declared, Binary):
        answer["content"] = {declared.content_type: _binary(declared)}
    elif declared is not None:
        answer["content"] = {JSON: {"schema": refs[declared]}}
        if example is not None:
            answer["content"][JSON]["example"] = example
    return answer


def _examples(endpoints: Sequence[Endpoint]) -> Json:
    """A problem document for each code that an endpoint answers."""
    used = {code for endpoint in endpoints for code in endpoint.codes}
    return {
        code: {
            "value": {
                "type": f"urn:keepstep:error:{code}",
                "title": row.meaning,
                "status": row.http_status,
                "code": code,
                "request_id": "5f2c0a9be1d47730",
            }
        }
        for code, row in ERRORS.items()
        if code in used
    }


def _problem(endpoint: Endpoint, status: int, codes: Sequence[str], refs: Mapping[type[Struct], Json]) -> Json:
    """A problem document; its examples are one for each code."""
    media: Json = {"schema": refs[Problem]}
    if codes:
        media["examples"] = {code: {"$ref": f"#/components/examples/{code}"} for code in codes}
    more = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}.get(status, [])
    return {
        "description": " · ".join(f"`{code}`" for code in codes) or http.HTTPStatus(status).phrase,
        "headers": _common_headers(endpoint, *more),
        "content": {CONTENT_TYPE: media},
    }

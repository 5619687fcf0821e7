"""The OpenAPI document: made from the table, checked in, with an example of every call."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from msgspec import Struct

from keepstep.errors import ERRORS
from keepstep.rest.decoding import decode_parameters
from keepstep.rest.endpoints import Access, Binary, Endpoint, NoParameters
from keepstep.rest.openapi import Problem, openapi
from keepstep.rest.problems import refusal
from keepstep.rest.table import ENDPOINTS, document
from tests.support.rest import site

REFERENCE: Final = Path(__file__).resolve().parents[3] / "docs" / "reference"
DIGEST: Final = re.compile(r"^Document: `([0-9a-f]{16})`$", re.MULTILINE)
HOW: Final = "python -m keepstep.rest > docs/reference/openapi.json, then an entry in api-changelog.md"

every_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.operation)


def test_the_document_that_is_checked_in_is_that_of_the_code() -> None:
    """Whoever changes an endpoint changes the document with it."""
    assert (REFERENCE / "openapi.json").read_bytes() == document(), HOW


def test_a_changed_document_has_an_entry_in_the_change_log() -> None:
    """The newest entry names the document it describes."""
    digests = DIGEST.findall((REFERENCE / "api-changelog.md").read_text(encoding="utf-8"))
    assert digests[0] == hashlib.sha256(document()).hexdigest()[:16], HOW
    assert len(set(digests)) == len(digests)


def test_the_document_can_be_printed() -> None:
    """Without a running server."""
    printed = subprocess.run([sys.executable, "-m", "keepstep.rest"], capture_output=True, check=True, timeout=60)
    assert printed.stdout == document()


@every_endpoint
def test_an_endpoint_is_described(endpoint: Endpoint) -> None:
    """Once, with who may call it and everything it can answer."""
    described = openapi(ENDPOINTS)["paths"][endpoint.path][endpoint.method.lower()]
    assert described["operationId"] == endpoint.operation
    security: dict[Access, list[dict[str, list[str]]]] = {
        Access.PUBLIC: [],
        Access.DEVICE: [{"device": []}],
        Access.ADMIN: [{"admin": []}],
    }
    assert described["security"] == security[endpoint.access]
    statuses = {str(status) for status in endpoint.answers}
    statuses |= {str(ERRORS[code].http_status) for code in endpoint.codes}
    assert statuses <= described["responses"].keys()
    assert [parameter["name"] for parameter in described.get("parameters", []) if parameter["in"] == "path"] == (
        endpoint.parameters
    )


def test_names_of_operations_are_unique() -> None:
    """Generated clients call their methods by them."""
    assert len({endpoint.operation for endpoint in ENDPOINTS}) == len(ENDPOINTS)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    """To a component that is there."""
    described = openapi(ENDPOINTS)

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    for reference in references(described):
        _, section, kind, name = reference.split("/")
        assert name in described[section][kind], reference


# -- examples -------------------------------------------------------------------------------------------------------


def struct_of(declared: type[Struct] | Binary | None) -> type[Struct] | None:
    """The Struct of a JSON body."""
    return declared if isinstance(declared, type) else None


@every_endpoint
def test_an_endpoint_has_an_example_of_its_form(endpoint: Endpoint) -> None:
    """Path, query, body and answer decode as the endpoint declares them, and nothing that is required is missing."""
    example = endpoint.example
    decode_parameters(endpoint.path_type, dict(example.path), "the path")
    query = {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in example.query.items()
    }
    decode_parameters(endpoint.query_type, query, "the query")
    assert endpoint.query_type is NoParameters or example.query, "show a query"
    if endpoint.body_type is not None:
        msgspec.convert(example.body, endpoint.body_type)
    answer = struct_of(next(iter(endpoint.answers.values())))
    if answer is not None:
        _check_answer(example.answer, answer)
    else:
        assert example.answer is None


def _check_answer(example: Any, struct: type[Struct]) -> None:
    """An answer's example has its form, and shows every field."""
    assert example is not None, "show an answer"
    decoded = msgspec.convert(example, struct)
    assert msgspec.to_builtins(decoded) == example, "show every field, and no other"


# -- problems -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ERRORS)
def test_every_problem_has_the_documented_form(code: str) -> None:
    """Status, code and request id among it."""
    status, headers, body = refusal(code, "mine")
    problem = msgspec.json.decode(body, type=Problem)
    assert (problem.status, problem.code, problem.request_id) == (status, code, "mine")
    assert headers["content-type"] == "application/problem+json"


# -- pages ----------------------------------------------------------------------------------------------------------


async def test_the_document_is_served() -> None:
    """As it is checked in."""
    async with site() as here:
        answer = await here.http.get("/openapi.json")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.content == document()


async def test_swagger_ui_is_served_from_here() -> None:
    """The page names only files that this server has, and its policy lets no other host in."""
    async with site() as here:
        page = await here.http.get("/docs")
        assert page.status_code == 200
        files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(files) == 4
        for file in files:
            if file != "data:,":
                assert (await here.http.get(f"/{file}")).status_code == 200
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "unsafe" not in policy


async def test_the_page_has_no_script_of_its_own() -> None:
    """Its policy would not run one; and it may not be framed."""
    async with site() as here:
        page = await here.http.get("/docs")
        assert re.findall(r"<script>|<style| on[a-z]+=", page.text) == []
        assert page.headers["x-frame-options"] == "DENY"
        start = (await here.http.get("/docs/start.js")).text
        assert 'url: "openapi.json"' in start
        assert "validatorUrl: null" in start

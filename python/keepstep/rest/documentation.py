"""The OpenAPI document, and Swagger UI to read it with: from files that are installed here, nothing of another host.

Swagger UI comes from the package ``flask-swagger-ui``, which is nothing but its files; of Flask nothing is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import Final

from keepstep.rest.endpoints import JSON, Access, Binary, Call, Endpoint, Handler, NoParameters, Reply

_TAG: Final = "documentation"
_HTML: Final = "text/html; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"
_STYLE: Final = "text/css; charset=utf-8"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts and styles from here only and none inline: what Swagger UI styles as it draws, it sets from its script."""

_OURS: Final = ("keepstep.rest", "assets")
_SWAGGER_UI: Final = ("flask_swagger_ui", "dist")
"""Where files are: a package and the folder in it."""

_FILES: Final = (
    ("/docs", _OURS, "index.html", _HTML, "Swagger UI"),
    ("/docs/start.js", _OURS, "start.js", _SCRIPT, "What starts Swagger UI"),
    ("/docs/swagger-ui-bundle.js", _SWAGGER_UI, "swagger-ui-bundle.js", _SCRIPT, "Swagger UI's program"),
    ("/docs/swagger-ui.css", _SWAGGER_UI, "swagger-ui.css", _STYLE, "Swagger UI's style"),
)


@cache
def asset(package: str, folder: str, name: str) -> bytes:
    """A file of a folder in an installed package."""
    return (resources.files(package) / folder / name).read_bytes()


def _handler(body: Callable[[], bytes]) -> Handler:
    async def answer(_call: Call[NoParameters, NoParameters, None]) -> Reply:
        return Reply(body(), headers={"Content-Security-Policy": POLICY})

    return answer


def documentation_endpoints(document: Callable[[], bytes]) -> tuple[Endpoint, ...]:
    """Where ``document`` is served, and the pages that show it."""
    of_the_document = Endpoint(
        method="GET",
        path="/openapi.json",
        access=Access.PUBLIC,
        summary="The OpenAPI document of this interface",
        handler=_handler(document),
        answers={200: Binary(JSON, "OpenAPI 3.1")},
        tag=_TAG,
    )
    pages = tuple(
        Endpoint(
            method="GET",
            path=path,
            access=Access.PUBLIC,
            summary=summary,
            handler=_handler(partial(asset, *place, name)),
            answers={200: Binary(content_type, summary)},
            tag=_TAG,
        )
        for path, place, name, content_type, summary in _FILES
    )
    return of_the_document, *pages

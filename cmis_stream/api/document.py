"""The OpenAPI document, completed with what no operation says for itself: schemas, who may ask, headers of refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .auth import COOKIE

_ABOUT: Final = """\
Errors are problem documents (RFC 9457); `GET /problems` lists their codes. Every answer has the header `Request-Id`: the
request's own where it sends one, else one that is made; our log knows the request by it. HEAD is answered wherever GET is,
OPTIONS and 405 say in `Allow` what a path takes. Times are RFC 3339 with a time zone. Additive changes may come at any time:
ignore members that you do not know."""
_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    "401": {"WWW-Authenticate": "How to say who asks (RFC 6750)."},
    "412": {"ETag": "Of the version that is there."},
    "413": {"Connection": "close: the rest of the body is not read."},
    "415": {
        "Accept": "The types that are taken.",
        "Accept-Patch": "Those that PATCH takes.",
        "Accept-Encoding": "The encodings that are taken.",
    },
    "416": {"ETag": "Of what is there.", "Content-Range": "How long it is.", "Accept-Ranges": "bytes"},
    "429": {"Retry-After": "Seconds."},
    "503": {"Retry-After": "Seconds."},
}


def completed(generate: Callable[[], dict[str, Any]], schemas: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """What FastAPI asks for the document. schemas: name -> JSON schema that operations refer to."""

    def openapi() -> dict[str, Any]:
        document = generate()
        document["info"]["description"] = _ABOUT
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(schemas)
        schemes = components.setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer", "description": "cmis_<token id>_<secret>"}
        schemes["session"] = {"type": "apiKey", "in": "cookie", "name": COOKIE}
        for operations in document["paths"].values():
            for operation in operations.values():
                for status, answer in operation["responses"].items():
                    for name, text in _HEADERS.get(status, {}).items():
                        header = {"schema": {"type": "string"}, "description": text}
                        answer.setdefault("headers", {}).setdefault(name, header)
        return document

    return openapi

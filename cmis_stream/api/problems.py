"""Problem documents (RFC 9457): what every error of the API looks like.

Codes besides those of `core.errors`, one published enumeration, never renamed:

    unauthorized        401  no token or session, or one that is not valid
    code_not_valid      401  a sign-in code that is unknown, used or expired
    forbidden           403  the token or session lacks a scope
    foreign_origin      403  the page of another site sent a request with our cookie
    not_found           404  no such path or thing, or one of another org
    method_not_allowed  405  the path is there, but not for this method; Allow says for which
    not_unique          409  another one has this value
    restricted          409  what points at it forbids to delete it
    no_transition       409  its state cannot become this one, or not by this caller
    stale               412  another version is there than the one that If-Match names
    too_large           413  a body, compressed or not, beyond its limit
    unsupported_media   415  a Content-Type or Content-Encoding that the path does not take
    out_of_range 400 416 422  a number is negative, not finite or too large, a time outside 2000-2200, a range beyond the end
    unknown_ref         422  it would point at something that is not there
    cycle               422  by following references it would come back to itself
    key_reused          422  the idempotency key came before, with another request
    all_rejected        422  none of the events of a request could be taken
    not_kept            422  a query reaches further back than what it asks about is kept
    too_many_rows       422  the answer to a query would be longer than answers may be
    too_expensive       422  a query would take more time or memory than queries may
    precondition_required 428  PUT, PATCH and DELETE say which version they are about
    busy            429 503  more than the system takes right now; Retry-After says when to come back
    rate_limited        429  more than this caller may ask for; Retry-After says when to come back
    too_many            429  the org has as many of these as it may have at once, such as jobs that wait
    internal            500  a mistake of ours
    unavailable         503  the log or the store cannot be used; nothing of the request was kept for certain

The codes of rejected input are 422 where they are about a body, 400 about a parameter or header.
Modules add codes of their own (`problems` of their manifests), each once in an installation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..core.errors import CmisError
from ..store.database import Busy
from .headers import secured
from .methods import allowed
from .seen import tell

TITLES = {
    "malformed": "The request cannot be read",
    "invalid": "A part of the request is not valid",
    "missing": "A part of the request is missing",
    "wrong_type": "A part of the request has another type",
    "out_of_range": "A number or time is out of range",
    "too_long": "A part of the request is too long",
    "wrong_org": "It names another org",
    "in_future": "A time lies in the future",
    "too_late": "A time lies too far back",
    "unsupported": "This version does not handle it",
    "not_unique": "Another one has this value",
    "restricted": "Something still needs it",
    "no_transition": "Its state cannot become this one",
    "stale": "It has changed meanwhile",
    "unknown_ref": "It would point at something that is not there",
    "cycle": "It would lead back to itself",
    "key_reused": "The idempotency key was used for another request",
    "precondition_required": "Say which version this is about",
    "unauthorized": "A valid token or session is needed",
    "code_not_valid": "The link opens nothing",
    "forbidden": "The token or session does not allow this",
    "foreign_origin": "The request comes from another site",
    "not_found": "Not found",
    "method_not_allowed": "The path does not take this method",
    "too_large": "The body is too large",
    "unsupported_media": "The body's type is not supported",
    "all_rejected": "No event could be taken",
    "not_kept": "What is asked for is not kept so long",
    "too_many_rows": "The answer is too long",
    "too_expensive": "The query is too much work",
    "busy": "Too busy right now",
    "rate_limited": "Too many requests",
    "too_many": "The org has too many of these",
    "internal": "Something went wrong on our side",
    "unavailable": "Not available right now",
}
_CODE_OF_STATUS = {404: "not_found", 401: "unauthorized", 403: "forbidden", 413: "too_large"}


class Problem(CmisError):
    """Raised anywhere below a route: becomes the answer. `extra` are further members of the document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers, self.extra = dict(headers or {}), dict(extra or {})


def document_of(problem: Problem, **more: str) -> dict[str, Any]:
    """Also what stands for one item in an answer about several."""
    return {
        "type": f"/problems/{problem.code}",
        "title": TITLES.get(problem.code, problem.code),
        "status": problem.status,
        "detail": problem.detail,
        **more,
        **problem.extra,
    }


def problem_response(request: Request, problem: Problem) -> Response:
    request_id = request.scope.get("state", {}).get("request_id", "")
    document = document_of(problem, request_id=request_id)
    headers = {**problem.headers, "Request-Id": request_id} if request_id else problem.headers
    response = Response(msgspec.json.encode(document), problem.status, headers, "application/problem+json")
    secured(response.headers, request.scope["path"])  # what `on_bug` answers passes no middleware
    return response


def described(description: str) -> dict[str, Any]:
    """A problem as an answer in the OpenAPI document."""
    properties = {name: {"type": "string"} for name in ("type", "title", "detail", "request_id")} | {
        "status": {"type": "integer"}
    }
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"type": "object", "properties": properties}}},
    }


async def on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(request, error)


async def on_unavailable(request: Request, error: Exception) -> Response:
    """The store, wherever it is asked."""
    code = "busy" if isinstance(error, Busy) else "unavailable"
    problem = Problem(503, code, f"{error}.", headers={"Retry-After": "1"})
    return problem_response(request, problem)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods. Here OPTIONS is answered, too: no route takes it."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = {"Allow": allowed(request) or (error.headers or {}).get("Allow", "")}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        raised = f"{request.method} is not among this path's methods."
        return problem_response(request, Problem(405, "method_not_allowed", raised, headers=allow))
    code = _CODE_OF_STATUS.get(error.status_code, "malformed" if error.status_code < 500 else "internal")
    detail = "There is nothing at this path." if error.status_code == 404 else str(error.detail)
    problem = Problem(error.status_code, code, detail, headers=error.headers)
    return problem_response(request, problem)


async def on_bug(request: Request, error: Exception) -> Response:
    """The last resort; the traceback goes to the log under the request's id, and no word of it to the caller."""
    tell(request.scope, 500, error)
    detail = "The request failed by a mistake of ours; the log has it under this request's id."
    return problem_response(request, Problem(500, "internal", detail))

"""The owner's side: its HTTP port answers the other processes of the installation."""

from __future__ import annotations

import logging
from collections.abc import Callable

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from cmis_stream.api.bodies import read_body
from cmis_stream.api.problems import Problem
from cmis_stream.core.channels import Channel
from cmis_stream.core.errors import shown
from cmis_stream.gateway.ports import Snapshots
from cmis_stream.peer import CROWDED, NOT_HERE, OFFSET_HEADER, PREFIX
from cmis_stream.query.datasets import Crowded, Dataset, NotHere
from cmis_stream.query.model import Faulty
from cmis_stream.store.signing import NotSigned, PeerTokens

LARGEST_BODY = 1 << 20
"""More than the API takes: what it has decoded may be longer when it is encoded anew."""
_JSON = "application/json"
_log = logging.getLogger(__name__)


def peer_router(queries: Dataset, metrics: Snapshots, tokens: PeerTokens, clock: Callable[[], int]) -> APIRouter:
    """queries, metrics: of what this process owns. clock: epoch ms. The app has to answer `Problem`s (`on_problem`)."""
    router = APIRouter(prefix=PREFIX, include_in_schema=False)

    def authorize(request: Request, org: str) -> None:
        """Problem 401 unless a token of ours says that this org is asked about. Cookies are not looked at."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        try:
            opened = tokens.read(text.strip() if scheme.lower() == "bearer" else "", clock())
        except NotSigned as error:
            _log.warning("a peer was refused: %s", error)
            raise _unauthorized() from None
        if opened != org:
            _log.warning("a peer was refused: its token is of another org")
            raise _unauthorized()

    @router.post("/{org}/query")
    async def query(request: Request, org: str) -> Response:
        authorize(request, org)
        body = await read_body(request, LARGEST_BODY)
        try:
            raw = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Problem(400, "malformed", f"The body is not JSON: {error}", extra={"got": shown(body)}) from None
        try:
            return Response(await queries.answer(org, raw), media_type=_JSON)
        except Faulty as faulty:
            errors = [fault._asdict() for fault in faulty.faults]
            raise Problem(422, faulty.code, str(faulty), extra={"errors": errors}) from None
        except NotHere as error:
            raise _unavailable(CROWDED if isinstance(error, Crowded) else NOT_HERE, str(error)) from None

    @router.get("/{org}/snapshots/metrics")
    async def snapshot(request: Request, org: str) -> Response:
        authorize(request, org)
        found = await metrics.snapshot(Channel(org, "metrics"))
        if found is None:
            raise _unavailable(NOT_HERE, "the org's partition is not here, or not yet")
        headers = {} if found.offset is None else {OFFSET_HEADER: str(found.offset)}
        return Response(found.json, media_type=_JSON, headers=headers)

    return router


def _unauthorized() -> Problem:
    headers = {"WWW-Authenticate": 'Bearer realm="cmis-peer"'}
    return Problem(401, "unauthorized", "This path is for the processes of this installation.", headers=headers)


def _unavailable(reason: str, detail: str) -> Problem:
    return Problem(503, "unavailable", detail, headers={"Retry-After": "1"}, extra={"reason": reason})

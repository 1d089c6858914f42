"""`/api/orgs/{org}/jobs`: what long work there is, how it gets on, and that it ends. Commands of modules start it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...core.errors import Rejected
from ...core.time import rfc3339
from ...store.jobs import LISTED_RESULT, Job, Jobs
from ...store.listing import LIMIT, MOST, storable
from ..auth import Auth
from ..documents.components import COUNT, EXAMPLE_ID, TEXT, TIME, Schema, page_schema
from ..documents.openapi import found
from ..documents.operations import answer, caller_of
from ..documents.refusals import Refusals
from ..documents.requests import parameters
from ..lists import asked, refused
from ..problems import Problem
from .operations import READ, WRITE, described, identity, object_of, or_null, page, query, read_cursor

STATES = ("queued", "running", "done", "failed", "cancelled")
_MISSING = "There is no such job."
_NEWEST_FIRST = "-created_at"


def add_jobs(router: APIRouter, jobs: Jobs, auth: Auth, refusals: Refusals) -> None:
    @router.get(
        **described(
            "/api/orgs/{org}/jobs", "list_jobs", "List jobs", {200: found(page_schema(_JOB), "A page.")}, READ, _PARAMETERS
        )
    )
    async def list_jobs(request: Request) -> Response:
        """Long work that was started, the newest first. Long results are left out: `result_length` says so."""
        caller = await caller_of(auth, request, "read")
        wanted = asked(request, ("state", "kind"), _NEWEST_FIRST, {"state": STATES})
        if wanted.sort != _NEWEST_FIRST:
            raise refused(Rejected("invalid", "sort", wanted.sort, _NEWEST_FIRST))
        for kind in wanted.filters.get("kind", ()):
            if not storable(kind):
                raise refused(Rejected("invalid", "filter[kind]", kind, "a kind of job"))
        before = read_cursor(wanted.cursor)
        among: dict[str, Any] = {"states": wanted.filters.get("state", ()), "kinds": wanted.filters.get("kind", ())}

        def listed() -> Response:
            of = jobs.list(caller.org, wanted.limit + 1, before, **among)
            return answer(page(of, wanted.limit, jobs.count(caller.org, **among), shown_job))

        return await refusals.read(listed)

    @router.get(
        **described("/api/orgs/{org}/jobs/{id}", "get_job", "Get a job", {200: found(_JOB, "As it is now.", "ETag")}, READ)
    )
    async def get_job(request: Request) -> Response:
        caller = await caller_of(auth, request, "read")
        parameters(request)
        return _shown(await refusals.read(jobs.get, caller.org, identity(request, _MISSING)))

    @router.post(
        **described(
            "/api/orgs/{org}/jobs/{id}/cancel", "cancel_job", "Cancel a job",
            {200: found(_JOB, "It has ended, now or before.", "ETag"), 202: found(_JOB, "It was asked to end.", "ETag")},
            WRITE,
        )
    )  # fmt: skip
    async def cancel_job(request: Request) -> Response:
        """One that waits is cancelled at once; one that runs is asked to end, and killed when it has not within ten seconds. One
        that has ended stays as it is."""
        caller = await caller_of(auth, request, "write")
        parameters(request)
        return _shown(await refusals.write(jobs.cancel, caller.org, identity(request, _MISSING)), cancelling=True)


def _shown(job: Job | None, *, cancelling: bool = False) -> Response:
    if job is None:
        raise Problem(404, "not_found", _MISSING)
    response = answer(shown_job(job), 202 if cancelling and job.state == "running" else 200)
    response.headers["ETag"] = f'"{job.version}"'
    return response


def shown_job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "progress_ratio": job.progress_ratio,
        "said": job.said,
        "eta_at": _time(job.eta_at),
        "created_at": rfc3339(job.created_at),
        "started_at": _time(job.started_at),
        "ended_at": _time(job.ended_at),
        "attempts": job.attempts,
        "cancel_asked_at": _time(job.cancel_at),
        "actor": job.actor,
        "result": job.result,
        "result_length": job.result_length,
        "problem": job.problem,
        "version": job.version,
    }


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


_JOB: Schema = object_of(
    {
        "id": TEXT,
        "kind": TEXT,
        "state": {**TEXT, "enum": list(STATES)},
        "progress_ratio": {"type": "number", "minimum": 0, "maximum": 1},
        "said": {**TEXT, "description": "What it does now, in a few words."},
        "eta_at": {**or_null(TIME), "description": "When it is expected to end; null: nothing is known."},
        "created_at": TIME,
        "started_at": {**or_null(TIME), "description": "Of the run that is, or was the last."},
        "ended_at": or_null(TIME),
        "attempts": {**COUNT, "description": "Runs: one that died is followed by another, from where it had come to."},
        "cancel_asked_at": or_null(TIME),
        "actor": {**TEXT, "description": "Who started it: id of the token or session, or what it was."},
        "result": {"description": f"What it made. In lists null where it is longer than {LISTED_RESULT} characters."},
        "result_length": {**or_null(COUNT), "description": "Characters of the result as JSON; null: there is none."},
        "problem": {**or_null({"type": "object"}), "description": "`code` and `detail` of one that failed."},
        "version": {"type": "integer", "minimum": 1},
    },
    {
        "id": EXAMPLE_ID, "kind": "train_model", "state": "running", "progress_ratio": 0.4, "said": "fold 2 of 5",
        "eta_at": "2026-01-01T00:03:10.000Z", "created_at": "2026-01-01T00:00:00.000Z", "started_at": "2026-01-01T00:00:01.000Z",
        "ended_at": None, "attempts": 1, "cancel_asked_at": None, "actor": "3f9a1c2b4d5e", "result": None, "result_length": None,
        "problem": None, "version": 4,
    },
)  # fmt: skip
_PARAMETERS = [
    query("filter[state]", {**TEXT, "enum": list(STATES)}, "Or filter[state][in]=a,b"),
    query("filter[kind]", TEXT, "Or filter[kind][in]=a,b"),
    query("sort", {**TEXT, "enum": [_NEWEST_FIRST], "default": _NEWEST_FIRST}),
    query("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}),
    query("cursor", TEXT, "`next` of the page before, with the same filters."),
]

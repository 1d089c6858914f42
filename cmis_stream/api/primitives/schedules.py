"""`GET /api/orgs/{org}/schedules`: what happens when. Modules make them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...core.time import rfc3339
from ...store.schedules import Scheduled, Schedules
from ..auth import Auth
from ..documents.components import TEXT, TIME, Schema, page_schema
from ..documents.openapi import found
from ..documents.operations import answer, caller_of
from ..documents.refusals import Refusals
from ..documents.requests import parameters
from .operations import READ, described, object_of, or_null, whole


def add_schedules(router: APIRouter, schedules: Schedules, auth: Auth, refusals: Refusals) -> None:
    @router.get(
        **described(
            "/api/orgs/{org}/schedules", "list_schedules", "List schedules",
            {200: found(page_schema(_SCHEDULE), "All there are, by id.")}, READ,
        )
    )  # fmt: skip
    async def list_schedules(request: Request) -> Response:
        """Effects at times of the wall clock."""
        caller = await caller_of(auth, request, "read")
        parameters(request)
        return answer(whole([_shown(one) for one in await refusals.read(schedules.list, caller.org)]))


def _shown(one: Scheduled) -> dict[str, Any]:
    schedule = one.schedule
    return {
        "id": schedule.id,
        "zone": schedule.zone,
        "rule": schedule.rule,
        "effect": schedule.effect,
        "due_at": None if one.due_at is None else rfc3339(one.due_at),
        "problem": one.problem,
    }


_SCHEDULE: Schema = object_of(
    {
        "id": TEXT,
        "zone": {**TEXT, "description": "IANA."},
        "rule": {**TEXT, "description": "RRULE or cron, in local time."},
        "effect": {**TEXT, "description": "What is done."},
        "due_at": {**or_null(TIME), "description": "The next time; null: there is none any more."},
        "problem": {**or_null(TEXT), "description": "Why it was stopped; null: it was not."},
    },
    {
        "id": "report/weekly", "zone": "Europe/Berlin", "rule": "FREQ=WEEKLY;BYDAY=MO;BYHOUR=8;BYMINUTE=0", "effect": "command",
        "due_at": "2026-01-05T07:00:00.000Z", "problem": None,
    },
)  # fmt: skip

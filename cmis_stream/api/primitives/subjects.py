"""`POST /api/orgs/{org}/subjects/erase`: personal fields about one person are gone, wherever they were written."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...store.listing import storable
from ...store.personal import LONGEST_SUBJECT, PersonalData
from ..auth import Auth
from ..documents.components import Schema
from ..documents.openapi import found
from ..documents.operations import answer, caller_of
from ..documents.refusals import Refusals
from ..documents.requests import parameters
from .operations import WITH_BODY, described, object_of, one_text, text_of


def add_subjects(router: APIRouter, personal: PersonalData, auth: Auth, refusals: Refusals) -> None:
    @router.post(
        **described(
            "/api/orgs/{org}/subjects/erase", "erase_subject", "Erase a person's data",
            {200: found(_ERASED, "Nothing personal about the subject can be read any more.")}, WITH_BODY,
            body=one_text("subject", LONGEST_SUBJECT, "The id of the person, as documents name it."),
        )
    )  # fmt: skip
    async def erase_subject(request: Request) -> Response:
        """Deletes the key that all personal fields about the subject are encrypted with: they are null from now on, in documents,
        facts and the history of changes. It cannot be taken back."""
        caller = await caller_of(auth, request, "admin")
        parameters(request)
        subject = await text_of(request, "subject", 4 * LONGEST_SUBJECT)
        known = storable(subject) and await refusals.write(personal.erase, caller.org, subject)
        return answer({"erased": known})


_ERASED: Schema = object_of(
    {
        "erased": {
            "type": "boolean",
            "description": "false: there was nothing personal about the subject, or it was erased before.",
        }
    }
)

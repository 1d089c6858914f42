"""All routes of the primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter

from ...store.files import FileLinks, Files
from ...store.jobs import Jobs
from ...store.kinds import Kinds
from ...store.personal import PersonalData
from ...store.schedules import Schedules
from ...store.secrets import Secrets
from ..auth import Auth
from ..documents.components import Schema, shared_schemas
from ..documents.refusals import Refusals
from .files import add_files
from .jobs import add_jobs
from .schedules import add_schedules
from .secrets import add_secrets
from .subjects import add_subjects


class PrimitivesRouter(APIRouter):
    """schemas: what the operations refer to in the components of the OpenAPI document, the same as those of documents."""

    schemas: dict[str, Schema]


def primitives_router(
    jobs: Jobs,
    files: Files,
    links: FileLinks,
    secrets: Secrets,
    schedules: Schedules,
    personal: PersonalData,
    auth: Auth,
    clock: Callable[[], int],
    declared_secrets: Mapping[str, str],
    refusals: Refusals | None = None,
) -> PrimitivesRouter:
    """clock: epoch ms. declared_secrets: name -> title of those that modules need. refusals: those of documents, so that both
    write in the same few threads; None: some of its own."""
    router = PrimitivesRouter()
    router.schemas = shared_schemas()
    refusals = refusals or Refusals(Kinds(()))
    tagged = {tag: APIRouter(tags=[tag]) for tag in ("jobs", "files", "secrets", "schedules", "subjects")}
    add_jobs(tagged["jobs"], jobs, auth, refusals)
    add_files(tagged["files"], files, links, auth, refusals, clock)
    add_secrets(tagged["secrets"], secrets, declared_secrets, auth, refusals)
    add_schedules(tagged["schedules"], schedules, auth, refusals)
    add_subjects(tagged["subjects"], personal, auth, refusals)
    for one in tagged.values():
        router.include_router(one)
    return router

"""A whole instance in a thread of its own, with one more module that has each thing which REST makes something of."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field

from cmis_stream import stores
from cmis_stream.api.auth import COOKIE
from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.instance import Instance
from cmis_stream.live.commands import encode
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.settings import Settings
from cmis_stream.store.decisions import Actor, Command, Context, Decision, Document, Put, Rule
from cmis_stream.store.fact_kinds import Fact, FactCommand, FactContext, FactDecision, FactKind, FactRule
from cmis_stream.store.facts import Change
from cmis_stream.store.fields import Time
from cmis_stream.store.job_kinds import JobKind
from cmis_stream.store.kinds import ANYONE, Kind, Manifest, ProblemCode, Ref, States
from tests.store.fact_support import incident

NOW = 1_767_225_600_000
SCOPES = ("read", "write", "admin", "ingest")
FINDINGS = [fact_id(NOW + number, f"f{number}") for number in range(3)]
INCIDENTS = [incident(number) for number in range(3)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shelf(_Model):
    label: str = Field(min_length=1, max_length=50)


class Book(_Model):
    title: str = Field(min_length=1, max_length=100)
    key: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    state: Literal["new", "read"] = "new"
    pages: int = Field(1, ge=1)
    read_at: Time | None = None
    shelf: str | None = None


class Retitle(_Model):
    title: str = Field(min_length=1, max_length=100)


class Finding(_Model):
    name: str
    count: int = Field(0, ge=0)


class Add(_Model):
    note: str = Field(min_length=1, max_length=20)


def _read(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    if state.body["state"] == "read":
        raise Rejected("book_read", "/state", "read", "a book that nobody has read")
    return Decision((Put("book", state.id, {**state.body, "state": "read", "read_at": context.now_ms}),))


def _retitle(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    return Decision((Put("book", state.id, {**state.body, "title": command.body["title"]}),))


def _order(context: Context, state: Document | None, command: Command) -> Decision:
    identity = context.new_id()
    return Decision((Put("shelf", identity, {"label": command.body["title"][:50]}),))


def _add(context: FactContext, fact: Fact, command: FactCommand) -> FactDecision:
    if command.body["note"] == "no":
        raise Rejected("finding_refuses", "/note", "no", "another note")
    return FactDecision({**fact.body, "count": fact.body["count"] + 1})


BOOK = Kind(
    "book", Book, title="Book", filters={"title": "text", "pages": "number", "read_at": "time"}, sorts=("title", "pages"),
    unique=(("key",),), natural_key="key", refs={"shelf": Ref("shelf", "restrict")}, visibility="org",
    states=States("state", "new", {("new", "read"): ANYONE}),
    commands={
        "read_it": Rule(_read), "retitle": Rule(_retitle, body=Retitle, examples=({"title": "Emma"},)),
        "order": Rule(_order, creates=True, body=Retitle, examples=({"title": "Emma"},)),
    },
    examples=({"title": "Persuasion", "key": "persuasion", "pages": 249, "read_at": "2026-01-01T00:00:00Z"},),
)  # fmt: skip
SHELF = Kind("shelf", Shelf, plural="shelves", path="books-shelves", token_path="/api/shelves", examples=({"label": "Top"},))
FINDING = FactKind(
    "finding", Finding, filters={"name": "text", "count": "number"}, sorts=("count",),
    commands={"add": FactRule(_add, body=Add, examples=({"note": "seen"},)),
              "clear": FactRule(lambda context, fact, command: FactDecision({**fact.body, "count": 0}))},
    examples=({"name": "a"},),
)  # fmt: skip
MANIFEST = Manifest(
    "books", (BOOK, SHELF), title="Books", facts=(FINDING,), secrets={"books/key": "The library's key"},
    jobs=(JobKind("count_books", "tests.store.job_functions:count"),),
    problems={"book_read": ProblemCode(409, "It was read"), "finding_refuses": ProblemCode(409, "It does not want that")},
)  # fmt: skip


class Served:
    """url: where. One of acme's tokens has all scopes; globex has documents, too, and a token of its own."""

    def __init__(self, instance: Instance, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._numbers = loop, itertools.count()
        self.instance, self.runtime = instance, instance.runtime
        self.url, tokens = instance.url, instance.runtime.tokens
        for slug in ("acme", "globex"):
            tokens.create_org(slug, slug.title())
        self.token, self.foreign = (tokens.create(org, list(SCOPES))[1] for org in ("acme", "globex"))
        self.reader = tokens.create("acme", ["read"])[1]
        facts = [("finding", one, {"name": f"n{number}"}) for number, one in enumerate(FINDINGS)]
        facts += [("incident", one, body) for one, body in INCIDENTS]
        changes = [Change("acme", kind, one, NOW, partial(_instead, body)) for kind, one, body in facts]
        assert self.runtime.facts.write(changes, "w", "e", {("t", 0): 0}, {})

    def job(self) -> str:
        """One that waits: it is not due for long."""
        identity = f"job-{next(self._numbers)}"
        self.runtime.stores.jobs.enqueue("acme", identity, "count_books", {}, "ada", due_at=4 * NOW)
        return identity

    def commanded(self) -> str:
        """The id of a command on a fact that was carried out."""
        identity = str(uuid4())
        command = FactCommand(identity, "acme", "finding", FINDINGS[2], "clear", {}, Actor("ada"), self.runtime.clock())
        asyncio.run_coroutine_threadsafe(self.runtime.send_command("acme", encode(command)), self._loop).result(60)
        until = time.monotonic() + 60
        while self.runtime.stores.fact_commands.result("acme", identity) is None:
            assert time.monotonic() < until, "the command was not carried out"
            time.sleep(0.02)
        return identity

    def session(self) -> dict[str, str]:
        """Headers of a browser that has just signed in."""
        code = self.instance.sessions.make_code()
        _, text = self.instance.sessions.exchange(code, self.runtime.clock())
        return {"Cookie": f"{COOKIE}={text}", "Origin": self.url, "Sec-Fetch-Site": "same-origin"}

    @contextmanager
    def client(self, token: str | None = None) -> Iterator[httpx.Client]:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        with httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30) as client:
            yield client


def _instead(body: Mapping[str, Any], _: object) -> dict[str, Any]:
    return dict(body)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """From entry to exit; what ends the instance before that is raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "all_kinds", partial(all_kinds, [MANIFEST]))
        loop, ready, made = asyncio.new_event_loop(), threading.Event(), list[Served]()
        stop, errors = asyncio.Event(), list[BaseException]()

        async def run() -> None:
            async with Instance(Settings(data_dir=folder, port=0, gateway_port=0)) as instance:
                made.append(await asyncio.to_thread(Served, instance, loop))
                ready.set()
                await instance.wait(stop)

        def body() -> None:
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(run())
            except BaseException as error:  # of a thread: raised where it is waited for
                errors.append(error)
            finally:
                ready.set()
                loop.close()

        thread = threading.Thread(target=body, name="instance")
        thread.start()
        ready.wait()
        try:
            if made:
                yield made[0]
        finally:
            if thread.is_alive():
                loop.call_soon_threadsafe(stop.set)
            thread.join()
            if errors:
                raise errors[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as made:
        yield made

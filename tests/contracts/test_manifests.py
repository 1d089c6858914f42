"""What every kind of every module promises, shown over REST; the toy module has one of everything."""

from __future__ import annotations

import asyncio
import copy
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cmis_stream.api.documents.places import Collection, dashed
from cmis_stream.core.errors import Rejected
from cmis_stream.store.bodies import validated
from cmis_stream.store.commands import DEFAULTS
from cmis_stream.store.decisions import Actor, Command, Context, Decision, Document, Rule
from cmis_stream.store.fields import times_of
from cmis_stream.store.kinds import Kind
from tests.contracts.support import COLLECTIONS, KINDS, UNKNOWN, Caller, Rest, at

every_kind = pytest.mark.parametrize("place", COLLECTIONS, ids=lambda place: f"{place.module}.{place.kind.name}")


# --- declarations -----------------------------------------------------------------------------------------------------


@every_kind
def test_a_kind_has_examples_and_its_commands_have_some_too(place: Collection) -> None:
    assert place.kind.examples
    for name, rule in place.commands():
        assert rule.body is None or rule.examples, name
        for example in rule.examples:
            assert rule.body is not None
            validated(rule.body, example)


@every_kind
def test_what_is_filtered_as_a_time_is_shown_as_one(place: Collection) -> None:
    shown = times_of(place.kind.model)
    assert isinstance(shown, dict)
    assert {name for name, of in place.kind.filters.items() if of == "time"} <= shown.keys()


@every_kind
async def test_a_natural_key_can_stand_in_a_path_and_is_no_uuid(rest: Rest, place: Collection) -> None:
    key = place.kind.natural_key
    if key is None:
        return
    body = await rest.body(rest.ann, place.kind)
    for wrong in ("a/b", UNKNOWN, "", "a\nb"):
        response = await rest.ann.ask("POST", place.path, json={**body, key: wrong})
        assert response.status_code == 422 and response.json()["errors"][0]["pointer"] == f"/{key}", response.text
    made = await rest.ann.created(place, body)
    by_key = await rest.ann.ask("GET", f"{place.path}/{body[key]}")
    assert by_key.json() == made


# --- one document -----------------------------------------------------------------------------------------------------


@every_kind
async def test_a_document_goes_round(rest: Rest, place: Collection) -> None:
    ann = rest.adam
    for number in range(len(place.kind.examples)):
        body = await rest.body(ann, place.kind, number)
        response = await ann.ask("POST", place.path, json=body)
        made = response.json()
        assert response.status_code == 201 and response.headers["etag"] == '"1"', response.text
        assert response.headers["location"] == f"{place.path.replace('{org}', 'acme')}/{made['id']}"
        one = response.headers["location"]
        read = await ann.ask("GET", one)
        assert read.json() == made and read.headers["etag"] == '"1"'
        assert (made["version"], made["deleted_at"]) == (1, None)
        again = await ann.ask("PUT", one, json=made, headers=at(1))
        assert again.status_code == 200 and again.json() == made  # what was read can be sent back, and changes nothing

        patched = await ann.ask("PATCH", one, json={"tags": ["a", "b"], "metadata": {"k": {"x": 1}}}, headers=at(1))
        assert patched.status_code == 200 and patched.headers["etag"] == '"2"' and patched.json()["tags"] == ["a", "b"]
        merged = await ann.ask("PATCH", one, json={"metadata": {"k": {"y": 2, "x": None}}, "tags": None}, headers=at(2))
        assert (merged.json()["metadata"], merged.json()["tags"]) == ({"k": {"y": 2}}, [])
        replaced = await ann.ask("PUT", one, json=body, headers=at(3))
        assert replaced.status_code == 200 and replaced.json()["metadata"] == body.get("metadata", {})

        for method in ("PUT", "PATCH", "DELETE"):
            late = await ann.ask(method, one, json=body, headers=at(2))
            assert late.status_code == 412 and late.headers["etag"] == replaced.headers["etag"], late.text
            assert late.json()["type"] == "/problems/stale"
            none = await ann.ask(method, one, json=body)
            assert none.status_code == 428 and none.json()["type"] == "/problems/precondition_required"

        assert (await ann.ask("DELETE", one, headers=at(replaced.headers["etag"]))).status_code == 204
        assert (await ann.ask("GET", one)).status_code == 404
        gone = (await ann.ask("GET", one, params={"deleted": "with"})).json()
        assert gone["deleted_at"] is not None and gone in await ann.everything(place.path, deleted="only")
        assert gone["id"] not in {item["id"] for item in await ann.everything(place.path)}
        back = await ann.ask("POST", f"{one}/restore")
        assert back.status_code == 200 and {**gone, **_moved(back.json())} == back.json()
        assert (await ann.ask("POST", f"{one}/restore")).status_code == 422

        history = await ann.everything(f"{one}/changes", limit=2)
        assert [change["command"] for change in history] == ["restore", "delete", "update", "patch", "patch", "create"]
        assert [change["version"] for change in history] == [6, 5, 4, 3, 2, 1]
        assert history[-1]["before"] is None and history[1]["after"] is None and history[1]["before"] == history[2]["after"]
        shown = {name: value for name, value in made.items() if name in history[-1]["after"]}
        assert history[-1]["after"] == shown


def _moved(document: dict[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in ("version", "updated_at", "deleted_at")}


@every_kind
@pytest.mark.spec("ALR-M15")
async def test_a_template_can_be_created_once_its_gaps_are_filled(rest: Rest, place: Collection) -> None:
    names = [template.name for template in place.kind.templates]
    assert len(set(names)) == len(names)
    for number, template in enumerate(place.kind.templates):
        body = await rest.body(rest.adam, place.kind)
        response = await rest.adam.ask("POST", place.path, json={**body, **template.body, "tags": [f"t{number}"]})
        assert response.status_code == 201, (template.name, response.text)


@every_kind
async def test_a_clone_is_a_new_document_with_what_is_said_changed(rest: Rest, place: Collection) -> None:
    kind, adam = place.kind, rest.adam
    made = await adam.created(place, {**await rest.body(adam, kind), "metadata": {"a": 1, "applied_from": "a file"}})
    fields = {name for names in kind.unique for name in names}
    other = await rest.body(adam, kind)
    changed = {name: value for name, value in other.items() if name in fields}
    if fields:
        same = await adam.ask("POST", f"{place.path}/{made['id']}/clone")
        assert same.status_code == 409 and same.json()["type"] == "/problems/not_unique"
    late = await adam.ask("POST", f"{place.path}/{made['id']}/clone", json=changed, headers=at(2))
    assert late.status_code == 412
    response = await adam.ask("POST", f"{place.path}/{made['id']}/clone", json={**changed, "tags": ["copy"]})
    assert response.status_code == 201 and response.headers["etag"] == '"1"', response.text
    clone = response.json()
    assert response.headers["location"].endswith(f"/{clone['id']}") and clone["id"] != made["id"]
    assert clone["tags"] == ["copy"] and clone["metadata"] == {"a": 1}
    own = {"id", "created_at", "updated_at", "tags", "metadata", *changed}
    assert {name: value for name, value in clone.items() if name not in own} == {
        name: value for name, value in made.items() if name not in own
    }
    assert (await adam.ask("GET", f"{place.path}/{made['id']}")).json() == made
    assert (await adam.ask("POST", f"{place.path}/{UNKNOWN}/clone", json=changed)).status_code == 404


async def test_a_clone_begins_in_the_state_of_new_documents(rest: Rest) -> None:
    (toys,) = [place for place in COLLECTIONS if place.kind.name == "toy"]
    made = await rest.ann.created(toys, {"name": "Train", "slug": "used-train"})
    assert (await rest.ann.ask("POST", f"{toys.path}/{made['id']}/play")).json()["item"]["state"] == "used"
    clone = await rest.ann.ask("POST", f"{toys.path}/used-train/clone", json={"slug": "new-train"})
    assert clone.status_code == 201 and clone.json()["state"] == "new"


@every_kind
async def test_an_idempotency_key_counts_once(rest: Rest, place: Collection) -> None:
    body, key = await rest.body(rest.ann, place.kind), {"Idempotency-Key": "k"}
    before = len(await rest.ann.everything(place.path))
    first = await rest.ann.ask("POST", place.path, json=body, headers=key)
    again = await rest.ann.ask("POST", place.path, json=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 201) and first.json() == again.json()
    assert again.headers["location"] == first.headers["location"] and again.headers["idempotency-replayed"] == "true"
    assert len(await rest.ann.everything(place.path)) == before + 1
    other = await rest.ann.ask("POST", place.path, json={**body, "tags": ["x"]}, headers=key)
    assert other.status_code == 422 and other.json()["type"] == "/problems/key_reused"


# --- many -------------------------------------------------------------------------------------------------------------


@every_kind
async def test_one_bad_item_of_a_bulk_loses_no_other(rest: Rest, place: Collection) -> None:
    ann = rest.adam
    old = [await ann.created(place, await rest.body(ann, place.kind)) for _ in range(3)]
    good = [await rest.body(ann, place.kind) for _ in range(2)]
    items: list[tuple[Any, int, str | None]] = [
        ({"op": "create", "body": good[0]}, 201, None),
        ({"op": "create", "body": {**good[0], "no_such_field": 1}}, 422, "/body/no_such_field"),
        ({"op": "patch", "id": old[0]["id"], "version": 1, "body": {"tags": ["x"]}}, 200, None),
        ({"op": "patch", "id": old[0]["id"], "version": 1, "body": {"tags": ["y"]}}, 412, "/version"),
        ({"op": "patch", "id": old[0]["id"], "body": {"tags": ["y"]}}, 428, None),
        ({"op": "delete", "id": UNKNOWN, "version": 1}, 404, None),
        ({"op": "fly", "id": old[0]["id"]}, 422, "/op"),
        (7, 422, ""),
        ({"op": "delete", "id": old[1]["id"], "version": 1}, 204, None),
        ({"op": "restore", "id": old[1]["id"]}, 200, None),
        ({"op": "create", "id": UNKNOWN, "body": good[1]}, 201, None),
        ({"op": "update", "id": old[2]["id"], "version": 1, "body": "x"}, 422, "/body"),
        ({"op": "delete", "version": 1}, 422, "/id"),
    ]
    key = {"Idempotency-Key": "many"}
    for _ in range(2):  # the second time from the key
        response = await ann.ask("POST", f"{place.path}/bulk", json={"items": [item for item, _, _ in items]}, headers=key)
        assert response.status_code == 200, response.text
        results = response.json()["results"]
        assert [one["status"] for one in results] == [status for _, status, _ in items]
        assert [one["index"] for one in results] == list(range(len(items)))
        for one, (_, status, pointer) in zip(results, items, strict=True):
            assert ("problem" in one) == (status >= 400)
            if pointer is not None:
                assert one["problem"]["errors"][0]["pointer"] == pointer
    assert results[10]["id"] == UNKNOWN
    found = {item["id"]: item for item in await ann.everything(place.path)}
    assert {results[0]["id"], UNKNOWN, *(one["id"] for one in old)} <= found.keys()
    assert found[old[0]["id"]]["tags"] == ["x"] and found[old[1]["id"]]["version"] == 3 and found[old[2]["id"]]["version"] == 1


@every_kind
async def test_all_pages_together_are_complete_while_others_write(rest: Rest, place: Collection) -> None:
    ann, ben = rest.adam, rest.ben
    mine = [(await ann.created(place, await rest.body(ann, place.kind)))["id"] for _ in range(23)]
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            made = await ben.created(place, await rest.body(ben, place.kind))
            await ben.ask("PATCH", f"{place.path}/{made['id']}", json={"tags": ["x"]}, headers=at(1))

    writing = asyncio.create_task(write())
    try:
        for sort in ("id", "-id", "created_at", *place.kind.sorts, *(f"-{name}" for name in place.kind.sorts)):
            found = [item["id"] for item in await ann.everything(place.path, limit=5, sort=sort)]
            assert len(found) == len(set(found)) and set(mine) <= set(found), sort
    finally:
        stop.set()
        await writing


# --- who may ----------------------------------------------------------------------------------------------------------


def operations(rest: Rest, place: Collection) -> Iterator[tuple[str, str]]:
    for path, methods in rest.app.openapi()["paths"].items():
        if path == place.path or path.startswith((f"{place.path}/bulk", f"{place.path}/{{id}}")) or path in _commands(place):
            yield from ((method.upper(), path) for method in methods)


def _commands(place: Collection) -> set[str]:
    return {f"{place.path}/{dashed(name)}" for name, _ in place.commands()}


@pytest.mark.spec("TEN-M05", partial="documents over REST, on SQLite and PostgreSQL")
@every_kind
async def test_another_orgs_documents_are_on_no_path(rest: Rest, place: Collection) -> None:
    """Neither under its org, which is not the caller's, nor by their ids under the caller's own."""
    theirs = await rest.gus.created(place, await rest.body(rest.gus, place.kind))
    before = await rest.gus.everything(place.path, deleted="with")
    asked = list(operations(rest, place))
    assert len(asked) >= 9
    key = place.kind.natural_key
    names = [theirs["id"], *([theirs[key]] if key else [])]
    for method, path in asked:
        body = {} if method == "GET" else {"json": {}, "headers": at("*")}
        foreign, absent = [
            await rest.adam.ask(method, path.replace("{id}", theirs["id"]), org=org, **body) for org in ("globex", "nowhere")
        ]
        assert foreign.status_code == 404 and foreign.content == absent.content, (method, path)
        if "{id}" in path:
            for name in names:
                known, unknown = [
                    await rest.adam.ask(method, path.replace("{id}", id_), **_with_body(place.kind, path, body))
                    for id_ in (name, UNKNOWN)
                ]
                assert known.status_code == 404, (method, path, known.text)
                assert known.text.replace(name, "") == unknown.text.replace(UNKNOWN, ""), (method, path)
    items = [{"op": op, "id": theirs["id"], "version": 1} for op in ("patch", "delete", "restore")]
    done = await rest.adam.ask("POST", f"{place.path}/bulk", json={"items": items})
    assert [one["status"] for one in done.json()["results"]] == [404, 404, 404]
    assert await rest.adam.everything(place.path, deleted="with") == []
    for field, ref in place.kind.refs.items():
        target = await rest.gus.created(_place(ref.target), await rest.body(rest.gus, KINDS[ref.target]))
        given = await rest.body(rest.ann, place.kind)
        texts = []
        for identity in (target["id"], UNKNOWN):
            value = [identity] if place.kind.is_list(field) else identity
            pointing = await rest.ann.ask("POST", place.path, json={**given, field: value})
            assert pointing.status_code == 422 and pointing.json()["type"] == "/problems/unknown_ref", pointing.text
            texts.append(pointing.text.replace(identity, ""))
        assert texts[0] == texts[1]
    assert [one for one in await rest.gus.everything(place.path, deleted="with") if one in before] == before


def _place(kind: str) -> Collection:
    return next(one for one in COLLECTIONS if one.kind.name == kind)


def _with_body(kind: Kind, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """With what the command at the path takes, so that it gets as far as the document."""
    name = path.rpartition("/")[2].replace("-", "_")
    rule = kind.commands.get(name)
    return {**body, "json": rule.examples[0]} if rule is not None and rule.examples else body


@every_kind
async def test_every_path_wants_a_token_and_its_scope_and_knows_its_parameters(rest: Rest, place: Collection) -> None:
    made = await rest.ann.created(place, await rest.body(rest.ann, place.kind))
    for method, path in operations(rest, place):
        one = path.replace("{id}", made["id"])
        headers = {} if method == "GET" else {"headers": at("*")}
        anonymous = await rest.ann.ask(method, one, **{"headers": {"Authorization": "", **headers.get("headers", {})}})
        assert anonymous.status_code == 401, (method, path)
        if method != "GET":
            assert (await rest.eve.ask(method, one, json={}, **headers)).status_code == 403, (method, path)
        odd = await rest.adam.ask(method, one, params={"colour": "red"}, **headers)
        assert odd.status_code == 400 and odd.json()["parameter"] == "colour", (method, path)


# --- decisions --------------------------------------------------------------------------------------------------------


@every_kind
async def test_decisions_follow_from_what_they_are_given(rest: Rest, place: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same again under another clock and other chance, and nothing of what was given is changed."""
    kind = place.kind
    states = [await _document(rest, rest.adam, place, number) for number in range(len(kind.examples))]
    decided = 0
    for state in states:
        for name, rule in {**DEFAULTS, **kind.commands}.items():
            bodies = (
                [dict(one) for one in kind.examples] if name in ("create", "update", "patch") else list(rule.examples) or [{}]
            )
            for body in bodies:
                given = validated(rule.body, body) if rule.body is not None else body
                command = Command(name, kind.name, None if rule.creates else state.id, given)
                first = _decided(rule, state, command)
                with monkeypatch.context() as elsewhere:
                    elsewhere.setattr(time, "time", lambda: 4e9)
                    elsewhere.setattr(time, "time_ns", lambda: 4 * 10**18)
                    elsewhere.setattr(uuid, "uuid4", lambda: uuid.UUID(UNKNOWN))
                    random.seed(7)
                    assert _decided(rule, state, command) == first, name
                decided += 1
    assert decided >= 5


async def _document(rest: Rest, caller: Caller, place: Collection, number: int) -> Document:
    made = await caller.created(place, await rest.body(caller, place.kind, number))
    found = rest.documents.get(caller.org, Actor("x", sees_private=True), place.kind.name, made["id"])
    assert found is not None
    return found


def _decided(rule: Rule, state: Document, command: Command) -> Decision | dict[str, Any]:
    subject = None if rule.creates else copy.deepcopy(state)
    given = copy.deepcopy(command)
    numbers = iter(range(1_000))
    documents = {key: copy.deepcopy(state) for key in rule.reads(subject, given)}
    read = copy.deepcopy(documents)
    context = Context("acme", Actor("x"), 1_767_225_600_000, lambda: str(uuid.UUID(int=next(numbers))), documents)
    made: Decision | dict[str, Any]
    try:
        made = rule.decide(context, subject, given)
    except Rejected as error:
        made = error.as_dict()
    assert (subject, given, documents) == (None if rule.creates else state, command, read)
    return made

"""REST of documents: what kinds declare, as requests meet it. Shown with the toy module (tests/contracts/toy)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.api import problems
from cmis_stream.api.documents import documents_router
from cmis_stream.api.documents.refusals import STATUSES, WRITERS, Refusals
from cmis_stream.api.problems import TITLES
from cmis_stream.core import errors
from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store import database as databases
from cmis_stream.store.database import Database
from cmis_stream.store.kinds import Kind, Kinds, Manifest, ProblemCode
from tests.api.conftest import World
from tests.contracts.support import UNKNOWN, Rest, at
from tests.contracts.toy.manifest import BOX, CHILD, TOY, Box

TOYS, BOXES, LOANS, WISHES, CHILDREN = (
    f"/api/orgs/{{org}}/{path}" for path in ("toy/toys", "toy-boxes", "toy-boxes/loans", "toy/wishes", "toy/children")
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture
async def rest(world: World, database: Database) -> AsyncIterator[Rest]:
    made = Rest(world, database)
    yield made
    await made.close()


async def made(rest: Rest, path: str, **body: Any) -> dict[str, Any]:
    response = await rest.ann.ask("POST", path, json=body)
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    return document


def refused(response: httpx.Response, status: int, code: str, **error: Any) -> None:
    """With the first of its errors."""
    document = response.json()
    assert (response.status_code, document["type"]) == (status, f"/problems/{code}"), document
    assert response.headers["content-type"] == "application/problem+json" and document["title"] != code
    if error:
        assert document["errors"][0] == {**document["errors"][0], **error}


# --- bodies -----------------------------------------------------------------------------------------------------------


async def test_moments_are_rfc_3339_also_within_what_lies_in_itself(rest: Rest) -> None:
    parts = [{"name": "a", "parts": [{"name": "b", "fitted_at": "2026-01-01T01:00:00.250+01:00"}]}]
    toy = await made(rest, TOYS, name="A", slug="a", made_at=1767225600000, parts=parts)
    assert toy["made_at"] == "2026-01-01T00:00:00.000Z"
    assert toy["parts"][0]["parts"][0]["fitted_at"] == "2026-01-01T00:00:00.250Z"
    assert toy["created_at"].endswith("Z")
    for wrong in ("yesterday", "2026-01-01T00:00:00", "1969-12-31T23:59:59Z", 1.5, True):
        response = await rest.ann.ask("POST", TOYS, json={"name": "B", "slug": "b", "made_at": wrong})
        assert response.status_code == 422 and response.json()["errors"][0]["pointer"] == "/made_at", response.text


@pytest.mark.spec("TEN-M07", partial="bodies, parameters and headers of documents, with all mistakes at once")
async def test_every_mistake_of_a_body_is_named_by_a_pointer(rest: Rest) -> None:
    response = await rest.ann.ask("POST", TOYS, json={"name": 5, "colour": "red", "parts": [{"nme": ""}]})
    refused(response, 422, "wrong_type", pointer="/name", got="5")
    pointers = {error["pointer"] for error in response.json()["errors"]}
    assert pointers == {"/name", "/slug", "/colour", "/parts/0/name", "/parts/0/nme"}
    assert all(error.keys() == {"pointer", "code", "got", "expected"} for error in response.json()["errors"])


async def test_every_mistake_of_an_item_of_a_bulk_is_named_also_when_it_is_repeated(rest: Rest) -> None:
    items = [{"op": "create", "body": {"name": 5, "colour": "red"}}, {"op": "create", "body": {"name": "a", "slug": "a"}}]
    key = {"Idempotency-Key": "k"}
    for _ in range(2):
        done = (await rest.ann.ask("POST", f"{TOYS}/bulk", json={"items": items}, headers=key)).json()["results"]
        assert [one["status"] for one in done] == [422, 201]
        problem = done[0]["problem"]
        assert {error["pointer"] for error in problem["errors"]} == {"/body/name", "/body/slug", "/body/colour"}
        assert problem["detail"].startswith("/body/name: expected ") and problem["detail"].endswith("(and 2 more).")


NO_BODIES = [
    (b"", 400, "malformed"),
    (b"{", 400, "malformed"),
    (b"\xff", 400, "malformed"),
    (b'{"name": NaN}', 400, "malformed"),
    (b"[]", 422, "wrong_type"),
    (b'"x"', 422, "wrong_type"),
    (b'{"name": "\\u0000", "slug": "a"}', 422, "invalid"),
    (b'{"name": "a", "slug": "a", "price_micros": 9223372036854775808}', 422, "out_of_range"),
    (b'{"name": "a", "slug": "a", "metadata": {"n": 1e400}}', 400, "malformed"),
    (b'{"name": "a", "slug": "a", "id": 5}', 422, "wrong_type"),
    (b'{"name": "a", "slug": "a", "id": "5"}', 422, "invalid"),
    (b" " * (2 << 20) + b"{}", 413, "too_large"),
    (b'{"name": "a", "slug": "a", "metadata": ' + b'{"a":' * 60 + b"1" + b"}" * 61, 422, "too_long"),
    (b"[" * 5000 + b"]" * 5000, 400, "malformed"),
]


async def test_what_is_no_body_is_refused(rest: Rest) -> None:
    for content, status, code in NO_BODIES:
        response = await rest.ann.ask("POST", TOYS, content=content, headers={"Content-Type": "application/json"})
        refused(response, status, code)
    assert await rest.ann.everything(TOYS) == []


async def test_a_body_of_another_type_is_not_taken(rest: Rest) -> None:
    toy = await made(rest, TOYS, name="A", slug="a")
    for method, path, taken in (
        ("POST", TOYS, "application/json"),
        ("PUT", f"{TOYS}/a", "application/json"),
        ("PATCH", f"{TOYS}/a", "application/merge-patch+json, application/json"),
        ("POST", f"{TOYS}/bulk", "application/json"),
        ("POST", f"{TOYS}/a/rename", "application/json"),
    ):
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            response = await rest.ann.ask(method, path, content=b"{}", headers={"Content-Type": kind, **at(1)})
            refused(response, 415, "unsupported_media")
            assert taken in (response.headers.get("accept"), response.headers.get("accept-patch"))
    patch = {"Content-Type": "application/merge-patch+json; charset=utf-8", **at(1)}
    assert (await rest.ann.ask("PATCH", f"{TOYS}/a", content=b'{"loud": true}', headers=patch)).json()["loud"] is True
    assert toy["loud"] is None


async def test_a_new_document_may_bring_its_id_and_another_one_is_not_taken_for_one_that_is_there(rest: Rest) -> None:
    assert (await made(rest, BOXES, label="A", id=UNKNOWN))["id"] == UNKNOWN
    refused(await rest.ann.ask("POST", BOXES, json={"label": "A", "id": UNKNOWN}), 409, "not_unique", pointer="/id")
    other = {"label": "B", "id": "01890000-0000-7000-8000-000000000001"}
    for method in ("PUT", "PATCH"):
        refused(await rest.ann.ask(method, f"{BOXES}/{UNKNOWN}", json=other, headers=at(1)), 422, "invalid", pointer="/id")


async def test_an_entity_tag_that_is_none_is_refused_and_one_that_is_not_ours_is_stale(rest: Rest) -> None:
    await made(rest, TOYS, name="A", slug="a")
    for given in ("1", '"1', '"1", "2"', "", "W/1"):
        response = await rest.ann.ask("DELETE", f"{TOYS}/a", headers={"If-Match": given})
        refused(response, 400, "malformed", header="If-Match")
    for given in ('W/"1"', '"x"', '"01"', '""', '"9999999999999999999999"', '"2"'):
        response = await rest.ann.ask("DELETE", f"{TOYS}/a", headers={"If-Match": given})
        refused(response, 412, "stale", header="If-Match", expected='"1"')
    assert (await rest.ann.ask("DELETE", f"{TOYS}/a", headers={"If-Match": "*"})).status_code == 204


async def test_a_command_may_say_which_version_it_is_about(rest: Rest) -> None:
    await made(rest, TOYS, name="A", slug="a")
    refused(await rest.ann.ask("POST", f"{TOYS}/a/rename", json={"name": "B"}, headers=at(2)), 412, "stale")
    assert (await rest.ann.ask("POST", f"{TOYS}/a/rename", json={"name": "B"}, headers=at(1))).headers["etag"] == '"2"'


async def test_idempotency_keys_are_of_one_caller_and_path(rest: Rest) -> None:
    key = {"Idempotency-Key": "k"}
    first = await rest.ann.ask("POST", BOXES, json={"label": "A"}, headers=key)
    assert (await rest.ben.ask("POST", BOXES, json={"label": "B"}, headers=key)).json()["id"] != first.json()["id"]
    assert (await rest.ann.ask("POST", CHILDREN, json={"name": "B"}, headers=key)).status_code == 201
    gone = f"{BOXES}/{first.json()['id']}"
    done = [await rest.adam.ask("DELETE", gone, headers={**at(1), **key}) for _ in range(2)]
    assert [one.status_code for one in done] == [204, 204]  # the second one is the answer of the first
    for wrong in ("", "k" * 256):
        response = await rest.ann.ask("POST", BOXES, json={"label": "A"}, headers={"Idempotency-Key": wrong})
        refused(response, 400, "malformed", header="Idempotency-Key")


# --- what kinds declare -----------------------------------------------------------------------------------------------


async def test_uniques_refs_cycles_and_states_answer_with_their_codes(rest: Rest) -> None:
    box = await made(rest, BOXES, label="A")
    one = await made(rest, TOYS, name="A", slug="a", box=box["id"])
    two = await made(rest, TOYS, name="B", slug="b", inside=one["id"])
    child = await made(rest, CHILDREN, name="Ada")
    await made(rest, LOANS, toy=one["id"], child=child["id"])

    refused(await rest.ann.ask("POST", TOYS, json={"name": "C", "slug": "a"}), 409, "not_unique", pointer="/slug")
    refused(await rest.ann.ask("POST", LOANS, json={"toy": one["id"], "child": child["id"]}), 409, "not_unique", pointer="/toy")
    refused(await rest.ann.ask("POST", LOANS, json={"toy": box["id"], "child": child["id"]}), 422, "unknown_ref", pointer="/toy")
    circle = await rest.ann.ask("PATCH", f"{TOYS}/a", json={"inside": two["id"]}, headers=at(1))
    refused(circle, 422, "cycle", pointer="/inside")
    leap = await rest.ann.ask("PATCH", f"{TOYS}/a", json={"state": "broken"}, headers=at(1))
    refused(leap, 409, "no_transition", pointer="/state")
    refused(await rest.ann.ask("DELETE", f"{TOYS}/a", headers=at(1)), 409, "restricted", parameter="id")


async def test_what_goes_with_a_document_goes_and_what_held_it_lets_it_go(rest: Rest) -> None:
    box = await made(rest, BOXES, label="A")
    one = await made(rest, TOYS, name="A", slug="a", box=box["id"])
    two = await made(rest, TOYS, name="B", slug="b", inside=one["id"])
    wish = await made(rest, WISHES, text="mine", toy=one["id"])
    assert (await rest.adam.ask("DELETE", f"{BOXES}/{box['id']}", headers=at(1))).status_code == 204
    assert (await rest.ann.ask("GET", f"{TOYS}/a")).status_code == 404
    left = (await rest.ann.ask("GET", f"{TOYS}/b")).json()
    assert (left["id"], left["inside"], left["version"]) == (two["id"], None, 2)
    assert (await rest.ann.ask("GET", f"{WISHES}/{wish['id']}")).json()["toy"] is None
    assert [item["id"] for item in await rest.ann.everything(TOYS, deleted="only")] == [one["id"]]


async def test_a_modules_own_code_has_its_status_and_title(rest: Rest) -> None:
    await made(rest, TOYS, name="A", slug="a")
    await rest.ann.ask("POST", f"{TOYS}/a/play")
    await rest.ann.ask("PATCH", f"{TOYS}/a", json={"state": "broken"}, headers=at(2))
    response = await rest.ann.ask("POST", f"{TOYS}/a/play")
    refused(response, 409, "toy_broken", pointer="/state")
    assert response.json()["title"] == "The toy is broken"
    repaired = await rest.ann.ask("PATCH", f"{TOYS}/a", json={"state": "used"}, headers=at(3))
    refused(repaired, 409, "no_transition")  # only admins repair
    assert (await rest.adam.ask("PATCH", f"{TOYS}/a", json={"state": "used"}, headers=at(3))).status_code == 200


async def test_commands_answer_with_the_document_and_with_all_that_changed(rest: Rest) -> None:
    one, two = await made(rest, TOYS, name="A", slug="a"), await made(rest, TOYS, name="B", slug="b")
    response = await rest.ann.ask("POST", f"{TOYS}/a/swap-names", json={"with_toy": two["id"]})
    assert response.status_code == 200 and response.headers["etag"] == '"2"'
    assert response.json()["item"]["name"] == "B"
    assert response.json()["touched"] == [{"kind": "toy", "id": item["id"], "version": 2} for item in (one, two)]
    refused(await rest.ann.ask("POST", f"{TOYS}/a/swap-names", json={"with_toy": UNKNOWN}), 422, "unknown_ref")
    refused(await rest.ann.ask("POST", f"{TOYS}/a/swap-names"), 422, "missing", pointer="/with_toy")
    refused(await rest.ann.ask("POST", f"{TOYS}/a/play", json={"hard": True}), 422, "invalid", pointer="/hard")
    refused(await rest.ann.ask("POST", f"{TOYS}/a/fly"), 404, "not_found")

    unboxed = await rest.ann.ask("POST", f"{TOYS}/unbox", json={"names": ["C", "D"]})
    assert unboxed.status_code == 201 and len(unboxed.json()["touched"]) == 3
    assert (await rest.ann.ask("GET", unboxed.headers["location"])).json() == unboxed.json()["item"]


async def test_what_is_private_is_on_no_path_for_others_but_admins(rest: Rest) -> None:
    wish = await made(rest, WISHES, text="mine")
    one = f"{WISHES}/{wish['id']}"
    assert wish["visibility"] == "private"
    for path in (one, f"{one}/changes"):
        assert [(await who.ask("GET", path)).status_code for who in (rest.ann, rest.ben, rest.adam)] == [200, 404, 200]
    assert await rest.ben.everything(WISHES) == [] and len(await rest.adam.everything(WISHES)) == 1
    for method, path in (("PUT", one), ("PATCH", one), ("DELETE", one), ("POST", f"{one}/restore")):
        refused(
            await rest.ben.ask(method, path, json={"text": "x"} if method != "POST" else {}, headers=at("*")), 404, "not_found"
        )
    bulk = await rest.ben.ask("POST", f"{WISHES}/bulk", json={"items": [{"op": "delete", "id": wish["id"], "version": 1}]})
    assert bulk.json()["results"][0]["status"] == 404
    shared = await rest.ann.ask("PATCH", one, json={"visibility": "org"}, headers=at(1))
    assert shared.json()["owner_id"] == wish["owner_id"] and await rest.ben.everything(WISHES) == [shared.json()]
    await rest.ann.ask("DELETE", one, headers=at(2))
    assert (await rest.ben.ask("GET", one, params={"deleted": "with"})).status_code == 200


async def test_a_command_can_want_another_scope_also_in_a_bulk(rest: Rest) -> None:
    box = await made(rest, BOXES, label="A")
    response = await rest.ann.ask("DELETE", f"{BOXES}/{box['id']}", headers=at(1))
    refused(response, 403, "forbidden")
    assert response.json()["scope"] == "admin"
    items = [
        {"op": "delete", "id": box["id"], "version": 1},
        {"op": "patch", "id": box["id"], "version": 1, "body": {"holds": 3}},
    ]
    done = (await rest.ann.ask("POST", f"{BOXES}/bulk", json={"items": items})).json()["results"]
    assert [one["status"] for one in done] == [403, 200]


async def test_words_come_before_ids_and_a_second_path_takes_the_org_from_the_token(rest: Rest) -> None:
    box = await made(rest, BOXES, label="A")
    assert (await rest.ann.ask("GET", LOANS)).json() == {"items": [], "next": None, "total_estimate": 0}
    assert (await rest.ann.ask("GET", f"/api/toy-boxes/{box['id']}")).json() == box
    assert (await rest.gus.ask("GET", f"/api/toy-boxes/{box['id']}")).status_code == 404
    second = await rest.gus.ask("POST", "/api/toy-boxes", json={"label": "B"})
    assert second.headers["location"] == f"/api/toy-boxes/{second.json()['id']}"
    assert await rest.gus.everything(BOXES) == [second.json()] and await rest.ann.everything("/api/toy-boxes") == [box]


@pytest.mark.spec("TEN-M07", partial="documents by a session: our own page only")
async def test_a_browser_with_a_session_writes_from_our_own_page_only(rest: Rest) -> None:
    now = rest.world.now()
    _, text = rest.world.sessions.exchange(rest.world.sessions.make_code(["acme"], now_ms=now), now)
    mine = {"Authorization": "", "Cookie": f"cmis_session={text}", "Host": "localhost"}
    ours = {**mine, "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    response = await rest.ann.ask("POST", WISHES, json={"text": "a"}, headers=ours)
    assert response.status_code == 201, response.text
    one = f"{WISHES}/{response.json()['id']}"
    assert (await rest.ann.ask("GET", one, headers=mine)).json() == response.json()
    theirs = {**mine, "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    for method, path in (("POST", WISHES), ("DELETE", one), ("POST", f"{WISHES}/bulk"), ("POST", f"{one}/restore")):
        refused(await rest.ann.ask(method, path, headers={**theirs, **at(1)}), 403, "foreign_origin")
    assert (await rest.ann.ask("GET", WISHES, org="globex", headers=mine)).status_code == 404
    refused(await rest.ann.ask("GET", "/api/toy-boxes", headers=mine), 401, "unauthorized")  # whose org would it be?


async def test_a_bulk_has_at_most_a_thousand_items_and_says_what_it_is_not(rest: Rest) -> None:
    too_many = {"items": [{"op": "create", "body": {"name": "x"}}] * 1001}
    refused(await rest.ann.ask("POST", f"{CHILDREN}/bulk", json=too_many), 422, "too_long", pointer="/items")
    assert await rest.ann.everything(CHILDREN) == []
    done = await rest.ann.ask("POST", f"{CHILDREN}/bulk", json={"items": too_many["items"][:1000]})
    assert {one["status"] for one in done.json()["results"]} == {201} and len(await rest.ann.everything(CHILDREN)) == 1000
    for body, pointer in (({}, "/items"), ({"items": {}}, "/items"), ({"items": [], "x": 1}, "/x"), ([], "")):
        response = await rest.ann.ask("POST", f"{CHILDREN}/bulk", json=body)
        assert response.status_code == 422 and response.json()["errors"][0]["pointer"] == pointer
    assert (await rest.ann.ask("POST", f"{CHILDREN}/bulk", json={"items": []})).json() == {"results": []}
    odd = {"op": ["create"], "id": 5, "version": True, "colour": "red"}
    (result,) = (await rest.ann.ask("POST", f"{CHILDREN}/bulk", json={"items": [odd]})).json()["results"]
    assert {error["pointer"] for error in result["problem"]["errors"]} == {"/op", "/id", "/version", "/colour"}


async def test_a_history_is_read_in_pages_and_only_with_a_cursor_of_ours(rest: Rest) -> None:
    await made(rest, TOYS, name="A", slug="a")
    for version in range(1, 6):
        await rest.ann.ask("PATCH", f"{TOYS}/a", json={"name": f"A{version}"}, headers=at(version))
    page = (await rest.ann.ask("GET", f"{TOYS}/a/changes", params={"limit": "4"})).json()
    assert [one["version"] for one in page["items"]] == [6, 5, 4, 3] and page["total_estimate"] == 6
    rest_of_it = (await rest.ann.ask("GET", f"{TOYS}/a/changes", params={"cursor": page["next"]})).json()
    assert [one["version"] for one in rest_of_it["items"]] == [2, 1] and rest_of_it["next"] is None
    token = rest.world.tokens.list("acme")
    assert page["items"][0]["actor"] in {one.id for one in token}
    for name, value in (("cursor", "x"), ("cursor", "0"), ("limit", "0"), ("limit", "501"), ("sort", "id")):
        response = await rest.ann.ask("GET", f"{TOYS}/a/changes", params={name: value})
        assert response.status_code == 400 and response.json()["parameter"] == name


async def test_one_that_is_deleted_is_shown_when_it_is_asked_for(rest: Rest) -> None:
    toy = await made(rest, TOYS, name="A", slug="a")
    await rest.ann.ask("DELETE", f"{TOYS}/a", headers=at(1))
    assert (await rest.ann.ask("GET", f"{TOYS}/{toy['id']}", params={"deleted": "with"})).json()["version"] == 2
    for wrong in ("only", "x"):
        assert (await rest.ann.ask("GET", f"{TOYS}/{toy['id']}", params={"deleted": wrong})).status_code == 400


async def test_a_store_that_is_busy_asks_to_come_back(rest: Rest, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "LOCK_S", 0.05)  # what is waited for is not what is shown
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with database.transaction("acme", writes=True):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        entered.wait(60)
        for path, body in ((BOXES, {"label": "A"}), (f"{BOXES}/bulk", {"items": [{"op": "create", "body": {"label": "A"}}]})):
            response = await rest.ann.ask("POST", path, json=body)
            refused(response, 503, "unavailable")
            assert response.headers["retry-after"] == "1"
        assert (await rest.ann.ask("GET", BOXES)).status_code == 200  # readers do not wait
    finally:
        leave.set()
        holder.join()


async def test_writers_that_wait_for_each_other_hold_up_no_reader(
    rest: Rest, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "LOCK_S", 60)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with database.transaction("acme", writes=True):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    await asyncio.to_thread(entered.wait, 60)
    waiting = [asyncio.create_task(rest.ann.ask("POST", BOXES, json={"label": str(n)})) for n in range(60)]
    try:
        while threads_of("documents-write") < WRITERS:
            await asyncio.sleep(0.01)
        assert (await rest.ben.ask("GET", BOXES)).json()["items"] == []
        assert not any(task.done() for task in waiting)
    finally:
        leave.set()
        holder.join()
    assert {response.status_code for response in await asyncio.gather(*waiting)} == {201}


def threads_of(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def test_a_code_that_nobody_declared_is_told_in_the_log_and_not_published(caplog: pytest.LogCaptureFixture) -> None:
    problem = Refusals(kinds(BOX)).problem(Rejected("odd", "/label", 1, "a text"))
    assert (problem.status, problem.code, problem.detail) == (422, "invalid", "/label: expected a text, got 1.")
    assert "'odd', which no manifest declares" in caplog.text


def test_what_an_org_has_too_many_of_may_be_asked_for_again_later() -> None:
    problem = Refusals(kinds(BOX)).problem(Rejected("too_many", "/job", "100 jobs that wait", "at most 100 of an org"))
    assert (problem.status, problem.code) == (429, "too_many") and int(problem.headers["Retry-After"]) > 0
    assert problem.extra["errors"][0]["pointer"] == "/job"


def test_every_code_has_its_title_in_the_published_enumeration() -> None:
    assert STATUSES.keys() <= TITLES.keys()
    assert problems.__doc__ is not None
    assert not [code for code in TITLES if code not in f"{problems.__doc__} {errors.__doc__}"]


# --- what cannot be -----------------------------------------------------------------------------------------------------


def kinds(*of: Kind, problems: dict[str, ProblemCode] | None = None) -> Kinds:
    return Kinds([Manifest("toy", of, problems=problems or {})])


CONTRADICTIONS: list[tuple[Callable[[], Kinds], str]] = [
    (lambda: kinds(BOX, Kind("crate", Box, path="toy-boxes")), "/api/orgs/{org}/toy-boxes is the path of toy.box"),
    (lambda: kinds(BOX, Kind("crate", Box, token_path="/api/toy-boxes")), "/api/toy-boxes is the path of toy.box"),
    (lambda: kinds(TOY, BOX, Kind("crate", Box, path="toy/toys/unbox")), "POST /api/orgs/{org}/toy/toys/unbox is taken"),
    (lambda: kinds(BOX, Kind("crate", Box, plural="boxes")), "the operation list_boxes is also one of toy.box"),
    (lambda: kinds(Kind("problem", Box)), "the name Problem is another one's"),
    (lambda: kinds(BOX, problems={"stale": ProblemCode(409, "Old")}), "the problem code 'stale' has a meaning already"),
    (lambda: kinds(BOX, problems={"odd": ProblemCode(500, "Odd")}), "expected a status from 400 to 499 for 'odd', got 500"),
    (lambda: kinds(Kind("crate", Box, path="/crates")), "expected a path like alerts/rules, got '/crates'"),
    (lambda: kinds(Kind("crate", Box, scopes={"open": "write"})), "expected scopes of its commands or read, got 'open'"),
    (lambda: kinds(Kind("crate", Box, scopes={"read": "all"})), "expected one of the scopes"),
    (lambda: kinds(CHILD, Kind("crate", Box, examples=({"holds": 1},))), "crate: its first example is none: /label"),
]


async def test_declarations_that_would_contradict_each_other_are_told_at_the_start(rest: Rest) -> None:
    for made_of, said in CONTRADICTIONS:
        with pytest.raises(ConfigError) as caught:
            documents_router(rest.documents, rest.changes, made_of(), rest.world.auth)
        assert said in str(caught.value)

"""A module that nobody knows, installed beside ours: everything of it works over HTTP by being there, and in its own org only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cmis_stream.core.time import rfc3339
from tests.e2e.support import reading, until
from tests.faults.test_rules_over_rest import Store
from tests.modules_e2e.toy_site import Org, Site, shop_with
from tests.servers.postgres import own_database

TOYS, BOXES, LOANS, CHILDREN, WISHES = "toy/toys", "toy-boxes", "toy-boxes/loans", "toy/children", "toy/wishes"
PLAYDATES = "toy/playdates"
LISTS = (TOYS, BOXES, LOANS, CHILDREN, WISHES, PLAYDATES, "jobs", "files", "schedules")
DATASETS = ("toys", "boxes", "loans", "children", "wishes", "playdates")
KEY = "kq7-nobody-else-knows-this"
ANY = {"If-Match": "*"}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("toy")
    with ExitStack() as opened:
        store = Store(f"sqlite:///{folder / 'data' / 'store.db'}", [], [])
        if request.param == "postgresql":
            urls = opened.enter_context(own_database(request.getfixturevalue("postgres")))
            store = Store(urls.app, ["--store", urls.app], ["--store-relay", urls.relay])
        made = Site(folder, store)
        opened.callback(made.close)
        made.up.ready()
        yield made


@pytest.fixture
def acme(site: Site) -> Org:
    return site.acme


def toy(org: Org, slug: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = org.post(TOYS, {"name": slug.title(), "slug": slug, **more})
    return made


def played(org: Org, one: dict[str, Any]) -> dict[str, Any]:
    """Plays with a toy; the fact that the agent made of it."""
    org.post(f"{TOYS}/{one['slug']}/play")
    (found,) = until(lambda: org.everything(PLAYDATES, **{"filter[toy]": one["id"]}), "the playdate")
    return dict(found)


def counted(org: Org, **body: int) -> dict[str, Any]:
    """Counts the org's toys; the job, done."""
    org.post(f"{TOYS}/count-toys", body)
    newest = org.get("jobs", **{"filter[kind]": "count_toys"})["items"][0]["id"]
    return dict(until(lambda: (job := org.get(f"jobs/{newest}"))["state"] == "done" and job, "the end of the job"))


def next_times(org: Org) -> dict[str, str | None]:
    """Of its schedules."""
    return {one["id"]: one["due_at"] for one in org.get("schedules")["items"]}


def test_its_kinds_are_served_and_its_topic_is_there(site: Site) -> None:
    described = {kind["name"]: kind for kind in site.acme.get("kinds")["items"]}
    assert {"toy", "box", "loan", "child", "wish", "playdate", "alert_rule", "incident"} == described.keys()
    assert described["toy"]["module_title"] == "Toys" and "set_alarm" in {one["name"] for one in described["toy"]["commands"]}
    paths = site.acme.client.get(f"{site.up.url}/openapi.json").json()["paths"]
    assert {f"/api/orgs/{{org}}/{PLAYDATES}/{{id}}/praise", f"/api/orgs/{{org}}/{TOYS}/count-toys"} <= paths.keys()
    assert set(DATASETS) <= {one["name"] for one in site.acme.get("datasets")["items"]}
    with reading(site.data_dir) as log:
        assert log.topics["toy.played.v1"].partitions == log.topics["cmis.metrics.v1"].partitions


def test_keys_are_unique_references_cascade_restrict_and_make_no_circle(acme: Org) -> None:
    box, child = acme.post(BOXES, {"label": "Attic"}), acme.post(CHILDREN, {"name": "Ada"})
    first, second = toy(acme, "bear", box=box["id"]), toy(acme, "crane")
    acme.refused("POST", TOYS, 409, "not_unique", {"name": "Other", "slug": "bear"})
    acme.ask("PATCH", f"{TOYS}/crane", json={"inside": first["id"]}, headers=ANY).raise_for_status()
    acme.refused("PATCH", f"{TOYS}/bear", 422, "cycle", {"inside": second["id"]}, **ANY)

    loan = acme.post(LOANS, {"toy": first["id"], "child": child["id"]})
    acme.refused("POST", LOANS, 409, "not_unique", {"toy": first["id"], "child": child["id"]})
    acme.post(LOANS, {"toy": second["id"], "child": child["id"]})
    acme.refused("DELETE", f"{TOYS}/bear", 409, "restricted", **ANY)
    assert acme.ask("DELETE", f"{CHILDREN}/{child['id']}", headers=ANY).status_code == 204
    assert acme.ask("GET", f"{LOANS}/{loan['id']}").status_code == 404  # with its child
    assert acme.ask("DELETE", f"{BOXES}/{box['id']}", headers=ANY).status_code == 204
    assert acme.ask("GET", f"{TOYS}/bear").status_code == 404  # with its box
    assert acme.get(f"{TOYS}/crane")["inside"] is None  # it was in the one that is gone


def test_a_toy_goes_from_state_to_state_as_declared(acme: Org) -> None:
    toy(acme, "robot")
    acme.refused("PATCH", f"{TOYS}/robot", 409, "no_transition", {"state": "broken"}, **ANY)
    acme.post(f"{TOYS}/robot/play")
    acme.ask("PATCH", f"{TOYS}/robot", json={"state": "broken"}, headers=ANY).raise_for_status()
    acme.refused("POST", f"{TOYS}/robot/play", 409, "toy_broken")


def test_what_is_decided_reaches_the_agent_and_its_fact_is_praised_once(acme: Org) -> None:
    one = toy(acme, "ball")
    fact = played(acme, one)
    assert (fact["name"], fact["praises"], fact["version"]) == ("Ball", 0, 1)
    for _ in range(2):
        praised = acme.post(f"{PLAYDATES}/{fact['id']}/praise", {"words": "Well thrown"}, **{"Idempotency-Key": "praise"})
        assert (praised["item"]["praises"], praised["item"]["version"]) == (1, 2)
    again = {"words": "Well thrown"}
    acme.refused("POST", f"{PLAYDATES}/{fact['id']}/praise", 409, "no_transition", again)
    until(lambda: acme.get(f"{TOYS}/ball")["rung"] == 1, "what followed from the praise, on the document")
    answer = acme.post("query", {"dataset": "playdates", "measures": ["count"]})
    assert answer["rows"] == [[len(acme.everything(PLAYDATES))]]
    assert answer["position"]["topic"] == "toy.played.v1" and answer["position"]["offset"] >= 0


def test_an_alarm_is_set_goes_off_once_and_can_be_stopped(acme: Org) -> None:
    loud, quiet = toy(acme, "clock"), toy(acme, "watch")
    acme.post(f"{TOYS}/watch/set-alarm", {"at": "2199-01-01T00:00:00Z"})
    assert {f"toy/{quiet['id']}": "2199-01-01T00:00:00.000Z"}.items() <= next_times(acme).items()
    acme.post(f"{TOYS}/watch/stop-alarm")
    assert f"toy/{quiet['id']}" not in next_times(acme)

    def set_soon() -> bool:
        soon = {"at": rfc3339(time.time_ns() // 1_000_000 + 2_000)}
        answer = acme.ask("POST", f"{TOYS}/clock/set-alarm", json=soon)
        assert answer.status_code in (200, 422), answer.text  # 422: it was over by then
        return answer.status_code == 200

    until(set_soon, "an alarm that is set in time")
    until(lambda: acme.get(f"{TOYS}/clock")["rung"] == 1, "the alarm")
    assert next_times(acme)[f"toy/{loud['id']}"] is None
    assert [change["command"] for change in acme.everything(f"{TOYS}/clock/changes")] == ["ring", "create"]
    acme.refused("POST", f"{TOYS}/clock/set-alarm", 422, "missing", {})


def test_a_job_counts_and_its_file_is_had_in_parts(acme: Org) -> None:
    acme.post(f"{TOYS}/unbox", {"names": ["Duck", "Train", "Kite"]})
    job = counted(acme, page=2)
    toys = sorted(one["slug"] for one in acme.everything(TOYS))
    assert job["result"]["toys"] == len(toys) >= 3 and (job["attempts"], job["progress_ratio"]) == (1, 1)
    file = acme.get(f"files/{job['result']['file']}")
    whole = acme.ask("GET", f"files/{file['id']}/content")
    assert sorted(whole.text.split()) == toys and whole.headers["content-type"].startswith("text/csv")
    assert len(whole.content) == file["size"]
    part = acme.ask("GET", f"files/{file['id']}/content", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    acme.refused("POST", f"{TOYS}/count-toys", 422, "out_of_range", {"page": 0})


def test_its_effect_uses_a_secret_that_is_written_nowhere(site: Site, acme: Org) -> None:
    toy(acme, "doll")
    acme.ask("DELETE", "secrets/toy_shop_key")
    with shop_with(KEY) as shop:
        acme.post(f"{TOYS}/doll/order", {"shop": shop.url})
        until(lambda: "the secret toy_shop_key is not set" in (site.data_dir / "cmis.log").read_text(), "the order being put off")
        assert acme.get("secrets")["items"] == [
            {"name": "toy_shop_key", "title": "Key of the toy shop", "set": False, "updated_at": None}
        ]
        told = acme.ask("PUT", "secrets/toy_shop_key", json={"value": KEY}).raise_for_status()
        assert told.json()["set"] is True and KEY not in told.text
        until(lambda: shop.orders, "the order, which waited for its key")
        acme.post(f"{TOYS}/doll/order", {"shop": shop.url})
        until(lambda: len(shop.orders) > 1, "the next order")
        assert [name for _, name in shop.orders] == ["Doll", "Doll"] and len(dict(shop.orders)) == 2 and shop.wrong_keys == 0
    written = [path for path in site.data_dir.rglob("*") if path.is_file()] + [site.up.process.output]
    assert {"log.db", "cmis.log", *(["store.db"] if site.store.relay == [] else [])} <= {path.name for path in written}
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_who_is_erased_is_null_everywhere(acme: Org) -> None:
    one = acme.post(CHILDREN, {"name": "A child", "person": "bo", "nickname": "Bobo"})
    other = acme.post(CHILDREN, {"name": "Another", "person": "cy", "nickname": "Cyril"})
    path = f"{CHILDREN}/{one['id']}"
    acme.ask("PATCH", path, json={"nickname": "Bob"}, headers=ANY).raise_for_status()

    def nicknames(of: dict[str, Any]) -> list[str | None]:
        shown = acme.get(f"{CHILDREN}/{of['id']}")
        (listed,) = (item for item in acme.everything(CHILDREN) if item["id"] == of["id"])
        bodies = [change[side] for change in acme.everything(f"{CHILDREN}/{of['id']}/changes") for side in ("before", "after")]
        return [body["nickname"] for body in (shown, listed, *bodies) if body is not None]

    assert nicknames(one) == ["Bob", "Bob", "Bobo", "Bob", "Bobo"] and one["nickname"] == "Bobo"
    assert acme.post("subjects/erase", {"subject": "bo"}) == {"erased": True}
    assert nicknames(one) == [None] * 5
    assert nicknames(other) == ["Cyril"] * 3 and acme.get(path)["name"] == "A child"


def test_another_org_sees_nothing_of_it(site: Site) -> None:
    acme, globex = site.acme, site.globex
    box, child = acme.post(BOXES, {"label": "Cellar"}), acme.post(CHILDREN, {"name": "Eve"})
    one, wish = toy(acme, "secret", box=box["id"]), acme.post(WISHES, {"text": "Peace"})
    loan = acme.post(LOANS, {"toy": one["id"], "child": child["id"]})
    fact, job = played(acme, one), counted(acme)
    acme.post(f"{TOYS}/secret/set-alarm", {"at": "2199-01-01T00:00:00Z"})
    acme.ask("PUT", "secrets/toy_shop_key", json={"value": KEY}).raise_for_status()
    assert all(acme.everything(path) if path != "schedules" else acme.get(path)["items"] for path in LISTS)
    assert all(acme.counted(dataset) > 0 for dataset in DATASETS)

    assert {path: globex.get(path)["items"] for path in LISTS} == {path: [] for path in LISTS}
    assert {dataset: globex.counted(dataset) for dataset in DATASETS} == dict.fromkeys(DATASETS, 0)
    assert [secret["set"] for secret in globex.get("secrets")["items"]] == [False]
    assert globex.post("subjects/erase", {"subject": "cy"}) == {"erased": False}
    theirs = [
        f"{BOXES}/{box['id']}", f"{CHILDREN}/{child['id']}", f"{TOYS}/{one['id']}", f"{TOYS}/secret", f"{WISHES}/{wish['id']}",
        f"{LOANS}/{loan['id']}", f"{PLAYDATES}/{fact['id']}", f"jobs/{job['id']}", f"files/{job['result']['file']}",
    ]  # fmt: skip
    for path in (*theirs, f"files/{job['result']['file']}/content", f"{TOYS}/secret/changes"):
        assert globex.ask("GET", path).status_code == 404, path
        assert globex.ask("GET", f"{site.up.url}/api/orgs/acme/{path}").status_code == 404, path
        assert acme.ask("GET", path).status_code == 200, path
    for path, body in (
        (f"{TOYS}/secret/play", None), (f"{TOYS}/{one['id']}/set-alarm", {"at": "2199-01-01T00:00:00Z"}),
        (f"{PLAYDATES}/{fact['id']}/praise", {"words": "Mine"}), (f"jobs/{job['id']}/cancel", None),
    ):  # fmt: skip
        globex.refused("POST", path, 404, "not_found", body)
    globex.refused("POST", TOYS, 422, "unknown_ref", {"name": "Mine", "slug": "mine", "box": box["id"]})
    globex.post(f"{TOYS}/count-toys", {})
    assert until(lambda: globex.get("jobs", **{"filter[state]": "done"})["items"], "their own count")[0]["result"]["toys"] == 0

"""The ingest endpoint through the real app: what it takes, what it answers, and every way to be refused."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from cmis_stream.api import ingest
from cmis_stream.api.ingest import Busy, LogUnavailable

PATH = "/api/orgs/acme/events"
NOW = 1_767_225_600_000
GOOD: dict[str, Any] = {"id": "e1", "ts": NOW, "platform": "meta", "campaign": "c", "impressions": 10, "spend": 1.5}
CLOUD: dict[str, Any] = {
    "specversion": "1.0", "id": "e1", "source": "//feed", "type": "cmis.ads.metrics.v1", "time": "2026-01-01T00:00:00Z",
    "data": {"platform": "meta", "campaign_id": "c", "impressions": 10},
}  # fmt: skip


def ndjson(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    assert response.status_code == status, document
    assert response.headers["content-type"] == "application/problem+json"
    assert document["type"] == f"/problems/{code}" and document["status"] == status
    assert document["title"] and document["detail"] and document["request_id"] == response.headers["request-id"]
    return document


async def test_good_events_are_published_and_counted(client: httpx.AsyncClient, world: Any) -> None:
    response = await client.post(PATH, content=ndjson(GOOD, {**GOOD, "id": "e2"}), headers=world.headers())
    assert response.status_code == 200
    assert response.json() == {"accepted": 2, "rejected": 0, "errors_total": 0, "errors": []}
    (org, batch), = world.log.batches  # fmt: skip
    assert org == "acme" and list(batch.ids) == ["e1", "e2"] and not world.log.dead
    assert batch.segments[0].source == f"token:{world.token.id}" and not batch.segments[0].sequenced


async def test_bad_events_are_listed_and_become_dead_letters(client: httpx.AsyncClient, world: Any) -> None:
    body = ndjson(GOOD, {**GOOD, "id": "bad", "spend": -1}) + b"\n" + ndjson({**GOOD, "id": "e3", "custom": {"a.b": True}})
    response = await client.post(PATH, content=body, headers=world.headers())
    answer = response.json()
    assert response.status_code == 200 and (answer["accepted"], answer["rejected"], answer["errors_total"]) == (1, 2, 2)
    assert answer["errors"][0] == {
        "index": 1, "line": 2, "id": "bad", "code": "out_of_range", "field": "spend", "got": "-1",
        "expected": "a number from 0 to 9007199254", "detail": "spend: expected a number from 0 to 9007199254, got -1",
        "pointer": "/spend",
    }  # fmt: skip
    assert (answer["errors"][1]["line"], answer["errors"][1]["pointer"]) == (4, "/custom/a.b")
    (org, refusals, source), = world.log.dead  # fmt: skip
    assert (org, source, [r.id for r in refusals]) == ("acme", f"token:{world.token.id}", ["bad", "e3"])


async def test_when_all_are_rejected_the_answer_is_a_problem_with_the_list(client: httpx.AsyncClient, world: Any) -> None:
    body = ndjson(*({**GOOD, "platform": "bing"} for _ in range(150)))
    document = assert_problem(await client.post(PATH, content=body, headers=world.headers()), 422, "all_rejected")
    assert (document["accepted"], document["rejected"], document["errors_total"], len(document["errors"])) == (
        0,
        150,
        150,
        100,
    )
    assert len(world.log.dead[0][1]) == 150 and not world.log.batches


@pytest.mark.parametrize(
    ("kind", "body", "pointer"),
    [
        ("application/cloudevents+json", CLOUD, None),
        ("application/cloudevents+json; charset=utf-8", CLOUD, None),
        ("application/cloudevents-batch+json", [CLOUD, {**CLOUD, "data": {"platform": "meta"}}], "/1/data/campaign_id"),
        ("application/json", GOOD, None),
        ("application/json", [GOOD, {**GOOD, "clicks": -1}], "/1/clicks"),
        ("application/json", CLOUD, None),
    ],
)
async def test_each_content_type(client: httpx.AsyncClient, world: Any, kind: str, body: Any, pointer: str | None) -> None:
    response = await client.post(PATH, content=json.dumps(body).encode(), headers=world.headers(Content_Type=kind))
    assert response.status_code == 200 and response.json()["accepted"] == 1
    assert [error["pointer"] for error in response.json()["errors"]] == ([pointer] if pointer else [])


async def test_a_sender_that_counts_its_events_is_known_by_source_and_number(client: httpx.AsyncClient, world: Any) -> None:
    headers = world.headers(Cmis_Source="file:abc", Cmis_Sequence="40")
    await client.post(PATH, content=ndjson(GOOD, {**GOOD, "ts": -1}, GOOD), headers=headers)
    batch = world.log.batches[0][1]
    assert batch.uid.tolist() == [40, 42] and batch.segments[0].sequenced and batch.segments[0].source == "file:abc"


@pytest.mark.parametrize(
    "headers",
    [{"Cmis_Sequence": "1"}, {"Cmis_Source": "x", "Cmis_Sequence": "-1"}, {"Cmis_Source": "x", "Cmis_Sequence": "1e3"},
     {"Cmis_Source": "x" * 201}, {"Cmis_Source": "x", "Cmis_Sequence": "9" * 19}],
)  # fmt: skip
async def test_headers_that_make_no_sense_are_400(client: httpx.AsyncClient, world: Any, headers: dict[str, str]) -> None:
    assert_problem(await client.post(PATH, content=ndjson(GOOD), headers=world.headers(**headers)), 400, "invalid")


async def test_without_a_valid_token_it_is_401(client: httpx.AsyncClient, world: Any) -> None:
    expired = world.tokens.create("acme", ["ingest"], expires_at_ms=NOW)[1]
    revoked, revoked_text = world.tokens.create("acme", ["ingest"])
    world.tokens.revoke(revoked.id)
    for authorization in (
        None,
        "",
        "Basic x",
        "Bearer ",
        "Bearer nonsense",
        f"Bearer {expired}",
        f"Bearer {revoked_text}",
    ):
        headers = {**world.headers(), "Authorization": authorization}
        response = await client.post(PATH, content=ndjson(GOOD), headers={k: v for k, v in headers.items() if v is not None})
        assert_problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert not world.log.batches


async def test_another_org_and_an_unknown_org_look_the_same(client: httpx.AsyncClient, world: Any) -> None:
    answers = []
    for org in ("globex", "nobody", "a%2Fb"):
        headers = world.headers(Request_Id="same")
        response = await client.post(f"/api/orgs/{org}/events", content=ndjson(GOOD), headers=headers)
        answers.append((response.status_code, response.content, dict(response.headers)))
    assert answers[0] == answers[1] and answers[0][0] == 404 and b"globex" not in answers[0][1]
    assert answers[2][0] == 404


async def test_a_missing_scope_is_named(client: httpx.AsyncClient, world: Any) -> None:
    reader = world.tokens.create("acme", ["read"])[1]
    response = await client.post(PATH, content=ndjson(GOOD), headers=world.headers(Authorization=f"Bearer {reader}"))
    assert assert_problem(response, 403, "forbidden")["scope"] == "ingest"


async def test_an_event_of_another_org_is_rejected(client: httpx.AsyncClient, world: Any) -> None:
    response = await client.post(PATH, content=ndjson(GOOD, {**GOOD, "org": "globex"}), headers=world.headers())
    assert response.json()["errors"][0]["code"] == "wrong_org" and response.json()["accepted"] == 1


@pytest.mark.parametrize("headers", [{"Content_Type": "text/csv"}, {"Content_Type": ""}, {"Content_Encoding": "br"}])
async def test_other_types_and_encodings_are_415(client: httpx.AsyncClient, world: Any, headers: dict[str, str]) -> None:
    response = await client.post(PATH, content=ndjson(GOOD), headers=world.headers(**headers))
    assert_problem(response, 415, "unsupported_media")


@pytest.mark.parametrize("kind", ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"])
@pytest.mark.parametrize("body", [b"", b"nope", b"[", b"{", b"[{}"])
async def test_a_body_that_is_no_json_is_a_problem(client: httpx.AsyncClient, world: Any, kind: str, body: bytes) -> None:
    response = await client.post(PATH, content=body, headers=world.headers(Content_Type=kind))
    assert response.status_code in (400, 422)
    assert_problem(response, response.status_code, "malformed" if response.status_code == 400 else "all_rejected")


async def test_gzip_of_one_or_several_members_is_taken(client: httpx.AsyncClient, world: Any) -> None:
    body = gzip.compress(ndjson(GOOD)) + gzip.compress(ndjson({**GOOD, "id": "e2"}) * 3000)
    response = await client.post(PATH, content=body, headers=world.headers(Content_Encoding="gzip"))
    assert response.status_code == 200 and response.json()["accepted"] == 3001


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"x" + b, lambda b: b + b"tail", lambda b: b[:20] + b"\xff" * 20])
async def test_damaged_gzip_is_400(client: httpx.AsyncClient, world: Any, damage: Any) -> None:
    body = damage(gzip.compress(ndjson(GOOD) * 10))
    response = await client.post(PATH, content=body, headers=world.headers(Content_Encoding="gzip"))
    assert_problem(response, 400, "malformed")


async def test_what_decompresses_to_too_much_is_413(
    client: httpx.AsyncClient, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LARGEST_BODY", 100_000)
    response = await client.post(
        PATH, content=gzip.compress(ndjson(GOOD) * 2_000), headers=world.headers(Content_Encoding="gzip")
    )
    assert_problem(response, 413, "too_large")


async def test_a_busy_log_is_429_and_says_when_to_come_back(client: httpx.AsyncClient, world: Any) -> None:
    world.log.error = Busy(1.25)
    response = await client.post(PATH, content=ndjson(GOOD), headers=world.headers())
    assert assert_problem(response, 429, "busy")["retry_after_ms"] == 1250 and response.headers["retry-after"] == "2"


async def test_a_log_that_is_gone_is_503(client: httpx.AsyncClient, world: Any) -> None:
    world.log.error = LogUnavailable("the disk is full")
    document = assert_problem(await client.post(PATH, content=ndjson(GOOD), headers=world.headers()), 503, "unavailable")
    assert "the disk is full" in document["detail"]


async def test_a_mistake_of_ours_is_500_and_tells_nothing(client: httpx.AsyncClient, world: Any) -> None:
    world.log.error = RuntimeError("secret detail")
    response = await client.post(PATH, content=ndjson(GOOD), headers=world.headers(Request_Id="r-7"))
    assert assert_problem(response, 500, "internal")["request_id"] == "r-7" and "secret" not in response.text


async def test_other_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/api/nothing"), 404, "not_found")
    response = await client.get(PATH)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_the_request_id_is_the_senders_or_a_new_one(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json", headers={"Request-Id": "abc-1"})).headers["request-id"] == "abc-1"
    ids = {(await client.get("/openapi.json", headers={"Request-Id": "bad id"})).headers["request-id"] for _ in range(2)}
    assert len(ids) == 2 and "bad id" not in ids


async def test_openapi_describes_the_endpoint_with_examples_that_work(client: httpx.AsyncClient, world: Any) -> None:
    document = (await client.get("/openapi.json")).json()
    post = document["paths"]["/api/orgs/{org}/events"]["post"]
    assert set(post["responses"]) >= {"200", "400", "401", "403", "404", "413", "415", "422", "429", "503"}
    assert {p["name"] for p in post["parameters"]} == {"org", "Cmis-Source", "Cmis-Sequence", "Content-Encoding"}
    assert "token" in document["components"]["securitySchemes"]
    for kind, content in post["requestBody"]["content"].items():
        example = content["example"]
        body = example if isinstance(example, str) else json.dumps(example)
        response = await client.post(PATH, content=body.encode(), headers=world.headers(Content_Type=kind))
        assert response.status_code == 200 and response.json()["rejected"] == 0, (kind, response.text)

"""The AsyncAPI document says what is sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cmis_stream.backplane.items import ITEMS, IncidentItem, JobItem, MetricItem
from cmis_stream.core.channels import TOPICS
from cmis_stream.gateway.asyncapi import asyncapi_document
from cmis_stream.gateway.codes import DISCONNECTS, ERRORS

INCIDENT = IncidentItem(
    id="i", key="k", entity="USD/meta", rule="r", severity="high", level="platform", currency="USD", platform="meta", account="",
    campaign="", ad_set="", ad="", state="firing", at=1, value=None, window="5m", sums=(1, 2, 3, 4, 5, 6), events=[], version=1,
)  # fmt: skip
JOB = JobItem(
    entity="j", id="j", kind="train", state="running", progress_ratio=0.5, said="fold 1", eta_at=2, created_at=1, started_at=1,
    ended_at=None, attempts=1, cancel_asked_at=None, actor="t", result=None, result_length=None, problem=None, version=3,
)  # fmt: skip
EXAMPLES = {"metrics": MetricItem("USD/meta", 0, 10_000, True, (1, 2, 3, 4, 5, 6)), "incidents": INCIDENT, "jobs": JOB}


def resolved(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [part["$ref"]] if "$ref" in part else [found for value in part.values() for found in references(value)]
    return [found for value in part for found in references(value)] if isinstance(part, list) else []


@pytest.mark.spec("GTW-E16")
def test_the_document_has_every_channel_and_each_reference_leads_somewhere() -> None:
    document = msgspec.json.decode(msgspec.json.encode(asyncapi_document("ws://127.0.0.1:8601/connection/websocket")))
    assert document["asyncapi"] == "3.0.0"
    assert document["servers"]["gateway"] == {
        "host": "127.0.0.1:8601", "pathname": "/connection/websocket", "protocol": "ws",
    }  # fmt: skip
    addresses = {channel["address"]: channel["x-delivery"] for channel in document["channels"].values()}
    assert addresses == {
        f"org:{{org}}:{topic}{rest}": delivery for topic, delivery in TOPICS.items() for rest in ("", ":{entity}")
    }
    assert all(resolved(document, reference) for reference in references(document))
    assert {error["code"] for error in document["x-errors"]} == set(ERRORS)
    assert {entry["code"]: entry["reconnect"] for entry in document["x-disconnects"]} == {
        code: code < 3500 for code in DISCONNECTS
    }


@pytest.mark.spec("GTW-E16")
@pytest.mark.parametrize("topic", TOPICS)
def test_the_schema_of_a_topic_is_that_of_the_items_that_are_sent(topic: str) -> None:
    document = asyncapi_document("wss://live.example/connection/websocket")
    items = resolved(document, f"#/components/messages/{topic}")["payload"]["properties"]["items"]["items"]
    schema = resolved(document, items["$ref"])
    sent = msgspec.json.decode(EXAMPLES[topic].item().json)
    assert type(EXAMPLES[topic]) is ITEMS[topic]
    assert set(schema["required"]) == set(schema["properties"]) == set(sent)


def test_the_key_of_an_item_is_what_newer_ones_replace() -> None:
    pane, later = MetricItem("USD", 0, 10_000, False, (1, 0, 0, 0, 0, 0)), MetricItem("USD", 0, 10_000, True, (2, 0, 0, 0, 0, 0))
    other = MetricItem("USD", 10_000, 10_000, False, (1, 0, 0, 0, 0, 0))
    assert pane.item().key == later.item().key != other.item().key
    assert INCIDENT.item()[:2] == ("USD/meta", "i")

"""The AsyncAPI 3 document of the gateway, generated from the types that are sent and read."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cmis_stream.backplane.items import ITEMS
from cmis_stream.core.channels import LONGEST_CHANNEL, TOPICS
from cmis_stream.gateway.codes import DISCONNECTS, ERRORS
from cmis_stream.gateway.selection import SubscribeData

_SCHEMAS = "#/components/schemas/"
_ABOUT = {
    "metrics": "Sums of panes, open and closed, absolute: the newest for (entity, at, pane_ms) holds.",
    "incidents": "Incidents as they begin and end.",
    "jobs": "Long work as it gets on and ends.",
}
_PARAMETERS = {
    "org": {"description": "The org's slug."},
    "entity": {"description": "Path below the org, parts percent-encoded and joined by `/`; percent-encoded once more here."},
}


def asyncapi_document(gateway_url: str) -> dict[str, Any]:
    """gateway_url: ws:// or wss://, with the path. Channels are those of the Centrifugo client protocol (JSON) spoken there."""
    url = urlsplit(gateway_url)
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic, delivery in TOPICS.items():
        for key, parameters in ((topic, ("org",)), (f"{topic}_entity", ("org", "entity"))):
            channels[key] = {
                "address": ":".join(["org:{org}", topic, *(["{entity}"] if "entity" in parameters else [])]),
                "description": f"{_ABOUT[topic]} Delivery: {delivery}.",
                "servers": [{"$ref": "#/servers/gateway"}],
                "messages": {topic: {"$ref": f"#/components/messages/{topic}"}},
                "parameters": {name: _PARAMETERS[name] for name in parameters},
                "x-delivery": delivery,
                "x-subscribe-data": {"$ref": f"{_SCHEMAS}SubscribeData"},
            }
            operations[f"publish_{key}"] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{key}"},
                "messages": [{"$ref": f"#/channels/{key}/messages/{topic}"}],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "CMIS Stream gateway",
            "version": version("cmis-stream"),
            "description": "Live results over the Centrifugo client protocol (JSON): connect with a token, subscribe, and "
            "recover by epoch and offset. Centrifugo's SDKs do all of it.",
        },
        "defaultContentType": "application/json",
        "servers": {"gateway": {"host": url.netloc, "pathname": url.path, "protocol": url.scheme}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": {topic: _message(topic) for topic in TOPICS}, "schemas": _schemas()},
        "x-errors": [
            {"code": code, "message": text, "temporary": temporary} for code, (text, temporary) in sorted(ERRORS.items())
        ],
        "x-disconnects": [
            {"code": code, "reason": reason, "reconnect": code < 3500} for code, reason in sorted(DISCONNECTS.items())
        ],
        "x-longest-channel": LONGEST_CHANNEL,
    }


def _message(topic: str) -> dict[str, Any]:
    item = {"$ref": f"{_SCHEMAS}{ITEMS[topic].__name__}"}
    payload = {"type": "object", "required": ["items"], "properties": {"items": {"type": "array", "items": item}}}
    return {"name": topic, "summary": "The data of a publication, and of the snapshot in a subscribe reply.", "payload": payload}


def _schemas() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(
        [*(ITEMS[topic] for topic in TOPICS), SubscribeData], ref_template=_SCHEMAS + "{name}"
    )
    return dict(schemas)

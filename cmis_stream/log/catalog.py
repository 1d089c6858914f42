"""Records of cmis.changes.v1: what people have decided, as the agents learn of it. Now only the rule set of an org."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import orjson

from cmis_stream.core.errors import Rejected

RULES = "alert_rules"


class Change(msgspec.Struct):
    """A rule set."""

    org: Annotated[str, msgspec.Meta(min_length=1)]
    version: int
    evaluate: Annotated[str, msgspec.Meta(pattern="^(live|pane)$")]
    rules: list[Any]


def read_change(value: bytes | None) -> Change | None:
    """The rule set in a record of cmis.changes.v1; None for other kinds. Rejected when it is none of ours."""
    if value is None:
        return None
    try:
        raw = orjson.loads(value)
        if not isinstance(raw, dict):
            raise ValueError("no object")
        return msgspec.convert(raw, Change) if raw.get("kind") == RULES else None
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed", "", value[:40], f"a change ({type(error).__name__}: {error})") from None


def write_change(change: Change) -> bytes:
    return orjson.dumps({"kind": RULES, **msgspec.structs.asdict(change)})

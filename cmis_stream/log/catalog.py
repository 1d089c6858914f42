"""Records of cmis.changes.v1: what people have decided, as agents learn of it. One holds an org's whole set of a kind."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import orjson

from cmis_stream.core.errors import Rejected

RULES = "alert_rule"


class Catalog(msgspec.Struct):
    """kind: of documents. version: grows with each set of an org and kind. items: what the kind's `catalog` makes of them."""

    kind: Annotated[str, msgspec.Meta(min_length=1)]
    org: Annotated[str, msgspec.Meta(min_length=1)]
    version: int
    items: list[Any]

    @property
    def key(self) -> bytes:
        """Of the record: the newest of each key stays in the log."""
        return f"{self.org}/{self.kind}".encode()


def read_catalog(value: bytes | None, kind: str) -> Catalog | None:
    """The set in a record of cmis.changes.v1; None when it is of another kind. Rejected when it is none of ours."""
    if value is None:
        return None
    try:
        raw = orjson.loads(value)
        if not isinstance(raw, dict):
            raise ValueError("no object")
        return msgspec.convert(raw, Catalog) if raw.get("kind") == kind else None
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed", "", value[:40], f"a catalog ({type(error).__name__}: {error})") from None


def write_catalog(catalog: Catalog) -> bytes:
    return orjson.dumps(msgspec.structs.asdict(catalog))

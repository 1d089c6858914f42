"""Lists over REST against a plain Python reference: filters, sorts and pages of a kind with fields of every type."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from cmis_stream.core.time import parse_rfc3339
from tests.contracts.support import KINDS, Body, Rest, at, place_of

TOY, PLACE = KINDS["toy"], place_of("toy")
NAMES = ["a", "B", "b", "Ä", "zz", "日本", "🚀", "a b", "a%b", "a+b", "a&b", "#", "x=y", "é"]
PRICES = [None, 0, 1, 5, 2**53 + 1, 2**63 - 1]
WEIGHTS = [None, 0.0, -0.5, 0.1, 0.3, 1e300]
TIMES = [None, "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.001Z", "1999-12-31T23:59:59.000Z"]
OPS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a is not None and a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a is not None and a > b,
    "gte": lambda a, b: a is not None and a >= b,
    "lt": lambda a, b: a is not None and a < b,
    "lte": lambda a, b: a is not None and a <= b,
}
VALUES: dict[str, list[Any]] = {
    "name": NAMES, "state": ["new", "used", "no such"], "price_micros": PRICES[1:], "weight_ratio": WEIGHTS[1:],
    "made_at": TIMES[1:], "loud": [True, False],
}  # fmt: skip


def comparable(field: str, value: Any) -> Any:
    """Times as moments, texts as they are: both are in the order of code points."""
    return parse_rfc3339(value) if field.endswith("_at") and value is not None else value


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def asking(chance: random.Random) -> tuple[str, str, Callable[[Body], bool]]:
    """(parameter, value, what it means)"""
    kind = chance.choice(["compare", "compare", "in", "contains", "tags"])
    if kind == "tags":
        tag = chance.choice(["q1", "eu", "no such"])
        return "filter[tags][contains]", tag, lambda doc: tag in doc["tags"]
    if kind == "contains":
        part = chance.choice([*NAMES, "A", "É", "%"])
        return "filter[name][contains]", part, lambda doc: lower(part) in lower(doc["name"])
    field = chance.choice(list(VALUES))
    if kind == "in":
        some = chance.sample(VALUES[field], 2)
        among = [comparable(field, one) for one in some]
        return f"filter[{field}][in]", ",".join(map(shown, some)), lambda doc: comparable(field, doc[field]) in among
    op, value = chance.choice(["eq", "ne"] if field == "loud" else list(OPS)), chance.choice(VALUES[field])
    name = f"filter[{field}]" if op == "eq" and chance.random() < 0.5 else f"filter[{field}][{op}]"
    return name, shown(value), lambda doc: OPS[op](comparable(field, doc[field]), comparable(field, value))


def lower(text: str) -> str:
    return "".join(sign.lower() if sign.isascii() else sign for sign in text)


def ordered(docs: list[Body], sorts: list[str]) -> list[str]:
    last = [] if any(sort.lstrip("-") == "id" for sort in sorts) else ["-id" if sorts[0].startswith("-") else "id"]
    for sort in reversed([*sorts, *last]):
        name = sort.removeprefix("-")
        there = [doc for doc in docs if doc[name] is not None]
        there.sort(key=lambda doc: comparable(name, doc[name]), reverse=sort.startswith("-"))
        docs = there + [doc for doc in docs if doc[name] is None]
    return [doc["id"] for doc in docs]


async def test_filters_sorts_and_pages_are_those_of_a_plain_python_reference(rest: Rest) -> None:
    chance, ann = random.Random(5), rest.ann
    bodies = [
        {
            "name": chance.choice(NAMES), "slug": f"s{number}", "price_micros": chance.choice(PRICES),
            "loud": chance.choice([None, True, False]), "weight_ratio": chance.choice(WEIGHTS),
            "made_at": chance.choice(TIMES), "tags": chance.sample(["q1", "eu"], chance.randrange(3)),
        }
        for number in range(120)
    ]  # fmt: skip
    done = (await ann.ask("POST", f"{PLACE.path}/bulk", json={"items": [{"op": "create", "body": one} for one in bodies]})).json()
    ids = [one["id"] for one in done["results"] if one["status"] == 201]  # some have a name and price that another one has
    assert len(ids) > 60
    for identity in ids[::5]:
        assert (await ann.ask("DELETE", f"{PLACE.path}/{identity}", headers=at(1))).status_code == 204
    for identity in ids[1::5]:
        assert (await ann.ask("POST", f"{PLACE.path}/{identity}/play")).status_code == 200
    docs = await ann.everything(PLACE.path, deleted="with")
    assert {doc["id"] for doc in docs} == set(ids)

    for _ in range(150):
        filters = [asking(chance) for _ in range(chance.randrange(3))]
        sorts = [
            f"{chance.choice(['', '-'])}{name}" for name in chance.sample(["id", "created_at", *TOY.sorts], chance.randint(1, 3))
        ]
        deleted = chance.choice(["", "only", "with"])
        kept = [doc for doc in docs if deleted == "with" or (doc["deleted_at"] is None) == (deleted == "")]
        kept = [doc for doc in kept if all(means(doc) for _, _, means in filters)]
        asked = (
            {name: value for name, value, _ in filters} | {"sort": ",".join(sorts)} | ({"deleted": deleted} if deleted else {})
        )
        if len({name for name, _, _ in filters}) < len(filters):
            continue  # a dict holds one of them only
        found = await ann.everything(PLACE.path, limit=chance.choice([7, 50, 500]), **asked)
        assert [doc["id"] for doc in found] == ordered(kept, sorts), asked
        page = (await ann.ask("GET", PLACE.path, params=asked)).json()
        assert page["total_estimate"] == len(kept)

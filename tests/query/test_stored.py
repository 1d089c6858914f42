"""Queries over documents and facts against the plain reference, on both databases; who sees what; what is refused."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from sqlalchemy import text

from cmis_stream.core.time import DAY_MS, HOUR_MS
from cmis_stream.query import stored
from cmis_stream.query.datasets import NOBODY, Queries
from cmis_stream.query.model import Faulty
from cmis_stream.query.stored import datasets_of
from cmis_stream.store.database import Database, TooSlow
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents, Item
from cmis_stream.store.fact_kinds import FactKind
from cmis_stream.store.facts import Change, Facts
from cmis_stream.store.kinds import Kinds, Manifest
from tests.query.stored_reference import answer, begin, told
from tests.store.support import ADA, BOARD, BOB, BUDGET, CAMPAIGN, NOTE, Clock

YEAR = 1_514_764_800_000  # 2018, in which a zone skips a midnight
NOW = YEAR + 365 * DAY_MS
ZONES = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"]
MAXIMUM = 2**63 - 1
ADMIN, EVE = Actor("adam", sees_private=True), Actor("eve")


class Find(BaseModel):
    """Something that an agent finds."""

    model_config = ConfigDict(extra="forbid")
    severity: Literal["critical", "high", "low"]
    campaign: str | None = None
    cost_micros: int | None = None
    score_ratio: float | None = None
    took_ms: int | None = None
    seen_at: int | None = None
    open: bool | None = None


FIND = FactKind(
    "find", Find, ranks={"severity": ("critical", "high", "low")},
    filters={"severity": "text", "campaign": "text", "cost_micros": "number", "score_ratio": "number", "took_ms": "number",
             "seen_at": "time", "open": "bool"},
)  # fmt: skip
KINDS = Kinds([Manifest("trial", (CAMPAIGN, NOTE, BUDGET, BOARD), facts=(FIND,))])


class World:
    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.documents, self.facts = Documents(database, KINDS, self.clock), Facts(database, KINDS)
        made = datasets_of(
            self.documents, self.facts, KINDS, lambda org, kind: {"partition": len(org), "kind": kind.name}, lambda: NOW
        )
        self.queries = Queries({}, made)
        self.rows: list[dict[str, Any]] = []

    def ask(self, org: str = "acme", actor: Actor = ADA, **query: Any) -> dict[str, Any]:
        raw = {"dataset": "campaigns", "measures": ["count"], **query}
        found: dict[str, Any] = json.loads(asyncio.run(self.queries.answer(org, raw, actor)))
        return found

    def create(self, kind: str, org: str = "acme", actor: Actor = ADA, at: int = YEAR, **body: Any) -> str:
        self.clock.now_ms = at - 1
        found = self.documents.execute(org, actor, Command("create", kind, body=body)).document
        assert found is not None and found.created_at == at
        self.rows.append({"org": org, "id": found.id, "created_at": at, **found.body})
        return found.id

    def find(self, number: int, org: str, at: int, **body: Any) -> None:
        whole = {name: body.get(name) for name in Find.model_fields}
        self.facts.write([Change(org, "find", f"f{number}", at, lambda _: whole)], "r", "e", {("t", 0): number},
                         {("t", 0): number - 1} if number else {})  # fmt: skip
        self.rows.append({"org": org, "at": at, **whole})


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def moments(draw: random.Random) -> int:
    """Anywhere in the year, often close to where days, weeks and months begin in the zones."""
    if draw.random() < 0.5:
        return YEAR + draw.randrange(364 * DAY_MS)
    zone = ZoneInfo(draw.choice(ZONES))
    return begin(YEAR + draw.randrange(2 * DAY_MS, 363 * DAY_MS), draw.choice(["1d", "1w", "1mo"]), zone) + draw.randint(-2, 2)


def queries(measures: list[str], dimensions: list[str], filters: list[tuple[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "measures": st.lists(st.sampled_from(measures), min_size=1, max_size=4, unique=True),
            "dimensions": st.lists(st.sampled_from(["time", *dimensions]), max_size=3, unique=True),
            "filters": st.lists(st.sampled_from(filters), max_size=2, unique_by=lambda one: one[0]).map(dict),
            "step": st.sampled_from(["10s", "1m", "15m", "1h", "1d", "1w", "1mo"]),
            "timezone": st.sampled_from(ZONES),
        }
    ).flatmap(_with_span)


def _with_span(query: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    def spanning(given: tuple[int, int]) -> dict[str, Any]:
        start, end = given[0], sum(given)
        return {**query, "from": told(start, ZoneInfo("UTC")), "to": told(end, ZoneInfo("UTC")), "span": (start, end)}

    return st.tuples(st.integers(YEAR, NOW), st.integers(1, 200 * DAY_MS)).map(spanning)


def expected(
    rows: list[dict[str, Any]], at: str, query: dict[str, Any], times: frozenset[str], ranks: dict[str, tuple[str, ...]]
) -> tuple[list[list[Any]], int]:
    """The rows, and where the first step begins."""
    zone, (start, end) = ZoneInfo(query["timezone"]), query["span"]
    first, last = begin(start, query["step"], zone), begin(end - 1, query["step"], zone)
    after = last
    while begin(after, query["step"], zone) == last:  # to the end of the last step
        after += {"10s": 10_000, "1m": 60_000, "15m": 900_000}.get(query["step"], HOUR_MS // 2)
    return answer(rows, at, {**query, "from_ms": first, "to_ms": begin(after, query["step"], zone)}, times, ranks), first


def check(
    world: World, dataset: str, rows: list[dict[str, Any]], at: str, query: dict[str, Any], times: frozenset[str],
    ranks: dict[str, tuple[str, ...]],
) -> None:  # fmt: skip
    wanted, first = expected(rows, at, query, times, ranks)
    asked = {name: value for name, value in query.items() if name != "span"}
    found = world.ask(dataset=dataset, **asked)
    assert found["from"] == told(first, ZoneInfo(query["timezone"]))
    assert [column["name"] for column in found["columns"]] == [*query["dimensions"], *query["measures"]]
    assert len(found["rows"]) == len(wanted)
    for got, row in zip(found["rows"], wanted, strict=True):
        assert got == [pytest.approx(value, rel=1e-9) if isinstance(value, float) else value for value in row]


CAMPAIGN_TIMES = frozenset({"time", "starts_at"})
CAMPAIGN_FILTERS: list[tuple[str, Any]] = [
    ("state", "draft"), ("state", ["draft", "running"]), ("name", {"contains": "SPR"}), ("name", {"gte": "b", "lt": "q"}),
    ("spend_micros", {"gt": 2.5}), ("spend_micros", {"ne": 3}), ("spend_micros", [3, 2**62]), ("ctr_ratio", {"lte": 0.5}),
    ("active", True), ("active", {"ne": False}), ("starts_at", {"gte": YEAR, "lt": YEAR + 90 * DAY_MS}),
    ("tags", "q3"), ("created_at", {"lt": YEAR + 200 * DAY_MS}),
]  # fmt: skip
CAMPAIGN_MEASURES = [
    "count", "sum(spend_micros)", "avg(spend_micros)", "min(spend_micros)", "max(starts_at)", "distinct(name)",
    "distinct(active)",
    "sum(ctr_ratio)", "avg(ctr_ratio)", "max(ctr_ratio)", "min(starts_at)", "distinct(spend_micros)",
]  # fmt: skip


def test_answers_are_those_of_the_plain_reference(world: World) -> None:
    draw = random.Random(1)
    for number in range(160):
        world.create(
            "campaign", draw.choice(["acme", "acme", "globex"]), at=moments(draw), tags=draw.choice([[], ["q3"], ["q3", "x"]]),
            name=draw.choice(["spring", "Autumn", "ü", "z"]),
            slug=f"s{number}", spend_micros=draw.choice([None, 0, 3, -7, 2**53 + 1, 2**56]),
            ctr_ratio=draw.choice([None, 0.0, 0.25, 0.75]), active=draw.choice([None, True, False]),
            starts_at=draw.choice([None, YEAR + draw.randrange(300) * DAY_MS + number]),
        )  # fmt: skip
    gone = draw.sample(world.rows, 20)
    for row in gone:
        world.documents.execute(row["org"], ADA, Command("delete", "campaign", row["id"]))
    rows = [row for row in world.rows if row["org"] == "acme" and row not in gone]

    @given(queries(CAMPAIGN_MEASURES, ["name", "state", "spend_micros", "ctr_ratio", "active", "starts_at"], CAMPAIGN_FILTERS))
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])
    def compared(query: dict[str, Any]) -> None:
        check(world, "campaigns", rows, "created_at", query, CAMPAIGN_TIMES, {})

    compared()
    assert world.ask()["rows"] == [[len(rows)]], "without a time: all there are"


def test_answers_about_facts_are_those_of_the_plain_reference(world: World) -> None:
    draw = random.Random(2)
    for number in range(120):
        world.find(
            number, draw.choice(["acme", "acme", "globex"]), moments(draw), severity=draw.choice(["critical", "high", "low"]),
            campaign=draw.choice([None, "c1", "c2"]), cost_micros=draw.choice([None, 5, 2**56]),
            open=draw.choice([None, True, False]),
            score_ratio=draw.choice([None, 0.5, 1.5]), seen_at=draw.choice([None, YEAR + number]),
        )  # fmt: skip
    rows = [row for row in world.rows if row["org"] == "acme"]
    measures = ["count", "sum(cost_micros)", "avg(score_ratio)", "distinct(campaign)", "distinct(severity)", "max(seen_at)"]
    filters: list[tuple[str, Any]] = [
        ("severity", "high"), ("severity", ["critical", "low"]), ("severity", {"ne": "low"}), ("campaign", {"ne": "c1"}),
        ("open", False), ("at", {"gte": YEAR + 100 * DAY_MS}),
    ]  # fmt: skip

    @given(queries(measures, ["severity", "campaign", "open"], filters))
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])
    def compared(query: dict[str, Any]) -> None:
        times, ranks = frozenset({"time", "seen_at"}), {"severity": ("critical", "high", "low")}
        check(world, "finds", rows, "at", query, times, ranks)

    compared()
    found = world.ask(dataset="finds", dimensions=["severity"], sort="-severity")
    assert [row[0] for row in found["rows"]] == ["low", "high", "critical"] and found["position"] == {
        "partition": 4,
        "kind": "find",
    }


def test_columns_have_types_and_units_and_the_answer_says_of_which_change_it_is(world: World) -> None:
    world.create("campaign", name="a", spend_micros=5, ctr_ratio=0.5, active=True, starts_at=YEAR)
    found = world.ask(
        dimensions=["active", "starts_at"], measures=["count", "sum(spend_micros)", "avg(ctr_ratio)", "max(starts_at)"]
    )
    assert [tuple(column.values()) for column in found["columns"]] == [
        ("active", "boolean", None), ("starts_at", "time", None), ("count", "integer", "count"),
        ("sum(spend_micros)", "integer", "micros"), ("avg(ctr_ratio)", "number", "ratio"), ("max(starts_at)", "time", None),
    ]  # fmt: skip
    assert found["rows"] == [[True, "2018-01-01T00:00:00Z", 1, 5, 0.5, "2018-01-01T00:00:00Z"]]
    rest = {"watermark": None, "provisional": False, "position": {"seq": 1}, "from": None, "to": None, "step": None}
    assert {name: found[name] for name in rest} == rest
    assert world.ask("nobody-s")["position"] == {"seq": 0}


def test_rows_come_in_the_order_asked_for_missing_values_last_and_no_more_than_asked_for(world: World) -> None:
    for number, spend in enumerate([3, None, 9, 3]):
        world.create("campaign", name=f"c{number}", spend_micros=spend)
    by = {"dimensions": ["name"], "measures": ["sum(spend_micros)"]}
    assert [row[0] for row in world.ask(**by, sort="-sum(spend_micros),-name")["rows"]] == ["c2", "c3", "c0", "c1"]
    assert [row[0] for row in world.ask(**by, sort="sum(spend_micros)", limit=3)["rows"]] == ["c0", "c3", "c2"]
    times = {
        "dimensions": ["time"],
        "step": "1h",
        "from": "2018-10-27T00:00:00Z",
        "to": "2018-10-29T00:00:00Z",
        "timezone": "Europe/Berlin",
    }
    for hour in (0, 1):  # the clock shows 02:00 twice
        world.create("campaign", name="autumn", at=1_540_684_800_000 + hour * HOUR_MS)
    assert [row[0][11:] for row in world.ask(**times, sort="-time")["rows"]] == ["02:00:00+01:00", "02:00:00+02:00"]


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_what_is_private_to_others_is_never_counted(world: World) -> None:
    for actor, visibility in ((ADA, "private"), (ADA, "org"), (BOB, "private"), (BOB, "link"), (BOB, "private")):
        world.create("board", actor=actor, title=f"{actor.id} {visibility}", visibility=visibility)
    for actor, seen in ((ADA, 3), (BOB, 4), (ADMIN, 5), (NOBODY, 2), (EVE, 2)):
        assert world.ask(dataset="boards", actor=actor)["rows"] == [[seen]]
        by_owner = world.ask(dataset="boards", actor=actor, dimensions=["owner_id", "visibility"])["rows"]
        assert sum(row[-1] for row in by_owner) == seen
        assert actor in (ADMIN, BOB) or ["bob", "private"] not in [row[:2] for row in by_owner]
    assert world.ask(dataset="boards", actor=ADA, filters={"owner_id": "bob", "visibility": "private"})["rows"] == [[0]]


def test_other_orgs_are_never_counted_whatever_is_asked(world: World) -> None:
    world.create("campaign", "globex", name="theirs", spend_micros=MAXIMUM)
    world.find(0, "globex", YEAR, severity="high", campaign="theirs")
    for dataset, field in (("campaigns", "name"), ("finds", "campaign")):
        for filters in ({}, {field: "theirs"}, {field: {"ne": "x"}}, {field: {"contains": "%' or 1=1 --"}}):
            assert world.ask(dataset=dataset, actor=ADMIN, filters=filters)["rows"] == [[0]]
            assert world.ask(dataset=dataset, actor=ADMIN, filters=filters, dimensions=[field])["rows"] == []
    assert world.ask("globex")["rows"] == [[1]]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_sums_that_no_answer_can_hold_are_refused_and_averages_of_them_are_not(world: World) -> None:
    for name in ("a", "b", "c"):
        world.create("campaign", name=name, spend_micros=MAXIMUM)
    refused = _refused(world, measures=["count", "sum(spend_micros)"])
    assert [(fault.pointer, fault.code) for fault in refused.faults] == [("/measures/1", "out_of_range")]
    assert world.ask(measures=["avg(spend_micros)"])["rows"] == [[float(MAXIMUM)]]
    assert world.ask(measures=["sum(spend_micros)"], filters={"name": "a"})["rows"] == [[MAXIMUM]]


def test_too_many_rows_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_ROWS", 3)
    for number in range(4):
        world.create("campaign", name=f"c{number}")
    assert _refused(world, dimensions=["name"]).code == "too_many_rows"
    assert len(world.ask(dimensions=["name"], filters={"name": {"ne": "c0"}})["rows"]) == 3


def test_a_statement_that_takes_too_long_is_given_up_and_the_connection_goes_on(database: Database) -> None:
    endless = text("with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000000) select count(*) from n")
    for _ in range(3):
        with pytest.raises(TooSlow), database.transaction("acme") as tx, tx.within(0.05):
            tx.rows(endless)
    with database.transaction("acme") as tx:
        assert (
            tx.rows(
                text("with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000) select max(i) from n")
            )[0][0]
            == 100_000
        )


def test_too_much_work_is_refused_as_such(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "LONGEST_S", 0.0)
    note = Item(Command("create", "note", body={"campaign": shared.create("campaign", "busy", name="busy")}))
    assert all(outcome.result for outcome in shared.documents.bulk("busy", ADA, [note] * 1000))
    work = {"dimensions": ["campaign"], "measures": ["count", "distinct(campaign)"], "filters": {"campaign": {"contains": "0"}}}
    assert _refused(shared, org="busy", dataset="notes", **work).code == "too_expensive"


def _refused(world: World, **query: Any) -> Faulty:
    with pytest.raises(Faulty) as refused:
        world.ask(**query)
    return refused.value


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ({"dataset": "campaign"}, "/dataset", "invalid"),
        ({"measures": []}, "/measures", "invalid"),
        ({"measures": ["count", "sum(name)"]}, "/measures/1", "invalid"),
        ({"measures": ["sum(starts_at)"]}, "/measures/0", "invalid"),
        ({"measures": ["count", "count"]}, "/measures", "invalid"),
        ({"dimensions": ["tags"]}, "/dimensions/0", "invalid"),
        ({"dimensions": ["id"]}, "/dimensions/0", "invalid"),
        ({"dimensions": ["time"], "from": "-1d"}, "/step", "missing"),
        ({"dimensions": ["time"], "step": "1d"}, "/from", "missing"),
        ({"filters": {"colour": "red"}}, "/filters/colour", "invalid"),
        ({"filters": {"a/b": 1}}, "/filters/a~1b", "invalid"),
        ({"filters": {"name": 3}}, "/filters/name", "wrong_type"),
        ({"filters": {"name": ["a", 3]}}, "/filters/name/1", "wrong_type"),
        ({"filters": {"name": []}}, "/filters/name", "invalid"),
        ({"filters": {"name": {}}}, "/filters/name", "invalid"),
        ({"filters": {"name": {"": "x"}}}, "/filters/name/", "invalid"),
        ({"filters": {"name": {"like": "x"}}}, "/filters/name/like", "invalid"),
        ({"filters": {"name": {"in": "x"}}}, "/filters/name/in", "wrong_type"),
        ({"filters": {"name": {"eq": ["x"]}}}, "/filters/name/eq", "wrong_type"),
        ({"filters": {"name": {"in": ["x"] * 101}}}, "/filters/name/in", "too_long"),
        ({"filters": {"name": {"eq": "x" * 501}}}, "/filters/name/eq", "too_long"),
        ({"filters": {"name": None}}, "/filters/name", "wrong_type"),
        ({"filters": {"name": "\x00"}}, "/filters/name", "invalid"),
        ({"filters": {"active": 1}}, "/filters/active", "wrong_type"),
        ({"filters": {"active": {"gt": True}}}, "/filters/active/gt", "invalid"),
        ({"filters": {"spend_micros": {"gt": "5"}}}, "/filters/spend_micros/gt", "wrong_type"),
        ({"filters": {"spend_micros": True}}, "/filters/spend_micros", "wrong_type"),
        ({"filters": {"spend_micros": 2**63}}, "/filters/spend_micros", "out_of_range"),
        ({"filters": {"starts_at": "yesterday"}}, "/filters/starts_at", "invalid"),
        ({"filters": {"tags": ["a"]}}, "/filters/tags", "invalid"),
        ({"filters": []}, "/filters", "wrong_type"),
        ({"from": "-1d", "to": "-2d"}, "/to", "invalid"),
        ({"from": "yesterday"}, "/from", "invalid"),
        ({"to": 3}, "/to", "wrong_type"),
        ({"step": "5m"}, "/step", "invalid"),
        ({"step": "1d", "from": "2000-01-01T00:00:00Z", "to": "now"}, "/step", "too_long"),
        ({"timezone": "Mars"}, "/timezone", "invalid"),
        ({"sort": "name"}, "/sort", "invalid"),
        ({"limit": 0}, "/limit", "invalid"),
        ({"cursor": "x"}, "/cursor", "invalid"),
    ],
)
def test_what_cannot_be_asked_is_named_by_its_place(shared: World, query: dict[str, Any], pointer: str, code: str) -> None:
    refused = _refused(shared, **query)
    assert [(fault.pointer, fault.code) for fault in refused.faults] == [(pointer, code)]
    assert refused.faults[0].expected


def test_everything_that_is_wrong_is_named_at_once(shared: World) -> None:
    refused = _refused(shared, measures=["max(name)"], dimensions=["x"], filters={"name": 3, "active": "no"})
    assert [fault.pointer for fault in refused.faults] == ["/measures/0", "/dimensions/0", "/filters/name", "/filters/active"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('queries') / 'store.db'}")
    yield World(database)
    database.close()


def test_what_is_offered_can_be_asked(shared: World) -> None:
    """Every measure, dimension, filter with its operators, and each example, on all datasets."""
    values: dict[str, Any] = {"string": "x", "time": YEAR, "integer": 1, "number": 0.5, "boolean": True}
    for one, schema in zip(shared.queries.described(["read"]), shared.queries.schemas, strict=True):
        assert one["name"] == schema["properties"]["dataset"]["const"]
        shared.ask(**schema["examples"][0])
        for step in one["steps"]:
            shared.ask(dataset=one["name"], measures=["count"], dimensions=["time"], step=step, **{"from": "-30d"})
        for measure in one["measures"]:
            found = shared.ask(dataset=one["name"], measures=[measure["name"]])
            assert found["columns"] == [measure]
        for dimension in one["dimensions"]:
            found = shared.ask(dataset=one["name"], dimensions=[dimension["name"]], step="1d", **{"from": "-30d"})
            assert found["columns"][0] == dimension
        for field in one["filters"]:
            for op in field["operators"]:
                value = "high" if field["name"] == "severity" else values[field["type"]]
                shared.ask(dataset=one["name"], filters={field["name"]: {op: [value] if op == "in" else value}})


def test_kinds_that_a_caller_may_not_read_are_not_offered(shared: World) -> None:
    assert shared.queries.described(["write"]) == []
    assert {one["name"] for one in shared.queries.described(["read"])} == {"campaigns", "notes", "budgets", "boards", "finds"}

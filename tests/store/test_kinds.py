"""What modules declare is checked when it is loaded: each mistake names module, kind and field."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, create_model

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Command, Decision, Rule
from cmis_stream.store.documents import Documents, Item
from cmis_stream.store.kinds import ANYONE, Kind, Kinds, Manifest, Ref, States
from cmis_stream.store.personal_fields import Personal
from cmis_stream.store.tables import WHOLES
from tests.store.support import ADA, kinds


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=9)] = ""
    key: str | None = None
    count: int | None = None
    share: float = 0.0
    on: bool = False
    colour: Colour | None = None
    state: Literal["new", "done"] = "new"
    other: str = ""
    others: list[str] = []
    extra: dict[str, Any] = {}


def mistakes(**declared: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Kinds([Manifest("m", (Kind("thing", declared.pop("model", Thing), **declared),))])
    return str(caught.value)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"filters": {"nmae": "text"}}, "m.thing.nmae: expected one of name, key"),
        ({"filters": {"count": "text"}}, "m.thing.count: expected a field of str for a filter of text, got int"),
        ({"filters": {"name": "number"}}, "m.thing.name: expected a field of float or int for a filter of number, got str"),
        ({"filters": {"on": "number"}}, "m.thing.on: expected a field of float or int"),
        ({"filters": {"others": "text"}}, "m.thing.others: expected a field of str for a filter of text, got list"),
        ({"filters": {"extra": "text"}}, "m.thing.extra: expected a field of str"),
        ({"filters": {"share": "time"}}, "m.thing.share: expected a field of int for a filter of time, got float"),
        ({"sorts": ("name",)}, "m.thing.name: expected sorts among the filters"),
        ({"unique": ((),)}, "m.thing: expected a unique tuple"),
        ({"unique": (("name", "name"),)}, "m.thing: expected a unique tuple of different fields"),
        ({"natural_key": "key"}, "m.thing.key: expected a natural key among `unique`, alone"),
        ({"natural_key": "count", "unique": (("count",),)}, "m.thing.count: expected a text as natural key"),
        ({"refs": {"other": Ref("nothing")}}, "m.thing.other: expected a known kind as target, got 'nothing'"),
        ({"refs": {"other": Ref("thing", "detach")}}, "m.thing.other: expected a field that may be null"),
        ({"refs": {"count": Ref("thing")}}, "m.thing.count: expected a text or a list of texts"),
        ({"states": States("name", "new", {})}, "m.thing.name: expected a Literal or an Enum of the states"),
        ({"states": States("state", "new", {("new", "gone"): ANYONE})}, "m.thing.state: expected one of done, new, got 'gone'"),
        ({"states": States("state", "new", {})}, "m.thing.state: no transitions lead from new to done"),
        ({"commands": {"Fly!": Rule(lambda *_: Decision())}}, "m.thing: expected a command's name"),
        ({"model": create_model("Loose", name=(str, ""))}, 'm.thing: expected Loose with extra="forbid"'),
        ({"model": create_model("Own", __config__={"extra": "forbid"}, tags=(str, ""))}, "m.thing.tags: every document has this"),
        (
            {"model": create_model("A", __config__={"extra": "forbid"}, a=(str, Field("", alias="b")))},
            "m.thing.a: expected no alias",
        ),
    ],
)
def test_a_mistake_names_module_kind_and_field(declared: dict[str, Any], said: str) -> None:
    assert said in mistakes(**declared)


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes(sorts=("name",), natural_key="key").splitlines()) == 2


def test_what_is_acyclic_points_at_its_own_kind() -> None:
    with pytest.raises(ConfigError, match=r"b\.two\.other: expected its own kind as target"):
        Kinds(
            [Manifest("a", (Kind("one", Thing),)), Manifest("b", (Kind("two", Thing, refs={"other": Ref("one", acyclic=True)}),))]
        )


def test_an_org_has_no_more_documents_of_a_kind_than_it_may(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    try:
        documents = Documents(database, Kinds([Manifest("m", (Kind("thing", Thing, most=2),))]))
        create = Command("create", "thing")
        made = [documents.execute("acme", ADA, create).document for _ in range(2)]
        assert made[0] is not None
        with pytest.raises(Rejected, match="at most 2"):
            documents.execute("acme", ADA, create)
        done = documents.bulk("other", ADA, [Item(create) for _ in range(3)])
        assert [one.rejected is None for one in done] == [True, True, False]
        documents.execute("acme", ADA, Command("delete", "thing", made[0].id))
        assert documents.execute("acme", ADA, create).created
        with pytest.raises(Rejected, match="at most 2"):
            documents.execute("acme", ADA, Command("restore", "thing", made[0].id))
    finally:
        database.close()


def test_agents_do_not_follow_a_kind_with_personal_fields() -> None:
    class Someone(BaseModel):
        model_config = ConfigDict(extra="forbid")
        handle: str
        email: Annotated[str | None, Personal(subject="handle")] = None

    assert "catalog" in mistakes(model=Someone, catalog=lambda document: document.body)


def test_two_modules_cannot_have_a_kind_of_one_name() -> None:
    with pytest.raises(ConfigError, match=r"b\.one: module a has a kind of this name"):
        Kinds([Manifest("a", (Kind("one", Thing),)), Manifest("b", (Kind("one", Thing),))])


def test_no_more_filters_than_there_are_columns() -> None:
    fields: dict[str, Any] = {f"n{number}": (int, 0) for number in range(WHOLES + 1)}
    model = create_model("Wide", __config__={"extra": "forbid"}, **fields)
    assert "m.thing: expected at most 8 filters of whole values, got 9" in mistakes(
        model=model, filters=dict.fromkeys(fields, "number")
    )


def test_enums_and_annotated_fields_can_be_filtered_by() -> None:
    kind = Kind("thing", Thing, filters={"name": "text", "colour": "text", "count": "number", "share": "number", "on": "bool"})
    Kinds([Manifest("m", (kind,))])
    assert [kind.family(name) for name in kind.filters] == ["text", "text", "whole", "real", "whole"]


def test_a_filter_field_of_a_later_version_is_filled_for_documents_that_were_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    database = Database(url)
    first = Documents(database, kinds(Kind("thing", Thing, filters={"name": "text"})))
    made = [first.execute("acme", ADA, Command("create", "thing", body={"name": str(n), "count": n})) for n in range(3)]
    assert all(one.document for one in made)

    later = Documents(database, kinds(Kind("thing", Thing, filters={"count": "number", "name": "text"})))
    counted = [("filter[count][gte]", "1")]
    assert later.list("acme", ADA, "thing", counted).total_estimate == 0
    assert (later.fill_slots("acme"), later.fill_slots("acme")) == (3, 0)
    assert later.list("acme", ADA, "thing", counted).total_estimate == 2
    assert later.list("acme", ADA, "thing", [("filter[name]", "1")]).total_estimate == 1

    # An older process that still runs writes without the column; the next filling finds that, too.
    first.execute("acme", ADA, Command("create", "thing", body={"count": 9}))
    assert later.fill_slots("acme") == 1
    assert later.list("acme", ADA, "thing", counted).total_estimate == 3
    with pytest.raises(ConfigError, match=r"trial\.thing\.count: its values were whole"):
        Documents(
            database, kinds(Kind("thing", create_model("T", __config__={"extra": "forbid"}, count=(str, "")), {"count": "text"}))
        )
    database.close()

"""A module for tests, with one of everything that a module can have. Nothing of ours knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmis_stream.core.errors import Rejected
from cmis_stream.store.decisions import (
    Command,
    Context,
    Decision,
    Document,
    Effect,
    Put,
    RemoveSchedule,
    Rule,
    SetSchedule,
    StartJob,
)
from cmis_stream.store.fields import Time
from cmis_stream.store.job_kinds import JobKind
from cmis_stream.store.kinds import ANYONE, Kind, Manifest, ProblemCode, Ref, States
from cmis_stream.store.personal_fields import Personal

from .played import PLAYDATE, PLAYED
from .shop import SHOP_KEY, order

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Toy(_Model):
    """Something to play with. Toys lie in each other."""

    name: str = Field(min_length=1, max_length=100)
    slug: Slug
    state: Literal["new", "used", "broken"] = "new"
    price_micros: int | None = Field(None, ge=0)
    weight_ratio: float | None = None
    loud: bool | None = None
    made_at: Time | None = None
    box: str | None = None
    inside: str | None = None
    rung: int = Field(0, ge=0, description="How often its alarm went off.")
    parts: list[Part] = Field(default_factory=list, max_length=20)


class Part(_Model):
    """Of a toy, and made of parts itself."""

    name: str
    fitted_at: Time | None = None
    parts: list[Part] = Field(default_factory=list, max_length=5)


class Box(_Model):
    label: str = Field(min_length=1, max_length=100)
    holds: int = Field(10, ge=1, le=1000)


class Child(_Model):
    name: str = Field(min_length=1, max_length=100)
    person: str | None = Field(None, max_length=100, description="Whom this is about.")
    nickname: Annotated[str | None, Personal(subject="person")] = None


class Loan(_Model):
    """Which child has which toy: many to many."""

    toy: str
    child: str
    until: Time | None = None


class Wish(_Model):
    """Nobody else's business."""

    text: str = Field(max_length=200)
    toy: str | None = None


class Rename(_Model):
    name: str = Field(min_length=1, max_length=100)


class Swap(_Model):
    with_toy: str


class Alarm(_Model):
    at: Time


class Count(_Model):
    pause_ms: int = Field(0, ge=0, le=10_000, description="How long to rest after each page, so that one can watch.")
    page: int = Field(100, ge=1, le=500)


class Order(_Model):
    shop: str = Field(pattern=r"^http://127\.0\.0\.1:[0-9]{1,5}/$")


class Batch(_Model):
    names: list[Annotated[str, Field(min_length=1, max_length=50)]] = Field(min_length=1, max_length=10)


def _broken(state: Document) -> Rejected | None:
    return Rejected("toy_broken", "/state", "broken", "a toy that works") if state.body["state"] == "broken" else None


def _play(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    if (error := _broken(state)) is not None:
        raise error
    told = {"toy": state.id, "name": state.body["name"], "at": context.now_ms}
    effect = Effect("publish", {"topic": PLAYED, "body": told})
    return Decision((Put("toy", state.id, {**state.body, "state": "used"}),), (effect,))


def _set_alarm(context: Context, state: Document | None, command: Command) -> Decision:
    """Once, at that second."""
    assert state is not None
    second = command.body["at"] // 1000
    if second * 1000 <= context.now_ms:
        raise Rejected("out_of_range", "/at", command.body["at"], "a time that is still to come")
    starts = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    ring = {"kind": "toy", "name": "ring", "id": state.id}
    return Decision((), (SetSchedule(f"toy/{state.id}", "UTC", "FREQ=DAILY;COUNT=1", "command", ring, starts, at="/at"),))


def _stop_alarm(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    return Decision((), (RemoveSchedule(f"toy/{state.id}"),))


def _ring(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    return Decision((Put("toy", state.id, {**state.body, "rung": state.body["rung"] + 1}),))


def _order(context: Context, state: Document | None, command: Command) -> Decision:
    """Another one of its sort, from a shop that wants a key."""
    assert state is not None
    return Decision((), (Effect("order_toy", {"shop": command.body["shop"], "name": state.body["name"]}),))


def _count_toys(context: Context, state: Document | None, command: Command) -> Decision:
    return Decision((), (StartJob("count_toys", command.body),))


def _rename(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    return Decision((Put("toy", state.id, {**state.body, "name": command.body["name"]}),))


def _swap_names(context: Context, state: Document | None, command: Command) -> Decision:
    """Reads another document, which the command names."""
    assert state is not None
    other = context.documents["toy", command.body["with_toy"]]
    if other is None:
        raise Rejected("unknown_ref", "/with_toy", command.body["with_toy"], "the id of a toy of this org")
    names: Mapping[str, Any] = {state.id: other.body["name"], other.id: state.body["name"]}
    return Decision(tuple(Put("toy", one.id, {**one.body, "name": names[one.id]}) for one in (state, other)))


def _unbox(context: Context, state: Document | None, command: Command) -> Decision:
    """Makes several documents at once; about none that is there."""
    box = context.new_id()
    toys = [(context.new_id(), name) for name in command.body["names"]]
    made = [Put("toy", toy, {"name": name, "slug": f"t{toy}", "box": box, "made_at": context.now_ms}) for toy, name in toys]
    return Decision((*made, Put("box", box, {"label": "unboxed", "holds": len(toys)})))


TOY = Kind(
    "toy",
    Toy,
    title="Toy",
    filters={
        "name": "text", "slug": "text", "state": "text", "price_micros": "number", "weight_ratio": "number", "loud": "bool",
        "made_at": "time", "box": "text",
    },
    sorts=("name", "state", "price_micros", "weight_ratio", "loud", "made_at"),
    unique=(("slug",), ("name", "price_micros")),
    refs={"box": Ref("box", "cascade"), "inside": Ref("toy", "detach", acyclic=True)},
    states=States(
        "state",
        "new",
        {("new", "used"): ANYONE, ("used", "broken"): ANYONE, ("broken", "used"): frozenset({"admin"})},
    ),
    natural_key="slug",
    commands={
        "play": Rule(_play, title="Play with a toy"),
        "rename": Rule(_rename, body=Rename, examples=({"name": "Bear"},)),
        "swap_names": Rule(
            _swap_names,
            reads=lambda state, command: [("toy", command.body["with_toy"])],
            body=Swap,
            examples=({"with_toy": "019b76da-a800-71d6-a2ec-7216849ac021"},),
        ),
        "unbox": Rule(_unbox, creates=True, body=Batch, examples=({"names": ["Duck", "Train"]},)),
        "set_alarm": Rule(_set_alarm, body=Alarm, examples=({"at": "2026-01-01T07:00:00Z"},)),
        "stop_alarm": Rule(_stop_alarm),
        "ring": Rule(_ring),
        "order": Rule(_order, body=Order, examples=({"shop": "http://127.0.0.1:8000/"},), title="Order another one"),
        "count_toys": Rule(_count_toys, creates=True, body=Count, examples=({"pause_ms": 10},)),
    },
    examples=(
        {"name": "Train", "slug": "train", "price_micros": 12_000_000, "made_at": "2026-01-01T00:00:00Z", "tags": ["wood"]},
        {"name": "Duck", "slug": "duck", "parts": [{"name": "beak", "fitted_at": "2026-01-02T00:00:00Z"}]},
    ),
)  # fmt: skip
BOX = Kind("box", Box, plural="boxes", filters={"label": "text", "holds": "number"}, sorts=("holds",), path="toy-boxes",
           token_path="/api/toy-boxes", examples=({"label": "Attic"},), scopes={"delete": "admin"})  # fmt: skip
CHILD = Kind("child", Child, plural="children", filters={"name": "text"},
             examples=({"name": "Ada"}, {"name": "Bo", "person": "bo@example.org", "nickname": "Bobo"}))  # fmt: skip
LOAN = Kind(
    "loan",
    Loan,
    path="toy-boxes/loans",
    filters={"toy": "text", "child": "text", "until": "time"},
    unique=(("toy", "child"),),
    refs={"toy": Ref("toy", "restrict"), "child": Ref("child", "cascade")},
    examples=({"toy": "019b76da-a800-71d6-a2ec-7216849ac021", "child": "019b76da-a800-71d6-a2ec-7216849ac021"},),
)
WISH = Kind(
    "wish",
    Wish,
    plural="wishes",
    filters={"text": "text"},
    refs={"toy": Ref("toy", "detach")},
    visibility="private",
    examples=({"text": "A red one"},),
)
MANIFEST = Manifest(
    "toy",
    (TOY, BOX, CHILD, LOAN, WISH),
    title="Toys",
    problems={"toy_broken": ProblemCode(409, "The toy is broken")},
    jobs=(JobKind("count_toys", f"{__package__}.counting:count_toys"),),
    effects={"order_toy": order},
    facts=(PLAYDATE,),
    secrets={SHOP_KEY: "Key of the toy shop"},
)

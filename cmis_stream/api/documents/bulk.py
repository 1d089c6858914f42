"""`POST …/bulk`: up to 1,000 commands in one transaction, each of which stands or falls alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import Rejected
from ...store.bodies import NotValid, pointer
from ...store.changes import Changes
from ...store.commands import DEFAULTS
from ...store.documents import MOST_ITEMS, Documents, Idempotency, Item, Outcome
from ..auth import Auth, Caller
from ..bodies import read_body
from ..problems import Problem, document_of
from . import requests
from .operations import actor_of, answer, caller_of, command_of
from .places import Collection
from .refusals import Refusals

MEMBERS: Final = ("op", "id", "version", "body")
_NEEDS_VERSION = ("update", "patch", "delete")


class Bulk:
    """Of one collection."""

    def __init__(self, place: Collection, documents: Documents, changes: Changes, auth: Auth, refusals: Refusals) -> None:
        self._kind, self._documents, self._auth, self._refusals = place.kind, documents, auth, refusals
        self.ops = [*DEFAULTS, *(name for name, _ in place.commands())]

    async def __call__(self, request: Request) -> Response:
        caller = await caller_of(self._auth, request, "write")
        requests.parameters(request)
        key = requests.idempotency(request, caller.org)
        raw = await read_body(request, requests.LARGEST_BULK, "Send fewer items at once.")
        requests.check_media(request, raw, requests.JSON)
        return await self._refusals.write(self._done, caller, raw, key)

    def _done(self, caller: Caller, raw: bytes, key: Idempotency | None) -> Response:
        given = _items(requests.parsed(raw))
        results: list[dict[str, Any]] = [{"index": index, "id": _text(item, "id")} for index, item in enumerate(given)]
        sound: list[tuple[int, Item]] = []
        for index, item in enumerate(given):
            try:
                sound.append((index, self._item(caller, item)))
            except (Rejected, Problem) as error:
                problem = self._refusals.problem(error) if isinstance(error, Rejected) else error
                results[index] |= {"status": problem.status, "problem": document_of(problem)}
        outcomes = self._documents.bulk(caller.org, actor_of(caller), [item for _, item in sound], idempotency=key)
        for (index, item), outcome in zip(sound, outcomes, strict=True):
            results[index] |= self._told(item.command.name, outcome)
        response = answer({"results": results})
        if outcomes and any(outcome.result is not None and outcome.result.repeated for outcome in outcomes):
            response.headers["Idempotency-Replayed"] = "true"
        return response

    def _item(self, caller: Caller, item: Any) -> Item:
        """Rejected or Problem, when it is none."""
        if not isinstance(item, Mapping):
            raise Rejected("wrong_type", "", item, "an object")
        wrong = [Rejected("invalid", pointer("", name), item[name], "no such member") for name in item if name not in MEMBERS]
        op, identity, version = item.get("op"), item.get("id"), item.get("version")
        if op not in self.ops:
            wrong.append(Rejected("missing" if op is None else "invalid", "/op", op, f"one of {', '.join(self.ops)}"))
        if identity is not None and not isinstance(identity, str):
            wrong.append(Rejected("wrong_type", "/id", identity, "a text"))
        if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
            wrong.append(Rejected("wrong_type", "/version", version, "a whole number"))
        if wrong or not isinstance(op, str):
            raise NotValid(wrong)
        if (scope := self._kind.scope(op)) not in caller.scopes:
            raise Problem(403, "forbidden", f"The token or session lacks the scope {scope!r}.", extra={"scope": scope})
        if version is None and op in _NEEDS_VERSION:
            raise Problem(428, "precondition_required", f"Say which version the {op} is about: `version`.")
        rule = self._kind.rule(op)
        if identity is None and rule is not None and not rule.creates:
            raise Rejected("missing", "/id", None, f"the id of a {self._kind.name}")
        body = item.get("body")
        try:
            command = command_of(self._kind, op, identity, {} if body is None else body)
        except NotValid as error:
            raise NotValid([_in_body(one) for one in error.errors]) from None
        except Rejected as error:
            raise _in_body(error) from None
        return Item(command, version)

    def _told(self, op: str, outcome: Outcome) -> dict[str, Any]:
        if outcome.result is None:
            rejected = _below_body(outcome.rejected or {})
            problem = self._refusals.of_item(rejected)
            return {"status": problem.status, "problem": document_of(problem)}
        document = outcome.result.document
        status = 204 if op == "delete" else 201 if outcome.result.created and document is not None else 200
        return {"status": status} if document is None else {"id": document.id, "version": document.version, "status": status}


def _below_body(rejected: Mapping[str, Any]) -> dict[str, Any]:
    """What is wrong in the command's body, as pointers into the item."""
    field = rejected["field"]
    found = {**rejected, "field": f"/body{field}" if field.startswith("/") else field}
    return found | ({"errors": [_below_body(one) for one in rejected["errors"]]} if "errors" in rejected else {})


def _items(given: Any) -> list[Any]:
    body = requests.an_object(given)
    for name in body:
        if name != "items":
            raise Rejected("invalid", pointer("", name), body[name], "no such field")
    items = body.get("items")
    if not isinstance(items, list):
        raise Rejected("missing" if items is None else "wrong_type", "/items", items, f"a list of at most {MOST_ITEMS} items")
    if len(items) > MOST_ITEMS:
        raise Rejected("too_long", "/items", f"{len(items)} items", f"at most {MOST_ITEMS}")
    return items


def _in_body(error: Rejected) -> Rejected:
    return Rejected(error.code, f"/body{error.field}", error.got, error.expected)


def _text(item: Any, name: str) -> str | None:
    value = item.get(name) if isinstance(item, Mapping) else None
    return value if isinstance(value, str) else None

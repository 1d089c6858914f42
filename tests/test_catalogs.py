"""Catalogs: agents get the org's whole set of a kind, whatever of it is kept, sent again, or went past another relay."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from cmis_stream import catalogs
from cmis_stream.catalogs import Catalogs
from cmis_stream.log.catalog import Catalog
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kind, Kinds, Manifest

ADA = Actor("ada")


class Switch(BaseModel):
    model_config = ConfigDict(extra="forbid")
    on: bool = True
    level: int = 0


def kinds() -> Kinds:
    def catalog(document: Any) -> Any:
        return {"id": document.id, "made": document.created_at, **document.body} if document.body["on"] else None

    return Kinds([Manifest("m", (Kind("switch", Switch, plural="switches", catalog=catalog), Kind("lamp", Switch)))])


@pytest.mark.parametrize("held", [0, catalogs.MOST_HELD], ids=["nothing kept", "kept"])
@pytest.mark.parametrize("seed", range(6))
def test_every_set_is_what_the_store_holds_when_all_its_changes_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, seed: int
) -> None:
    monkeypatch.setattr(catalogs, "MOST_HELD", held)
    dice = random.Random(seed)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    try:
        now = iter(range(1_000, 10**9))
        documents, changes = Documents(database, kinds(), lambda: next(now)), Changes(database)
        published: dict[str, Catalog] = {}

        def publish(catalog: Catalog) -> None:
            before = published.get(catalog.org)
            assert before is None or before.version < catalog.version
            published[catalog.org] = catalog

        relays = [Catalogs(kinds(), documents, database, publish, lambda: 7) for _ in range(2)]
        sent = dict.fromkeys(("acme", "other"), 0)
        ids: list[tuple[str, str, str]] = []
        for _ in range(120):
            org, kind = dice.choice(tuple(sent)), dice.choice(("switch", "switch", "lamp"))
            mine = [one for one in ids if one[:2] == (org, kind)]
            if not mine or dice.random() < 0.4:
                made = documents.execute(org, ADA, Command("create", kind, None, {"level": dice.randrange(9)}))
                assert made.document is not None
                ids.append((org, kind, made.document.id))
            else:
                *_, identity = dice.choice(mine)
                there = documents.get(org, ADA, kind, identity) is not None
                name = dice.choice(("patch", "patch", "delete")) if there else "restore"
                body = {"on": dice.random() < 0.7, "level": dice.randrange(9)} if name == "patch" else {}
                documents.execute(org, ADA, Command(name, kind, identity, body))
            if dice.random() < 0.5:
                continue  # several changes are sent together
            for of in sent:
                # Some are sent again, as after a kill; now and then it is another process that relays.
                batch = changes.after(of, max(0, sent[of] - dice.choice((0, 0, 1, 3))), 1_000)
                if batch:
                    relays[dice.random() < 0.3].send(of, batch)
                    sent[of] = batch[-1].seq
                switches = documents.everything(of, ADA, "switch")
                wanted = [{"id": one.id, "made": one.created_at, **one.body} for one in switches if one.body["on"]]
                if of in published:
                    assert published[of].items == wanted
        assert len(published) == 2 and len(ids) > 20
    finally:
        database.close()

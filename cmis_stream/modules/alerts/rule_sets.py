"""Rules as version 0.3 kept them (SQLite, table `rule_sets`) become documents, once."""

from __future__ import annotations

import orjson
from sqlalchemy import column, inspect, select, table, text

from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor
from cmis_stream.store.documents import Documents

from .rule_file import apply_rules, rule_documents

_table = table("rule_sets", column("org"), column("evaluate"), column("rules"))


def take_over(database: Database, documents: Documents, set_name: str) -> list[str]:
    """Blocks. Sentences about rules that could not be; a kill in between and the next start goes on. set_name: of `applying`."""
    with database.transaction(None) as tx:
        if not inspect(tx.connection).has_table(_table.name):
            return []
        rows = tx.rows(select(_table.c.org, _table.c.evaluate, _table.c.rules).order_by(_table.c.org))
    errors = list[str]()
    for org, evaluate, rules in rows:
        read = rule_documents(orjson.loads(rules), evaluate=evaluate, file="rule_sets")
        done = apply_rules(documents, org, read.wanted.get(org, ()), set_name, Actor(set_name, sees_private=True))
        errors += [*read.errors, *(f"rule_sets: {org}: {error}" for error in done.errors)]
    with database.transaction(None, writes=True) as tx:
        tx.run(text("drop table rule_sets"))
    return errors

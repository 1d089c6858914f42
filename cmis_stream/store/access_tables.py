"""The tables of access: orgs, their API tokens, browser sessions and the codes that open them.

Orgs, sessions and codes belong to the installation (a session opens several orgs, or all), so they have no org_id and no row
security; on PostgreSQL the application may change of them only what it has to: a session's `last_seen` and `revoked_at`, a
code's `used_at`.

A token is its org's: row security as everywhere, which is how tokens are made, listed, revoked and noted as used. But who
verifies a token, or asks what many of them open, learns their orgs only thereby. So a transaction may name ids as credentials
(`named`): a second policy, for SELECT only, shows it the token rows with these ids, whosever they are. An id is 48 random bits
that only whoever was given the token knows; nothing lists the ids of other orgs, and what a transaction has named ends with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    MetaData,
    Table,
    any_,
    cast,
    func,
    select,
)

from .database import Transaction
from .tables import TEXT, WHOLE

metadata = MetaData()
CREDENTIALS = "cmis.credentials"

orgs = Table(
    "orgs",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("slug", TEXT, nullable=False, unique=True),
    Column("name", TEXT, nullable=False),
    Column("created_at", WHOLE, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("org_id", TEXT, ForeignKey("orgs.id"), CheckConstraint("org_id <> ''"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("scopes", TEXT, nullable=False),  # separated by spaces
    Column("secret_sha256", TEXT, nullable=False),
    Column("created_at", WHOLE, nullable=False),
    Column("expires_at", WHOLE),
    Column("revoked_at", WHOLE),
    Column("last_used", WHOLE),
)
Index("tokens_of_org", tokens.c.org_id, tokens.c.created_at)

sign_in_codes = Table(
    "sign_in_codes",
    metadata,
    Column("code_sha256", TEXT, primary_key=True),
    Column("orgs", TEXT),  # ids separated by spaces, which no id contains; null: all
    Column("role", TEXT, nullable=False),
    Column("created_at", WHOLE, nullable=False),
    Column("expires_at", WHOLE, nullable=False),
    Column("used_at", WHOLE),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("text_sha256", TEXT, nullable=False, unique=True),
    Column("orgs", TEXT),  # as above
    Column("role", TEXT, nullable=False),
    Column("created_at", WHOLE, nullable=False),
    Column("last_seen", WHOLE, nullable=False),
    Column("expires_at", WHOLE, nullable=False),
    Column("revoked_at", WHOLE),
)


def named(tx: Transaction, ids: Collection[str]) -> Callable[[Column[str]], ColumnElement[bool]]:
    """Names these ids as credentials until the end of the transaction; answers the condition that a column is one of them.

    What cannot be an id (letters and digits of ASCII) is left out. One value however many they are: as parameters of their own
    10,000 ids would take longer to be sent than to be looked up.
    """
    sane = [one for one in ids if one.isascii() and one.isalnum()]
    if tx.connection.dialect.name != "postgresql":
        listed = select(func.json_each(json.dumps(sane)).table_valued("value").c.value)
        return lambda column: column.in_(listed)
    tx.run(select(func.set_config(CREDENTIALS, ",".join(sane), True)))
    # As an array they are looked up in an index; rows of a subquery would be joined, by a plan for a few of them.
    array = cast(select(func.string_to_array(func.current_setting(CREDENTIALS, True), ",")).scalar_subquery(), ARRAY(TEXT))
    return lambda column: column == any_(array)

"""The commands about who may do what: orgs, tokens, sign-in links, sessions. They work beside a running instance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmis_stream.core.errors import ConfigError, Rejected

if TYPE_CHECKING:
    from cmis_stream.store.database import Database
    from cmis_stream.store.sessions import SessionStore
    from cmis_stream.store.tokens import TokenStore

DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("cmis-data"), envvar="CMIS_DATA_DIR",
    show_default=True, help="Where the log, the state and the tokens are kept.",
)  # fmt: skip
STORE = click.option(
    "--store", "store_url", envvar="CMIS_STORE", metavar="URL",
    help="postgresql://cmis_app@HOST/NAME; default: SQLite in --data-dir.",
)  # fmt: skip


@contextmanager
def opened_database(data_dir: Path, store_url: str | None) -> Iterator[Database]:
    """The store that these two options mean; on SQLite it is made if it is not there. ConfigError or Unavailable."""
    from cmis_stream.store.database import Database

    if store_url is None:
        data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(store_url or f"sqlite:///{(data_dir / 'store.db').absolute()}")
    try:
        if database.oversees:
            raise ConfigError("--store: expected a URL of cmis_app, got one of cmis_relay")
        yield database
    finally:
        database.close()


@contextmanager
def _tokens(data_dir: Path, store_url: str | None) -> Iterator[TokenStore]:
    from cmis_stream.store.tokens import TokenStore

    with opened_database(data_dir, store_url) as database, closing(TokenStore(database)) as tokens:
        yield tokens


@click.group()
def org() -> None:
    """Orgs (tenants): they never see each other."""


@org.command("create")
@click.argument("slug")
@click.option("--name", help="For people; default: the slug.")
@DATA_DIR
@STORE
def create_org(slug: str, name: str | None, data_dir: Path, store_url: str | None) -> None:
    """Create the org SLUG (lower-case letters, digits, - and _)."""
    with _tokens(data_dir, store_url) as store:
        created = store.create_org(slug, name or slug)
    click.echo(f"Created {created.id}.")


@org.command("list")
@DATA_DIR
@STORE
def list_orgs(data_dir: Path, store_url: str | None) -> None:
    """The orgs of this installation."""
    with _tokens(data_dir, store_url) as store:
        for one in store.orgs():
            click.echo(f"{one.id}\t{one.name}")


@click.group()
def token() -> None:
    """API tokens: of one org, with scopes, shown once and stored hashed."""


@token.command("create")
@click.argument("org_id", metavar="ORG")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("ingest",),
    show_default=True,
    help="ingest, read, write, admin; repeat for several.",
)
@click.option("--days", type=float, default=90, show_default=True, help="Until it expires; 0: never.")
@click.option("--name", default="", help="What it is for.")
@DATA_DIR
@STORE
def create_token(org_id: str, scopes: tuple[str, ...], days: float, name: str, data_dir: Path, store_url: str | None) -> None:
    """Create a token of ORG and print it, this once."""
    from cmis_stream.core.time import DAY_MS

    expires = int(time.time() * 1000 + days * DAY_MS) if days else None
    with _tokens(data_dir, store_url) as store:
        try:
            created, text = store.create(org_id, scopes, expires, name)
        except Rejected as error:
            hint = f"; create it with `cmis org create {org_id}`" if error.field == "org" else ""
            raise ConfigError(f"{error}{hint}") from None
    click.echo(f"Token {created.id} of {created.org}, shown this once:", err=True)
    click.echo(text)


@token.command("list")
@click.argument("org_id", metavar="ORG")
@DATA_DIR
@STORE
def list_tokens(org_id: str, data_dir: Path, store_url: str | None) -> None:
    """The tokens of ORG, without their secrets."""
    from cmis_stream.core.time import rfc3339

    with _tokens(data_dir, store_url) as store:
        found = store.list(org_id)
    for one in found:
        until = "revoked" if one.revoked_at_ms else f"until {rfc3339(one.expires_at_ms)}" if one.expires_at_ms else "no expiry"
        used = rfc3339(one.last_used_ms) if one.last_used_ms else "never used"
        click.echo(f"{one.id}\t{','.join(sorted(one.scopes))}\t{until}\t{used}\t{one.name}")


@token.command("revoke")
@click.argument("token_id")
@DATA_DIR
@STORE
def revoke_token(token_id: str, data_dir: Path, store_url: str | None) -> None:
    """Revoke a token by its id; it stops working within a second."""
    with _tokens(data_dir, store_url) as store:
        if not store.revoke(token_id):
            raise ConfigError(f"there is no token {token_id} that is not revoked already")
    click.echo(f"Revoked {token_id}.")


@click.command("sign-in")
@click.option("--org", "orgs", multiple=True, help="An org that the link opens; repeat for several. Default: all of them.")
@DATA_DIR
@STORE
def sign_in(orgs: tuple[str, ...], data_dir: Path, store_url: str | None) -> None:
    """Print a one-time link to the page of the instance that runs on --data-dir."""
    from cmis_stream.instance import running_url, sign_in_link

    url = running_url(data_dir)
    if url is None:
        raise ConfigError(f"no instance is running on {data_dir}; start one with `cmis up`")
    with _sessions(data_dir, store_url) as store:
        code = store.make_code(orgs or None)
    click.echo("This link opens the page once, within 15 minutes:", err=True)
    click.echo(sign_in_link(url, code))


@contextmanager
def _sessions(data_dir: Path, store_url: str | None) -> Iterator[SessionStore]:
    from cmis_stream.store.sessions import SessionStore
    from cmis_stream.store.tokens import TokenStore

    with (
        opened_database(data_dir, store_url) as database,
        closing(TokenStore(database)) as tokens,
        closing(SessionStore(database, tokens)) as store,
    ):
        yield store


@click.group()
def session() -> None:
    """Sessions of browsers, opened with the links of `cmis up` and `cmis sign-in`."""


@session.command("list")
@DATA_DIR
@STORE
def list_sessions(data_dir: Path, store_url: str | None) -> None:
    """The sessions of this installation, those that ended lately included."""
    from cmis_stream.core.time import rfc3339

    with _sessions(data_dir, store_url) as store:
        for one in store.list():
            until = "revoked" if one.revoked_at_ms else f"until {rfc3339(one.expires_at_ms)}"
            orgs = "all orgs" if one.orgs is None else ",".join(sorted(one.orgs))
            click.echo(f"{one.id}\t{orgs}\t{one.role}\t{until}\tseen {rfc3339(one.last_seen_ms)}")


@session.command("revoke")
@click.argument("session_id")
@DATA_DIR
@STORE
def revoke_session(session_id: str, data_dir: Path, store_url: str | None) -> None:
    """Revoke a session by its id; it is signed out within a second."""
    with _sessions(data_dir, store_url) as store:
        if not store.revoke(session_id):
            raise ConfigError(f"there is no session {session_id} that is not revoked already")
    click.echo(f"Revoked {session_id}.")

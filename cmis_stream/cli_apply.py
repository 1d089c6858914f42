"""The command `cmis apply`: documents of an org become what a file says."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmis_stream.cli_access import DATA_DIR, STORE, opened_database
from cmis_stream.core.errors import CmisError, ConfigError, Rejected

if TYPE_CHECKING:
    from cmis_stream.documents_client import DocumentsClient
    from cmis_stream.modules.applying import Existing, Step, Wanted
    from cmis_stream.modules.applying_steps import Done
    from cmis_stream.store.kinds import Kinds

WOULD_CHANGE = 2
_LONGEST_VALUE = 200


class _Apply(click.Command):
    """2 says that a plan has changes, so wrong options say 1 here."""

    def make_context(self, *args: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*args, **named)
        except click.UsageError as error:
            error.exit_code = 1
            raise


@click.command(cls=_Apply)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--org", help="Whose documents; default: the org that the file names.")
@click.option("--set", "set_name", help="Name of what this file manages; default: the file's `set`, or its name without suffix.")
@click.option("--prune", is_flag=True, help="Delete what an earlier apply of the set made and the file no longer has.")
@click.option("--plan", "only_plan", is_flag=True, help="Only show what would change; exits with 2 when something would.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--url", help="The instance; default: the one running on --data-dir.")
@click.option(
    "--token", envvar="CMIS_TOKEN", help="With scopes read and write; default: one is made, if --data-dir is of this machine."
)
@DATA_DIR
@STORE
@click.pass_context
def apply(
    ctx: click.Context,
    file: Path,
    org: str | None,
    set_name: str | None,
    prune: bool,
    only_plan: bool,
    yes: bool,
    url: str | None,
    token: str | None,
    data_dir: Path,
    store_url: str | None,
) -> None:
    """Make documents be as FILE (YAML or JSON) says: shows the plan, asks, then creates, changes and, with --prune, deletes.

    Nothing is changed when the file is wrong. Exits with 0 when all is as the file says, with 1 on errors, with 2 from --plan
    when something would change.
    """
    from cmis_stream.documents_client import DocumentsClient
    from cmis_stream.modules.applying import Conflict, Same
    from cmis_stream.modules.applying_steps import carry_out
    from cmis_stream.modules.discovery import all_kinds

    kinds = all_kinds()
    org, set_name, wanted = _read(file, kinds, org, set_name)
    address = url or _running(data_dir)
    with _token(token, org, data_dir, store_url) as secret, DocumentsClient(address, org, secret, kinds) as client:
        steps = _planned(client, kinds, wanted, set_name, prune)
        _show(steps, kinds, org, set_name)
        if any(isinstance(step, Conflict) for step in steps):
            raise ConfigError("nothing was changed: the file cannot be applied as it is")
        changes = any(not isinstance(step, Same) for step in steps)
        if only_plan:
            ctx.exit(WOULD_CHANGE if changes else 0)
        if changes:
            _ask(yes)
            _report(ctx, carry_out(steps, client.bulk))


def _running(data_dir: Path) -> str:
    from cmis_stream.instance import running_url

    url = running_url(data_dir)
    if url is None:
        raise ConfigError(f"no instance is running on {data_dir}; start one with `cmis up`, or name it with --url")
    return url


def _read(file: Path, kinds: Kinds, org: str | None, name: str | None) -> tuple[str, str, list[Wanted]]:
    from cmis_stream.modules import apply_file

    if not file.exists():
        raise ConfigError(f"{file}: there is no such file")
    found = apply_file.read_file(file, kinds)
    if org is not None and found.org not in (None, org):
        raise ConfigError(f"{file.name}: org: expected {org!r}, as --org says, got {found.org!r}")
    owner = org or found.org
    if owner is None:
        raise ConfigError(f"{file.name}: expected an org, in the file or as --org")
    try:
        return owner, apply_file.set_name(name or found.set_name or file.stem), found.wanted
    except Rejected as error:
        raise ConfigError(f"--{error}") from None


@contextmanager
def _token(given: str | None, org: str, data_dir: Path, store_url: str | None) -> Iterator[str]:
    """The one given, or one of the installation's own store for as long as this takes: who can write there needs no proof."""
    from cmis_stream.core.time import HOUR_MS
    from cmis_stream.store.tokens import TokenStore

    if given:
        yield given
        return
    if store_url is None and not (data_dir / "store.db").exists():
        raise ConfigError(f"{data_dir} is not an installation on this machine; give a token with --token")
    with opened_database(data_dir, store_url) as database, closing(TokenStore(database)) as tokens:
        if tokens.org(org) is None:
            raise ConfigError(f"the org {org!r} is not known; create it with `cmis org create {org}`")
        expires = time.time_ns() // 1_000_000 + HOUR_MS
        made, text = tokens.create(org, ["read", "write", "admin"], expires, "cmis apply")
        try:
            yield text
        finally:
            tokens.revoke(made.id)


def _planned(client: DocumentsClient, kinds: Kinds, wanted: Sequence[Wanted], set_name: str, prune: bool) -> list[Step]:
    import secrets

    from cmis_stream.core.ids import fact_id
    from cmis_stream.modules.applying import plan

    def new_id() -> str:
        return fact_id(time.time_ns() // 1_000_000, secrets.token_hex(16))

    return plan(kinds, wanted, _existing(client, kinds, wanted, prune), set_name, new_id=new_id, prune=prune)


def _existing(client: DocumentsClient, kinds: Kinds, wanted: Sequence[Wanted], prune: bool) -> list[Existing]:
    """Of all kinds that a plan looks at."""
    from cmis_stream.documents_client import Refused

    named = {one.kind for one in wanted}
    needed = named | {ref.target for name in named for ref in kinds[name].refs.values()}
    found: list[Existing] = []
    for name in sorted(kinds if prune else needed):
        try:
            found += client.documents(name)
        except Refused as error:
            if name in needed or error.status not in (403, 404):
                raise
            click.echo(f"{name}: nothing of this kind is pruned: {error}", err=True)
    there = {one.id for one in found}
    for name in sorted({one.kind for one in wanted if one.id is not None and one.id not in there}):
        found += client.documents(name, deleted=True)  # an id is never given again: what was deleted comes back
    return found


def _show(steps: Sequence[Step], kinds: Kinds, org: str, set_name: str) -> None:
    from cmis_stream.modules.applying import Change, Conflict, Create, Remove, Same

    for step in steps:
        match step:
            case Create():
                click.secho(f"+ {_name(step)}", fg="green")
            case Change():
                click.secho(f"~ {_name(step)}{' (was deleted, comes back)' if step.restored else ''}", fg="yellow")
                for field, before, after in step.fields:
                    click.echo(f"    {_printable(field)}: {_value(before)} → {_value(after)}")
            case Remove():
                click.secho(f"- {_name(step)}", fg="red")
            case Conflict():
                click.secho(f"! {_name(step)}: {_printable(str(step.error))}", fg="red", err=True)
            case Same():
                pass
    counted = Counter(type(step) for step in steps)
    going = {step.kind for step in steps if isinstance(step, Remove)}
    for kind in sorted(going):
        pointing = [f"{other.name}.{field}" for other, field, ref in kinds.pointing_at(kind) if ref.on_delete == "cascade"]
        if pointing:
            click.echo(f"With a {kind} goes what points at it: {', '.join(pointing)}.")
    click.echo(f"= {counted[Same]:,} unchanged")
    what = f"{counted[Create]:,} to create, {counted[Change]:,} to change, {counted[Remove]:,} to delete"
    click.echo(f"{org}, set {set_name}: {what}.")


def _ask(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nothing was changed: there is no terminal to ask on; say --yes to apply the plan")
    if not click.confirm("Apply this?"):
        raise ConfigError("nothing was changed")


def _report(ctx: click.Context, done: Iterable[Done]) -> None:
    from cmis_stream.modules.applying import Change, Create, Remove

    count = Counter[type]()
    failed = 0

    def so_far() -> str:
        return f"{count[Create]:,} created, {count[Change]:,} changed, {count[Remove]:,} deleted"

    try:
        for step, problem in done:
            if problem is None:
                count[type(step)] += 1
            else:
                failed += 1
                place = getattr(step, "place", "")
                click.echo(f"{_name(step)}{f' ({place})' if place else ''}: {_printable(problem)}", err=True)
    except CmisError:
        click.echo(f"Stopped: {so_far()}; what was sent last may be done, too. Apply it again to go on.", err=True)
        raise
    click.echo(f"{so_far()}, {failed:,} failed." if failed else f"{so_far()}.")
    if failed:
        ctx.exit(1)


def _name(step: Step) -> str:
    return f"{step.kind} {_printable(step.key)}"


def _value(value: Any) -> str:
    text = "nothing" if value is ... else _printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _printable(text: str) -> str:
    """What others have written moves no cursor and colours nothing."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)

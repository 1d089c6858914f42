"""`cmis status`: what a person on call wants to know first. Healthy or not, how far behind, who is slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmis_stream.cli_access import DATA_DIR
from cmis_stream.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

ASKED_FOR_S = 10.0
PARTITIONS_SHOWN = 5


@click.command()
@DATA_DIR
@click.option("--url", "urls", multiple=True, help="Of a process of any role; repeat for several. Default: that of --data-dir.")
@click.option(
    "--token", envvar="CMIS_PEER_TOKEN", help="A peer token; default: made with CMIS_GATEWAY_KEY or the key in --data-dir."
)
@click.option("--json", "as_json", is_flag=True, help="The documents as they come, one a line.")
def status(data_dir: Path, urls: tuple[str, ...], token: str | None, as_json: bool) -> None:
    """Tell whether processes are healthy, how far behind they are, and who is slow.

    Ends with 0 when all are healthy, 1 when one is not, or does not answer.
    """
    import orjson
    from rich.console import Console
    from rich.text import Text

    from cmis_stream.instance import running_url

    asked = list(urls)
    if not asked:
        found = running_url(data_dir)
        if found is None:
            raise ConfigError(f"no instance is running on {data_dir}; start one with `cmis up`, or name a process with --url")
        asked = [found]
    given = token or _own_token(data_dir)
    told = [_ask(url.rstrip("/"), given) for url in asked]
    if as_json:
        for document in told:
            click.echo(orjson.dumps(document))
    else:
        console = Console(highlight=False)
        for document in told:
            for part in shown(document):
                console.print(part, soft_wrap=isinstance(part, Text))  # a sentence stays one line, however narrow it is
    if not all(document["healthy"] for document in told):
        raise SystemExit(1)


def _own_token(data_dir: Path) -> str | None:
    """Who may read the installation's key may ask its processes."""
    import os
    import time

    from cmis_stream.store.signing import OPERATOR, PeerTokens, gateway_key

    given, path = os.environ.get("CMIS_GATEWAY_KEY"), data_dir / "gateway.key"
    if given is None and not path.exists():
        return None
    return PeerTokens(gateway_key(given, path)).issue(OPERATOR, time.time_ns() // 1_000_000)


def _ask(url: str, token: str | None) -> dict[str, Any]:
    """The process's status; one that does not answer has one, too."""
    import httpx

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{url}/status", headers=headers, timeout=ASKED_FOR_S, trust_env=False)
        document = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return _unknown(url, "no_answer", f"{url} does not answer: {error or type(error).__name__}")
    if answer.status_code != httpx.codes.OK or "healthy" not in document:
        return _unknown(url, "refused", f"{url} answered {answer.status_code}: {document.get('detail', 'no status')}")
    return {"url": url, **document}


def _unknown(url: str, code: str, detail: str) -> dict[str, Any]:
    return {"url": url, "healthy": False, "ready": False, "problems": [{"code": code, "detail": detail}]}


def shown(document: dict[str, Any]) -> list[RenderableType]:
    """For a terminal: the verdict first, then what stands behind it."""
    from rich.text import Text

    role = document.get("role", "unknown")
    verdict = Text("HEALTHY", "bold green") if document["healthy"] else Text("NOT HEALTHY", "bold red")
    head = Text.assemble(verdict, f"  {role} at {document['url']}")
    if "uptime_s" in document:
        head.append(f", version {document['version']}, up {_duration(document['uptime_s'])}")
        head.append("" if document["ready"] else ", not ready")
    parts: list[RenderableType] = [head]
    parts += [Text(f"  ! {problem['detail']}", "red") for problem in document["problems"]]
    if "uptime_s" in document:
        parts += [Text(f"  {line}") for line in _lines(document)]
        parts += _tables(document)
    return parts


def _lines(document: dict[str, Any]) -> list[str]:
    lag, memory = document["lag"], document["memory"]
    of = "the group is" if lag["of"] == "group" else "this process is"
    lines = []
    if document["log"] is not None:
        slowest = lag["slowest"]
        where = "" if not lag["records"] else f", most in {slowest['topic']}, partition {slowest['partition']}"
        lines.append(f"Behind: {of} {_duration(lag['seconds'])} behind, {lag['records']:,} records wait{where}")
    resident, limit = memory["resident_bytes"], memory["limit_bytes"]
    if resident is not None:
        lines.append(f"Memory: {resident / 1e6:,.0f} MB" + (f" of {limit / 1e6:,.0f} MB" if limit else ""))
    lines.append(f"Event loop: at most {document['event_loop']['max_lag_s'] * 1000:,.0f} ms late within a minute")
    if (store := document["store"]) is not None:
        lines.append(f"Store: {store['url']} {'can be written' if store['writable'] else 'cannot be written'}")
    if (backplane := document["backplane"]) is not None:
        state = "answers" if backplane["connected"] else "does not answer"
        lines.append(f"Backplane: {backplane['kind']} {state}, {backplane['reconnects']} reconnects")
    if (gateway := document["gateway"]) is not None:
        lines.append(f"Gateway: {gateway['connections']:,} connections, {gateway['queue_bytes'] / 1e3:,.0f} kB wait for them")
    if (packer := document["packer"]) is not None:
        lines.append(f"Ingest: {packer['waiting_events']:,} events wait to become durable")
    if letters := document["dead_letters"]:
        lines.append("Dead letters: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(letters.items())))
    return lines


def _tables(document: dict[str, Any]) -> list[RenderableType]:
    held = document["partitions"]
    by_lag = sorted(held, key=lambda p: (p["lag_seconds"] or 0, p["checkpoint_age_s"]), reverse=True)
    tables: list[RenderableType] = []
    if held:
        rows = [
            [
                str(p["partition"]), _number(p["lag_records"]), _duration(p["lag_seconds"]), _number(p["unacked"]),
                _duration(p["checkpoint_age_s"]), _duration(p["slowest_org"] and p["slowest_org"]["watermark_lag_s"]),
                p["slowest_org"]["org"] if p["slowest_org"] else "–",
            ]
            for p in by_lag[:PARTITIONS_SHOWN]
        ]  # fmt: skip
        names = ("Partition", "Waiting", "Behind", "Unacked", "Checkpoint", "Final", "Slowest org")
        tables.append(_table(f"Partitions, the slowest of {len(held)}", names, rows))
    if document["busiest_orgs"]:
        rows = [[one["org"], _number(one["events"]), str(one["partition"])] for one in document["busiest_orgs"]]
        tables.append(_table("Orgs with the most events in a minute", ("Org", "Events", "Partition"), rows))
    if document["slowest_clients"]:
        rows = [
            [one["client"], ", ".join(one["orgs"]), _number(one["queue_bytes"]), _number(one["conflated_items"])]
            for one in document["slowest_clients"]
        ]
        tables.append(_table("Clients that read slowest", ("Client", "Orgs", "Bytes waiting", "Items waiting"), rows))
    return tables


def _table(title: str, names: tuple[str, ...], rows: list[list[str]]) -> RenderableType:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name in ("Org", "Orgs", "Client", "Slowest org") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _duration(seconds: float | None) -> str:
    """
    >>> [_duration(s) for s in (None, 0.0, 0.25, 75, 7300, 200_000)]
    ['–', '0 s', '0.2 s', '75 s', '2 h 1 min', '2 d 7 h']
    """
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"

"""The terminal view of a running instance: the main figures per org and platform, and the alerts as they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cmis_stream.core.batch import MICROS
from cmis_stream.core.metrics import CLICKS, CONVERSIONS, EVENTS, IMPRESSIONS, REVENUE, SPEND
from cmis_stream.core.time import WINDOWS
from cmis_stream.instance import Instance

REFRESH_S = 0.5
PLAIN_EVERY_S = 10.0
ALERTS_SHOWN = 8
_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan"}


def figures(instance: Instance, window: str = "5m") -> Iterator[tuple[str, str, dict[str, float | None]]]:
    """(org, platform or "" for all, figures) over a live window; money in the entity's currency."""
    rows = []
    for owner in instance.owners:
        entities, windows = owner.engine.entities, owner.engine.windows
        numbers = np.flatnonzero(entities.entity_level[: len(entities)] <= 1)
        numbers = numbers[numbers > 0]
        view = windows.live
        for number, sums in zip(numbers.tolist(), view.sums(WINDOWS[window], numbers).T.tolist(), strict=True):
            entity = entities.entity(number)
            if not entity.custom and sums[EVENTS]:
                rows.append((entity.org, entity.platform, _figures(sums)))
    yield from sorted(rows, key=lambda row: row[:2])


def _figures(sums: list[int]) -> dict[str, float | None]:
    def ratio(a: float, b: float) -> float | None:
        return a / b if b else None

    return {
        "events": sums[EVENTS],
        "impressions": sums[IMPRESSIONS],
        "clicks": sums[CLICKS],
        "spend": sums[SPEND] / MICROS,
        "conversions": sums[CONVERSIONS] / MICROS,
        "ctr": ratio(sums[CLICKS], sums[IMPRESSIONS]),
        "cpc": ratio(sums[SPEND] / MICROS, sums[CLICKS]),
        "roas": ratio(sums[REVENUE], sums[SPEND]),
    }


class View:
    """Redraws twice a second on a terminal; elsewhere (a log, a pipe) it prints a line now and then, and each alert."""

    def __init__(self, instance: Instance, console: Console) -> None:
        self._instance, self._console = instance, console
        self._alerts: deque[dict[str, Any]] = deque(maxlen=ALERTS_SHOWN)
        self._firing: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._events_before = self._events()
        instance.runtime.on_transitions.append(self._heard)

    async def run(self) -> None:
        if not self._console.is_terminal:
            await self._run_plain()
        with Live(console=self._console, auto_refresh=False, screen=False) as live:
            while True:
                live.update(self._drawn(), refresh=True)
                await asyncio.sleep(REFRESH_S)

    async def _run_plain(self) -> None:
        while True:
            await asyncio.sleep(PLAIN_EVERY_S)
            orgs = [(org, f) for org, platform, f in figures(self._instance) if not platform]
            for org, f in orgs:
                self._console.print(
                    f"{org}: last 5 min: {f['events']:,.0f} events, spend {f['spend']:,.2f}, ctr {_percent(f['ctr'])}, "
                    f"roas {_number(f['roas'])}, {sum(1 for key in self._firing if key[0] == org)} firing",
                    highlight=False,
                )

    def _heard(self, transitions: list[dict[str, Any]]) -> None:
        for line in transitions:
            key = (line["org"], line["rule"], line["level"], line["platform"], line["campaign"], line["ad_set"], line["ad"])
            if line["state"] == "firing":
                self._firing[key] = line
            else:
                self._firing.pop(key, None)
            self._alerts.appendleft(line)
            if not self._console.is_terminal:
                self._console.print(_sentence(line))

    def _events(self) -> int:
        return sum(owner.engine.events for owner in self._instance.owners)

    def _drawn(self) -> Group:
        now = self._events()
        rate, self._events_before = (now - self._events_before) / REFRESH_S, now
        table = Table(title="Last 5 minutes", title_justify="left", expand=False)
        for name in ("Org", "Platform", "Events", "Impressions", "Clicks", "Spend", "Conv.", "CTR", "CPC", "ROAS"):
            table.add_column(name, justify="left" if name in ("Org", "Platform") else "right", no_wrap=True)
        for org, platform, f in figures(self._instance):
            table.add_row(
                org if not platform else "", platform or "all", f"{f['events']:,.0f}", f"{f['impressions']:,.0f}",
                f"{f['clicks']:,.0f}", f"{f['spend']:,.2f}", f"{f['conversions']:,.0f}", _percent(f["ctr"]),
                _number(f["cpc"]), _number(f["roas"]), style=None if platform else "bold",
            )  # fmt: skip
        head = Text(f"{self._instance.url}   {rate:,.0f} events/s   {now:,} events   {len(self._firing)} firing   Ctrl-C stops")
        errors = [Text(error, style="red") for error in self._instance.rule_errors[:5]]
        alerts = [_sentence(line) for line in self._alerts] or [Text("No alerts yet.", style="dim")]
        return Group(head, table, Text("Alerts", style="italic"), *alerts, *errors)


def _sentence(line: dict[str, Any]) -> Text:
    at = datetime.fromtimestamp(line["at"] / 1000).astimezone().strftime("%H:%M:%S")
    entity = line["ad"] or line["ad_set"] or line["campaign"] or line["platform"] or line["org"]
    sign = "▲ FIRING  " if line["state"] == "firing" else "▽ resolved"
    value = "" if line["value"] is None else f" at {line['value']:.4g} over {line['window']}"
    style = _STYLES.get(line["severity"], "") if line["state"] == "firing" else "green"
    return Text(f"{at}  {sign}  {line['severity']:<8}  {line['rule']}: {line['org']} / {entity}{value}", style=style)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"

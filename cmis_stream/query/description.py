"""What each dataset has to offer: measures, dimensions and filters with types and units, for pages; schemas of bodies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, get_args

from pydantic import BaseModel

from cmis_stream.core.metrics import CUSTOM_PREFIX
from cmis_stream.query.calendar import CALENDAR, FIXED
from cmis_stream.query.model import MEASURES, HistoryQuery, PanesQuery
from cmis_stream.query.panes import STEPS

Description = dict[str, Any]


def described(
    name: str, title: str, measures: Iterable[dict[str, Any]], dimensions: Iterable[dict[str, Any]],
    filters: Iterable[dict[str, Any]], steps: Iterable[str], *, prefix: str | None = None, from_: bool,
) -> Description:  # fmt: skip
    """prefix: of further measures. from_: whether a query has to say from when."""
    return {
        "name": name, "title": title, "measures": list(measures), "dimensions": list(dimensions), "filters": list(filters),
        "steps": list(steps), "measure_prefix": prefix, "from_required": from_,
    }  # fmt: skip


def _figures(name: str, title: str, model: type[BaseModel], steps: Iterable[str]) -> Description:
    """What panes and history have alike: figures of campaigns."""
    names = get_args(get_args(model.model_fields["dimensions"].annotation)[0])
    parts = [one for one in names if one != "time"]
    return described(
        name, title,
        ({"name": one, "type": "integer" if unit in ("count", "micros") else "number", "unit": unit}
         for one, unit in MEASURES.items()),
        ({"name": one, "type": "time" if one == "time" else "string", "unit": None} for one in names),
        ({"name": one, "type": "string", "unit": None, "operators": ["eq", "in"]} for one in parts),
        steps, prefix=CUSTOM_PREFIX, from_=True,
    )  # fmt: skip


DESCRIBED: Final = {
    "panes": _figures("panes", "Figures of the last week, up to now", PanesQuery, STEPS),
    "history": _figures("history", "Figures as far back as they are kept", HistoryQuery, (*FIXED, *CALENDAR)),
}
SCHEMAS: Final = {"panes": PanesQuery.model_json_schema(), "history": HistoryQuery.model_json_schema()}

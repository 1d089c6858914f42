"""How incidents may be listed."""

from __future__ import annotations

from cmis_stream.core.rules import SEVERITIES
from cmis_stream.modules.alerts.incidents import FIRING, KIND, RESOLVED
from cmis_stream.store.facts import Listing

_RANKS = " ".join(f"when '{name}' then {rank}" for rank, name in enumerate(SEVERITIES))

HISTORY = Listing(
    KIND,
    filters=frozenset({"state", "severity", "rule", "level", "platform", "campaign", "key"}),
    sorts={"started_at": "id", "severity": f"case json_extract(doc, '$.severity') {_RANKS} else {len(SEVERITIES)} end"},
)
VOCABULARIES = {"state": (FIRING, RESOLVED), "severity": SEVERITIES}
"""Filters that take only these values."""

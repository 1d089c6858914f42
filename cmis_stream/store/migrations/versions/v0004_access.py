"""Orgs, tokens, sessions and sign-in codes."""

from __future__ import annotations

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """See the helper that fills this in."""

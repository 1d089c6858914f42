"""Alerts. For now: rules from a file."""

"""Alerts: rules, from a file too, and incidents."""

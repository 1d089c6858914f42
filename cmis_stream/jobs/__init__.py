"""Runs jobs in child processes. What is kept of them: `store/jobs.py`."""

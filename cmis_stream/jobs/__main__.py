"""A job's process. Not child.py itself, whose classes would then exist twice: jobs import them, too."""

from .child import main

main()

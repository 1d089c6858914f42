"""REST over jobs, files, secrets, schedules and the erasure of subjects (docs/design/primitives.md)."""

from .router import PrimitivesRouter, primitives_router

__all__ = ["PrimitivesRouter", "primitives_router"]

"""REST for every kind of document, from what modules declare: `documents_router`."""

from .router import DocumentsRouter, documents_router

__all__ = ["DocumentsRouter", "documents_router"]

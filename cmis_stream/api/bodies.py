"""Reading a request's body, never more of it than it may have."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from .problems import Problem


async def read_body(request: Request, limit: int, advice: str = "") -> bytes:
    """The body; Problem 413 as soon as it is known to exceed `limit` bytes, without reading on.

    advice: a sentence for those who sent too much.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large(f"{declared} bytes are more than the {limit} that a body may have.", advice)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large(f"The body has more than {limit} bytes.", advice)
            parts.append(part)
    except ClientDisconnect:
        raise Problem(400, "malformed", "The connection closed before the body was complete.") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(detail: str, advice: str = "") -> Problem:
    """The connection is closed: what is left of the body is not read."""
    return Problem(413, "too_large", f"{detail} {advice}".rstrip(), headers={"Connection": "close"})

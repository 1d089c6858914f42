"""What the headers of an upload say: name, type, digest. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote

from starlette.datastructures import Headers

from ..documents.refusals import malformed

_PARAMETER: Final = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]*)\s*')
_MEDIA_TYPE: Final = re.compile(r"([!#$&^_.+0-9a-z-]+/[!#$&^_.+0-9a-z-]+)\s*((?:;.*)?)", re.DOTALL)
_CHARSET: Final = re.compile(r"[a-z0-9-]{1,30}")
_DIGEST: Final = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)\s*=\s*:([A-Za-z0-9+/=]*):\s*(?:;[^,]*)?")
OCTETS: Final = "application/octet-stream"


def media_type_of(headers: Headers) -> str:
    """Of the body; of its parameters only the charset. Problem 400 when it is none.

    >>> media_type_of(Headers({"Content-Type": "Text/CSV; charset=UTF-8; header=present"}))
    'text/csv; charset=utf-8'
    """
    given = headers.get("content-type", OCTETS)
    match = _MEDIA_TYPE.fullmatch(given.strip().lower())
    if match is None:
        raise malformed("Content-Type", given, "a media type such as text/csv")
    charset = _parameters(match[2]).get("charset", "")
    return f"{match[1]}; charset={charset}" if _CHARSET.fullmatch(charset) else match[1]


def name_of(headers: Headers) -> str | None:
    """The file's name in Content-Disposition (RFC 6266); None when there is none. Problem 400 when it cannot be read.

    >>> name_of(Headers({"Content-Disposition": "attachment; filename=\\"a.csv\\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.csv"}))
    'Größe.csv'
    """
    given = headers.get("content-disposition")
    if given is None:
        return None
    _, semicolon, rest = given.partition(";")
    found = _parameters(semicolon + rest)
    if rest.strip() and not found:
        raise malformed("Content-Disposition", given, 'attachment; filename="NAME"')
    if (extended := found.get("filename*")) is not None:
        charset, _, text = extended.partition("'")
        if charset.lower() not in ("utf-8", "iso-8859-1") or "'" not in text:
            raise malformed("Content-Disposition", given, "filename*=UTF-8''NAME, percent-encoded")
        return unquote(text.partition("'")[2], charset, "replace")
    return found.get("filename")


def sha256_of(headers: Headers) -> str | None:
    """The digest that Content-Digest (RFC 9530) promises, in hex; None without one of SHA-256: others are not looked at. Problem
    400 when it cannot be read.

    >>> sha256_of(Headers({"Content-Digest": "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"}))[:12]
    'e3b0c44298fc'
    """
    given = ", ".join(headers.getlist("content-digest"))
    expected = "sha-256=:BASE64:"
    found = None
    for member in given.split(",") if given else ():
        match = _DIGEST.fullmatch(member)
        if match is None:
            raise malformed("Content-Digest", given, expected)
        if match[1] == "sha-256":
            try:
                digest = base64.b64decode(match[2], validate=True)
            except binascii.Error:
                raise malformed("Content-Digest", given, expected) from None
            if len(digest) != 32:
                raise malformed("Content-Digest", given, f"{expected} of 32 bytes")
            found = digest.hex()
    return found


def _parameters(text: str) -> dict[str, str]:
    """Names in lower case -> values, from `;name=value…`; nothing when it is not of this form."""
    found, at = dict[str, str](), 0
    text = text.strip()
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            return {}
        value = match[2]
        found.setdefault(match[1].lower(), re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value)
        at = match.end()
    return found

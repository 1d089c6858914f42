"""Under which names browsers reach this instance, and whether a request comes from its own page.

A page of a foreign name that resolves to this machine (DNS rebinding) is of another site, and gets neither our page nor a
session. Programs with a token in their Authorization header may use any name: no browser adds that header by itself.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from starlette.requests import Request

from ..core.errors import ConfigError
from ..gateway.server import PATH
from .problems import Problem

_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_HOST = re.compile(rf"(?P<name>{_NAME}|\[[0-9a-f:.]{{2,45}}\])(?::(?P<port>[0-9]{{1,5}}))?")
WILDCARDS = ("", "0.0.0.0", "::")


class Host(NamedTuple):
    """A name of ours that a browser has used. origin: of our page there. gateway_url: where that page finds the gateway.
    secure: the request came by https."""

    origin: str
    gateway_url: str
    secure: bool


class Hosts:
    """Takes loopback names, the address that is listened on, and those named with `--public-host`."""

    def __init__(self, configured: str = "127.0.0.1", public: Sequence[str] = (), gateway_port: int = 8601) -> None:
        """public: `name` or `name:port`, the port for those whose proxy has another than 80 and 443; ConfigError when one is
        neither. The gateway is on its port of every name."""
        self._gateway_port = gateway_port
        own = [] if configured in WILDCARDS else [in_url(configured).lower()]
        self._local = {"localhost", "127.0.0.1", "[::1]", *own}
        self._public: dict[str, str | None] = {}
        for given in public:
            match = _HOST.fullmatch(in_url(given).lower())
            if match is None or (match["name"].startswith("[") and _ipv6(match["name"][1:-1]) is None):
                raise ConfigError(f"--public-host: expected NAME or NAME:PORT, got {given!r}")
            self._public[match["name"]] = match["port"]

    @property
    def names(self) -> Sequence[str]:
        """As in a URL."""
        return sorted(self._local | self._public.keys())

    def origins(self, port: int) -> Collection[str]:
        """Of our pages, for the gateway's eyes: an API on this port, and what a proxy makes of the public names."""
        local = {f"http://{name}:{port}" for name in self.names}
        ports = {f"{name}:{given}" if given else name for name, given in self._public.items()}
        return local | {f"{scheme}://{place}" for scheme in ("http", "https") for place in ports}

    def of(self, request: Request) -> Host:
        """The host that the browser used; Problem 400 when it is none of ours."""
        given = request.headers.get("host", "")
        match = _HOST.fullmatch(given.lower())
        if match is None or match["name"] not in self.names:
            raise Problem(
                400,
                "invalid",
                f"Host: expected {' or '.join(self.names)}, got {given[:80]!r}; `cmis up --public-host NAME` adds one.",
            )
        secure = request.url.scheme == "https"
        gateway_url = f"{'wss' if secure else 'ws'}://{match['name']}:{self._gateway_port}{PATH}"
        return Host(f"{request.url.scheme}://{given.lower()}", gateway_url, secure)

    def require_own_origin(self, request: Request, *, or_none: bool = False) -> None:
        """Problem 403 when another site's page sent the request. or_none: it may also come from no page at all.

        Sec-Fetch-Site decides where there is one: the browser compares with the address that it asked, whatever a proxy has
        made of it. Browsers leave it out on plain http beyond loopback; then the Origin has to be the Host's.
        """
        own = self.of(request).origin
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if site is None and origin is None and or_none:
            return
        if site != "same-origin" if site is not None else origin != own:
            detail = f"Origin: expected {own}, got {(origin or 'none')[:80]!r}"
            raise Problem(403, "foreign_origin", f"{detail}; Sec-Fetch-Site: {site[:20]}." if site else f"{detail}.")


def in_url(host: str) -> str:
    """
    >>> in_url("::1"), in_url("localhost"), in_url("cmis.example:8443")
    ('[::1]', 'localhost', 'cmis.example:8443')
    """
    return host if _ipv6(host) is None else f"[{host}]"


def reachable(listening: str) -> str:
    """Under which name this machine reaches what listens there, as in a URL.

    >>> reachable("0.0.0.0"), reachable("::"), reachable("192.0.2.7")
    ('127.0.0.1', '[::1]', '192.0.2.7')
    """
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(listening, in_url(listening))


def _ipv6(text: str) -> ipaddress.IPv6Address | None:
    try:
        return ipaddress.IPv6Address(text)
    except ValueError:
        return None

from __future__ import annotations

import pytest
from starlette.requests import Request

from cmis_stream.api.hosts import Hosts
from cmis_stream.api.problems import Problem
from cmis_stream.core.errors import ConfigError


def asked(host: str) -> Request:
    return Request({"type": "http", "scheme": "http", "path": "/", "query_string": b"", "headers": [(b"host", host.encode())]})


@pytest.mark.parametrize(
    "given", ["https://x", "x:", "x:y", "x/y", "", "*", "*.example", "-x", "x y", "a:b:c", "[::1", "[x]", "ä.example"]
)
def test_a_public_host_is_a_name_perhaps_with_a_port(given: str) -> None:
    with pytest.raises(ConfigError, match="--public-host: expected NAME"):
        Hosts(public=[given])


@pytest.mark.parametrize(
    ("configured", "public", "taken", "refused"),
    [
        ("127.0.0.1", [], ["127.0.0.1:1", "localhost", "[::1]:8600"], ["192.0.2.7", "cmis"]),
        ("192.0.2.7", [], ["192.0.2.7:8600", "localhost"], ["192.0.2.8"]),
        ("0.0.0.0", [], ["localhost:9"], ["0.0.0.0", "192.0.2.7"]),
        ("::", [], ["[::1]"], ["[::]", "[2001:db8::1]"]),
        ("2001:db8::1", ["Cmis.Example"], ["[2001:db8::1]:8600", "cmis.example"], ["2001:db8::1", "[2001:db8::2]", "example"]),
        ("127.0.0.1", ["2001:db8::1", "x:9"], ["[2001:db8::1]", "x", "x:9", "x:1"], ["y:9"]),
    ],
)
def test_loopback_the_configured_and_the_public_names_are_taken(
    configured: str, public: list[str], taken: list[str], refused: list[str]
) -> None:
    hosts = Hosts(configured, public)
    for host in taken:
        assert hosts.of(asked(host)).origin == f"http://{host}"
    for host in refused:
        with pytest.raises(Problem, match="Host: expected"):
            hosts.of(asked(host))


def test_the_gateway_takes_the_pages_that_these_names_serve() -> None:
    assert set(Hosts("192.0.2.7", ["cmis.example", "cmis.test:8443"]).origins(8600)) == {
        "http://localhost:8600", "http://127.0.0.1:8600", "http://[::1]:8600", "http://192.0.2.7:8600",
        "http://cmis.example:8600", "http://cmis.example", "https://cmis.example",
        "http://cmis.test:8600", "http://cmis.test:8443", "https://cmis.test:8443",
    }  # fmt: skip

"""An installation with a module of somebody else's beside ours: the toy, installed as pip would, and `cmis up` as a process."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson

from cmis_stream.store.database import Database
from cmis_stream.store.tokens import TokenStore
from tests.e2e.support import ROOT, Processes, Up, until
from tests.faults.test_rules_over_rest import Store

TOY = ROOT / "tests" / "contracts" / "toy"
ORGS = ("acme", "globex")
SCOPES = ("read", "write", "admin")
_ENTRY_POINTS = """\
[cmis_stream.modules]
toy = toy_shop.manifest:MANIFEST
[cmis_stream.agents]
toy = toy_shop.agent
[cmis_stream.topics]
toy = toy_shop
"""


def installed(folder: Path) -> Path:
    """The folder, with the toy as an installed package in it: nothing of ours lies there or knows of it."""
    shutil.copytree(TOY, folder / "toy_shop", ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / "toy_shop-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-shop\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(_ENTRY_POINTS)
    return folder


def environment(folder: Path, ours: Path = ROOT) -> dict[str, str]:
    """In which Python finds the toy, installed below the folder. ours: where CMIS Stream itself lies."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (installed(folder / "site-packages"), ours)))}


def tokens_of(store: Store) -> dict[str, str]:
    """New orgs in the store -> a token of each."""
    with closing(Database(store.url)) as database, closing(TokenStore(database)) as tokens:
        for org in ORGS:
            tokens.create_org(org, org.title())
        return {org: tokens.create(org, SCOPES)[1] for org in ORGS}


class Org:
    """What a token of one org can do. Where the process may be killed, `sure` asks until it is answered."""

    def __init__(self, url: str, org: str, token: str) -> None:
        self.id = org
        headers = {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=f"{url}/api/orgs/{org}/", headers=headers, timeout=30)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.client.request(method, path, **more)

    def get(self, path: str, **parameters: str) -> Any:
        return self.ask("GET", path, params=parameters).raise_for_status().json()

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        given = {"json": body} if body is not None else {}
        answer = self.ask("POST", path, headers=headers, **given)
        assert answer.is_success, answer.text
        return answer.json()

    def sure(self, method: str, path: str, key: str, body: Any = None) -> Any:
        """The answer to a request that is repeated with its key until it is done."""
        given = {"json": body} if body is not None else {}

        def done() -> Any:
            try:
                answer = self.ask(method, path, headers={"Idempotency-Key": key}, **given)
            except httpx.TransportError:
                return None
            assert answer.status_code in (200, 201, 202, 503), answer.text
            return answer.json() if answer.status_code in (200, 201) else None

        return until(done, f"{method} {path} being done")

    def everything(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        items, cursor = list[dict[str, Any]](), dict[str, str]()
        while True:
            page = self.get(path, limit="500", **parameters, **cursor)
            items += page["items"]
            if page["next"] is None:
                return items
            cursor = {"cursor": page["next"]}

    def refused(self, method: str, path: str, status: int, code: str, body: Any = None, **headers: str) -> None:
        given = {"json": body} if body is not None else {}
        answer = self.ask(method, path, headers=headers, **given)
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (status, f"/problems/{code}"), answer.text

    def counted(self, dataset: str) -> int:
        """How many there are, by a query."""
        rows = self.post("query", {"dataset": dataset, "measures": ["count"]})["rows"]
        return int(rows[0][0]) if rows else 0


class Site:
    """`cmis up` with the toy, and a client for each org."""

    def __init__(self, folder: Path, store: Store, *, ours: Path = ROOT) -> None:
        """ours: where CMIS Stream itself lies."""
        self.store, self.data_dir = store, folder / "data"
        self.data_dir.mkdir()
        self.processes = Processes(folder / "processes", environment(folder, ours))
        texts = tokens_of(store)
        self.up = Up(self.processes, self.data_dir, *store.options, *store.relay)
        self.acme, self.globex = (Org(self.up.url, org, texts[org]) for org in ORGS)

    def close(self) -> None:
        self.acme.client.close()
        self.globex.client.close()
        self.processes.end()


class Shop:
    """A shop on loopback that wants a key, and what was ordered with it: (the order's id, name)."""

    def __init__(self, key: str) -> None:
        self.orders: list[tuple[str, str]] = []
        self.wrong_keys = 0
        shop = self

        class Counter(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                right = self.headers["Authorization"] == f"Bearer {key}"
                if right:
                    shop.orders.append((self.headers["Idempotency-Key"], body["name"]))
                shop.wrong_keys += not right
                self.send_response(204 if right else 403)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Counter)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def shop_with(key: str) -> Iterator[Shop]:
    shop = Shop(key)
    try:
        yield shop
    finally:
        shop.close()

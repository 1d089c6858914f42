"""`cmis up`, `cmis sign-in` and `cmis session`: from a printed link to a signed-in browser, and out again."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import httpx
import pytest

from tests.cli.test_cli import a_sentence, done
from tests.e2e.support import Processes, Up, free_port, until

LINK = re.compile(r"(http://127\.0\.0\.1:\d+)/sign-in#code=([\w-]{43})\s")


def opened(text: str) -> httpx.Client:
    """A browser that has followed the only link in this text."""
    ((url, code),) = LINK.findall(text)
    browser = httpx.Client(base_url=url, headers={"Origin": url}, trust_env=False)
    assert browser.post("/api/session", json={"code": code}).status_code == 200
    return browser


def orgs(browser: httpx.Client) -> list[str]:
    return [org["id"] for org in browser.get("/api/session").json()["orgs"]]


@pytest.mark.spec("TEN-E05", partial="sign-in codes; a code never leaves the browser's fragment but in the body of its exchange")
def test_up_prints_a_link_that_opens_the_page_once_and_keeps_it_out_of_the_log(processes: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    up = Up(processes, data).ready()
    said = up.process.says("Sign in: ") and up.process.says("another link: cmis sign-in")
    browser = opened(said)
    done(processes, "org", "create", "acme", "--data-dir", data)
    assert orgs(browser) == ["acme"]
    ((url, code),) = LINK.findall(said)
    assert url == up.url and httpx.post(f"{url}/api/session", json={"code": code}).status_code == 401
    until(lambda: "cmis.log" in {file.name for file in data.iterdir()}, "the log file")
    assert code not in (data / "cmis.log").read_text() and code not in (data / "instance.json").read_text()
    browser.close()


def test_sign_in_makes_links_beside_a_running_instance_and_a_session_is_revoked_from_outside(
    processes: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    Up(processes, data).ready()
    for org in ("acme", "globex"):
        done(processes, "org", "create", org, "--data-dir", data)
    both = opened(done(processes, "sign-in", "--data-dir", data).text)
    one = opened(done(processes, "sign-in", "--data-dir", data, "--org", "globex").text)
    assert orgs(both) == ["acme", "globex"] and orgs(one) == ["globex"]

    listed = done(processes, "session", "list", "--data-dir", data).text.splitlines()
    assert [line.split("\t")[1] for line in listed] == ["all orgs", "globex"]
    first = listed[0].split("\t")[0]
    assert done(processes, "session", "revoke", first, "--data-dir", data).text == f"Revoked {first}.\n"
    assert both.get("/api/session").status_code == 401 and orgs(one) == ["globex"]
    assert "revoked" in done(processes, "session", "list", "--data-dir", data).text.splitlines()[0]
    assert first in a_sentence(done(processes, "session", "revoke", first, "--data-dir", data))
    both.close()
    one.close()


def test_a_link_for_no_org_and_one_without_an_instance_are_sentences(processes: Processes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "start one with `cmis up`" in a_sentence(done(processes, "sign-in", "--data-dir", data))
    Up(processes, data).ready()
    assert "'nobody'" in a_sentence(done(processes, "sign-in", "--data-dir", data, "--org", "nobody"))
    process = done(processes, "up", "--data-dir", tmp_path / "other", "--port", 0, "--public-host", "https://x")
    assert "--public-host: expected NAME" in a_sentence(process)


def test_the_gateway_has_the_next_port_or_one_of_its_own(processes: Processes, tmp_path: Path) -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        up = processes.cmis("up", "--data-dir", tmp_path / "a", "--port", 0, "--gateway-port", port, "--no-live")
        said = up.says("Sign in: ")
    used = said.partition(f"Port {port} is taken; the gateway uses ")[2].partition(".")[0]
    announced = json.loads((tmp_path / "a/instance.json").read_text())
    assert announced["gateway"] == f"ws://127.0.0.1:{used}/connection/websocket" and f"Gateway: {announced['gateway']}" in said
    browser = opened(said)
    assert browser.get("/api/session").json()["gateway"] == {"url": announced["gateway"]}
    browser.close()
    assert up.stop() == 0


def test_every_name_that_the_gateway_url_has_is_one_that_the_browser_used(processes: Processes, tmp_path: Path) -> None:
    said = processes.cmis(
        "up", "--data-dir", tmp_path / "data", "--port", 0, "--no-live", "--host", "0.0.0.0", "--public-host", "cmis.example"
    ).says("another link")
    ((url, code),) = LINK.findall(said)
    headers = {"Host": f"cmis.example:{url.rpartition(':')[2]}"}
    answer = httpx.post(f"{url}/api/session", json={"code": code}, headers=headers)
    assert answer.json()["gateway"]["url"].startswith("ws://cmis.example:")
    assert httpx.get(f"{url}/api/session", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("port", ["65536", "-1", "x"])
def test_a_port_that_is_none_is_refused_with_its_range(processes: Processes, tmp_path: Path, port: str) -> None:
    for option in ("--port", "--gateway-port"):
        process = done(processes, "up", "--data-dir", tmp_path / "data", option, port)
        assert process.popen.returncode == 2 and option in process.text and "Traceback" not in process.text

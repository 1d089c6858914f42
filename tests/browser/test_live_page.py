"""Monitor → Live as a person has it: a real browser in front of a real instance."""

from __future__ import annotations

import re
import time

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.e2e.installation import Installation

pytestmark = pytest.mark.slow  # it needs a Chromium: part of `make test-all`
SERIOUS = {"serious", "critical"}
SEEN = {"/orgs/acme/live": "any-spend", "/gallery": "Line chart", "/sign-in": "Sign in"}
"""Path -> what stands there when the page is complete."""


class Feed:
    def __init__(self, installation: Installation) -> None:
        self._headers = {"Authorization": f"Bearer {installation.token('acme', 'ingest')}"}
        self._url = f"{installation.up.url}/api/orgs/acme/events"
        self._number = 0

    def send(self, campaign: str, *, platform: str = "meta", **figures: float) -> None:
        self._number += 1
        event = {
            "id": f"e{self._number}",
            "ts": time.time_ns() // 1_000_000,
            "platform": platform,
            "campaign": campaign,
            **figures,
        }
        httpx.post(self._url, json=event, headers=self._headers).raise_for_status()


@pytest.fixture
def feed(installation: Installation) -> Feed:
    return Feed(installation)


def live(page: Page) -> Page:
    """Waits until the page is connected."""
    expect(page.locator("main, header").get_by_text("Live", exact=True).first).to_be_visible()
    return page


def row(page: Page, campaign: str) -> str:
    return page.get_by_role("row").filter(has_text=campaign).first.inner_text()


@pytest.mark.spec("DSH-E19", partial="live, reconnecting and offline; no other pages yet")
@pytest.mark.spec("GTW-M01", partial="metrics and incidents; the other modules do not exist yet")
def test_an_event_moves_the_figures_and_its_alert_appears(open_page: Open, feed: Feed) -> None:
    feed.send("spring", impressions=1000, clicks=10, spend=4)
    page = live(open_page())
    expect(page.get_by_role("row").filter(has_text="spring")).to_be_visible()
    expect(page.get_by_text("Nothing is firing")).to_be_visible()
    feed.send("autumn", platform="google", impressions=2000, clicks=50, spend=60)
    expect(page.get_by_title("any-spend")).to_be_visible()
    alert = page.get_by_role("listitem").filter(has_text="any-spend")
    expect(alert).to_contain_text("High")
    expect(alert).to_contain_text("Google · autumn")
    expect(alert).to_contain_text("Spend $60.00")
    expect(page.get_by_role("row").filter(has_text="autumn")).to_contain_text("$60.00")
    expect(page.get_by_role("row").filter(has_text="2 campaigns")).to_contain_text("$64.00")
    feed.send("spring", impressions=1000, clicks=10, spend=3)
    expect(page.get_by_role("row").filter(has_text="2 campaigns")).to_contain_text("$67.00")


def test_the_link_signs_in_once_and_leaves_the_address(open_page: Open, installation: Installation, feed: Feed) -> None:
    feed.send("spring", spend=1)
    page = live(open_page())
    assert "code" not in page.url
    assert re.search(r"/orgs/acme/live", page.url)
    again = open_page()
    expect(again.get_by_text("This link does not work any more")).to_be_visible()
    expect(again.get_by_text("cmis sign-in").first).to_be_visible()


def test_reloading_keeps_org_range_and_filters_and_back_goes_back(open_page: Open, feed: Feed) -> None:
    for platform in ("meta", "google"):
        feed.send(f"{platform}-one", platform=platform, impressions=100, spend=1)
    page = live(open_page())
    page.get_by_title("The last hour").click()
    page.get_by_placeholder("Filter campaigns").fill("google")
    expect(page.get_by_role("row").filter(has_text="meta-one")).to_have_count(0)
    expect(page.get_by_role("row").filter(has_text="google-one")).to_be_visible()
    page.wait_for_url(re.compile("google"))
    address = page.url
    page.reload()
    expect(page.get_by_role("row").filter(has_text="google-one")).to_be_visible()
    assert page.url == address
    expect(page.get_by_role("row").filter(has_text="meta-one")).to_have_count(0)
    expect(page.get_by_placeholder("Filter campaigns")).to_have_value("google")
    shared = open_page(address.partition("127.0.0.1")[2].partition("/")[2].join(["/", ""]), of=page)
    expect(shared.get_by_role("row").filter(has_text="google-one")).to_be_visible()
    page.goto(page.url.partition("?")[0])
    expect(page.get_by_role("row").filter(has_text="meta-one")).to_be_visible()
    page.go_back()
    expect(page.get_by_placeholder("Filter campaigns")).to_have_value("google")


@pytest.mark.spec("DSH-E17", partial="the live page")
def test_after_the_instance_was_killed_the_page_comes_back_by_itself_with_what_it_missed(
    open_page: Open, installation: Installation, feed: Feed
) -> None:
    feed.send("spring", impressions=10, spend=1)
    page = live(open_page())
    expect(page.get_by_role("row").filter(has_text="spring")).to_be_visible()
    installation.up.process.kill()
    expect(page.get_by_text(re.compile("Reconnecting|Offline")).first).to_be_visible()
    installation.up.process = installation.up._started()
    installation.up.ready()
    feed.send("winter", impressions=10, spend=90)
    expect(page.get_by_role("row").filter(has_text="winter")).to_be_visible()
    expect(page.get_by_title("any-spend")).to_be_visible()
    live(page)


@pytest.mark.spec("TEN-M05", partial="the page and the gateway behind it")
def test_a_session_of_one_org_sees_nothing_of_another(open_page: Open, installation: Installation, feed: Feed) -> None:
    feed.send("secret-campaign", spend=99)
    text = installation.cmis("sign-in", "--org", "globex")
    link = re.search(r"/sign-in#code=\S+", text)
    assert link is not None, text
    page = open_page(link[0])
    page.wait_for_url(re.compile("/orgs/globex/live"))
    assert "acme" not in page.content().lower().replace("programme", "")
    page.goto(f"{installation.up.url}/orgs/acme/live")
    expect(page.get_by_text("There is no such organisation")).to_be_visible()
    assert "secret-campaign" not in page.content()
    page.goto(f"{installation.up.url}/orgs/nobody/live")
    expect(page.get_by_text("There is no such organisation")).to_be_visible()


def test_a_revoked_session_is_out_at_once(open_page: Open, installation: Installation, feed: Feed) -> None:
    feed.send("spring", spend=1)
    page = live(open_page())
    expect(page.get_by_role("row").filter(has_text="spring")).to_be_visible()
    listed = installation.cmis("session", "list")
    session = listed.split()[0]
    installation.cmis("session", "revoke", session)
    expect(page.get_by_text(re.compile("Your session has ended|Sign in")).first).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="spring")).to_have_count(0)


@pytest.mark.spec(
    "DSH-E14",
    partial="the live page",
)
@pytest.mark.spec("DSH-E15", partial="the live page")
def test_axe_finds_nothing_serious_in_either_theme_on_either_width(open_page: Open, feed: Feed) -> None:
    feed.send("spring", impressions=1000, clicks=10, spend=40, revenue=100, conversions=2)
    first = live(open_page())
    expect(first.get_by_title("any-spend")).to_be_visible()
    found = []
    for path, seen in SEEN.items():
        for width in (1440, 390):
            for scheme in ("light", "dark"):
                page = open_page(path, width=width, scheme=scheme, of=first)
                expect(page.get_by_text(seen, exact=True).first).to_be_visible()
                violations = Axe().run(page).response["violations"]
                found += [(path, width, scheme, v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in SERIOUS]
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
                    f"{path} scrolls sideways at {width}"
                )
                page.context.close()
    assert found == []


def test_the_keyboard_alone_reaches_everything(open_page: Open, feed: Feed) -> None:
    for org_campaign in ("spring", "autumn"):
        feed.send(org_campaign, impressions=100, spend=1)
    page = live(open_page())
    expect(page.get_by_role("row").filter(has_text="spring")).to_be_visible()
    page.reload()  # so that the first key starts at the top
    expect(page.get_by_role("row").filter(has_text="spring")).to_be_visible()
    reached = set()
    page.keyboard.press("Tab")
    for _ in range(80):
        here = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.tagName, e.getAttribute('aria-label') || e.innerText || e.getAttribute('placeholder') || '',"
            " e.matches(':focus-visible')]; })()"
        )
        if here[0] == "BODY":
            break
        assert here[2], f"no visible focus on {here}"
        reached.add(here[1].strip().split("\n")[0])
        page.keyboard.press("Tab")
    wanted = {
        "Skip to content", "Pause", "Columns: Columns", "Platforms: All platforms", "Time zone: UTC", "Campaign", "Spend",
        "Alerts", "Show as table",
    }  # fmt: skip
    assert wanted <= reached, f"never reached: {wanted - reached}; reached {sorted(reached)}"
    page.keyboard.press("Control+k")
    palette = page.get_by_role("dialog")
    expect(palette).to_be_visible()
    page.keyboard.type("globex")
    expect(palette.get_by_role("option").first).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/orgs/globex/"))
    page.keyboard.press("Control+k")
    expect(palette).to_be_visible()
    page.keyboard.press("Escape")
    expect(palette).to_have_count(0)

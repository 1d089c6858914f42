"""Lists, details and forms made of a kind's schema, as a person has them: alert rules in a real browser."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Open
from tests.e2e.installation import Installation

pytestmark = pytest.mark.slow  # it needs a Chromium: part of `make test-all`
SERIOUS = {"serious", "critical"}
LIST = "/orgs/acme/alerts/alert-rules"
CONDITION = '{"metric": "cpc", "window": "5m", "op": "gt", "value": 2}'
RULE: dict[str, Any] = {"severity": "low", "when": {"metric": "ctr", "window": "1h", "op": "lt", "value": 0.001}}


class Rules:
    """Somebody else, who works on the same rules over REST."""

    def __init__(self, installation: Installation) -> None:
        headers = {"Authorization": f"Bearer {installation.token('acme', 'read', 'write')}"}
        self._client = httpx.Client(base_url=f"{installation.up.url}/api/orgs/acme/alerts/", headers=headers, timeout=60)

    def create(self, key: str, **fields: Any) -> dict[str, Any]:
        made = self._client.post("rules", json={**RULE, "key": key, "name": key.title(), **fields})
        assert made.status_code == 201, made.text
        document: dict[str, Any] = made.json()
        return document

    def change(self, key: str, **fields: Any) -> None:
        changed = self._client.patch(f"rules/{key}", json=fields, headers={"If-Match": "*"})
        assert changed.status_code == 200, changed.text

    def delete(self, key: str) -> None:
        deleted = self._client.delete(f"rules/{key}", headers={"If-Match": "*"})
        assert deleted.status_code == 204, deleted.text

    def read(self, key: str) -> dict[str, Any]:
        document: dict[str, Any] = self._client.get(f"rules/{key}").raise_for_status().json()
        return document


@pytest.fixture
def rules(installation: Installation) -> Rules:
    return Rules(installation)


def signed_in(open_page: Open) -> Page:
    page = open_page()
    page.wait_for_url(re.compile("/orgs/acme/"))
    return page


def shown(page: Page, path: str, heading: str) -> Page:
    page.goto(page.url.partition("/orgs")[0] + path)
    expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    return page


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("button", name=re.compile(f"^{label}: ")).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_a_rule_is_made_changed_deleted_and_restored(open_page: Open) -> None:
    page = signed_in(open_page)
    page.get_by_role("link", name="Alert rules").first.click()
    expect(row(page, "any-spend")).to_be_visible()  # of the rule file
    page.get_by_role("button", name="New alert rule").click()
    page.get_by_label("Name").fill("High CPC")
    page.get_by_label("Key").fill("not a key!")
    page.get_by_role("button", name="Start from an example").click()
    expect(page.get_by_label("When")).to_have_value(re.compile('"spend"'))
    page.get_by_role("button", name="Create").click()

    summary = page.get_by_role("alert")
    expect(summary).to_contain_text("1 thing needs your attention")
    expect(page.get_by_label("Key")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Name")).not_to_have_attribute("aria-invalid", "true")
    summary.get_by_role("link", name=re.compile("^Key: ")).click()
    expect(page.get_by_label("Key")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("high-cpc")
    page.get_by_label("When").fill('{"metric": ')
    page.get_by_role("button", name="Create").click()
    expect(summary).to_contain_text("When: This is not JSON")
    page.get_by_label("When").fill(CONDITION.replace("cpc", "nonsense"))
    page.get_by_role("button", name="Create").click()
    expect(page.locator("[id$='-when-error']")).to_contain_text("metric: Expected")
    page.get_by_label("When").fill(CONDITION)
    page.get_by_role("button", name="Create").click()

    expect(page.get_by_role("heading", name="High CPC", exact=True)).to_be_visible()
    expect(page).to_have_title(re.compile("^High CPC · Alert rules"))
    page.get_by_role("button", name="Edit").click()
    choose(page, "Severity", "Critical")
    page.get_by_role("button", name="Save").click()
    change = page.get_by_role("table", name="Changed").get_by_role("row").filter(has_text="Severity")
    expect(change).to_contain_text(re.compile("Medium.*Critical"))

    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Alert rules", level=1, exact=True)).to_be_visible()
    expect(row(page, "any-spend")).to_be_visible()
    expect(row(page, "High CPC")).to_have_count(0)
    choose(page, "Deleted ones", "Only deleted")
    row(page, "High CPC").get_by_role("link").click()
    expect(page.get_by_text(re.compile("^Deleted on "))).to_be_visible()
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("button", name="Edit")).to_be_visible()
    page.get_by_role("link", name="Alert rules").first.click()
    expect(row(page, "High CPC")).to_contain_text("Critical")


def test_who_saves_second_is_shown_what_changed_meanwhile_and_decides(open_page: Open, rules: Rules) -> None:
    rules.create("low-ctr")
    page = shown(signed_in(open_page), f"{LIST}/low-ctr/edit", "Edit Low-Ctr")
    page.get_by_label("Name").fill("Mine")
    choose(page, "Severity", "High")
    rules.change("low-ctr", name="Theirs", level="platform")
    page.get_by_role("button", name="Save").click()
    dialog = page.get_by_role("dialog", name="It was changed meanwhile")
    names = dialog.get_by_role("row").filter(has_text="Name")
    expect(names).to_contain_text(re.compile("changed by both.*Low-Ctr.*Theirs.*Mine", re.DOTALL))
    expect(dialog.get_by_role("row").filter(has_text="Level")).not_to_contain_text("changed by both")
    dialog.get_by_role("button", name="Keep my changes").click()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Mine", exact=True)).to_be_visible()
    now = rules.read("low-ctr")
    assert (now["name"], now["severity"], now["level"]) == ("Mine", "high", "platform")

    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Name").fill("Mine again")
    rules.change("low-ctr", name="Theirs again")
    page.get_by_role("button", name="Save").click()
    dialog.get_by_role("button", name=re.compile("^Discard mine")).click()
    expect(page.get_by_label("Name")).to_have_value("Theirs again")


def test_filters_order_and_page_stand_in_the_address(open_page: Open, rules: Rules) -> None:
    for number in range(120):
        rules.create(f"rule-{number:03}", severity="high" if number % 2 else "low")
    page = shown(signed_in(open_page), LIST, "Alert rules")
    choose(page, "Severity", "High")
    page.keyboard.press("Escape")
    page.get_by_placeholder("Find by name").fill("rule-")
    page.get_by_role("table").get_by_role("button", name="Name").click()
    expect(row(page, "Rule-001")).to_be_visible()
    expect(row(page, "Rule-002")).to_have_count(0)
    expect(page.get_by_text("1–50 of 60")).to_be_visible()
    page.get_by_role("button", name="Next page").click()
    expect(page.get_by_text("51–60 of 60")).to_be_visible()
    expect(row(page, "Rule-119")).to_be_visible()
    address = page.url
    page.reload()
    expect(row(page, "Rule-119")).to_be_visible()
    assert page.url == address
    expect(page.get_by_placeholder("Find by name")).to_have_value("rule-")
    expect(page.get_by_role("button", name=re.compile("Severity: Severity: High"))).to_be_visible()
    row(page, "Rule-119").get_by_role("link").click()
    expect(page.get_by_role("heading", name="Rule-119", exact=True)).to_be_visible()
    page.go_back()
    expect(row(page, "Rule-119")).to_be_visible()
    assert page.url == address
    page.get_by_role("button", name="Previous page").click()
    expect(row(page, "Rule-001")).to_be_visible()

    page.get_by_role("button", name="Clear filters").click()
    expect(row(page, "Rule-002")).to_be_visible()
    page.get_by_role("button", name="More filters").click()
    page.get_by_role("dialog").get_by_label("Key").fill("118")
    page.get_by_role("dialog").get_by_role("button", name="Apply filters").click()
    expect(page.get_by_text("1–1 of 1")).to_be_visible()
    page.get_by_role("button", name="Remove the filter Key contains 118").click()
    expect(row(page, "Rule-002")).to_be_visible()
    page.get_by_placeholder("Find by name").fill("there is none")
    expect(page.get_by_text("Nothing matches the filters")).to_be_visible()


def test_of_several_that_are_deleted_at_once_each_is_told(open_page: Open, rules: Rules) -> None:
    for key in ("one", "two", "three"):
        rules.create(key)
    page = shown(signed_in(open_page), LIST, "Alert rules")
    for name in ("One", "Two"):
        page.get_by_role("checkbox", name=f"Select {name}").check()
    rules.change("two", name="Two, changed")
    page.get_by_role("region", name="2 selected").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("1 of 2 items could not be deleted")).to_contain_text("Two: ")
    expect(row(page, "Two, changed")).to_be_visible()
    expect(row(page, "One")).to_have_count(0)
    choose(page, "Deleted ones", "Only deleted")
    page.get_by_role("checkbox", name="Select One").check()
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_text("Nothing is deleted")).to_be_visible()
    assert rules.read("one")["deleted_at"] is None


def test_leaving_with_something_unsaved_asks(open_page: Open, rules: Rules) -> None:
    page = shown(signed_in(open_page), LIST, "Alert rules")
    page.get_by_role("button", name="New alert rule").click()
    page.get_by_label("Name").fill("Half a rule")
    dialog = page.get_by_role("dialog", name="Leave without saving?")
    for leave in (page.get_by_role("link", name="Live").first.click, page.go_back):
        leave()
        expect(dialog).to_be_visible()
        dialog.get_by_role("button", name="Cancel").click()
        expect(page.get_by_label("Name")).to_have_value("Half a rule")
        assert page.url.endswith("/new")
    page.go_back()
    dialog.get_by_role("button", name="Leave without saving").click()
    expect(page.get_by_role("heading", name="Alert rules", level=1, exact=True)).to_be_visible()
    page.get_by_role("button", name="New alert rule").click()
    page.get_by_role("button", name="Cancel").click()  # nothing was typed: nothing is asked
    expect(page.get_by_role("heading", name="Alert rules", level=1, exact=True)).to_be_visible()


def test_a_rule_is_duplicated_with_a_key_of_its_own(open_page: Open, rules: Rules) -> None:
    rules.create("one", severity="high", tags=["q3"], metadata={"team": "growth", "applied_from": "rules"})
    page = shown(signed_in(open_page), LIST, "Alert rules")
    cell = row(page, "One").get_by_role("cell").filter(has_text="High")
    cell.click()  # anywhere in the row
    page.get_by_role("button", name="Duplicate").click()
    expect(page.get_by_role("heading", name="Duplicate One", exact=True)).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("One")
    expect(page.get_by_label("Key")).to_have_value("")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert")).to_contain_text("Key: This is needed")
    page.get_by_label("Key").fill("one")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_label("Key")).to_have_attribute("aria-invalid", "true")  # there is one with this key
    expect(page.get_by_role("alert")).to_contain_text("Key: ")
    page.get_by_label("Key").fill("two")
    page.get_by_label("Name").fill("Two")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="Two", exact=True)).to_be_visible()
    made, source = rules.read("two"), rules.read("one")
    assert (made["when"], made["severity"], made["tags"]) == (source["when"], "high", ["q3"])
    assert (made["metadata"], source["name"]) == ({"team": "growth"}, "One")


def test_a_rule_begins_with_a_template_that_the_address_names(open_page: Open, rules: Rules) -> None:
    rules.delete("any-spend")
    page = shown(signed_in(open_page), LIST, "Alert rules")
    begin = page.get_by_role("button", name=re.compile("^Begin with: "))
    dialog = page.get_by_role("dialog")

    def begin_with(title: str) -> None:
        begin.click()
        page.get_by_role("option", name=re.compile(f"^{title}")).click()

    expect(page.get_by_text("No alert rules yet")).to_be_visible()
    begin_with("A campaign spends too fast")
    expect(page.get_by_label("Key")).to_have_value("overspend")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="New alert rule").first.click()
    expect(page.get_by_label("Key")).to_have_value("")
    begin_with("Conversions are expensive")
    expect(page.get_by_label("Key")).to_have_value("expensive-conversions")
    expect(page.get_by_text("Cost per conversion over a day, once there are ten of them.")).to_be_visible()
    begin_with("Revenue below spend")  # nothing was typed: nothing is asked
    expect(page.get_by_label("Name")).to_have_value("Earns less than it spends")
    expect(dialog).to_have_count(0)
    page.get_by_label("Name").fill("Mine")
    begin_with("Empty")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.get_by_label("Name")).to_have_value("Mine")
    expect(begin).to_contain_text("Revenue below spend")
    begin_with("Clicks are expensive")
    dialog.get_by_role("button", name="Replace what I typed").click()
    expect(page.get_by_label("Name")).to_have_value("Clicks are expensive")
    page.reload()
    expect(page.get_by_label("Key")).to_have_value("expensive-clicks")
    assert page.url.endswith("/new?template=expensive_clicks")
    page.get_by_label("Name").fill("CPC too high")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="CPC too high", exact=True)).to_be_visible()
    assert rules.read("expensive-clicks")["when"]["metric"] == "cpc"


def test_without_a_server_the_list_stays_in_sight_and_says_that_it_is_old(open_page: Open, rules: Rules) -> None:
    rules.create("one")
    page = shown(signed_in(open_page), LIST, "Alert rules")
    expect(row(page, "One")).to_be_visible()
    page.context.set_offline(True)
    page.get_by_role("table").get_by_role("button", name="Name").click()
    expect(page.get_by_text(re.compile("could not be renewed"))).to_be_visible()
    expect(row(page, "One")).to_be_visible()
    rules.create("two")
    page.context.set_offline(False)
    expect(row(page, "Two")).to_be_visible()
    expect(page.get_by_text(re.compile("could not be renewed"))).to_have_count(0)


def test_what_agents_found_is_listed_and_shown_but_not_edited(open_page: Open, installation: Installation) -> None:
    token = installation.token("acme", "ingest")
    event = {"id": "e1", "ts": time.time_ns() // 1_000_000, "platform": "meta", "campaign": "spring", "spend": 60}
    headers = {"Authorization": f"Bearer {token}"}
    httpx.post(f"{installation.up.url}/api/orgs/acme/events", json=event, headers=headers, timeout=60).raise_for_status()
    page = signed_in(open_page)
    expect(page.get_by_title("any-spend")).to_be_visible()  # on the live page, once the agents have found it
    page.get_by_role("link", name="Incidents").first.click()
    expect(row(page, "any-spend")).to_contain_text("High")
    expect(row(page, "any-spend")).to_contain_text("spring")
    expect(page.get_by_role("checkbox")).to_have_count(0)
    expect(page.get_by_role("button", name=re.compile("^New"))).to_have_count(0)
    row(page, "any-spend").get_by_role("link").click()
    expect(page.get_by_role("heading", name="any-spend", level=1)).to_be_visible()
    expect(page.get_by_text("Firing").first).to_be_visible()
    for name in ("Edit", "Delete"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)


def test_what_is_not_there_is_said(open_page: Open) -> None:
    page = signed_in(open_page)
    shown(page, f"{LIST}/no-such-rule", "Alert rule")
    expect(page.get_by_text("There is no such alert rule")).to_be_visible()
    page.goto(page.url.partition("/orgs")[0] + "/orgs/acme/alerts/no-such-kind")
    expect(page.get_by_text("There is no such page")).to_be_visible()
    page.goto(page.url.partition("/orgs")[0] + "/orgs/nobody/alerts/alert-rules")
    expect(page.get_by_text("There is no such organisation")).to_be_visible()


@pytest.mark.spec("DSH-E14", partial="the live page, and pages made of schemas")
@pytest.mark.spec("DSH-E15", partial="the live page, and pages made of schemas")
def test_axe_finds_nothing_serious_in_either_theme_on_either_width(open_page: Open, rules: Rules) -> None:
    rules.create("one", tags=["q3"], metadata={"team": "growth"})
    rules.change("one", severity="high")
    first = signed_in(open_page)
    seen = {LIST: "Alert rules", f"{LIST}/one": "One", f"{LIST}/new?template=overspend": "New alert rule"}
    found = []
    for path, heading in seen.items():
        for width in (1440, 390):
            for scheme in ("light", "dark"):
                page = open_page(path, width=width, scheme=scheme, of=first)
                expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
                if heading == "New alert rule":
                    page.get_by_label("Key").fill("")
                    page.get_by_role("button", name="Create").click()
                    expect(page.get_by_role("alert")).to_be_visible()
                elif heading == "One":
                    expect(page.get_by_role("table", name="Changed")).to_be_visible()
                else:
                    expect(row(page, "One")).to_be_visible()
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (path, width)
                found += _violations(page, (path, width, scheme))
                if heading == "Alert rules":
                    page.get_by_role("checkbox", name="Select One").check()
                    page.get_by_role("button", name="More filters").click()
                    expect(page.get_by_role("dialog")).to_be_visible()
                    found += _violations(page, ("filters", width, scheme))
                page.context.close()
    assert found == []


def _violations(page: Page, where: tuple[Any, ...]) -> list[Any]:
    violations = Axe().run(page).response["violations"]
    return [(*where, one["id"], one["nodes"][0]["html"]) for one in violations if one["impact"] in SERIOUS]


def test_the_keyboard_alone_makes_a_rule(open_page: Open) -> None:
    page = signed_in(open_page)
    expect(page.get_by_role("link", name="Alert rules").first).to_be_visible()
    page.keyboard.press("Control+k")
    page.keyboard.type("alert rules")
    expect(page.get_by_role("dialog").get_by_role("option", name=re.compile("^Alert rules"))).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Alert rules", level=1, exact=True)).to_be_visible()
    _tab_to(page, "New alert rule")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="New alert rule")).to_be_visible()
    for label, text in (("Key", "by-keys"), ("Name", "By keys"), ("When", CONDITION)):
        _tab_to(page, label)
        page.keyboard.type(text)
    page.keyboard.press("Shift+Tab")
    _tab_to(page, "Severity", back=True)
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("listbox", name="Severity")).to_be_focused()
    page.keyboard.type("h")
    page.keyboard.press("Enter")
    _tab_to(page, "Create")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="By keys", exact=True)).to_be_visible()
    expect(page.get_by_text("High", exact=True).first).to_be_visible()
    _tab_to(page, "Delete")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Delete")).to_be_focused()


def _tab_to(page: Page, name: str, *, back: bool = False) -> None:
    """Presses Tab until the control of this name has the focus, which has to be seen on every control on the way."""
    reached = []
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        here, visible = page.evaluate(
            "(() => { const e = document.activeElement; const label = e.labels?.[0]?.innerText;"
            " return [(e.getAttribute('aria-label') || label || e.innerText || '').trim(),"
            " e.tagName === 'BODY' || e.matches(':focus-visible')]; })()"
        )
        reached.append(here)
        assert visible, f"no visible focus on {here}"
        if re.match(rf"{re.escape(name)}($|[:\n])", here):
            return
    pytest.fail(f"Tab never came to {name}: {reached}")

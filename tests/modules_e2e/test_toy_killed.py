"""kill -9 again and again while the toy's commands, alarms, job and facts run: each counts once in the end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.core.time import rfc3339
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.due import Due
from tests.e2e.support import until
from tests.faults.test_rules_over_rest import Store
from tests.modules_e2e.toy_site import Org, Site

pytestmark = pytest.mark.slow  # about half a minute each: part of `make test-all`
BOXES, IN_A_BOX = 4, 10
KILLS = 6
PAUSE_S = 0.02
"""Between two plays, so that there are hundreds and not thousands."""


@pytest.fixture
def site(tmp_path: Path, store: Store) -> Iterator[Site]:
    made = Site(tmp_path, store)
    made.up.ready()
    yield made
    made.close()


@contextmanager
def killing(site: Site, dice: random.Random) -> Iterator[threading.Event]:
    """kill -9 at random moments of a life, and up again, KILLS times; then the event is set."""
    failed, over = list[BaseException](), threading.Event()

    def kill() -> None:
        try:
            for _ in range(KILLS):
                site.up.ready()
                time.sleep(dice.uniform(0.05, 2))
                site.up.kill()
            site.up.ready()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            over.set()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield over
    finally:
        thread.join()
    assert not failed, failed


def answered(org: Org, path: str, **parameters: str) -> Any:
    """None while it is away."""
    try:
        answer = org.ask("GET", path, params=parameters)
    except httpx.TransportError:
        return None
    return answer.json() if answer.status_code == 200 else None


def test_everything_counts_once_whatever_is_killed(site: Site, store: Store) -> None:
    dice, acme = random.Random(11), site.acme
    for _ in range(BOXES):
        acme.post("toy/toys/unbox", {"names": [f"Toy {number}" for number in range(IN_A_BOX)]})
    toys = [one["id"] for one in acme.everything("toy/toys")]
    alarms = Counter(dice.sample(toys, len(toys) // 2))
    now_ms = time.time_ns() // 1_000_000
    for number, toy in enumerate(alarms):
        acme.post(f"toy/toys/{toy}/set-alarm", {"at": rfc3339(now_ms + 10_000 + 1_000 * number)})
    acme.post("toy/toys/count-toys", {"pause_ms": 500, "page": 4})
    (job,) = acme.get("jobs")["items"]
    until(lambda: acme.get(f"jobs/{job['id']}")["progress_ratio"] > 0, "the job being under way")

    plays, praised = Counter[str](), set[str]()
    with killing(site, dice) as over:
        while not over.wait(PAUSE_S):
            toy = dice.choice(toys)
            acme.sure("POST", f"toy/toys/{toy}/play", f"play-{plays.total()}")
            plays[toy] += 1
            found = answered(acme, "toy/playdates", limit="500") or {"items": []}
            for fact in [one for one in found["items"] if one["id"] not in praised][:2]:
                acme.sure("POST", f"toy/playdates/{fact['id']}/praise", f"praise-{fact['id']}", {"words": "Bravo"})
                praised.add(fact["id"])
    assert site.up.kills == KILLS and plays.total() > 10 * KILLS

    until(lambda: len(acme.everything("toy/playdates")) >= plays.total(), "a playdate of each play")
    playdates = acme.everything("toy/playdates")
    assert Counter(one["toy"] for one in playdates) == plays
    for fact in playdates:
        acme.sure("POST", f"toy/playdates/{fact['id']}/praise", f"praise-{fact['id']}", {"words": "Bravo"})
    assert {(one["praises"], one["version"]) for one in acme.everything("toy/playdates")} == {(1, 2)}

    rings = alarms + plays  # an alarm of its own, and one for each praise
    until(lambda: sum(one["rung"] for one in acme.everything("toy/toys")) >= rings.total(), "all that rings", patience_s=120)
    assert {one["id"]: one["rung"] for one in acme.everything("toy/toys") if one["rung"]} == rings
    assert {one["due_at"] for one in acme.get("schedules")["items"]} == {None}

    ended = until(lambda: (one := acme.get(f"jobs/{job['id']}"))["ended_at"] and one, "the end of the job", patience_s=120)
    assert (ended["state"], ended["result"]["toys"]) == ("done", len(toys)), ended
    assert ended["attempts"] > 1 and ended["result"]["resumed"] >= 1
    counted = acme.ask("GET", f"files/{ended['result']['file']}/content").text.split()
    assert sorted(counted) == sorted(one["slug"] for one in acme.everything("toy/toys"))
    assert len(acme.get("jobs")["items"]) == 1
    site.up.stop()
    with closing(Database(store.url)) as database:
        assert Changes(database).verify("acme").broken is None
    with closing(Database((store.relay or [store.url])[-1])) as database:
        assert Due(database).failed_effects() == {}

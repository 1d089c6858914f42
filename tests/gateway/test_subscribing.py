"""Subscriptions over real sockets: what comes, what is recovered, what is refused, and what a filter leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Snapshot
from tests.gateway.conftest import Start
from tests.gateway.world import INCIDENTS, METRICS, TOPICS, Program, World, incident, metric, until

DENIED = {"code": 103, "message": "permission denied"}


def ids(publications: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for publication in publications for item in publication["data"]["items"]]


def entities(publication: dict[str, Any]) -> list[str]:
    return [item["entity"] for item in publication["data"]["items"]]


async def subscribed(client: Program, channel: str, **fields: Any) -> dict[str, Any]:
    reply = await client.ask(subscribe={"channel": channel, **fields})
    result: dict[str, Any] = reply["subscribe"]
    return result


async def published(client: Program, count: int) -> list[dict[str, Any]]:
    return [(await client.push())["pub"] for _ in range(count)]


@pytest.mark.spec("GTW-M04")
@pytest.mark.spec("GTW-M02")
@pytest.mark.spec("GTW-M01", partial="metrics and incidents; the other topics come with their modules")
async def test_results_reach_those_who_are_subscribed_and_nobody_else(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client, world.client(world.doors.open("acme")) as other:
        await subscribed(client, INCIDENTS)
        await subscribed(other, METRICS)
        offset = await world.publish(INCIDENTS, incident(1), incident(2))
        assert await client.push() == {
            "channel": INCIDENTS,
            "pub": {
                "data": {"items": [{"id": f"i{n}", "entity": "USD/meta", "text": ""} for n in (1, 2)]},
                "offset": offset,
            },
        }
        await world.publish(METRICS, metric("USD"))
        assert (await other.push())["channel"] == METRICS
        assert client.pushes == other.pushes == []


@pytest.mark.spec("GTW-M08")
async def test_the_channel_of_an_entity_has_what_concerns_it(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        await subscribed(client, METRICS + ":USD%2Fmeta")
        await world.publish(METRICS, metric("USD"))
        await world.publish(METRICS, metric("USD"), metric("USD/meta", events=5), metric("USD/google"))
        push = await client.push()
        assert push["channel"] == METRICS + ":USD%2Fmeta"
        assert entities(push["pub"]) == ["USD/meta"] and push["pub"]["offset"] == 2


@pytest.mark.spec("GTW-M08")
@pytest.mark.spec("GTW-M09")
async def test_foreign_unknown_and_withheld_channels_are_refused_alike_and_nothing_is_revealed(world: World) -> None:
    await world.publish("org:globex:incidents", incident(1))
    token = world.doors.open("acme", topics=["metrics"])
    async with world.client(world.doors.open("globex")) as owner, world.client(token) as client:
        await subscribed(owner, "org:globex:incidents")
        for channel in ("org:globex:incidents", "org:nobody:incidents", "org:acme:secrets", INCIDENTS, "org:acme:incidents:x"):
            for command in (
                {"subscribe": {"channel": channel}},
                {"subscribe": {"channel": channel, "recover": True, "epoch": "epoch-1", "offset": 0}},
                {"history": {"channel": channel, "limit": 10}},
                {"presence": {"channel": channel}},
                {"presence_stats": {"channel": channel}},
            ):
                assert (await client.ask(**command))["error"] == DENIED
        await subscribed(client, METRICS)


@pytest.mark.parametrize("channel", ["", "acme", "org:acme", "org::metrics", "org:acme:metrics:a:b", "topic:acme:metrics"])
async def test_a_name_that_is_no_channel_is_a_bad_request(world: World, channel: str) -> None:
    async with world.client(world.doors.open("acme")) as client:
        error = (await client.ask(subscribe={"channel": channel}))["error"]
        assert error["code"] == 107
        assert error["message"].startswith("bad request: channel: expected org:{org}:{topic} or org:{org}:{topic}:{entity}, got")


async def test_a_channel_is_subscribed_once_and_again_after_it_was_unsubscribed(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        await subscribed(client, INCIDENTS)
        assert (await client.ask(subscribe={"channel": INCIDENTS}))["error"] == {"code": 105, "message": "already subscribed"}
        await world.publish(INCIDENTS, incident(1))
        assert "unsubscribe" in await client.ask(unsubscribe={"channel": INCIDENTS})
        await world.publish(INCIDENTS, incident(2))
        await subscribed(client, INCIDENTS)
        await world.publish(INCIDENTS, incident(3))
        assert ids(await published(client, 2)) == ["i1", "i3"]


async def test_subscribing_and_unsubscribing_in_one_frame_answers_in_that_order(world: World) -> None:
    world.pictures.late_s = 0.05
    async with world.client(world.doors.open("acme")) as client:
        await client.send(
            {"id": 50, "subscribe": {"channel": INCIDENTS}},
            {"id": 51, "unsubscribe": {"channel": INCIDENTS}},
            {"id": 52, "unsubscribe": {"channel": METRICS}},
        )
        assert "unsubscribe" in await client.reply(51)
        assert [said["id"] for said in client.order if said.get("id") in (50, 51)] == [50, 51]
        assert not world.gateway.hub.subscriptions


# --- recovery ---------------------------------------------------------------------------------------------------------


@pytest.mark.spec("GTW-M06")
@pytest.mark.spec("GTW-M07")
async def test_a_client_that_was_away_gets_exactly_what_it_missed(world: World) -> None:
    token = world.doors.open("acme")
    async with world.client(token) as client:
        first = await subscribed(client, INCIDENTS)
        assert (first["recoverable"], first["positioned"], first["epoch"], first["offset"]) == (True, True, "epoch-1", 0)
        await world.publish(INCIDENTS, incident(1))
        offset = (await client.push())["pub"]["offset"]
    for number in (2, 3, 4):
        await world.publish(INCIDENTS, incident(number))
    async with world.client(token) as client:
        again = await subscribed(client, INCIDENTS, recover=True, epoch="epoch-1", offset=offset)
        assert (again["was_recovering"], again["recovered"]) == (True, True)
        assert ids(again["publications"]) == ["i2", "i3", "i4"]
        await world.publish(INCIDENTS, incident(5))
        assert ids(await published(client, 1)) == ["i5"]


@pytest.mark.spec("GTW-M07")
async def test_who_missed_what_cannot_be_had_any_more_is_told_to_subscribe_again(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        await subscribed(client, INCIDENTS)
        await subscribed(client, METRICS)
        await world.publish(INCIDENTS, incident(1))
        assert ids(await published(client, 1)) == ["i1"]
        # The log's newest records begin behind what has been published: what was between nobody has.
        world.log.next_offset[TOPICS["incidents"]] = 50
        await world.backplane.begin(TOPICS["incidents"], 0, 49)
        assert await client.push() == {"channel": INCIDENTS, "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
        again = await subscribed(client, INCIDENTS)
        await world.publish(INCIDENTS, incident(2))
        await world.publish(METRICS, metric("USD"))
        assert again["offset"] == 50
        assert [push["channel"] for push in (await client.push(), await client.push())] == [INCIDENTS, METRICS]


async def test_a_client_that_missed_nothing_of_its_own_is_led_to_the_end_of_the_topic(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        for number in range(3):
            await world.publish("org:globex:incidents", incident(number))
        again = await subscribed(client, INCIDENTS, recover=True, epoch="epoch-1", offset=1)
        assert (again["recovered"], again["offset"], "publications" in again) == (True, 3, False)


@pytest.mark.spec("GTW-O01")
@pytest.mark.spec("GTW-M03")
async def test_another_gateway_process_recovers_a_client_from_the_log(world: World) -> None:
    token = world.doors.open("acme")
    async with world.client(token) as client:
        await subscribed(client, INCIDENTS)
        await world.publish(INCIDENTS, incident(1))
        offset = (await client.push())["pub"]["offset"]
        for number in (2, 3):
            await world.publish(INCIDENTS, incident(number))
    await world.restart()
    await world.publish(INCIDENTS, incident(4))
    async with world.client(token) as client:
        again = await subscribed(client, INCIDENTS, recover=True, epoch="epoch-1", offset=offset)
        assert again["recovered"] and ids(again["publications"]) == ["i2", "i3", "i4"]


@pytest.mark.spec("GTW-M06")
@pytest.mark.spec("GTW-M07")
@pytest.mark.parametrize("why", ["older than the log holds", "another log", "never published", "too much to be worth it"])
async def test_what_cannot_be_recovered_is_said_and_comes_with_a_snapshot(start: Start, why: str) -> None:
    channel = METRICS if why == "too much to be worth it" else INCIDENTS
    world = await start(Limits(watch_s=0.02, recovered=3), memory={"per_channel": 2, "patience_s": 0.01})
    for number in range(6):
        await world.publish(channel, incident(number))
    if why == "older than the log holds":
        world.log.earliest["cmis.transitions.v1"] = 4
    world.pictures.held[channel] = Snapshot(b'{"items": [{"entity": "USD", "now": 1}]}')
    epoch = "epoch-0" if why == "another log" else "epoch-1"
    offset = 99 if why == "never published" else 1
    async with world.client(world.doors.open("acme")) as client:
        again = await subscribed(client, channel, recover=True, epoch=epoch, offset=offset)
        assert (again["was_recovering"], again["recovered"], again["epoch"], again["offset"]) == (True, False, "epoch-1", 6)
        assert again["data"] == {"items": [{"entity": "USD", "now": 1}]}
        assert "publications" not in again
    async with world.client(world.doors.open("acme")) as client:
        asked = await client.ask(subscribe={"channel": channel, "recover": True, "epoch": epoch, "offset": offset, "flag": 2})
        assert asked["error"] == {"code": 112, "message": "unrecoverable position"}
        await subscribed(client, channel)


@pytest.mark.spec("GTW-M07")
async def test_more_than_a_message_holds_comes_in_several_and_live_publications_behind_it(world: World) -> None:
    """2 MB, while the socket takes 128 kB at a time and more is published meanwhile."""
    text = "x" * 4_000
    for number in range(500):
        await world.publish(INCIDENTS, incident(number, text=text))
    token = world.doors.open("acme")
    async with world.client(token, max_size=300_000) as client:
        again = await subscribed(client, INCIDENTS, recover=True, epoch="epoch-1", offset=0)
        got = ids(again["publications"])
        assert 0 < len(got) < 100 and again["offset"] == 0
        for number in range(500, 600):
            await world.publish(INCIDENTS, incident(number, text=text))
            await asyncio.sleep(0)
        got += ids(await published(client, 600 - len(got)))
        assert got == [f"i{number}" for number in range(600)]
        assert client.pushes == []


async def test_a_snapshot_that_lags_behind_is_followed_by_what_it_lacks(world: World) -> None:
    for number in range(5):
        await world.publish(INCIDENTS, incident(number))
    world.pictures.held[INCIDENTS] = Snapshot(b'{"items":[]}', offset=1)
    async with world.client(world.doors.open("acme")) as client:
        first = await subscribed(client, INCIDENTS)
        assert (first["offset"], first["data"]) == (2, {"items": []})
        await world.publish(INCIDENTS, incident(5))
        assert ids(await published(client, 4)) == ["i2", "i3", "i4", "i5"]


async def test_a_snapshot_that_no_message_has_room_for_goes_on_in_publications(world: World) -> None:
    offset = await world.publish(METRICS, metric())
    items = [metric(f"USD/meta/act_7/campaign_{number}" if number else "USD") for number in range(20_000)]
    world.pictures.held[METRICS] = Snapshot(b'{"items":[' + b",".join(item.json for item in items) + b"]}")
    async with world.client(world.doors.open("acme"), max_size=300_000) as client:
        first = await subscribed(client, METRICS)
        await world.publish(METRICS, metric("USD/live"))
        got = [item["entity"] for item in first["data"]["items"]]
        while got[-1] != "USD/live":
            push = (await client.push())["pub"]
            assert push["offset"] == (offset if entities(push) != ["USD/live"] else offset + 1)
            got += entities(push)
        assert got == [*(item.entity for item in items), "USD/live"]
    async with world.client(world.doors.open("acme")) as client:
        first = await subscribed(client, METRICS, data={"filter": {"depth": 1}})
        assert entities({"data": first["data"]}) == ["USD"]


async def test_a_subscription_does_not_wait_for_a_slow_snapshot_for_long(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, snapshot_s=0.02))
    world.pictures.held[INCIDENTS] = Snapshot(b"{}")
    world.pictures.late_s = 60
    async with world.client(world.doors.open("acme")) as client:
        assert "data" not in await subscribed(client, INCIDENTS)


async def test_a_subscription_comes_without_a_snapshot_that_cannot_be_made(world: World) -> None:
    world.pictures.broken = True
    async with world.client(world.doors.open("acme")) as client:
        assert "data" not in await subscribed(client, INCIDENTS)
        await world.publish(INCIDENTS, incident(1))
        assert ids(await published(client, 1)) == ["i1"]


async def test_what_the_log_loses_while_a_client_catches_up_makes_it_subscribe_again(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, page=2, socket_bytes=32_768), memory={"per_channel": 1})
    for number in range(200):
        await world.publish(INCIDENTS, incident(number, text="x" * 20_000))
    async with world.client(world.doors.open("acme"), max_queue=None) as client:
        client.websocket.transport.pause_reading()
        await client.send({"id": 60, "subscribe": {"channel": INCIDENTS, "recover": True, "epoch": "epoch-1", "offset": 1}})
        await until(lambda: any(served.outbox.full for served in world.gateway.hub.clients))
        world.log.earliest["cmis.transitions.v1"] = 199
        client.websocket.transport.resume_reading()
        while "unsubscribe" not in (push := await client.push()):
            pass
        assert push == {"channel": INCIDENTS, "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
        again = await subscribed(client, INCIDENTS, recover=True, epoch="epoch-1", offset=2)
        assert (again["was_recovering"], again["recovered"]) == (True, False)


async def test_a_channel_whose_place_is_not_known_yet_is_to_be_asked_for_again(start: Start) -> None:
    world = await start(memory={"patience_s": 0.01}, delivered=False)
    async with world.client(world.doors.open("acme")) as client:
        for command in ({"subscribe": {"channel": INCIDENTS}}, {"history": {"channel": INCIDENTS}}):
            error = (await client.ask(**command))["error"]
            assert error == {"code": 100, "message": "internal server error: not ready yet", "temporary": True}
        await world.backplane.reached("cmis.transitions.v1", 0, -1)
        await subscribed(client, INCIDENTS)


async def test_access_that_ends_while_a_subscription_is_made_is_refused(world: World) -> None:
    world.pictures.late_s = 0.3
    token = world.doors.open("acme")
    async with world.client(token) as client:
        await client.send({"id": 70, "subscribe": {"channel": INCIDENTS}})
        await asyncio.sleep(0)
        world.doors.move(token, "globex")
        assert (await client.reply(70))["error"] == DENIED
        assert not world.gateway.hub.subscriptions


# --- filter, past, history, presence ----------------------------------------------------------------------------------


@pytest.mark.spec("GTW-O02")
async def test_a_filter_leaves_what_a_client_wants_live_recovered_and_in_the_snapshot(world: World) -> None:
    items = [metric(entity) for entity in ("USD", "USD/meta", "USD/google", "USD/meta/act_7/spring", "EUR")]
    await world.publish(METRICS, *items)
    everything = b'{"items":[' + b",".join(item.json for item in items) + b"]}"
    world.pictures.held[METRICS] = Snapshot(everything)
    wanted = {
        ("USD", "USD/meta"): {"entities": ["USD/meta", "USD", "GBP"]},
        ("USD", "EUR"): {"depth": 1},
        ("USD", "USD/meta", "USD/google", "EUR"): {"depth": 2},
        ("USD/meta",): {"entities": ["USD/meta", "USD/meta/act_7/spring"], "depth": 3},
        ("EUR",): {"entities": ["EUR"]},
    }
    for expected, chosen in wanted.items():
        async with world.client(world.doors.open("acme")) as client:
            first = await subscribed(client, METRICS, data={"filter": chosen})
            assert [item["entity"] for item in first["data"]["items"]] == list(expected)
            await world.publish(METRICS, metric("GBP/meta/act/none"))
            await world.publish(METRICS, *items)
            assert entities((await client.push())["pub"]) == list(expected)
        async with world.client(world.doors.open("acme")) as client:
            again = await subscribed(client, METRICS, data={"filter": chosen}, recover=True, epoch="epoch-1", offset=0)
            assert [entities(publication) for publication in again["publications"]][-1] == list(expected)


async def test_a_filter_does_not_widen_the_channel_of_an_entity(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        await subscribed(client, METRICS + ":USD%2Fmeta", data={"filter": {"entities": ["USD", "USD/meta"]}})
        await subscribed(client, METRICS + ":EUR", data={"filter": {"entities": ["USD"]}})
        await world.publish(METRICS, metric("USD"), metric("USD/meta"), metric("EUR"))
        assert entities((await client.push())["pub"]) == ["USD/meta"]
        assert "presence" in await client.ask(presence={"channel": METRICS})
        assert client.pushes == []


@pytest.mark.spec("GTW-O02")
@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"filter": {"entity": ["USD"]}}, "Object contains unknown field `entity`"),
        ({"filter": {"entities": "USD"}}, "Expected `array | null`, got `str`"),
        ({"filter": {"depth": 0}}, "Expected `int` >= 1"),
        ({"filters": {}}, "Object contains unknown field `filters`"),
        ([], "Expected `object`, got `array`"),
        ({"since": "yesterday"}, "Expected `int | null`, got `str`"),
    ],
)
async def test_subscribe_data_that_is_not_understood_is_refused_with_what_would_be(world: World, data: Any, says: str) -> None:
    async with world.client(world.doors.open("acme")) as client:
        error = (await client.ask(subscribe={"channel": METRICS, "data": data}))["error"]
        assert error["code"] == 107 and says in error["message"]
        assert error["message"].endswith("expected an object with some of filter, since, filter with some of entities, depth")


async def test_kinds_of_subscription_that_are_not_offered_are_refused(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        assert (await client.ask(subscribe={"channel": METRICS, "type": 1}))["error"]["code"] == 108
        assert (await client.ask(subscribe={"channel": METRICS, "tf": {"key": "a"}}))["error"]["code"] == 107


@pytest.mark.spec("GTW-O03")
async def test_a_subscription_can_begin_at_a_moment_in_the_past_and_catch_up(world: World) -> None:
    now = world.now_ms()
    for number in range(500):
        await world.publish(INCIDENTS, incident(number), stamp_ms=now - 500_000 + number * 1_000)
    async with world.client(world.doors.open("acme")) as client:
        first = await subscribed(client, INCIDENTS, data={"since": now - 450_500})
        got = ids(first["publications"])
        await world.publish(INCIDENTS, incident(500))
        got += ids(await published(client, 451 - len(got)))
        assert got == [f"i{number}" for number in range(50, 501)]
        error = (await client.ask(subscribe={"channel": METRICS, "data": {"since": now + 3_600_000}}))["error"]
        assert error["message"].startswith("bad request: data.since: expected a moment in the past (epoch ms)")


@pytest.mark.spec("GTW-O03")
async def test_the_past_may_hold_more_than_would_be_recovered(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, recovered=3))
    for number in range(8):
        await world.publish(METRICS, incident(number), stamp_ms=number)
    async with world.client(world.doors.open("acme")) as client:
        first = await subscribed(client, METRICS, data={"since": 2})
        assert first["recovered"] and ids(first["publications"]) == [f"i{number}" for number in range(2, 8)]


@pytest.mark.spec("GTW-O03")
async def test_a_moment_that_the_log_does_not_hold_any_more_is_said(world: World) -> None:
    await world.publish(INCIDENTS, incident(1), stamp_ms=1_000)
    async with world.client(world.doors.open("acme")) as client:
        first = await subscribed(client, INCIDENTS, data={"since": 500})
        assert (first["was_recovering"], first["recovered"], first["offset"]) == (True, False, 1)


async def test_history_goes_forward_from_an_offset_and_backward_from_the_end(start: Start) -> None:
    world = await start(memory={"patience_s": 0.01})
    for number in range(1, 11):
        await world.publish(INCIDENTS, incident(number, entity="USD" if number % 2 else "EUR"))
    async with world.client(world.doors.open("acme")) as client:

        async def history(channel: str = INCIDENTS, **fields: Any) -> list[str]:
            reply = (await client.ask(history={"channel": channel, **fields}))["history"]
            assert (reply["epoch"], reply["offset"]) == ("epoch-1", 10)
            return ids(reply["publications"])

        since = {"offset": 4, "epoch": "epoch-1"}
        assert await history() == []
        assert await history(limit=3) == ["i1", "i2", "i3"]
        assert await history(limit=3, since=since) == ["i5", "i6", "i7"]
        assert await history(limit=-1, since={"offset": 8}) == ["i9", "i10"]
        assert await history(limit=3, reverse=True) == ["i10", "i9", "i8"]
        assert await history(limit=3, reverse=True, since=since) == ["i3", "i2", "i1"]
        assert await history(INCIDENTS + ":EUR", limit=2, since=since) == ["i6", "i8"]
        assert await history(INCIDENTS + ":EUR", limit=2, reverse=True) == ["i10", "i8"]
        for wrong in ({"offset": 4, "epoch": "epoch-0"}, {"offset": 400, "epoch": "epoch-1"}):
            reply = await client.ask(history={"channel": INCIDENTS, "limit": 1, "since": wrong})
            assert reply["error"]["code"] == 112


async def test_presence_shows_who_is_subscribed_to_the_same_channel(world: World) -> None:
    ann, ben = world.doors.open("acme", subject="ann"), world.doors.open("acme", "globex", subject="ben")
    async with world.client(ann) as client, world.client(ann) as second, world.client(ben) as third:
        for reader in (client, second, third):
            await subscribed(reader, INCIDENTS)
        await subscribed(third, "org:globex:incidents")
        await subscribed(second, METRICS)
        present = (await client.ask(presence={"channel": INCIDENTS}))["presence"]["presence"]
        assert sorted(info["user"] for info in present.values()) == ["ann", "ann", "ben"]
        assert all(info["client"] == id_ for id_, info in present.items())
        stats = (await client.ask(presence_stats={"channel": INCIDENTS}))["presence_stats"]
        assert stats == {"num_clients": 3, "num_users": 2}
        assert (await client.ask(presence_stats={"channel": METRICS + ":USD"}))["presence_stats"]["num_clients"] == 0

"""The protocol as bytes: examples as they come from the SDKs, deadlines, and the command rate."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cmis_stream.gateway import codes, protocol
from cmis_stream.gateway.codes import CommandError, Disconnect
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.protocol import Session

CONNECT = '{"id":1,"connect":{"token":"t","name":"js","version":"5.0","subs":{},"headers":{}}}'
LIMITS = Limits(connect_s=10, ping_s=25, pong_s=10, expiry_grace_s=25, commands_per_s=10, commands_burst=20)


def session(*, connected: bool = True) -> Session:
    made = Session(LIMITS, 0.0)
    if connected:
        assert [command.id for command in made.receive(CONNECT, 0.0)] == [1]
        made.connected(0.0, first_ping_s=20.0)
    return made


def received(made: Session, frame: str | bytes, now: float = 1.0) -> list[protocol.Command]:
    return list(made.receive(frame, now))


def ended(frames: Iterator[protocol.Command]) -> Disconnect:
    with pytest.raises(Disconnect) as caught:
        list(frames)
    return caught.value


@pytest.mark.spec("GTW-M05", partial="the wire; the SDKs themselves are in test_python_sdk.py")
def test_each_method_of_the_protocol_is_understood_with_the_fields_that_sdks_send() -> None:
    frames = {
        '{"id":2,"subscribe":{"channel":"c","recover":true,"epoch":"e","offset":7,"flag":1,"positioned":true,"data":{"a":1}}}': (
            protocol.Subscribe("c", True, "e", 7, protocol.msgspec.Raw(b'{"a":1}'), 1)
        ),
        '{"id":3,"unsubscribe":{"channel":"c"}}': protocol.Unsubscribe("c"),
        '{"id":4,"publish":{"channel":"c","data":{}}}': protocol.Publish("c"),
        '{"id":5,"presence":{"channel":"c"}}': protocol.Presence("c"),
        '{"id":6,"presence_stats":{"channel":"c"}}': protocol.PresenceStats("c"),
        '{"id":7,"history":{"channel":"c","limit":-1,"since":{"offset":4,"epoch":"e"},"reverse":true}}': (
            protocol.History("c", -1, protocol.Since(4, "e"), True)
        ),
        '{"id":8,"rpc":{"method":"m","data":[1]}}': protocol.Rpc("m", protocol.msgspec.Raw(b"[1]")),
        '{"id":9,"refresh":{"token":"n"}}': protocol.Refresh("n"),
        '{"id":10,"sub_refresh":{"channel":"c","token":"n"}}': protocol.SubRefresh("c"),
        '{"send":{"data":{}}}': protocol.Send(),
    }
    made = session()
    for frame, request in frames.items():
        for form in (frame, frame.encode()):
            assert [command.request for command in received(made, form)] == [request]


def test_a_frame_holds_a_command_a_line_and_may_end_with_a_line_break() -> None:
    frame = '{"id":2,"presence":{"channel":"a"}}\n{"id":3,"presence":{"channel":"b"}}\n'
    assert [command.id for command in received(session(), frame)] == [2, 3]


def test_connect_and_what_follows_it_may_come_in_one_frame() -> None:
    made = session(connected=False)
    commands = made.receive(CONNECT + '\n{"id":2,"presence":{"channel":"a"}}', 0.0)
    assert isinstance(next(commands).request, protocol.Connect)
    made.connected(0.0, 20.0)
    assert next(commands).id == 2


def test_after_a_refused_connect_nothing_more_is_accepted() -> None:
    made = session(connected=False)
    commands = made.receive(CONNECT + '\n{"id":2,"presence":{"channel":"a"}}', 0.0)
    next(commands)
    made.refused()
    assert list(commands) == []
    assert ended(made.receive(CONNECT, 1.0)).code == codes.BAD_FRAME


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("", "expected a command, got an empty frame"),
        ("\n", "expected a JSON object a line, got ''"),
        ("hello", "expected a JSON object a line, got 'hello'"),
        ("[1]", "expected a JSON object a line"),
        (b"\xff\xfe", "expected a JSON object a line"),
        ('{"id":0,"presence":{"channel":"c"}}', "expected an id from 1 to 4294967295, got '0'"),
        ('{"id":4294967296,"presence":{"channel":"c"}}', "expected an id from 1"),
        ('{"id":"2","presence":{"channel":"c"}}', "expected an id from 1"),
        ('{"presence":{"channel":"c"}}', "expected an id from 1 to 4294967295, got 'none'"),
        (CONNECT, "expected connect only once, got connect"),
        ("{" * 60_000, "expected a JSON object a line"),
    ],
)
def test_a_frame_that_cannot_be_answered_ends_the_connection_and_says_why(frame: str | bytes, reason: str) -> None:
    disconnect = ended(session().receive(frame, 1.0))
    assert (disconnect.code, disconnect.terminal) == (3501, True)
    assert disconnect.reason.startswith(f"bad request: {reason}")
    assert len(disconnect.reason.encode()) <= 123


def test_nothing_but_connect_comes_first() -> None:
    disconnect = ended(session(connected=False).receive('{"id":2,"presence":{"channel":"c"}}', 1.0))
    assert disconnect.reason == "bad request: expected connect first, got presence"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ('"subscribe":{"channel":5}', 107, "bad request: subscribe: Expected `str`, got `int` - at `$.channel`"),
        ('"subscribe":{}', 107, "bad request: subscribe: Object missing required field `channel`"),
        ('"history":{"channel":"c","since":{"offset":-1}}', 107, "bad request: history: Expected `int` >= 0"),
        ('"teleport":{}', 104, "method not found: expected one of connect, subscribe"),
    ],
)
def test_a_command_with_an_id_is_answered_with_what_came_and_what_was_expected(body: str, code: int, message: str) -> None:
    (command,) = received(session(), f'{{"id":9,{body}}}')
    assert isinstance(command.request, CommandError)
    assert (command.id, command.request.code) == (9, code)
    assert command.request.message.startswith(message)


@pytest.mark.spec("GTW-E07")
def test_errors_are_numbered_as_in_centrifuge_and_say_whether_they_are_temporary() -> None:
    assert sorted(codes.ERRORS) == list(range(100, 114))
    assert {code for code, (_, temporary) in codes.ERRORS.items() if temporary} == {100, 111, 113}
    assert json.loads(protocol.error_reply(4, CommandError(100))) == {
        "id": 4, "error": {"code": 100, "message": "internal server error", "temporary": True},
    }  # fmt: skip
    assert json.loads(protocol.error_reply(4, CommandError(103)))["error"] == {"code": 103, "message": "permission denied"}


@pytest.mark.spec("GTW-E06")
def test_disconnects_from_3500_on_are_terminal() -> None:
    terminal = {code for code in codes.DISCONNECTS if Disconnect(code).terminal}
    assert terminal == {3500, 3501, 3502, 3504, 3506}
    assert {3001, 3005, 3008, 3012, 3013} <= set(codes.DISCONNECTS) - terminal


@pytest.mark.spec("GTW-E11")
@pytest.mark.spec("GTW-E05")
def test_commands_beyond_the_rate_end_the_connection_but_a_burst_does_not() -> None:
    made = session()
    for number in range(LIMITS.commands_burst - 1):
        received(made, f'{{"id":{number + 2},"presence":{{"channel":"c"}}}}', now=0.0)
    disconnect = ended(made.receive('{"id":99,"presence":{"channel":"c"}}', 0.0))
    assert (disconnect.code, disconnect.terminal) == (3013, False)
    assert disconnect.reason == "too many requests: expected at most 10 commands a second"
    assert len(received(made, '{"id":99,"presence":{"channel":"c"}}', now=0.1)) == 1


def test_a_client_that_does_not_connect_in_time_is_stale() -> None:
    made = session(connected=False)
    assert made.tick(9.9) is None
    with pytest.raises(Disconnect) as caught:
        made.tick(10.0)
    assert caught.value.code == 3502


@pytest.mark.spec("GTW-E04")
def test_pings_come_in_their_time_and_one_without_an_answer_ends_the_connection() -> None:
    made = session()
    assert made.tick(19.9) is None
    assert made.tick(20.0) == b"{}"
    assert made.tick(29.9) is None
    assert received(made, "{}", now=29.9) == []
    assert made.tick(45.0) == b"{}"
    with pytest.raises(Disconnect) as caught:
        made.tick(55.0)
    assert (caught.value.code, caught.value.terminal) == (3012, False)


@pytest.mark.spec("GTW-E12")
def test_an_expired_token_ends_the_connection_after_a_grace_for_refreshing() -> None:
    made = session()
    made.expires(100.0)
    for now in (20.0, 45.0, 70.0, 95.0, 120.0):
        assert made.tick(now) == b"{}"
        received(made, "{}", now)
    with pytest.raises(Disconnect) as caught:
        made.tick(125.0)
    assert (caught.value.code, caught.value.terminal) == (3005, False)
    made.expires(None)
    assert made.tick(125.0) is None


def test_replies_and_pushes_are_one_line_of_json_whatever_they_carry() -> None:
    pretty = b'{\n  "items": []\n}'
    subscribed = protocol.subscribe_result(
        "e", 7, recovering=True, publications=[protocol.publication(b'{"items":[]}', 6)], data=pretty
    )
    reply = protocol.reply(3, "subscribe", subscribed)
    assert b"\n" not in reply
    assert json.loads(reply) == {
        "id": 3,
        "subscribe": {
            "recoverable": True, "positioned": True, "epoch": "e", "offset": 7, "was_recovering": True, "recovered": True,
            "publications": [{"data": {"items": []}, "offset": 6}], "data": {"items": []},
        },
    }  # fmt: skip
    push = protocol.publication_push(protocol.quoted('org:a"b:metrics'), b"{}", 8)
    assert json.loads(push) == {"push": {"channel": 'org:a"b:metrics', "pub": {"data": {}, "offset": 8}}}
    assert json.loads(protocol.unsubscribe_push("c", 2000, "r")) == {
        "push": {"channel": "c", "unsubscribe": {"code": 2000, "reason": "r"}}
    }

"""The server's side of Centrifugo's client protocol, JSON: frames in, commands out; replies and pushes as bytes.

Sans-IO: nothing here waits, knows a socket or looks at a clock; `now` is in seconds of any monotonic clock.

    client                                         server
    {"id":1,"connect":{"token":"…"}}               {"id":1,"connect":{"client":"…","ping":25,"pong":true}}
    {"id":2,"subscribe":{"channel":"…"}}           {"id":2,"subscribe":{"recoverable":true,"epoch":"…","offset":7}}
                                                   {"push":{"channel":"…","pub":{"data":{…},"offset":8}}}
    {}                                             {}          (the server asks, the client answers)

A frame holds one command a line. Method and field names are those of centrifugal/protocol's client.proto; fields that are
not named here are ignored, as SDKs of any version send what newer servers understand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, NamedTuple

import msgspec

from cmis_stream.core.errors import shown
from cmis_stream.gateway import codes
from cmis_stream.gateway.codes import CommandError, Disconnect
from cmis_stream.gateway.limits import Limits

PING = b"{}"
REJECT_UNRECOVERED = 2
"""Bit of a subscribe command's `flag`: error 112 rather than `recovered: false`."""

_NOTHING = msgspec.Raw(b"")
_encode = msgspec.json.Encoder().encode


Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
LARGEST_ID = 2**32 - 1


class Connect(msgspec.Struct):
    token: str = ""
    name: str = ""
    version: str = ""


class Subscribe(msgspec.Struct):
    """tf: a filter by tags, which our publications do not have. type: 0, or one of the kinds we do not offer."""

    channel: str
    recover: bool = False
    epoch: str = ""
    offset: Offset = 0
    data: msgspec.Raw = _NOTHING
    flag: int = 0
    type: int = 0
    tf: msgspec.Raw = _NOTHING


class Unsubscribe(msgspec.Struct):
    channel: str


class Publish(msgspec.Struct):
    channel: str


class Presence(msgspec.Struct):
    channel: str


class PresenceStats(msgspec.Struct):
    channel: str


class Since(msgspec.Struct):
    offset: Offset = 0
    epoch: str = ""


class History(msgspec.Struct):
    """limit 0: only where the channel is; -1: as much as there is."""

    channel: str
    limit: int = 0
    since: Since | None = None
    reverse: bool = False


class Rpc(msgspec.Struct):
    method: str = ""
    data: msgspec.Raw = _NOTHING


class Refresh(msgspec.Struct):
    token: str = ""


class SubRefresh(msgspec.Struct):
    channel: str = ""


class Send(msgspec.Struct):
    """One way: never answered."""


Request = Connect | Subscribe | Unsubscribe | Publish | Presence | PresenceStats | History | Rpc | Refresh | SubRefresh | Send


class Command(NamedTuple):
    """request: an error where the method or its fields cannot be understood; it is the answer."""

    id: int
    request: Request | CommandError


_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "connect": msgspec.json.Decoder(Connect),
    "subscribe": msgspec.json.Decoder(Subscribe),
    "unsubscribe": msgspec.json.Decoder(Unsubscribe),
    "publish": msgspec.json.Decoder(Publish),
    "presence": msgspec.json.Decoder(Presence),
    "presence_stats": msgspec.json.Decoder(PresenceStats),
    "history": msgspec.json.Decoder(History),
    "rpc": msgspec.json.Decoder(Rpc),
    "refresh": msgspec.json.Decoder(Refresh),
    "sub_refresh": msgspec.json.Decoder(SubRefresh),
    "send": msgspec.json.Decoder(Send),
}
METHODS = {decoder.type: method for method, decoder in _DECODERS.items()}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_number = msgspec.json.Decoder(int).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class State(Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"


class Session:
    """One connection's protocol state: connecting → connected (or refused), with its deadlines and its command rate."""

    __slots__ = ("_allowance", "_allowed_at", "_expires_at", "_limits", "_next_ping", "_pong_due", "state")

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self.state = State.CONNECTING
        self._allowance, self._allowed_at = float(limits.commands_burst), now
        self._expires_at: float | None = now + limits.connect_s
        self._next_ping = self._pong_due = float("inf")

    def receive(self, frame: str | bytes, now: float) -> Iterator[Command]:
        """The frame's commands, one by one: each is to be handled before the next is asked for. Raises Disconnect."""
        lines = frame.split("\n") if isinstance(frame, str) else frame.split(b"\n")
        if not lines[-1]:
            lines.pop()
        if not lines:
            raise Disconnect(codes.BAD_FRAME, "expected a command, got an empty frame")
        for line in lines:
            if self.is_refused:
                raise Disconnect(codes.BAD_FRAME, "expected nothing more, the connection was refused")
            self._count(now)
            command = parsed(line)
            if command is None:
                self._pong_due = float("inf")
            elif (self.state is State.CONNECTED) == isinstance(command.request, Connect):
                expected = "connect first" if self.state is State.CONNECTING else "connect only once"
                raise Disconnect(codes.BAD_FRAME, f"expected {expected}, got {_name(command)}")
            else:
                yield command
                if self.is_refused:
                    return

    def _count(self, now: float) -> None:
        limits = self._limits
        self._allowance = min(self._allowance + (now - self._allowed_at) * limits.commands_per_s, limits.commands_burst)
        self._allowed_at = now
        if self._allowance < 1:
            raise Disconnect(codes.TOO_MANY_COMMANDS, f"expected at most {limits.commands_per_s:g} commands a second")
        self._allowance -= 1

    def connected(self, now: float, first_ping_s: float) -> None:
        """The connect command succeeds. first_ping_s: in so many seconds, which differ from client to client."""
        self.state = State.CONNECTED
        self._expires_at = None
        self._next_ping = now + first_ping_s

    def refused(self) -> None:
        """The connect command failed with an error: nothing more is accepted, and the connect deadline ends it."""
        self.state = State.REFUSED

    @property
    def is_refused(self) -> bool:
        return self.state is State.REFUSED

    def expires(self, at: float | None) -> None:
        """The token ends at `at` (seconds of the same clock); clients then refresh, for which there is a grace."""
        self._expires_at = None if at is None else at + self._limits.expiry_grace_s

    def tick(self, now: float) -> bytes | None:
        """What is to be sent now; called every second or so. Raises Disconnect when a deadline has passed."""
        if self._expires_at is not None and now >= self._expires_at:
            if self.state is State.CONNECTED:
                raise Disconnect(codes.CONNECTION_EXPIRED)
            raise Disconnect(codes.STALE, f"expected connect within {self._limits.connect_s:g} s")
        if now >= self._pong_due:
            raise Disconnect(codes.NO_PONG)
        if now < self._next_ping:
            return None
        self._next_ping = now + self._limits.ping_s
        self._pong_due = min(self._pong_due, now + self._limits.pong_s)  # of the first ping without an answer
        return PING


def parsed(line: str | bytes) -> Command | None:
    """The command on a line; None is a pong. Disconnect when there is no id to answer to."""
    try:
        fields = _fields(line)
    except _UNREADABLE as error:
        raise Disconnect(codes.BAD_FRAME, f"expected a JSON object a line, got {shown(line, 40)} ({error})") from None
    if not fields:
        return None
    try:
        number = _number(fields.get("id", b"0"))
    except _UNREADABLE:
        number = -1
    method = next((method for method in _DECODERS if method in fields), None)
    if not (0 < number <= LARGEST_ID or (number == 0 and method == "send")):
        raise Disconnect(
            codes.BAD_FRAME, f"expected an id from 1 to {LARGEST_ID}, got {shown(bytes(fields.get('id', b'none')), 40)}"
        )
    if method is None:
        got = ", ".join(sorted(fields.keys() - {"id"})) or "none"
        return Command(number, CommandError(codes.METHOD_NOT_FOUND, f"expected one of {', '.join(_DECODERS)}, got {shown(got)}"))
    try:
        return Command(number, _DECODERS[method].decode(fields[method]))
    except _UNREADABLE as error:
        return Command(number, CommandError(codes.BAD_REQUEST, f"{method}: {error}"))


def _name(command: Command) -> str:
    return "an unreadable command" if isinstance(command.request, CommandError) else METHODS[type(command.request)]


# --- what the server says ---------------------------------------------------------------------------------------------


def reply(number: int, method: str, result: Mapping[str, Any]) -> bytes:
    return b'{"id":%d,"%b":%b}' % (number, method.encode(), _encode(result))


def error_reply(number: int, error: CommandError) -> bytes:
    fields: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.temporary:
        fields["temporary"] = True
    return b'{"id":%d,"error":%b}' % (number, _encode(fields))


def quoted(text: str) -> bytes:
    """Text as JSON."""
    return _encode(text)


def publication(data: bytes, offset: int) -> bytes:
    return b'{"data":%b,"offset":%d}' % (data, offset)


def publication_push(channel: bytes, data: bytes, offset: int) -> bytes:
    """channel: `quoted`."""
    return b'{"push":{"channel":%b,"pub":{"data":%b,"offset":%d}}}' % (channel, data, offset)


def unsubscribe_push(channel: str, code: int, reason: str) -> bytes:
    return _encode({"push": {"channel": channel, "unsubscribe": {"code": code, "reason": reason}}})


def connect_result(client: str, version: str, node: str, limits: Limits, ttl_s: int | None) -> dict[str, Any]:
    result = {"client": client, "version": version, "node": node, "ping": max(1, round(limits.ping_s)), "pong": True}
    return result if ttl_s is None else {**result, "expires": True, "ttl": ttl_s}


def refresh_result(client: str, version: str, ttl_s: int | None) -> dict[str, Any]:
    result: dict[str, Any] = {"client": client, "version": version}
    return result if ttl_s is None else {**result, "expires": True, "ttl": ttl_s}


def subscribe_result(
    epoch: str, offset: int, *, recovering: bool, publications: Sequence[bytes] | None, data: bytes | None
) -> dict[str, Any]:
    """recovering: the client asked for what it missed. publications: that, encoded; None: it could not be had."""
    result: dict[str, Any] = {"recoverable": True, "positioned": True, "epoch": epoch, "offset": offset}
    if recovering:
        result["was_recovering"] = True
        result["recovered"] = publications is not None
    if publications:
        result["publications"] = [msgspec.Raw(publication) for publication in publications]
    if data is not None:
        result["data"] = one_line(data)
    return result


def history_result(epoch: str, offset: int, publications: Sequence[bytes]) -> dict[str, Any]:
    return {"epoch": epoch, "offset": offset, "publications": [msgspec.Raw(publication) for publication in publications]}


def one_line(json: bytes) -> msgspec.Raw:
    """JSON from elsewhere without line breaks, which would end the reply in the middle."""
    return msgspec.Raw(msgspec.json.format(json, indent=-1) if b"\n" in json or b"\r" in json else json)

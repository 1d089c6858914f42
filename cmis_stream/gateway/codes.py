"""The numbered vocabulary of Centrifugo's client protocol: errors of a command, and why a connection ends.

Numbers and texts are those of centrifuge's errors.go and disconnect.go, which the SDKs act on.
"""

from __future__ import annotations

INTERNAL = 100
UNAUTHORIZED = 101
UNKNOWN_CHANNEL = 102
PERMISSION_DENIED = 103
METHOD_NOT_FOUND = 104
ALREADY_SUBSCRIBED = 105
LIMIT_EXCEEDED = 106
BAD_REQUEST = 107
NOT_AVAILABLE = 108
TOKEN_EXPIRED = 109
EXPIRED = 110
TOO_MANY_REQUESTS = 111
UNRECOVERABLE_POSITION = 112
CONCURRENT_PAGINATION = 113

ERRORS: dict[int, tuple[str, bool]] = {
    INTERNAL: ("internal server error", True),
    UNAUTHORIZED: ("unauthorized", False),
    UNKNOWN_CHANNEL: ("unknown channel", False),
    PERMISSION_DENIED: ("permission denied", False),
    METHOD_NOT_FOUND: ("method not found", False),
    ALREADY_SUBSCRIBED: ("already subscribed", False),
    LIMIT_EXCEEDED: ("limit exceeded", False),
    BAD_REQUEST: ("bad request", False),
    NOT_AVAILABLE: ("not available", False),
    TOKEN_EXPIRED: ("token expired", False),
    EXPIRED: ("expired", False),
    TOO_MANY_REQUESTS: ("too many requests", True),
    UNRECOVERABLE_POSITION: ("unrecoverable position", False),
    CONCURRENT_PAGINATION: ("concurrent pagination", True),
}
"""code -> (text, temporary: the same command may succeed later)."""


class CommandError(Exception):
    """The answer to one command; the connection stays. `detail` says what came and what was expected."""

    def __init__(self, code: int, detail: str = "") -> None:
        text, self.temporary = ERRORS[code]
        self.code, self.message = code, f"{text}: {detail}" if detail else text
        super().__init__(f"{code} {self.message}")


SHUTDOWN = 3001
SERVER_ERROR = 3004
CONNECTION_EXPIRED = 3005
SLOW = 3008
NO_PONG = 3012
TOO_MANY_COMMANDS = 3013
INVALID_TOKEN = 3500
BAD_FRAME = 3501
STALE = 3502
CONNECTION_LIMIT = 3504
INAPPROPRIATE_PROTOCOL = 3506

DISCONNECTS: dict[int, str] = {
    SHUTDOWN: "shutdown",
    SERVER_ERROR: "internal server error",
    CONNECTION_EXPIRED: "connection expired",
    SLOW: "slow",
    NO_PONG: "no pong",
    TOO_MANY_COMMANDS: "too many requests",
    INVALID_TOKEN: "invalid token",
    BAD_FRAME: "bad request",
    STALE: "stale",
    CONNECTION_LIMIT: "connection limit",
    INAPPROPRIATE_PROTOCOL: "inappropriate protocol",
}
LONGEST_REASON = 123
"""Bytes: what a websocket close frame has room for."""


class Disconnect(Exception):
    """The connection ends with this close code and reason."""

    def __init__(self, code: int, detail: str = "") -> None:
        text = DISCONNECTS[code]
        self.code = code
        self.reason = (f"{text}: {detail}" if detail else text).encode()[:LONGEST_REASON].decode("utf-8", "ignore")
        super().__init__(f"{code} {self.reason}")

    @property
    def terminal(self) -> bool:
        """Clients do not connect again."""
        return self.code >= 3500


UNSUBSCRIBED_BY_SERVER = 2000
"""In an unsubscribe push; below 2500, so clients do not subscribe again by themselves."""
INSUFFICIENT_STATE = 2500
"""In an unsubscribe push: clients subscribe again, with the offset they have."""

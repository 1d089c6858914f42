"""How often an address may try something."""

from __future__ import annotations

import ipaddress

MOST_ADDRESSES = 10_000


class Attempts:
    """A token bucket per address: `burst` at once, then one every `every_ms`. An IPv6 network of 64 bits is one address."""

    def __init__(self, burst: int, every_ms: int) -> None:
        self._burst_ms, self._every_ms = burst * every_ms, every_ms
        self._spent_until: dict[str, int] = {}

    def wait_ms(self, address: str, now_ms: int) -> int:
        """0: the attempt is taken and counted; else how long to wait, and it is not counted."""
        address = _network(address)
        spent_until = max(self._spent_until.pop(address, 0), now_ms) + self._every_ms
        over_ms = spent_until - now_ms - self._burst_ms
        if over_ms > 0:
            spent_until -= self._every_ms
        elif len(self._spent_until) >= MOST_ADDRESSES:
            # The one that tried longest ago is forgotten: the dict is in the order of attempts.
            del self._spent_until[next(iter(self._spent_until))]
        self._spent_until[address] = spent_until
        return max(over_ms, 0)


def _network(address: str) -> str:
    """
    >>> _network("2001:db8::1:2"), _network("10.0.0.1"), _network("")
    ('2001:db8::/64', '10.0.0.1', '')
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))

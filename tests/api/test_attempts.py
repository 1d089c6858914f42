from __future__ import annotations

import pytest

from cmis_stream.api.attempts import MOST_ADDRESSES, Attempts

NOW = 1_767_225_600_000


def test_a_burst_is_taken_then_one_at_a_time() -> None:
    attempts = Attempts(3, 1_000)
    assert [attempts.wait_ms("10.0.0.1", NOW) for _ in range(5)] == [0, 0, 0, 1_000, 1_000]
    assert attempts.wait_ms("10.0.0.1", NOW + 400) == 600
    assert [attempts.wait_ms("10.0.0.1", NOW + 1_000) for _ in range(2)] == [0, 1_000]
    assert [attempts.wait_ms("10.0.0.1", NOW + 60_000) for _ in range(4)] == [0, 0, 0, 1_000], (
        "no more than the burst is saved up"
    )


@pytest.mark.parametrize(
    ("other", "shared"),
    [("10.0.0.2", False), ("2001:db8::2", True), ("2001:db8:0:0:ffff::", True), ("2001:db8:0:1::1", False), ("?", False)],
)
def test_an_address_or_a_network_of_64_bits_has_a_bucket_of_its_own(other: str, shared: bool) -> None:
    attempts = Attempts(1, 1_000)
    assert attempts.wait_ms("2001:db8::1", NOW) == 0
    assert (attempts.wait_ms(other, NOW) > 0) is shared


def test_memory_is_bounded_and_those_who_try_again_are_not_forgotten() -> None:
    attempts = Attempts(1, 10_000)
    attempts.wait_ms("busy", NOW)
    for number in range(3 * MOST_ADDRESSES):
        attempts.wait_ms(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", NOW)
        if number % 1_000 == 0:
            assert attempts.wait_ms("busy", NOW) == 10_000
    assert len(attempts._spent_until) <= MOST_ADDRESSES

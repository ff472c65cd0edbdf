"""Expiring: nothing after its time, nothing beyond the bound, and the longest unused goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.net.expiring import Expiring
from fakes.dns_server import ManualClock


def test_a_value_is_given_until_its_time_is_over() -> None:
    clock = ManualClock()
    kept: Expiring[str, int] = Expiring(10, clock)
    kept.put("a", 1, 5)
    assert (kept.get_or_none("a"), kept.seconds_left("a")) == (1, 5)
    clock.now += 4.9
    assert kept.get_or_none("a") == 1
    clock.now += 0.1
    assert kept.get_or_none("a") is None
    assert (len(kept), kept.used_units) == (0, 0)


def test_no_time_is_not_kept_and_takes_the_old_value_away() -> None:
    kept: Expiring[str, int] = Expiring(10, ManualClock())
    kept.put("a", 1, 5)
    kept.put("a", 2, 0)
    assert kept.get_or_none("a") is None
    kept.discard("a")


def test_the_longest_unused_goes_first_and_a_large_value_counts_as_several() -> None:
    kept: Expiring[str, int] = Expiring(4, ManualClock())
    for key in "abcd":
        kept.put(key, 1, 5)
    assert kept.get_or_none("a") == 1
    kept.put("big", 2, 5, units=2)
    assert [key for key in ("a", "b", "c", "d", "big") if kept.get_or_none(key)] == ["a", "d", "big"]
    kept.put("huge", 3, 5, units=5)
    assert len(kept) == kept.used_units == 0
    kept.put("a", 1, 5)
    kept.clear()
    assert len(kept) == kept.used_units == 0


_STEP = st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 9), st.booleans())


@given(st.lists(_STEP, max_size=80))
def test_it_is_a_dictionary_with_a_bound(steps: list[tuple[int, int, int, bool]]) -> None:
    clock = ManualClock()
    kept: Expiring[int, int] = Expiring(8, clock)
    model: dict[int, tuple[float, int]] = {}
    for number, (key, units, ttl, is_put) in enumerate(steps):
        clock.now += 1
        if is_put:
            kept.put(key, number, ttl, units)
            model[key] = (clock.now + ttl, number)
        found = kept.get_or_none(key)
        if found is not None:
            assert model[key][1] == found
            assert clock.now < model[key][0]
        assert kept.used_units == sum(kept._large.get(key, 1) for key in kept._kept) <= 8

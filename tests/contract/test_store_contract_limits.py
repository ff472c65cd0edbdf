"""What every store promises, whatever is under it: limits that engines keep together; `store.py`, "Limits"."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.queue.limits import LOST_S, TURN_S, Want
from engine.values import Rate
from fakes.stores import NOW, Bench, Opener

MX = "mx.example.org [192.0.2.1]:25"


def join(*benches: Bench) -> None:
    """Take part, none of them alone."""
    for bench in benches:
        assert bench.store.join_sharing(bench.owner, NOW, may_be_alone=False) is None


def share(bench: Bench, open_: int, wanted: int, *, limit: int = 20, now: float = NOW) -> int:
    return bench.store.share(bench.owner, {MX: Want(limit, open_, wanted)}, now)[MX]


def test_an_engine_that_is_alone_is_told_so_and_sees_the_next_one(bench: Bench, other: Bench) -> None:
    assert bench.store.join_sharing(bench.owner, NOW, may_be_alone=True) == {}
    assert not bench.store.has_other_sharers(bench.owner)
    assert other.store.join_sharing(other.owner, NOW, may_be_alone=True) is None
    assert other.store.has_lone_sharer(other.owner)
    assert bench.store.has_other_sharers(bench.owner)
    bench.store.begin_sharing(bench.owner, {MX: Want(20, 18, 18)}, {"m": NOW + 7}, NOW)
    assert not other.store.has_lone_sharer(other.owner)
    assert share(other, 0, 5) == 2, "what the first one has open counts"
    assert other.store.reserve({"m": (Rate.of(1, 1.0), 1)}, NOW) == {"m": NOW + 7}


def test_an_engine_that_only_loads_takes_no_part(bench: Bench, other: Bench) -> None:
    assert other.store.join_sharing(other.owner, NOW, may_be_alone=True) == {}


def test_an_engine_that_is_left_alone_learns_what_the_others_used(bench: Bench, other: Bench) -> None:
    join(bench, other)
    share(other, 0, 20)
    other.store.reserve({"m": (Rate.of(1, 60.0), 1)}, NOW)
    other.store.retire(other.engine, NOW)
    assert not bench.store.has_other_sharers(bench.owner)
    assert bench.store.join_sharing(bench.owner, NOW, may_be_alone=True) == {"m": NOW + 60}
    assert bench.store.join_sharing(bench.owner, NOW, may_be_alone=True) == {}


def test_slots_move_as_connections_end(bench: Bench, other: Bench) -> None:
    join(bench, other)
    assert share(bench, 0, 20) == 20
    assert share(other, 0, 20) == 0
    assert bench.store.wanted_by_others(bench.owner) == {MX}
    assert share(bench, 20, 20) == 10, "it has more than its part"
    assert share(other, 0, 20) == 0, "and until those are closed they count"
    assert share(bench, 14, 20) == 10
    assert share(other, 0, 20) == 6
    assert share(bench, 10, 20) == 10
    assert share(other, 6, 20) == 10
    assert share(other, 3, 3) == 3
    assert share(bench, 10, 20) == 17
    assert share(bench, 0, 0) == 0
    assert other.store.wanted_by_others(other.owner) == frozenset()
    assert share(other, 3, 20) == 20


def test_engines_take_turns_where_there_are_fewer_slots_than_engines(bench: Bench, other: Bench) -> None:
    join(bench, other)
    assert share(bench, 0, 1, limit=1) == 1
    assert share(other, 0, 1, limit=1, now=NOW + 1) == 0
    assert share(bench, 1, 1, limit=1, now=NOW + TURN_S - 1) == 1
    assert share(bench, 1, 1, limit=1, now=NOW + TURN_S) == 0
    assert share(other, 0, 1, limit=1, now=NOW + TURN_S) == 0, "it is open still"
    assert share(bench, 0, 1, limit=1, now=NOW + TURN_S + 1) == 0
    assert share(other, 0, 1, limit=1, now=NOW + TURN_S + 1) == 1
    assert share(other, 1, 1, limit=1, now=NOW + 2 * TURN_S) == 1, "its turn began when it got the slot"
    assert share(other, 1, 1, limit=1, now=NOW + 2 * TURN_S + 1) == 0


def test_a_turn_ends_when_the_clock_was_set_back(bench: Bench, other: Bench) -> None:
    join(bench, other)
    assert share(bench, 0, 1, limit=1, now=NOW) == 1
    assert share(other, 0, 1, limit=1, now=NOW) == 0
    assert share(bench, 1, 1, limit=1, now=NOW - 3600) == 0
    assert share(bench, 0, 1, limit=1, now=NOW - 3599) == 0
    assert share(other, 0, 1, limit=1, now=NOW - 3599) == 1
    assert share(other, 1, 1, limit=1, now=NOW - 3599) == 1


def test_a_turn_does_not_end_while_nobody_waits(bench: Bench, other: Bench) -> None:
    join(bench, other)
    assert share(bench, 0, 1, limit=1) == 1
    assert share(bench, 1, 1, limit=1, now=NOW + 10 * TURN_S) == 1


@pytest.mark.parametrize("is_well", [True, False])
def test_what_an_engine_held_is_free_when_it_is_gone(bench: Bench, other: Bench, is_well: bool) -> None:
    join(bench, other)
    assert share(bench, 0, 20) == 20
    if is_well:
        bench.store.retire(bench.engine, NOW)
    else:
        bench.die()
        assert share(other, 0, 20) == 0, "its connections may be open still"
        other.store.recover(other.owner, NOW)
    assert share(other, 0, 20) == 20
    assert not other.store.has_other_sharers(other.owner)


def test_a_lone_engine_that_died_holds_nobody_up(bench: Bench, other: Bench) -> None:
    assert bench.store.join_sharing(bench.owner, NOW, may_be_alone=True) == {}
    bench.die()
    other.store.recover(other.owner, NOW)
    assert other.store.join_sharing(other.owner, NOW, may_be_alone=True) == {}


def test_an_engine_that_hangs_is_left_out_of_account_after_a_while(bench: Bench, other: Bench) -> None:
    join(bench, other)
    assert share(bench, 0, 20) == 20
    assert share(other, 0, 20, now=NOW + LOST_S - 1) == 0
    assert share(other, 0, 20, now=NOW + LOST_S) == 20
    assert share(bench, 20, 20, now=NOW + LOST_S + 1) == 0, "it is back, and counts what others have"
    assert share(other, 20, 20, now=NOW + LOST_S + 2) == 0
    assert share(bench, 10, 20, now=NOW + LOST_S + 3) == 0
    assert share(other, 10, 20, now=NOW + LOST_S + 3) == 10
    assert share(bench, 10, 20, now=NOW + LOST_S + 3) == 10


def test_an_engine_that_says_anything_is_there(bench: Bench, other: Bench) -> None:
    join(bench, other)
    assert share(bench, 0, 20) == 20
    bench.store.share(bench.owner, {}, NOW + LOST_S - 1)
    assert share(other, 0, 20, now=NOW + LOST_S) == 0


def test_places_are_shared_one_by_one(bench: Bench, other: Bench) -> None:
    join(bench, other)
    wants = {f"mx{number}": Want(2, 0, 2) for number in range(50)}
    assert set(bench.store.share(bench.owner, wants, NOW).values()) == {2}
    assert other.store.share(other.owner, {"mx7": Want(2, 0, 1), "else": Want(2, 0, 1)}, NOW) == {"mx7": 0, "else": 1}


def test_tokens_are_reserved_in_the_order_of_asking(bench: Bench, other: Bench) -> None:
    rate = Rate.of(10, 1.0)
    assert bench.store.reserve({"a": (rate, 10), "b": (rate, 1)}, NOW)["a"] == NOW - 0.9
    assert other.store.reserve({"a": (rate, 5)}, NOW)["a"] == pytest.approx(NOW + 0.1)
    assert bench.store.reserve({"a": (rate, 1)}, NOW)["a"] == pytest.approx(NOW + 0.6)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    limit=st.integers(1, 12),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.floats(0, 4)), min_size=10, max_size=60),
)
def test_the_sum_is_never_over_the_limit_and_everybody_comes_to_his_part(
    opener: Opener, limit: int, steps: list[tuple[int, int, float]]
) -> None:
    """Three engines that want now more, now less, and close connections when they are told that they have too many."""
    benches = [Bench(opener()) for _ in range(3)]
    join(*benches)
    opened, wanted, now = [0, 0, 0], [0, 0, 0], NOW

    def ask(who: int) -> None:
        granted = share(benches[who], opened[who], max(opened[who], wanted[who]), limit=limit, now=now)
        opened[who] = min(granted, wanted[who])
        assert sum(opened) <= limit

    for who, want, pause_s in steps:
        now += pause_s
        wanted[who] = want
        opened[who] = min(opened[who], want)
        ask(who)
    for _ in range(4):
        for who in range(3):
            ask(who)
    assert sum(opened) == min(limit, sum(wanted))
    for bench in benches:
        bench.store.retire(bench.engine, now)

"""How slots and tokens are worked out: never over the limit, nobody short who could be served."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.queue.limits import divide, reserve
from engine.values import Rate

rates = st.builds(Rate.of, st.integers(1, 10_000), st.sampled_from([1.0, 10.0, 60.0, 3600.0]))


@given(st.integers(0, 50), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_slots_are_divided_so_that_nobody_could_have_more_without_others_having_less(
    limit: int, wanted: list[int]
) -> None:
    shares = divide(limit, wanted)
    assert sum(shares) == min(limit, sum(wanted))
    assert all(0 <= share <= want for share, want in zip(shares, wanted, strict=True))
    for index, share in enumerate(shares):
        if share < wanted[index]:
            # who is short has as much as anybody, but for what does not come out even, which goes to the first
            assert all(other <= share + (place < index) for place, other in enumerate(shares))


def test_division_in_figures() -> None:
    assert divide(20, [20, 20]) == [10, 10]
    assert divide(20, [20, 3]) == [17, 3]
    assert divide(20, [20, 20, 20]) == [7, 7, 6]
    assert divide(1, [1, 1]) == [1, 0]
    assert divide(0, [5]) == [0]


@given(
    rates,
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=30),
    st.floats(0.01, 1000),
)
def test_tokens_are_never_good_more_often_than_the_rate_says(
    rate: Rate, asks: list[tuple[float, int]], window_s: float
) -> None:
    now, next_at = 1_700_000_000.0, 0.0
    good: list[float] = []
    for pause_s, count in asks:
        now += pause_s
        first, after = reserve(next_at, now, count, rate)
        assert first >= next_at
        assert first >= now - rate.memory_s
        good += [first + number * rate.interval_s for number in range(count)]
        next_at = after
    # a token may be used until it is void, so those of `memory_s` before a window may be used in it
    most = (window_s + rate.memory_s) / rate.interval_s + 1.001
    for index, begin in enumerate(good[::7]):
        assert sum(begin <= at < begin + window_s + rate.memory_s for at in good[7 * index :]) <= most


def test_rates_in_figures() -> None:
    fast = Rate.of(100, 1.0)
    assert (fast.interval_s, fast.burst) == (0.01, 100)
    assert Rate.of(60, 60.0) == Rate(1.0, 1)
    first, after = reserve(0.0, 1000.0, 100, fast)
    assert (round(first, 6), round(after, 6)) == (999.01, 1000.01), "after a rest, a second's worth is good at once"
    assert reserve(after, 1000.0, 1, fast)[0] == after, "and then one an interval"
    assert reserve(0.0, 1000.0, 1, Rate.of(1, 60.0)) == (1000.0, 1060.0)

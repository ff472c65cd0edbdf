"""The counters: outcomes, rate over a moving span, a bounded table of sites."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.delivery.progress import MAX_SITES, NO_SITE, OTHER_SITES, Progress
from engine.queue.model import OutcomeKind


def test_rate_is_over_the_last_seconds() -> None:
    progress = Progress()
    assert progress.rate(0.0) == 0.0
    progress.delivered = 50
    assert progress.rate(1.0) == 50.0
    progress.failed = 50
    assert progress.rate(20.0) == pytest.approx(50 / 19)
    assert progress.rate(40.0) == 0.0


def test_what_came_before_the_first_delivery_does_not_dilute_the_rate() -> None:
    progress = Progress()
    for second in range(8):
        assert progress.rate(float(second)) == 0.0
    progress.delivered = 100
    assert progress.rate(8.0) == 100.0


def test_the_table_of_sites_is_bounded() -> None:
    progress = Progress()
    for number in range(MAX_SITES + 5):
        progress.site(f"mx{number}").delivered += 1
    assert len(progress.sites) == MAX_SITES + 1
    assert progress.sites[OTHER_SITES].delivered == 5


def test_outcomes_are_counted_in_all_and_by_site() -> None:
    progress = Progress(total=5)
    progress.count(OutcomeKind.DELIVERED, "mx1")
    progress.count(OutcomeKind.FAILED)
    progress.count(OutcomeKind.DEFERRED, "mx1")
    progress.count(OutcomeKind.DEFERRED, "mx2", in_doubt=True)
    progress.count(OutcomeKind.RELEASED, "mx3")
    assert (progress.delivered, progress.failed, progress.deferred, progress.waiting) == (1, 1, 2, 2)
    assert (progress.in_doubt, progress.settled, progress.left) == (1, 2, 3)
    assert set(progress.sites) == {"mx1", "mx2", NO_SITE}
    progress.count(OutcomeKind.DEFERRED, "mx1", was_waiting=True)
    progress.count(OutcomeKind.DELIVERED, "mx1", was_waiting=True)
    progress.count(OutcomeKind.DELIVERED, "mx2", was_waiting=True)
    assert (progress.delivered, progress.deferred, progress.waiting, progress.left) == (3, 3, 0, 1)
    assert progress.sites["mx1"].deferred == 2


def test_the_start_is_set_once() -> None:
    progress = Progress()
    assert progress.elapsed_s(5.0) == 0.0
    assert progress.average(5.0) == 0.0
    progress.start(10.0)
    progress.start(20.0)
    progress.delivered = 30
    assert progress.elapsed_s(25.0) == 15.0
    assert progress.average(25.0) == 2.0


def test_time_left_is_about_what_is_due_now() -> None:
    progress = Progress(total=100, earlier=20)
    progress.rate(0.0)
    progress.delivered = 10
    progress.count(OutcomeKind.DEFERRED)
    assert progress.time_left_s(progress.rate(0.5)) is None, "too early to say"
    assert progress.time_left_s(progress.rate(2.0)) == pytest.approx(69 / 5)
    assert progress.time_left_s(0.0) is None
    assert Progress().time_left_s(5.0) is None


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1000)), max_size=200))
def test_no_history_makes_a_rate_negative_or_the_samples_many(steps: list[tuple[float, int]]) -> None:
    progress, now = Progress(), 0.0
    for step, more in steps:
        now += step
        progress.delivered += more
        assert progress.rate(now) >= 0

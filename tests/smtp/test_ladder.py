"""The ladder: bulk-sending section 5, rule 1."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.ladder import CLIMB_AFTER, MAX_CLIMB_AFTER, HostMemory, Rung


def climb(memory: HostMemory) -> int:
    """Clean transactions until the next rung."""
    start, count = memory.rung, 0
    while memory.rung is start:
        memory.on_clean()
        count += 1
    return count


def test_it_begins_at_grouped_and_climbs_a_step_at_a_time() -> None:
    memory = HostMemory()
    rungs = [memory.rung]
    for _ in range(2):
        assert climb(memory) == CLIMB_AFTER
        rungs.append(memory.rung)
    memory.on_clean()
    assert [*rungs, memory.rung] == [Rung.GROUPED, Rung.GLUED, Rung.WINDOWED, Rung.WINDOWED]


def test_it_falls_a_step_and_remembers() -> None:
    memory = HostMemory(rung=Rung.WINDOWED)
    memory.on_trouble()
    assert memory.rung is Rung.GLUED
    assert climb(memory) == 2 * CLIMB_AFTER
    memory.on_trouble()
    assert climb(memory) == 4 * CLIMB_AFTER


def test_disorder_makes_it_fall_all_the_way() -> None:
    memory = HostMemory(rung=Rung.WINDOWED)
    memory.on_disorder()
    assert memory.rung is Rung.LOCK_STEP
    memory.on_trouble()
    assert memory.rung is Rung.LOCK_STEP


@given(st.lists(st.sampled_from(["clean", "trouble", "disorder"]), max_size=60))
def test_the_bounds_hold_whatever_happens(events: list[str]) -> None:
    memory = HostMemory()
    for event in events:
        getattr(memory, f"on_{event}")()
        assert Rung.LOCK_STEP <= memory.rung <= Rung.WINDOWED
        assert CLIMB_AFTER <= memory.climb_after <= MAX_CLIMB_AFTER
        assert 0 <= memory.clean < memory.climb_after

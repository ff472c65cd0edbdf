"""Rows of the SQLite queue as values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.queue._rows import pack_members, unpack_members


@given(st.sets(st.integers(1 << 32, 1 << 62)))
def test_the_members_of_a_lease_come_back_in_order(ids: set[int]) -> None:
    assert unpack_members(pack_members(ids)) == sorted(ids)


def test_a_lease_on_neighbours_is_small() -> None:
    assert len(pack_members(range(7 << 32, (7 << 32) + 500))) < 520

"""What is kept of results stays within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups.driver import Result
from engine.actions.lookups.kept import MAX_KEPT, MAX_OCTETS, MAX_TOTAL_OCTETS, KeptResults, Place


def place(query: bytes, name: str = "pgsql") -> Place:
    return name, (), query


def test_not_found_is_kept_too() -> None:
    kept = KeptResults(lambda: 0.0)
    assert kept.get(place(b"q")) is None
    kept.put(place(b"q"), None)
    assert kept.get(place(b"q")) == (None,)


def test_the_number_is_bounded_and_the_oldest_goes() -> None:
    kept = KeptResults(lambda: 0.0)
    for number in range(MAX_KEPT + 10):
        kept.put(place(b"%d" % number), Result(b"x"))
    assert len(kept) == MAX_KEPT
    assert kept.get(place(b"9")) is None
    assert kept.get(place(b"10")) == (Result(b"x"),)


def test_octets_are_bounded_of_one_and_of_all() -> None:
    kept = KeptResults(lambda: 0.0)
    kept.put(place(b"large"), Result(b"x" * MAX_OCTETS))
    assert len(kept) == 0
    for number in range(300):
        kept.put(place(b"%03d" % number), Result(b"x" * (MAX_OCTETS - 3)))
    assert len(kept) == MAX_TOTAL_OCTETS // MAX_OCTETS
    kept.forget()
    for number in range(10):
        kept.put(place(b"%d" % number), Result(b"x"))
    assert len(kept) == 10


def test_what_has_no_lifetime_is_not_kept() -> None:
    kept = KeptResults(lambda: 0.0)
    kept.put(place(b"q"), Result(b"x", ttl_s=0))
    kept.put(place(b"r"), Result(b"x", cacheable=False))
    assert len(kept) == 0


def test_a_newer_result_that_is_not_to_be_kept_ends_the_older_one() -> None:
    kept = KeptResults(lambda: 0.0)
    kept.put(place(b"q"), Result(b"old"))
    kept.put(place(b"q"), Result(b"new", cacheable=False))
    assert kept.get(place(b"q")) is None


_STEPS = st.lists(
    st.tuples(st.sampled_from("pgft"), st.integers(0, 5), st.sampled_from(["pgsql", "mysql"]), st.integers(0, 9))
)


@given(_STEPS)
def test_it_is_a_dictionary_with_a_clock(steps: list[tuple[str, int, str, int]]) -> None:
    now = 0.0
    kept = KeptResults(lambda: now)
    known: dict[Place, tuple[float, Result]] = {}
    for step, query, name, number in steps:
        where = place(b"%d" % query, name)
        if step == "p":
            result = Result(b"%d" % number, ttl_s=number)
            kept.put(where, result)
            known.pop(where, None)
            if number:
                known[where] = now + number, result
        elif step == "f":
            kept.forget_type(name)
            known = {where: entry for where, entry in known.items() if where[0] != name}
        elif step == "t":
            now += number
            known = {where: entry for where, entry in known.items() if entry[0] > now}
        else:
            entry = known.get(where)
            assert kept.get(where) == (None if entry is None else (entry[1],))

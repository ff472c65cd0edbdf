"""Leases: what may be begun, what is kept up, what is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.delivery.leases import MARGIN_S, Leases
from engine.queue.model import Claim


def claims(epoch: int, count: int, until: float = 1000.0) -> list[Claim]:
    return [Claim(number, epoch, f"u{number}@d.example", 0, False, until) for number in range(count)]


def test_nothing_begins_shortly_before_the_end() -> None:
    leases = Leases()
    (claim,) = claims(1, 1)
    leases.add([claim])
    assert leases.holds(claim, 1000 - MARGIN_S - 0.1)
    assert not leases.holds(claim, 1000 - MARGIN_S)


def test_a_claim_that_was_never_made_holds_nothing() -> None:
    assert not Leases().holds(claims(7, 1)[0], 0.0)


def test_a_lease_is_kept_up_unless_it_was_lost() -> None:
    leases = Leases()
    (first,), (second,) = claims(1, 1), claims(2, 1)
    leases.add([first, second])
    leases.extend(5000.0, [2, 99])
    assert leases.holds(first, 4000)
    assert not leases.holds(second, 0)
    assert leases.epochs == (1, 2)


def test_an_epoch_is_forgotten_with_its_last_claim() -> None:
    leases = Leases()
    leases.add(claims(1, 3))
    leases.close(1, 2)
    assert leases.epochs == (1,)
    leases.close(1)
    assert not leases.epochs
    leases.close(1)
    assert not leases.epochs


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), max_size=20))
def test_open_claims_are_counted(steps: list[tuple[int, int]]) -> None:
    leases = Leases()
    counts: dict[int, int] = {}
    for epoch, count in steps:
        leases.add(claims(epoch, count))
        counts[epoch] = counts.get(epoch, 0) + count
    for epoch, count in counts.items():
        for left in range(count, 0, -1):
            assert epoch in leases.epochs
            leases.close(epoch)
            assert (epoch in leases.epochs) is (left > 1)

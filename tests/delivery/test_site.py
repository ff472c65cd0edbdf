"""Site: who may serve what, in which order, and what is left when no host may."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from engine.config import TransportOptions
from engine.delivery.site import Down, Site
from engine.delivery.transport import Transport
from engine.delivery.work import Work
from engine.errors import DeliveryError
from engine.expand.lists import NamedLists
from engine.policy.mx import Host

ERROR = DeliveryError("Connection refused", errno=111, retry_name="refused")


def site(*preferences: int | None, **options: Any) -> Site:
    transport = Transport.compile("smtp", TransportOptions(driver="smtp", **options), NamedLists())
    hosts = tuple(
        Host(f"h{number}", f"192.0.2.{number}", preference=preference, from_mx=preference is not None)
        for number, preference in enumerate(preferences)
    )
    return Site("dnslookup", transport, hosts)


def work(tried: int = 0) -> Work:
    return Work(cast("Any", None), [], "id", tried=tried)


def test_work_is_taken_in_order() -> None:
    place = site(10)
    first, second = work(), work()
    place.add(first)
    place.add(second)
    assert place.waiting == 2
    assert place.take(0) is first
    place.put_back(first)
    assert [place.take(0), place.take(0), place.take(0)] == [first, second, None]
    assert place.waiting == 0


def test_a_better_preference_comes_first() -> None:
    place = site(10, 20)
    place.add(work())
    assert place.next_host(0) == 0
    assert not place.has_work_for(1)
    assert place.take(1) is None
    place.set_down(0, Down(100.0, ERROR))
    assert place.next_host(0) == 1
    assert place.take(1) is not None


def test_a_host_that_is_down_comes_back_in_time() -> None:
    place = site(10, 20)
    place.add(work())
    place.set_down(0, Down(100.0, ERROR))
    assert place.next_host(99.9) == 1
    assert place.next_host(100.0) == 0


def test_hosts_of_one_preference_share() -> None:
    place = site(10, 10, 20)
    for _ in range(4):
        place.add(work())
    assert place.take(0) is not None
    assert place.take(1) is not None
    assert place.take(2) is None
    place.connections_to[0] = 3
    assert place.next_host(0) == 1


def test_a_host_list_is_tried_in_its_order() -> None:
    """manualroute hosts have no preference: the order is all there is."""
    place = site(None, None)
    place.add(work())
    assert place.take(1) is None
    place.set_down(0, Down(9.0, ERROR))
    assert place.take(1) is not None


def test_work_that_was_put_off_goes_to_the_next_host() -> None:
    place = site(10, 20)
    moved = work(tried=0b01)
    place.add(moved)
    assert place.take(0) is None
    assert place.take(1) is moved


def test_what_nobody_can_serve_is_taken_out() -> None:
    place = site(10, 20)
    stuck, fine = work(tried=0b10), work()
    place.add(stuck)
    place.add(fine)
    place.set_down(0, Down(50.0, ERROR))
    assert list(place.take_unservable(0)) == [stuck]
    assert place.waiting == 1
    place.set_down(1, Down(50.0, ERROR))
    assert list(place.take_unservable(0)) == [fine]
    assert place.waiting == 0
    assert place.next_host(0) is None


def test_hosts_max_try_leaves_one_try_for_each_further_preference() -> None:
    """RT-13."""
    place = site(10, 10, 10, 20, 20, hosts_max_try=2)
    put_off = work(tried=0b00011)
    place.add(put_off)
    assert place.take(2) is None
    assert place.take(3) is put_off
    again = dataclasses.replace(put_off, tried=0b01011)
    place.add(again)
    assert list(place.take_unservable(0)) == [again]


def test_a_host_whose_time_is_up_is_no_try() -> None:
    """RT-13: but the hard limit counts it."""
    place = site(10, 10, 10, hosts_max_try=1)
    place.set_down(0, Down(9.0, ERROR, expired=True))
    place.add(work())
    assert place.next_host(0) == 1
    strict = site(10, 10, 10, hosts_max_try=1, hosts_max_try_hardlimit=1)
    strict.set_down(0, Down(9.0, ERROR, expired=True))
    strict.add(work())
    assert strict.next_host(0) is None


def test_a_host_without_room_is_passed_over_and_still_wanted() -> None:
    place = site(10, 10, 20)
    place.add(work())
    assert place.next_host(0, lambda host: host == 0) == 1
    assert place.next_host(0, lambda host: True) is None
    assert place.wanted_hosts(0) == [0, 1]


def test_the_last_that_waits_is_what_nobody_has_tried() -> None:
    place = site(10, 20)
    assert place.last_waiting is None
    first, second = work(), work()
    for piece in (first, second, work(tried=1)):
        place.add(piece)
    assert place.last_waiting is second
    assert place.take(0) is first
    assert place.take(0) is second
    assert place.last_waiting is None


def test_the_hard_limit_has_no_exception() -> None:
    place = site(10, 20, 30, hosts_max_try=1, hosts_max_try_hardlimit=2)
    put_off = work(tried=0b011)
    place.add(put_off)
    assert list(place.take_unservable(0)) == [put_off]


def test_a_host_known_to_be_down_from_before_is_no_try() -> None:
    place = site(10, 10, 20, hosts_max_try=1)
    place.set_down(0, Down(9.0, None))
    place.add(work())
    assert place.next_host(0) == 1


def test_everything_can_be_taken_at_the_end() -> None:
    place = site(10, 20)
    pieces = [work(), work(tried=1), work()]
    for piece in pieces:
        place.add(piece)
    assert {id(piece) for piece in place.waiting_work()} == {id(piece) for piece in pieces}
    assert {id(piece) for piece in place.take_all()} == {id(piece) for piece in pieces}
    assert place.waiting == 0
    assert list(place.take_all()) == []


@given(
    st.lists(st.sampled_from([10, 20, 30, None]), min_size=1, max_size=6),
    st.sets(st.integers(0, 5)),
    st.lists(st.integers(0, 63), max_size=8),
    st.integers(1, 6),
)
def test_whatever_waits_has_a_host(
    preferences: list[int | None], down: set[int], tried: list[int], max_try: int
) -> None:
    place = site(*preferences, hosts_max_try=max_try)
    for mask in tried:
        place.add(work(mask & (1 << len(preferences)) - 1))
    for number in down:
        if number < len(preferences):
            place.set_down(number, Down(9.0, ERROR))
    gone = list(place.take_unservable(0))
    assert len(gone) + place.waiting == len(tried)
    served = 0
    while (host := place.next_host(0)) is not None:
        piece = place.take(host)
        assert piece is not None
        assert not piece.tried >> host & 1
        assert host not in place.down
        served += 1
    assert place.waiting == 0
    assert served == len(tried) - len(gone)


def test_the_label_is_the_best_host() -> None:
    assert site(10, 20).label == "h0"

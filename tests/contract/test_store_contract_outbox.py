"""What every store promises, whatever is under it: the outbox and dead letters.

The text of `engine.queue.store`, sentence by sentence; see `fakes.stores`.
"""

from __future__ import annotations

import dataclasses

import pytest

from engine.queue.model import PROGRAM, DeadLetter, OutboxEvent, OutboxReport, Outcome, OutcomeKind, recipient_id
from engine.queue.store import Store
from fakes.stores import NOW, Bench, addresses, stopped_group

DELIVERED = OutcomeKind.DELIVERED


def test_events_are_stored_with_the_outcome_they_tell_of(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    events = [OutboxEvent("msg:delivery", "k1", b"\x00one"), OutboxEvent("msg:complete", "k2", b"two")]
    with stopped_group(bench):
        bench.store.settle(bench.owner, [a.outcome(DELIVERED)], NOW, events=events)
    assert bench.store.drain_outbox(bench.owner, 10) == []
    bench.store.settle(bench.owner, [a.outcome(DELIVERED), b.outcome(DELIVERED)], NOW, events=events)
    first, second = bench.store.drain_outbox(bench.owner, 10)
    assert (first.name, first.key, first.payload) == ("msg:delivery", "k1", b"\x00one")
    assert first.id < second.id
    assert events == [first, second], "numbers and times are filled in"
    assert bench.store.drain_outbox(bench.owner, 10) == [first, second], "they stay until acknowledged"
    assert bench.store.drain_outbox(bench.owner, 10, after=first.id) == [second]
    assert bench.store.drain_outbox(bench.owner, 1) == [first]
    assert other.store.drain_outbox(other.owner, 10) == []
    bench.store.ack_outbox([first.id, first.id, 12345])
    bench.store.ack_outbox([])
    assert bench.store.drain_outbox(bench.owner, 10) == [second]
    assert bench.store.counts(job).delivered == 2


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_any_number_of_events_is_stored_in_order(bench: Bench, count: int) -> None:
    keys = [f"k{number}" for number in range(count)]
    found = store_events(bench, *keys)
    assert [event.key for event in found] == keys
    assert [event.id for event in found] == list(range(found[0].id, found[0].id + count))
    assert bench.store.outbox_size() == count


def test_events_survive_even_when_the_outcome_is_lost(bench: Bench) -> None:
    outcome = Outcome(recipient_id(1, 1), 77, DELIVERED)
    result = bench.store.settle(bench.owner, [outcome], NOW, events=[OutboxEvent("n", "k", b"")])
    assert result.lost == (outcome,)
    assert len(bench.store.drain_outbox(bench.owner, 10)) == 1


def store_events(bench: Bench, *keys: str, name: str = "msg:delivery", now: float = NOW) -> list[OutboxEvent]:
    """Store events and give them as they come back."""
    before = bench.store.drain_outbox(bench.owner, 1000)
    events = [OutboxEvent(name, key, key.encode()) for key in keys]
    bench.store.settle(bench.owner, [], now, events=events)
    return bench.store.drain_outbox(bench.owner, 1000, before[-1].id if before else 0)


def letter(event: OutboxEvent, handler: str = "crm", *, group: str = "g", reason: str = "no") -> DeadLetter:
    return DeadLetter(
        event.name, event.key, event.payload, handler, group, reason, 3, event.stored_at, event.stored_at + 60
    )


def letters(store: Store) -> list[tuple[str, str]]:
    return [(found.key, found.handler) for found in store.dead_letters(100)]


def test_an_event_knows_when_it_was_stored_and_whom_it_is_for(bench: Bench) -> None:
    (event,) = store_events(bench, "k", now=NOW + 7)
    assert (event.stored_at, event.handler, event.group) == (NOW + 7, "", "")
    bench.store.settle(bench.owner, [], NOW, events=[OutboxEvent("n", "one", b"", handler="crm", group="g")])
    one = bench.store.drain_outbox(bench.owner, 10)[-1]
    assert (one.handler, one.group, one.stored_at) == ("crm", "g", NOW)


def test_a_dead_letter_is_stored_in_the_commit_that_removes_the_event(bench: Bench, other: Bench) -> None:
    a, b = store_events(bench, "a", "b")
    with stopped_group(bench):
        bench.store.ack_outbox([a.id], [letter(a)])
    assert len(bench.store.drain_outbox(bench.owner, 10)) == 2
    assert bench.store.dead_letters(10) == []
    bench.store.ack_outbox([a.id], [letter(a), letter(a, PROGRAM, group="")])
    assert bench.store.drain_outbox(bench.owner, 10) == [b]
    first, second = other.store.dead_letters(10)
    assert first == DeadLetter("msg:delivery", "a", b"a", "crm", "g", "no", 3, NOW, NOW + 60, first.id)
    assert second.handler == PROGRAM
    assert first.id < second.id
    assert other.store.dead_letters(1) == [first]
    assert other.store.dead_letters(10, after=first.id) == [second]
    assert bench.store.outbox_report() == OutboxReport(1, NOW, 2)


def test_a_reason_is_kept_short_and_storable(bench: Bench) -> None:
    (event,) = store_events(bench, "a")
    bench.store.ack_outbox([event.id], [letter(event, reason="\udcff" + "x" * 10_000)])
    (found,) = bench.store.dead_letters(10)
    assert found.reason.startswith("?xx")
    assert len(found.reason) <= 1000


def test_dead_letters_are_found_by_glob_and_by_number(bench: Bench) -> None:
    a, b = store_events(bench, "a", "b")
    (c,) = store_events(bench, "c", name="msg:fail:delivery")
    bench.store.ack_outbox([a.id, b.id, c.id], [letter(a), letter(b), letter(c)])
    one, two, three = bench.store.dead_letters(10)
    assert bench.store.dead_letters(10, event="msg:fail:*") == [three]
    assert bench.store.dead_letters(10, event="msg:delivery") == [one, two]
    assert bench.store.dead_letters(10, event="MSG:*") == []
    assert bench.store.dead_letters(10, ids=[three.id, one.id, 999]) == [one, three]
    assert bench.store.dead_letters(10, ids=[]) == []
    assert bench.store.dead_letters(10, two.id, event="msg:*", ids=[one.id, three.id]) == [three]


def test_what_is_tried_again_is_for_any_engine_in_order_with_its_key(bench: Bench, other: Bench) -> None:
    a, b, c = store_events(bench, "a", "b", "c")
    bench.store.ack_outbox([a.id, b.id, c.id], [letter(a), letter(b, PROGRAM, group=""), letter(c)])
    one, two, three = bench.store.dead_letters(10)
    (later,) = store_events(bench, "later")
    assert other.store.retry_dead_letters([two.id, one.id, 999], NOW + 500) == 2
    assert bench.store.dead_letters(10) == [three]
    assert bench.store.drain_outbox(bench.owner, 10) == [later], "nobody has them yet"
    assert other.store.adopt_outbox(other.owner) == 2
    assert bench.store.adopt_outbox(bench.owner) == 0
    found = other.store.drain_outbox(other.owner, 10)
    assert [(event.name, event.key, event.payload, event.handler, event.group) for event in found] == [
        ("msg:delivery", "a", b"a", "crm", "g"),
        ("msg:delivery", "b", b"b", PROGRAM, ""),
    ]
    assert all(event.id > later.id and event.stored_at == NOW + 500 for event in found)
    assert other.store.retry_dead_letters([one.id], NOW) == 0, "once"


def test_dead_letters_are_dropped(bench: Bench) -> None:
    a, b = store_events(bench, "a", "b")
    bench.store.ack_outbox([a.id, b.id], [letter(a), letter(b)])
    one, _ = bench.store.dead_letters(10)
    assert bench.store.drop_dead_letters([one.id, one.id, 999]) == 1
    assert letters(bench.store) == [("b", "crm")]


def test_what_an_engine_left_is_adopted_by_one_that_runs(bench: Bench, other: Bench) -> None:
    store_events(bench, "a")
    bench.store.retire(bench.engine, NOW)
    assert other.store.drain_outbox(other.owner, 10) == []
    assert other.store.adopt_outbox(other.owner) == 1
    assert [event.key for event in other.store.drain_outbox(other.owner, 10)] == ["a"]


def test_the_size_is_the_number_of_events_whatever_happens_to_them(bench: Bench, other: Bench) -> None:
    assert bench.store.outbox_report() == OutboxReport()
    assert bench.store.outbox_size() == 0
    events = store_events(bench, *map(str, range(10)), now=NOW - 5)
    assert other.store.outbox_size() == 10
    with stopped_group(bench):
        store_events(bench, "never")
        bench.store.ack_outbox([events[0].id])
    assert other.store.outbox_size() == 10
    bench.store.ack_outbox([events[1].id, events[1].id, 999], [letter(events[1])])
    bench.store.ack_outbox([events[1].id, events[2].id])
    assert other.store.outbox_size() == 8
    assert other.store.outbox_report() == OutboxReport(8, NOW - 5, 1)
    other.store.retry_dead_letters([found.id for found in other.store.dead_letters(10)], NOW)
    other.store.adopt_outbox(other.owner)
    assert other.store.outbox_report() == OutboxReport(9, NOW - 5, 0, 1)
    bench.store.ack_outbox([event.id for event in events])
    assert other.store.outbox_report() == OutboxReport(1, NOW, 0, 1)


def redelivered(bench: Bench) -> dict[str, int]:
    return {event.key: event.redelivered for event in bench.store.drain_outbox(bench.owner, 100)}


def test_what_is_handed_on_again_is_counted_for_each_event_and_in_all(bench: Bench, other: Bench) -> None:
    a, b, c = store_events(bench, *"abc")
    assert redelivered(bench) == {"a": 0, "b": 0, "c": 0}
    bench.store.redeliver_outbox([a.id, b.id, b.id, 12345])
    with stopped_group(bench):
        bench.store.redeliver_outbox([a.id])
    bench.store.redeliver_outbox([b.id])
    assert redelivered(bench) == {"a": 1, "b": 2, "c": 0}
    assert bench.store.outbox_report().redelivered == 3
    bench.store.ack_outbox([a.id, c.id], [letter(a)])
    bench.store.ack_outbox([b.id])
    assert bench.store.outbox_report().redelivered == 3, "of what is done too"


def test_a_dead_letter_that_is_tried_again_was_run_before(bench: Bench) -> None:
    (a,) = store_events(bench, "a")
    bench.store.redeliver_outbox([a.id])
    (a,) = bench.store.drain_outbox(bench.owner, 10)
    bench.store.ack_outbox([a.id], [dataclasses.replace(letter(a), redelivered=a.redelivered)])
    (dead,) = bench.store.dead_letters(10)
    assert dead.redelivered == 1
    bench.store.retry_dead_letters([dead.id], NOW)
    bench.store.adopt_outbox(bench.owner)
    assert redelivered(bench) == {"a": 2}
    assert bench.store.outbox_report().redelivered == 2


def test_all_that_a_dead_engine_leaves_may_have_run(bench: Bench, other: Bench) -> None:
    """And nothing that one leaves which is retired: it says itself what may."""
    _, b = store_events(bench, "a", "b")
    bench.store.redeliver_outbox([b.id])
    bench.die()
    assert other.store.recover(other.owner, NOW).events == 2
    assert redelivered(other) == {"a": 1, "b": 2}
    assert other.store.outbox_report().redelivered == 3
    other.store.retire(other.engine, NOW)
    heir = other.store.register(NOW)
    other.store.adopt_outbox(heir.owner)
    assert [event.redelivered for event in other.store.drain_outbox(heir.owner, 10)] == [1, 2]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_any_set_of_events_can_be_acknowledged_at_once(bench: Bench, step: int) -> None:
    """In runs, or scattered."""
    events = store_events(bench, *map(str, range(100)))
    gone = {event.id for number, event in enumerate(events) if number % step}
    bench.store.ack_outbox(sorted(gone, reverse=True))
    assert [event.id for event in bench.store.drain_outbox(bench.owner, 1000)] == [
        event.id for event in events if event.id not in gone
    ]
    assert bench.store.outbox_size() == 100 - len(gone)


def test_who_the_oldest_events_are_for(bench: Bench) -> None:
    assert bench.store.outbox_audiences(10) == []
    events = [OutboxEvent("n", "k", b"", handler=PROGRAM) for _ in range(3)]
    events += [OutboxEvent("n", "k", b"", group=group) for group in ("crm", "crm", "erp")]
    bench.store.settle(bench.owner, [], NOW, events=events)
    assert bench.store.outbox_audiences(100) == [(PROGRAM, "", 3), ("", "crm", 2), ("", "erp", 1)]
    assert bench.store.outbox_audiences(4) == [(PROGRAM, "", 3), ("", "crm", 1)]

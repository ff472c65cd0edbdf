"""What every store promises, whatever is under it: what people do with it.

The text of `engine.queue.store`, sentence by sentence; see `fakes.stores`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.errors import StoreError
from engine.queue.model import (
    CANCELLED_TEXT,
    Changed,
    Filter,
    JobCounts,
    JobState,
    OutboxEvent,
    OutcomeKind,
    Recovered,
    RecoveryKind,
    RetryRecord,
    Status,
    job_of,
    number_of,
    recipient_id,
)
from engine.queue.store import NoSuchJob
from fakes.stores import LEASE_S, NOW, Bench, addresses

DELIVERED, DEFERRED, FAILED, RELEASED = OutcomeKind


# --- administration ---------------------------------------------------------------------------------------------------


def test_hold_and_release_a_whole_job(bench: Bench) -> None:
    job = bench.load(*addresses(3))
    (leased,) = bench.claim(1)
    assert bench.store.hold(Filter(job_id=job)) == Changed(2, 1)
    assert bench.claim() == []
    assert bench.store.next_due_at() is None
    assert [view.status for view in bench.store.recipients(Filter(job_id=job), 9)] == ["in-flight", "held", "held"]
    bench.settle(leased.outcome(DEFERRED, next_attempt_at=NOW))
    assert bench.claim() == []
    assert bench.store.release(Filter(job_id=job), NOW) == Changed(3, 0)
    assert len(bench.claim()) == 3


def test_hold_and_release_what_matches(bench: Bench) -> None:
    job = bench.load("a@x.org", "b@y.org", "c@sub.x.org", "d@X.org")
    assert bench.store.hold(Filter(domain="X.ORG")) == Changed(2, 0)
    assert bench.store.counts(job) == JobCounts(total=4, waiting=2, held=2)
    assert [claim.address for claim in bench.claim()] == ["b@y.org", "c@sub.x.org"]
    assert bench.store.release(Filter(address="a@x.org"), NOW) == Changed(1, 0)
    assert [claim.address for claim in bench.claim()] == ["a@x.org"]
    assert bench.store.release(Filter(job_id=job), NOW) == Changed(1, 3)
    assert [claim.address for claim in bench.claim()] == ["d@x.org"]


def test_one_recipient_can_be_named_by_its_id(bench: Bench) -> None:
    job = bench.load(*addresses(3))
    assert bench.store.hold(Filter(recipient_id=recipient_id(job, 2))) == Changed(1, 0)
    assert not Filter(job_id=job, recipient_id=1).is_whole_job
    assert [number_of(claim.recipient_id) for claim in bench.claim()] == [1, 3]


def test_cancel_a_whole_job(bench: Bench) -> None:
    job = bench.load(*addresses(4))
    a, b = bench.claim(2)
    bench.store.hold(Filter(address="user4@example.org"))
    assert bench.store.cancel(Filter(job_id=job), NOW) == Changed(2, 2)
    assert bench.store.counts(job) == JobCounts(total=4, cancelled=2, leased=2)
    ended = a.outcome(DEFERRED, next_attempt_at=NOW)
    assert bench.store.settle(bench.owner, [ended], NOW).cancelled == (ended,)
    result = bench.store.settle(bench.owner, [b.outcome(DELIVERED)], NOW + 1)
    assert (result.completed, result.cancelled) == ((job,), ())
    assert bench.store.counts(job) == JobCounts(total=4, cancelled=3, delivered=1)
    found = bench.store.job_or_none(job)
    assert found is not None
    assert (found.state, found.completed_at) == (JobState.CANCELLED, NOW + 1)
    assert bench.store.cancel(Filter(job_id=job), NOW) == Changed(0, 0)
    assert bench.store.release(Filter(job_id=job), NOW) == Changed(0, 0)
    assert bench.store.retry(Filter(job_id=job), NOW) == Changed(0, 0)
    assert bench.claim() == []


def test_cancel_what_matches_can_complete_the_job(bench: Bench) -> None:
    job = bench.load("a@x.org", "b@y.org")
    (claim,) = bench.claim(1)
    bench.settle(claim.outcome(DELIVERED))
    assert bench.store.cancel(Filter(domain="y.org"), NOW + 3) == Changed(1, 0, (job,))
    found = bench.store.job_or_none(job)
    assert found is not None
    assert (found.state, found.completed_at) == (JobState.COMPLETED, NOW + 3)


@pytest.mark.parametrize("whole", [True, False])
def test_cancel_tells_of_each_recipient_in_the_commit_that_cancels_it(bench: Bench, other: Bench, whole: bool) -> None:
    job = bench.load(*addresses(4))
    a, b = bench.claim(2)
    bench.settle(a.outcome(DEFERRED, next_attempt_at=NOW))
    bench.store.hold(Filter(address="user4@example.org"))
    told: list[Recovered] = []

    def tell(found: Sequence[Recovered]) -> list[OutboxEvent]:
        told.extend(found)
        return [OutboxEvent("msg:fail:internal", each.address, b"") for each in found]

    where = Filter(job_id=job) if whole else Filter(domain="example.org")
    done = other.store.cancel(where, NOW + 1, owner=other.owner, tell=tell)
    assert done == Changed(3, 1)
    assert [(each.kind, each.number, each.address, each.attempts, each.text) for each in told] == [
        (RecoveryKind.CANCELLED, 1, "user1@example.org", 1, CANCELLED_TEXT),
        (RecoveryKind.CANCELLED, 3, "user3@example.org", 0, CANCELLED_TEXT),
        (RecoveryKind.CANCELLED, 4, "user4@example.org", 0, CANCELLED_TEXT),
    ]
    assert [event.key for event in other.store.drain_outbox(other.owner, 10)] == [each.address for each in told]
    assert bench.store.counts(job) == JobCounts(total=4, cancelled=3, leased=1)
    assert bench.store.settle(bench.owner, [b.outcome(DELIVERED)], NOW + 2).completed == (job,)
    found = bench.store.job_or_none(job)
    assert found is not None
    assert found.state is (JobState.CANCELLED if whole else JobState.COMPLETED)


@pytest.mark.parametrize("whole", [True, False])
def test_cancel_that_completes_its_job_says_so(bench: Bench, whole: bool) -> None:
    job = bench.load(*addresses(2))
    where = Filter(job_id=job) if whole else Filter(domain="example.org")
    assert bench.store.cancel(where, NOW, tell=lambda _: []) == Changed(2, 0, (job,))
    assert bench.store.cancel(where, NOW, tell=lambda _: []) == Changed(0, 0)


def test_a_job_whose_cancelling_is_interrupted_is_held_and_can_be_cancelled_again(bench: Bench) -> None:
    job = bench.load(*addresses(2))

    def tell(_: object) -> list[OutboxEvent]:
        raise StoreError("the log is full")

    with pytest.raises(StoreError, match="the log is full"):
        bench.store.cancel(Filter(job_id=job), NOW, tell=tell)
    assert bench.claim() == []
    found = bench.store.job_or_none(job)
    assert found is not None
    assert found.state is JobState.HELD
    assert bench.store.cancel(Filter(job_id=job), NOW, tell=lambda _: []) == Changed(2, 0, (job,))


def test_a_recovery_tells_of_what_was_cancelled_while_its_engine_died(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    bench.engine.journal.begin([(b.recipient_id, b.epoch)], "mx")
    bench.engine.journal.finish([(b.recipient_id, b.epoch, DEFERRED, "450 later")])
    other.store.cancel(Filter(job_id=job), NOW, tell=lambda _: [])
    bench.engine.journal.close()
    seen: list[tuple[RecoveryKind, int]] = []

    def describe(found: Recovered) -> list[OutboxEvent]:
        seen.append((found.kind, found.number))
        return []

    recovery = other.store.recover(other.owner, NOW + 1, describe=describe)
    assert seen == [(RecoveryKind.DEFERRED, 2), (RecoveryKind.CANCELLED, 1), (RecoveryKind.CANCELLED, 2)]
    assert [found.address for found in recovery.recipients if found.kind is RecoveryKind.CANCELLED] == [
        a.address,
        b.address,
    ]
    assert (recovery.released, recovery.completed) == (0, (job,))
    assert other.store.counts(job) == JobCounts(total=2, cancelled=2)


def test_retry_makes_deferred_recipients_due_and_forgets_what_held_them(bench: Bench) -> None:
    job = bench.load(*addresses(2))
    a, _ = bench.claim()
    record = RetryRecord("T:h:1", NOW, NOW, NOW + 5000)
    outcome = a.outcome(DEFERRED, next_attempt_at=NOW + 5000, retry_key="T:h:1")
    bench.store.settle(bench.owner, [outcome], NOW, retry_updates=[record])
    assert bench.store.retry(Filter(job_id=job), NOW + 1) == Changed(1, 1)
    assert bench.store.retry_records(["T:h:1"]) == {}
    assert bench.store.next_due_at() == NOW + 1
    assert [claim.number for claim in bench.claim(now=NOW + 1)] == [1]


@pytest.mark.parametrize("call", ["hold", "release", "cancel", "retry"])
def test_a_job_that_is_not_there_is_an_error(bench: Bench, call: str) -> None:
    arguments = [] if call == "hold" else [NOW]
    with pytest.raises(NoSuchJob, match="no job 5"):
        getattr(bench.store, call)(Filter(job_id=5), *arguments)


def test_filters_join_and_pages_follow(bench: Bench) -> None:
    first = bench.load("a@x.org", "b@x.org", "c@y.org")
    second = bench.load("a@x.org")
    (claim,) = bench.claim(1, job=first)
    bench.settle(claim.outcome(DEFERRED, next_attempt_at=NOW + 9))

    def found(where: Filter) -> list[tuple[int, int]]:
        return [(view.job_id, view.number) for view in bench.store.recipients(where, 10)]

    assert found(Filter()) == [(first, 1), (first, 2), (first, 3), (second, 1)]
    assert found(Filter(domain="x.org", status=Status.WAITING)) == [(first, 2), (second, 1)]
    assert found(Filter(address="a@X.org", job_id=second)) == [(second, 1)]
    assert found(Filter(status=Status.DEFERRED)) == [(first, 1)]
    assert found(Filter(domain="org")) == []
    (page,) = bench.store.recipients(Filter(), 1, after=recipient_id(first, 2))
    assert page.number == 3
    assert [job.id for job in bench.store.jobs(10)] == [first, second]
    assert [job.id for job in bench.store.jobs(1, after=first)] == [second]


def test_explain_tells_all_that_decides(bench: Bench, other: Bench) -> None:
    first = bench.load("a@x.org", "b@x.org", name="one")
    second = bench.load("a@x.org", name="two")
    claim, _ = bench.claim(job=first)
    records = [
        RetryRecord("T:mx:1", NOW, NOW, NOW + 60),
        RetryRecord("R:a@x.org", NOW, NOW, NOW + 50),
        RetryRecord("R:a@x.org:<s@y.org>", NOW, NOW, NOW + 40),
        RetryRecord("R:x.org", NOW, NOW, NOW + 30),
        RetryRecord("R:aa@x.org", NOW, NOW, NOW + 30),
    ]
    outcome = claim.outcome(DEFERRED, next_attempt_at=NOW + 60, retry_key="T:mx:1")
    bench.store.settle(bench.owner, [outcome], NOW, retry_updates=records)
    other.claim(job=second)
    newest, oldest = bench.store.explain("a@X.org")
    assert (newest.job.id, oldest.job.id) == (second, first)
    assert newest.lease is not None
    assert (newest.lease.owner, newest.lease.is_alive) == (other.owner, True)
    assert (newest.lease.since, newest.lease.until) == (NOW, NOW + LEASE_S)
    assert {record.key for record in oldest.retry_records} == {record.key for record in records[:4]}
    assert oldest.lease is None, "though the other one of its lease is in flight"
    assert [found.job.id for found in bench.store.explain("a@x.org", first)] == [first]
    assert bench.store.explain("nobody@x.org") == []
    other.die()
    (gone,) = bench.store.explain("a@x.org", second)
    assert gone.lease is not None
    assert gone.lease.is_alive is False


def test_purge_removes_what_ended_before(bench: Bench) -> None:
    old, new, open_job = bench.load("a@x.org", merge=True), bench.load("b@x.org"), bench.load("c@x.org")
    for job, at in ((old, NOW), (new, NOW + 100)):
        (claim,) = bench.claim(job=job)
        bench.settle(claim.outcome(DELIVERED), now=at)
    assert bench.store.purge(NOW + 50) == 1
    assert [job.id for job in bench.store.jobs(10)] == [new, open_job]
    assert {job_of(view.recipient_id) for view in bench.store.recipients(Filter(), 10)} == {new, open_job}
    with pytest.raises(NoSuchJob):
        bench.store.body(old)
    assert bench.load("d@x.org") == open_job + 1, "numbers of jobs are never used again"

"""What every store promises, whatever is under it: retry records, expiry, what a crash leaves.

The text of `engine.queue.store`, sentence by sentence; see `fakes.stores`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.errors import StoreError
from engine.queue.model import (
    Filter,
    JobCounts,
    JobState,
    NewJob,
    NewRecipient,
    OutboxEvent,
    OutcomeKind,
    Recovered,
    RecoveryKind,
    RetryRecord,
)
from fakes.stores import LEASE_S, NOW, Bench, addresses

DELIVERED, DEFERRED, FAILED, RELEASED = OutcomeKind


# --- retry records -----------------------------------------------------------------------------------------


def test_retry_records_come_back_as_they_were_stored(bench: Bench) -> None:
    one = RetryRecord("T:h:1.2.3.4", NOW - 10, NOW, NOW + 900, 111, 65, "Connection refused", True)
    two = RetryRecord("R:a@x.org", NOW, NOW - 100, NOW + 5)
    bench.store.settle(bench.owner, [], NOW, retry_updates=[one, two])
    assert bench.store.retry_records([one.key, two.key, "T:none"]) == {one.key: one, two.key: two}
    assert bench.store.retry_records([]) == {}
    assert bench.store.all_retry_records(10) == [two, one]
    assert bench.store.all_retry_records(10, after=two.key) == [one]
    assert bench.store.drop_retry_records(NOW - 50) == 1
    bench.store.settle(bench.owner, [], NOW, retry_deletes=[one.key, "T:none"])
    assert bench.store.all_retry_records(10) == []


def test_a_record_that_is_deleted_and_updated_in_one_call_is_there(bench: Bench) -> None:
    record = RetryRecord("T:h:1", NOW, NOW, NOW + 1)
    bench.store.settle(bench.owner, [], NOW, retry_updates=[record], retry_deletes=[record.key])
    assert bench.store.retry_records([record.key]) == {record.key: record}


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_an_expired_job_is_handed_out_to_be_failed(bench: Bench) -> None:
    job = bench.load(*addresses(4), expires_at=NOW + 100)
    bench.load("z@x.org")
    (leased,) = bench.claim(1, job=job)
    (late,) = bench.claim(1, job=job)
    bench.settle(late.outcome(DEFERRED, next_attempt_at=NOW + 5000))
    bench.store.hold(Filter(address="user3@example.org"))
    assert bench.store.next_expiry_at() == NOW + 100
    assert bench.store.claim_expired(bench.owner, 10, NOW + 99, LEASE_S) == []
    assert bench.claim(now=NOW + 100, job=job) == [], "nothing of an expired job is sent any more"
    assert {claim.job_id for claim in bench.claim(now=NOW + 100)} != {job}
    assert bench.store.claim_expired(bench.owner, 10, NOW + 100, LEASE_S, job + 1) == []
    expired = bench.store.claim_expired(bench.owner, 2, NOW + 100, LEASE_S)
    expired += bench.store.claim_expired(bench.owner, 10, NOW + 100, LEASE_S, job)
    assert sorted(claim.number for claim in expired) == [2, 3, 4]
    assert bench.store.claim_expired(bench.owner, 10, NOW + 100, LEASE_S) == []
    assert bench.store.next_expiry_at() is None
    bench.settle(*(claim.outcome(FAILED, text="expired") for claim in expired))
    assert bench.store.settle(bench.owner, [leased.outcome(DELIVERED)], NOW).completed == (job,)
    assert bench.store.counts(job) == JobCounts(total=4, delivered=1, failed=3)


def test_a_held_job_expires_too(bench: Bench) -> None:
    job = bench.load(*addresses(2), merge=True, expires_at=NOW + 1)
    bench.store.hold(Filter(job_id=job))
    assert len(bench.store.claim_expired(bench.owner, 10, NOW + 2, LEASE_S)) == 2


# --- what a crash leaves ----------------------------------------------------------------------------------------------


def test_a_crash_leaves_in_doubt_exactly_what_was_begun_without_a_reply(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(6))
    begun, ok, failed, deferred, taken_back, _untouched = claims = bench.claim()
    journal = bench.engine.journal
    journal.begin([(claim.recipient_id, claim.epoch) for claim in claims[:5]], "mx.example.org")
    journal.finish([(ok.recipient_id, ok.epoch, DELIVERED, "250 ok"), (failed.recipient_id, failed.epoch, FAILED, "5")])
    journal.finish([(deferred.recipient_id, deferred.epoch, DEFERRED, "452 later")])
    journal.finish([(taken_back.recipient_id, taken_back.epoch, RELEASED, "")])
    bench.die()
    recovery = other.store.recover(other.owner, NOW + 10, in_doubt_delay_s=50)
    kinds = {found.number: found.kind for found in recovery.recipients}
    assert kinds == {
        1: RecoveryKind.IN_DOUBT,
        2: RecoveryKind.DELIVERED,
        3: RecoveryKind.FAILED,
        4: RecoveryKind.DEFERRED,
    }
    assert (recovery.released, recovery.engines) == (2, (bench.owner,))
    doubtful = recovery.recipients[0]
    assert (doubtful.address, doubtful.host, doubtful.engine) == ("user1@example.org", "mx.example.org", bench.owner)
    assert (doubtful.job_id, doubtful.recipient_id, doubtful.epoch) == (job, begun.recipient_id, begun.epoch)
    assert other.store.counts(job) == JobCounts(total=6, delivered=1, failed=1, deferred=2, waiting=2)
    assert [claim.number for claim in other.claim(now=NOW + 10)] == [5, 6]
    later = {claim.number: claim.in_doubt for claim in other.claim(now=NOW + 60)}
    assert later == {1: True, 4: False}
    assert other.store.drain_outbox(other.owner, 10) == [], "nobody said what they are"
    assert other.store.recover(other.owner, NOW + 70) == type(recovery)()


def test_the_events_of_a_recovery_are_what_describe_makes(bench: Bench, other: Bench) -> None:
    bench.load(*addresses(2))
    a, _ = bench.claim()
    bench.engine.journal.begin([(a.recipient_id, a.epoch)], "mx")
    bench.engine.journal.finish([(a.recipient_id, a.epoch, DELIVERED, "250")])
    bench.die()
    other.store.recover(other.owner, NOW, describe=lambda found: [OutboxEvent("n", f"{found.kind.value}", b"")])
    assert [event.key for event in other.store.drain_outbox(other.owner, 10)] == ["delivered"]


def test_the_witness_of_a_recovery_is_told_before_the_commit(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(3))
    first, _, _ = bench.claim()
    bench.engine.journal.begin([(first.recipient_id, first.epoch)], "mx")
    bench.die()
    told: list[list[str]] = []

    def refuse(recipients: Sequence[Recovered]) -> None:
        told.append([recovered.address for recovered in recipients])
        raise RuntimeError("died here")

    with pytest.raises(RuntimeError, match="died here"):
        other.store.recover(other.owner, NOW, witness=refuse)
    assert told == [[first.address]]
    assert other.store.counts(job).leased == 3, "nothing is settled before the witness knows"
    recovery = other.store.recover(other.owner, NOW, witness=lambda recipients: told.append([]))
    assert (len(recovery.recipients), told[1:]) == (1, [[]])


def test_a_living_engine_is_left_alone(bench: Bench, other: Bench) -> None:
    bench.load(*addresses(2))
    claims = bench.claim()
    assert other.store.recover(other.owner, NOW + 1).engines == ()
    assert bench.settle(*(claim.outcome(DELIVERED) for claim in claims)) == ()


def test_a_lease_that_ran_out_under_a_living_engine_is_judged_by_its_journal(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(3))
    a, b, c = bench.claim()
    bench.engine.journal.begin([(a.recipient_id, a.epoch), (b.recipient_id, b.epoch)], "mx")
    bench.engine.journal.finish([(b.recipient_id, b.epoch, DELIVERED, "250")])
    recovery = other.store.recover(other.owner, NOW + LEASE_S + 1)
    assert {found.number: found.kind for found in recovery.recipients} == {
        1: RecoveryKind.IN_DOUBT,
        2: RecoveryKind.DELIVERED,
    }
    assert (recovery.released, recovery.engines) == (1, ())
    assert len(bench.settle(a.outcome(DELIVERED), b.outcome(DELIVERED), c.outcome(DELIVERED))) == 3
    assert other.store.counts(job) == JobCounts(total=3, delivered=1, deferred=1, waiting=1)


def test_the_outbox_of_the_dead_is_inherited(bench: Bench, other: Bench) -> None:
    bench.store.settle(bench.owner, [], NOW, events=[OutboxEvent("n", "k", b"")])
    bench.die()
    other.store.recover(other.owner, NOW)
    assert len(other.store.drain_outbox(other.owner, 10)) == 1


def test_a_job_whose_loader_died_is_removed(bench: Bench, other: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    bench.store.add_recipients(job, map(NewRecipient, addresses(3)))
    bench.die()
    assert other.store.recover(other.owner, NOW).removed_jobs == (job,)
    assert other.store.job_or_none(job) is None
    assert other.store.recipients(Filter(), 10) == []


def test_a_job_that_started_early_and_whose_loader_died_is_held(bench: Bench, other: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b"", start_early=True), NOW)
    bench.store.add_recipients(job, map(NewRecipient, addresses(2)))
    empty = bench.store.add_job(bench.owner, NewJob("", b"", start_early=True), NOW)
    cancelled = bench.store.add_job(bench.owner, NewJob("", b"", start_early=True), NOW)
    bench.store.add_recipients(cancelled, map(NewRecipient, addresses(2)))
    bench.store.cancel(Filter(job_id=cancelled), NOW)
    theirs = other.claim(now=NOW)
    bench.die()
    recovery = other.store.recover(other.owner, NOW)
    assert recovery.held_jobs == (job,)
    assert recovery.removed_jobs == (empty,)
    found = other.store.job_or_none(cancelled)
    assert found is not None
    assert found.state is JobState.CANCELLED
    other.settle(*(claim.outcome(DELIVERED) for claim in theirs), now=NOW + 7)
    done = other.store.job_or_none(job)
    assert done is not None
    assert (done.state, done.completed_at) == (JobState.COMPLETED, NOW + 7), "nothing of it was left"


def test_retire_gives_everything_back(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(3))
    a, _, _ = bench.claim()
    bench.engine.journal.begin([(a.recipient_id, a.epoch)], "mx")
    bench.store.settle(bench.owner, [], NOW, events=[OutboxEvent("n", "k", b"")])
    recovery = bench.store.retire(bench.engine, NOW)
    assert [found.kind for found in recovery.recipients] == [RecoveryKind.IN_DOUBT]
    assert recovery.released == 2
    assert other.store.counts(job) == JobCounts(total=3, waiting=2, deferred=1)
    other.store.recover(other.owner, NOW)
    assert [event.name for event in other.store.drain_outbox(other.owner, 10)] == ["n"]
    with pytest.raises(StoreError, match="closed"):
        bench.engine.journal.begin([(1, 1)], "mx")

"""What every store promises, whatever is under it: loading, claims, leases, settling, group commit.

The text of `engine.queue.store`, sentence by sentence; see `fakes.stores`.
"""

from __future__ import annotations

import pytest

from engine.errors import DataError, StoreError
from engine.queue.model import (
    Added,
    Changed,
    Filter,
    JobCounts,
    JobState,
    NewJob,
    NewRecipient,
    OutcomeKind,
    RetryRecord,
    SettleResult,
    Status,
)
from engine.queue.store import NoSuchJob
from fakes.stores import LEASE_S, NOW, Bench, addresses, stopped_group

DELIVERED, DEFERRED, FAILED, RELEASED = OutcomeKind


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_job_is_stored_as_it_was_given(bench: Bench) -> None:
    new = NewJob(
        "sender@example.com",
        b"Subject: x\r\n\r\n\xff\x00body",
        is_template=True,
        personalised=True,
        name="list.csv",
        start_at=NOW - 5,
        expires_at=NOW + 100,
        options={"ret": "HDRS", "n": 5, "nested": [1, {"a": b"\x00"}]},
    )
    job_id = bench.store.add_job(bench.owner, new, NOW)
    loading = bench.store.job_or_none(job_id)
    assert loading is not None
    assert loading.is_loading
    bench.store.add_recipients(job_id, [NewRecipient("A@Example.ORG", {"name": "Ä", "n": 1})])
    job = bench.store.finish_loading(job_id, NOW)
    assert job == bench.store.job_or_none(job_id)
    assert (job.sender, job.name, job.is_template, job.personalised) == ("sender@example.com", "list.csv", True, True)
    assert (job.start_at, job.expires_at, job.created_at, job.completed_at) == (NOW - 5, NOW + 100, NOW, None)
    assert job.options == new.options
    assert job.state is JobState.ACTIVE
    assert not job.is_loading
    assert job.counts == JobCounts(total=1, waiting=1)
    assert bench.store.body(job_id) == new.body
    (claim,) = bench.claim()
    assert claim.address == "A@example.org"
    assert claim.merge() == {"name": "Ä", "n": 1}
    assert (claim.job_id, claim.number, claim.attempts, claim.in_doubt) == (job_id, 1, 0, False)
    assert claim.lease_until == NOW + LEASE_S


def test_an_address_that_the_job_has_is_dropped_and_counted(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    first = bench.store.add_recipients(job, map(NewRecipient, ["a@x.org", "A@x.org", "a@X.ORG", "b@x.org", "b@x.org"]))
    second = bench.store.add_recipients(job, map(NewRecipient, ["b@x.org", "c@x.org", "a@x.Org"]))
    assert (first.accepted, first.duplicates) == (3, 2)
    assert (second.accepted, second.duplicates) == (1, 2)
    counts = bench.store.finish_loading(job, NOW).counts
    assert (counts.total, counts.duplicates, counts.waiting) == (4, 4, 4)
    claims = bench.claim()
    assert [claim.address for claim in claims] == ["a@x.org", "A@x.org", "b@x.org", "c@x.org"]
    assert [claim.number for claim in claims] == [1, 2, 3, 4]


def test_two_jobs_may_have_the_same_address(bench: Bench) -> None:
    bench.load("a@x.org")
    bench.load("a@x.org")
    assert len(bench.claim()) == 2


def test_nothing_is_claimed_before_loading_is_finished(bench: Bench, other: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    bench.store.add_recipients(job, [NewRecipient("a@x.org")])
    assert bench.claim() == other.claim() == other.claim(job=job) == []
    assert other.store.next_due_at() is None
    assert other.store.next_due_at(job) is None
    bench.store.finish_loading(job, NOW)
    assert len(other.claim()) == 1


def test_a_job_that_starts_early_is_claimed_from_while_it_is_loaded(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b"", start_early=True, expires_at=NOW + 50), NOW)
    bench.store.add_recipients(job, [NewRecipient("a@x.org")])
    (claim,) = bench.claim()
    assert bench.settle(claim.outcome(DELIVERED)) == ()
    running = bench.store.job_or_none(job)
    assert running is not None
    assert running.completed_at is None, "more may come"
    bench.store.add_recipients(job, [NewRecipient("a@x.org"), NewRecipient("b@x.org")])
    assert bench.store.next_expiry_at() == NOW + 50
    assert [claim.address for claim in bench.store.claim_expired(bench.owner, 9, NOW + 50, 1)] == ["b@x.org"]
    assert bench.store.finish_loading(job, NOW).counts.duplicates == 1


def test_a_job_without_recipients_is_complete_at_once(bench: Bench) -> None:
    job_id = bench.load()
    job = bench.store.job_or_none(job_id)
    assert job is not None
    assert (job.state, job.completed_at) == (JobState.COMPLETED, NOW)


def test_an_abandoned_job_is_gone(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b"x"), NOW)
    bench.store.add_recipients(job, [NewRecipient("a@x.org", {"a": 1})])
    bench.store.abandon_loading(job)
    assert bench.store.job_or_none(job) is None
    with pytest.raises(NoSuchJob):
        bench.store.body(job)
    with pytest.raises(NoSuchJob):
        bench.store.counts(job)
    with pytest.raises(NoSuchJob):
        bench.store.add_recipients(job, [NewRecipient("b@x.org")])
    assert bench.store.recipients(Filter(), 10) == []


def test_an_abandoned_job_that_started_early_is_held(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b"x", start_early=True), NOW)
    bench.store.add_recipients(job, map(NewRecipient, ["a@x.org", "b@x.org"]))
    (claim,) = bench.claim(1)
    bench.store.abandon_loading(job)
    bench.settle(claim.outcome(DELIVERED))
    found = bench.store.job_or_none(job)
    assert found is not None
    assert found.state is JobState.HELD
    assert bench.claim() == []
    bench.store.release(Filter(job_id=job), NOW)
    assert [claim.address for claim in bench.claim()] == ["b@x.org"]


def test_a_loading_that_was_cut_off_goes_on(bench: Bench) -> None:
    store = bench.store
    job = store.add_job(bench.owner, NewJob("", b"x", start_early=True), NOW)
    assert (store.is_growing(job), store.is_growing(), store.is_growing(job + 1)) == (True, True, False)
    store.add_recipients(job, map(NewRecipient, ["a@x.org", "b@x.org", "a@X.org"]))
    store.abandon_loading(job)
    found = store.job_or_none(job)
    assert found is not None
    assert (found.is_cut_off, found.is_loading, store.is_growing(job)) == (True, False, False)
    store.resume_loading(bench.owner, job)
    assert store.is_growing(job)
    assert [claim.address for claim in bench.claim(1)] == ["a@x.org"]
    again = store.add_recipients(job, map(NewRecipient, ["a@x.org", "b@x.org", "a@x.org", "c@x.org", "c@x.org"]))
    assert (again.accepted, again.duplicates) == (1, 2)
    whole = store.finish_loading(job, NOW)
    assert (whole.state, whole.is_cut_off, whole.is_loading) == (JobState.ACTIVE, False, False)
    assert (whole.counts.total, whole.counts.duplicates) == (3, 2)
    assert [claim.address for claim in bench.claim()] == ["b@x.org", "c@x.org"]
    for number in (job, job + 1):
        with pytest.raises(NoSuchJob):
            store.resume_loading(bench.owner, number)


def test_a_loading_that_went_on_may_be_cut_off_again(bench: Bench, other: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b"x", start_early=True), NOW)
    bench.store.add_recipients(job, map(NewRecipient, addresses(12_000)))
    bench.store.abandon_loading(job)
    bench.store.resume_loading(bench.owner, job)
    assert bench.store.add_recipients(job, map(NewRecipient, addresses(6000))) == Added(0, 0)
    bench.die()
    assert other.store.recover(other.owner, NOW).held_jobs == (job,)
    other.store.resume_loading(other.owner, job)
    assert other.store.add_recipients(job, map(NewRecipient, addresses(12_001))) == Added(1, 0)
    assert other.store.finish_loading(job, NOW).counts.total == 12_001


def test_an_abandoned_job_that_was_cancelled_stays_cancelled(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b"x", start_early=True), NOW)
    bench.store.add_recipients(job, map(NewRecipient, ["a@x.org", "b@x.org"]))
    bench.store.cancel(Filter(job_id=job), NOW)
    bench.store.abandon_loading(job)
    found = bench.store.job_or_none(job)
    assert found is not None
    assert found.state is JobState.CANCELLED
    assert found.completed_at is not None
    assert bench.store.release(Filter(job_id=job), NOW) == Changed(0, 0)
    assert bench.claim() == []


def test_a_job_that_is_cancelled_while_it_is_loaded_takes_nothing_more(bench: Bench, other: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    bench.store.add_recipients(job, [NewRecipient("a@x.org")])
    other.store.cancel(Filter(job_id=job), NOW)
    with pytest.raises(NoSuchJob, match="cancelled"):
        bench.store.add_recipients(job, [NewRecipient("b@x.org")])
    assert bench.store.finish_loading(job, NOW).state is JobState.CANCELLED
    assert bench.claim() == []


def test_data_that_cannot_be_stored_is_refused_and_the_rest_stays(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    bench.store.add_recipients(job, [NewRecipient("a@x.org")])
    with pytest.raises(DataError, match="over 1048576 octets"):
        bench.store.add_recipients(job, [NewRecipient("b@x.org"), NewRecipient("c@x.org", {"x": "y" * (1 << 20)})])
    with pytest.raises(DataError, match="cannot be stored"):
        bench.store.add_recipients(job, [NewRecipient("d@x.org", {"x": object()})])
    with pytest.raises(DataError, match="not valid text"):
        bench.store.add_recipients(job, [NewRecipient("e\udcff@x.org")])
    with pytest.raises(DataError, match="cannot be stored"):
        bench.store.add_job(bench.owner, NewJob("", b"", options={"x": object()}), NOW)
    bench.store.add_recipients(job, [NewRecipient("f@x.org")])
    bench.store.finish_loading(job, NOW)
    assert [(claim.number, claim.address) for claim in bench.claim()] == [(1, "a@x.org"), (2, "f@x.org")]


# --- claims and leases ------------------------------------------------------------------------------------------------


def test_what_is_claimed_belongs_to_one_engine(bench: Bench, other: Bench) -> None:
    bench.load(*addresses(10))
    mine, theirs = bench.claim(6), other.claim(6)
    assert len(mine) == 6
    assert len(theirs) == 4
    assert not {claim.recipient_id for claim in mine} & {claim.recipient_id for claim in theirs}
    assert {claim.epoch for claim in mine}.isdisjoint({claim.epoch for claim in theirs})
    assert bench.claim() == other.claim() == []


def test_epochs_are_never_used_twice(bench: Bench) -> None:
    bench.load("a@x.org")
    seen: list[int] = []
    for _ in range(4):
        (claim,) = bench.claim()
        seen.append(claim.epoch)
        bench.settle(claim.outcome(RELEASED))
    assert seen == sorted(set(seen))


def test_only_what_is_due_is_claimed(bench: Bench) -> None:
    job = bench.load("a@x.org", start_at=NOW + 10)
    assert bench.claim() == bench.claim(job=job) == []
    assert bench.store.next_due_at() == bench.store.next_due_at(job) == NOW + 10
    (claim,) = bench.claim(now=NOW + 10)
    bench.settle(claim.outcome(DEFERRED, next_attempt_at=NOW + 50), now=NOW + 20)
    assert bench.claim(now=NOW + 49) == bench.claim(now=NOW + 49, job=job) == []
    assert bench.store.next_due_at() == bench.store.next_due_at(job) == NOW + 50
    (again,) = bench.claim(now=NOW + 50)
    assert again.attempts == 1


def test_due_longest_goes_first_inside_a_job(bench: Bench) -> None:
    bench.load(*addresses(3))
    claims = bench.claim()
    late, early, middle = (
        claim.outcome(DEFERRED, next_attempt_at=NOW + s) for claim, s in zip(claims, (30, 10, 20), strict=True)
    )
    bench.settle(late, early, middle)
    assert [claim.number for claim in bench.claim(now=NOW + 100)] == [2, 3, 1]


def test_jobs_take_turns(bench: Bench) -> None:
    big, small = bench.load(*addresses(100)), bench.load(*addresses(5))
    first = bench.claim(20)
    assert {claim.job_id for claim in first} == {big, small}
    assert sum(claim.job_id == small for claim in first) == 5
    third = bench.load(*addresses(30), now=NOW + 1)
    second = bench.claim(20, now=NOW + 1)
    assert {claim.job_id for claim in second} == {big, third}


def test_many_jobs_share_a_claim(bench: Bench) -> None:
    jobs = {bench.load(*addresses(3)) for _ in range(50)}
    assert {claim.job_id for claim in bench.claim(200)} == jobs


def test_a_claim_can_be_for_one_job(bench: Bench) -> None:
    bench.load(*addresses(3))
    job = bench.load(*addresses(3))
    assert {claim.job_id for claim in bench.claim(job=job)} == {job}
    assert bench.claim(job=job) == []
    assert bench.claim(0) == []
    assert len(bench.claim()) == 3


def test_a_clock_that_went_back_does_not_stop_a_job(bench: Bench) -> None:
    job = bench.load(*addresses(4))
    assert len(bench.claim(1, now=NOW + 3600)) == 1
    assert len(bench.claim(1, now=NOW, job=job)) == 1


def test_extend_moves_the_end_of_the_lease_and_never_back(bench: Bench, other: Bench) -> None:
    bench.load(*addresses(2))
    (claim, _) = bench.claim()
    assert bench.store.extend(bench.owner, [claim.epoch], NOW + 500) == ()
    assert bench.store.extend(bench.owner, [claim.epoch], NOW + 5) == ()
    assert other.store.recover(other.owner, NOW + 499).released == 0
    assert other.store.recover(other.owner, NOW + 501).released == 2
    assert bench.store.extend(bench.owner, [claim.epoch, 999_999], NOW + 900) == (claim.epoch, 999_999)


def test_extend_is_for_the_owner(bench: Bench, other: Bench) -> None:
    bench.load(*addresses(1))
    (claim,) = bench.claim()
    assert other.store.extend(other.owner, [claim.epoch], NOW + 500) == (claim.epoch,)


def test_a_lease_that_ran_out_can_still_be_settled_if_nobody_took_over(bench: Bench) -> None:
    job = bench.load("a@x.org")
    (claim,) = bench.claim()
    assert bench.settle(claim.outcome(DELIVERED), now=NOW + 10 * LEASE_S) == ()
    assert bench.store.counts(job).delivered == 1


# --- settling ---------------------------------------------------------------------------------------------------------


def test_outcomes_move_recipients_and_counters(bench: Bench) -> None:
    job = bench.load(*addresses(5))
    a, b, c, d, _ = bench.claim()
    result = bench.store.settle(
        bench.owner,
        [
            a.outcome(DELIVERED),
            b.outcome(FAILED, errno=-44, text="550 no"),
            c.outcome(DEFERRED, next_attempt_at=NOW + 9, errno=111, text="refused", retry_key="T:h:1"),
            d.outcome(RELEASED, next_attempt_at=NOW + 3),
        ],
        NOW,
    )
    assert result == SettleResult()
    assert bench.store.counts(job) == JobCounts(total=5, delivered=1, failed=1, deferred=1, waiting=1, leased=1)
    views = bench.store.recipients(Filter(job_id=job), 10)
    assert [view.status for view in views] == ["delivered", "failed", "deferred", "waiting", "in-flight"]
    assert [view.attempts for view in views] == [1, 1, 1, 0, 0]
    assert [(view.errno, view.text) for view in views[1:3]] == [(-44, "550 no"), (111, "refused")]
    assert views[2].next_attempt_at == NOW + 9
    assert bench.store.next_due_at(job) == NOW + 3


def test_the_last_outcome_completes_the_job_once(bench: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    assert bench.store.settle(bench.owner, [a.outcome(DELIVERED)], NOW).completed == ()
    assert bench.store.settle(bench.owner, [b.outcome(FAILED)], NOW + 5).completed == (job,)
    found = bench.store.job_or_none(job)
    assert found is not None
    assert (found.state, found.completed_at) == (JobState.COMPLETED, NOW + 5)
    assert bench.store.next_due_at() is None


def test_an_outcome_counts_once(bench: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    twice = a.outcome(FAILED)
    assert bench.settle(a.outcome(DELIVERED), b.outcome(DELIVERED), twice) == (twice,)
    again = a.outcome(DELIVERED)
    assert bench.settle(again) == (again,)
    assert bench.store.counts(job) == JobCounts(total=2, delivered=2)


def test_only_the_owner_settles(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    stolen = a.outcome(DELIVERED)
    assert other.settle(stolen) == (stolen,)
    assert bench.store.counts(job).leased == 2
    assert bench.settle(a.outcome(FAILED), b.outcome(DELIVERED)) == ()


def test_an_engine_that_slept_cannot_overwrite(bench: Bench, other: Bench) -> None:
    """Fencing: the late settlement of a lease that was taken over changes nothing and is returned as lost."""
    job = bench.load(*addresses(3))
    a, b, _ = bench.claim()
    late = NOW + LEASE_S + 1
    assert other.store.recover(other.owner, late).released == 3
    theirs = other.claim(2, now=late)
    outcomes = [a.outcome(DELIVERED), b.outcome(FAILED)]
    assert list(bench.settle(*outcomes, now=late)) == outcomes
    assert other.settle(theirs[0].outcome(DELIVERED), now=late) == ()
    assert bench.store.counts(job) == JobCounts(total=3, delivered=1, leased=1, waiting=1)


def test_a_batch_with_lost_outcomes_settles_the_others(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(4))
    old = bench.claim(2)
    other.store.recover(other.owner, NOW + LEASE_S + 1)
    new = bench.claim(2, now=NOW + LEASE_S + 1)
    batch = [claim.outcome(DELIVERED) for pair in zip(old, new, strict=True) for claim in pair]
    lost = bench.settle(*batch)
    assert set(map(id, lost)) == {id(batch[0]), id(batch[2])}
    assert bench.store.counts(job).delivered == 2


def test_text_from_a_server_is_kept_short_and_storable(bench: Bench) -> None:
    bench.load("a@x.org")
    (claim,) = bench.claim()
    text = "4\udcff5\x00é" + "x" * 2000
    record = RetryRecord("T:h:1", NOW, NOW, NOW + 1, text=text)
    outcome = claim.outcome(DEFERRED, next_attempt_at=NOW, text=text)
    bench.store.settle(bench.owner, [outcome], NOW, retry_updates=[record])
    (view,) = bench.store.recipients(Filter(), 1)
    assert view.text == bench.store.retry_records(["T:h:1"])["T:h:1"].text == "4?5\x00é" + "x" * 995


def test_doubt_stays_until_the_recipient_is_delivered(bench: Bench) -> None:
    bench.load("a@x.org")
    (claim,) = bench.claim()
    bench.settle(claim.outcome(DEFERRED, in_doubt=True, next_attempt_at=NOW))
    (claim,) = bench.claim()
    assert claim.in_doubt
    bench.settle(claim.outcome(DEFERRED, next_attempt_at=NOW))
    (claim,) = bench.claim()
    assert claim.in_doubt, "the first attempt may still have delivered it"
    bench.settle(claim.outcome(DELIVERED))
    (view,) = bench.store.recipients(Filter(), 1)
    assert not view.in_doubt


def test_a_release_counts_no_attempt_and_keeps_its_time(bench: Bench) -> None:
    job = bench.load("a@x.org")
    (claim,) = bench.claim()
    bench.settle(claim.outcome(DEFERRED, next_attempt_at=NOW + 5))
    (claim,) = bench.claim(now=NOW + 8)
    bench.settle(claim.outcome(RELEASED), now=NOW + 8)
    (view,) = bench.store.recipients(Filter(), 1)
    assert (view.attempts, view.next_attempt_at, view.status) == (1, NOW + 5, Status.DEFERRED)
    assert len(bench.claim(now=NOW + 8, job=job)) == 1


# --- group commit -----------------------------------------------------------------------------------------------------


def test_a_group_is_one_commit(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(3))
    a, b, _ = bench.claim()
    with bench.store.group():
        bench.settle(a.outcome(DELIVERED))
        bench.settle(b.outcome(DELIVERED))
        assert other.store.counts(job).delivered == 0
    assert other.store.counts(job).delivered == 2


def test_a_group_that_fails_did_nothing_and_can_be_repeated(bench: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    bench.engine.journal.begin([(a.recipient_id, a.epoch)], "mx")
    with stopped_group(bench):
        bench.settle(a.outcome(DELIVERED))
    assert bench.store.counts(job).leased == 2
    assert bench.engine.journal.open_count == 1, "the journal forgets only what was committed"
    with bench.store.group():
        assert bench.settle(a.outcome(DELIVERED), b.outcome(DELIVERED)) == ()
    assert bench.store.counts(job).delivered == 2
    assert bench.engine.journal.open_count == 0


def test_a_failure_inside_a_group_dooms_it_even_when_it_is_caught(bench: Bench) -> None:
    job = bench.load("a@x.org")
    (claim,) = bench.claim()

    def two_calls() -> None:
        with bench.store.group():
            bench.settle(claim.outcome(DELIVERED))
            with stopped_group(bench):
                bench.settle()

    with pytest.raises(StoreError, match="none of it was done"):
        two_calls()
    assert bench.store.counts(job).leased == 1


def test_loading_is_not_part_of_a_group(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    for call in (
        lambda: bench.store.add_job(bench.owner, NewJob("", b""), NOW),
        lambda: bench.store.add_recipients(job, []),
        lambda: bench.store.finish_loading(job, NOW),
        lambda: bench.store.abandon_loading(job),
    ):
        with pytest.raises(StoreError, match="cannot be part of a group"), bench.store.group():
            call()
    assert bench.store.add_recipients(job, map(NewRecipient, addresses(3))).accepted == 3
    assert bench.store.finish_loading(job, NOW).counts.total == 3


def test_recover_is_not_part_of_a_group(bench: Bench) -> None:
    with pytest.raises(StoreError, match="group"), bench.store.group():
        bench.store.recover(bench.owner, NOW)
    with pytest.raises(StoreError, match="group"), bench.store.group():
        bench.store.retire(bench.engine, NOW)

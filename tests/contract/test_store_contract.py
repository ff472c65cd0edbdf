"""What every store promises, whatever is under it: the text of `engine.queue.store`, sentence by sentence.

A store is opened more than once on the same queue, as engines of different processes would; a dead engine is one whose
journal was closed without `retire`.  Each implementation adds a line to `STORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import DataError, StoreError
from engine.queue.model import (
    Changed,
    Claim,
    Filter,
    JobCounts,
    JobState,
    NewJob,
    NewRecipient,
    OutboxEvent,
    Outcome,
    OutcomeKind,
    RecoveryKind,
    RetryRecord,
    Status,
    job_of,
    number_of,
    recipient_id,
)
from engine.queue.sqlite import open_store
from engine.queue.store import Engine, NoSuchJob, Store

NOW = 1_700_000_000.0
LEASE_S = 60.0
DELIVERED, DEFERRED, FAILED, RELEASED = OutcomeKind

Opener = Callable[[], Store]


def sqlite_stores(folder: Path) -> Opener:
    return lambda: open_store(f"sqlite://{folder}/queue.db")


STORES = {"sqlite": sqlite_stores}


@pytest.fixture(params=list(STORES))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens one more connection to the same queue; all are closed in the end."""
    stores: list[Store] = []
    make = STORES[request.param](tmp_path)

    def open_one() -> Store:
        stores.append(make())
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


class Bench:
    """One connection with an engine, and the calls that tests make over and over."""

    def __init__(self, store: Store, now: float = NOW) -> None:
        self.store = store
        self.engine: Engine = store.register(now)
        self.owner = self.engine.owner

    def load(self, *addresses: str, merge: bool = False, now: float = NOW, **options: object) -> int:
        job = self.store.add_job(self.owner, NewJob("a@example.com", b"body", **options), now)  # type: ignore[arg-type]
        rows = [NewRecipient(address, {"name": address} if merge else None) for address in addresses]
        self.store.add_recipients(job, rows)
        self.store.finish_loading(job, now)
        return job

    def claim(self, limit: int = 100, now: float = NOW, job: int | None = None) -> list[Claim]:
        return self.store.claim(self.owner, limit, now, LEASE_S, job)

    def settle(self, *outcomes: Outcome, now: float = NOW) -> tuple[Outcome, ...]:
        return self.store.settle(self.owner, outcomes, now).lost

    def die(self) -> None:
        """The process is gone: the lock on its journal with it, and nothing else."""
        self.engine.journal.close()
        self.store.close()


@pytest.fixture
def bench(opener: Opener) -> Iterator[Bench]:
    made = Bench(opener())
    yield made
    made.engine.journal.close()


@pytest.fixture
def other(opener: Opener) -> Iterator[Bench]:
    """A second engine on the same queue."""
    made = Bench(opener())
    yield made
    made.engine.journal.close()


def addresses(count: int, domain: str = "example.org") -> list[str]:
    return [f"user{number}@{domain}" for number in range(1, count + 1)]


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
    late, early, middle = (claim.outcome(DEFERRED, next_attempt_at=NOW + s) for claim, s in zip(claims, (30, 10, 20)))
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
    assert result.lost == result.completed == ()
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
    batch = [claim.outcome(DELIVERED) for pair in zip(old, new) for claim in pair]
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
    with pytest.raises(RuntimeError, match="stop"), bench.store.group():
        bench.settle(a.outcome(DELIVERED))
        raise RuntimeError("stop")
    assert bench.store.counts(job).leased == 2
    assert bench.engine.journal.open_count == 1, "the journal forgets only what was committed"
    with bench.store.group():
        assert bench.settle(a.outcome(DELIVERED), b.outcome(DELIVERED)) == ()
    assert bench.store.counts(job).delivered == 2
    assert bench.engine.journal.open_count == 0


def test_a_failure_inside_a_group_dooms_it_even_when_it_is_caught(bench: Bench) -> None:
    job = bench.load("a@x.org")
    (claim,) = bench.claim()
    with pytest.raises(StoreError, match="none of it was done"), bench.store.group():
        bench.settle(claim.outcome(DELIVERED))
        with pytest.raises(NoSuchJob):
            bench.store.hold(Filter(job_id=99))
        with pytest.raises(RuntimeError), bench.store.group():
            raise RuntimeError
    assert bench.store.counts(job).leased == 1


def test_loading_in_a_group_that_fails_can_be_repeated(bench: Bench) -> None:
    job = bench.store.add_job(bench.owner, NewJob("", b""), NOW)
    with pytest.raises(RuntimeError), bench.store.group():
        bench.store.add_recipients(job, map(NewRecipient, addresses(3)))
        bench.store.finish_loading(job, NOW)
        raise RuntimeError
    added = bench.store.add_recipients(job, map(NewRecipient, addresses(3)))
    assert (added.accepted, added.duplicates) == (3, 0)
    assert bench.store.finish_loading(job, NOW).counts.total == 3
    assert [claim.number for claim in bench.claim()] == [1, 2, 3]


def test_recover_is_not_part_of_a_group(bench: Bench) -> None:
    with pytest.raises(StoreError, match="group"), bench.store.group():
        bench.store.recover(bench.owner, NOW)
    with pytest.raises(StoreError, match="group"), bench.store.group():
        bench.store.retire(bench.engine, NOW)


# --- outbox and retry records -----------------------------------------------------------------------------------------


def test_events_are_stored_with_the_outcome_they_tell_of(bench: Bench, other: Bench) -> None:
    job = bench.load(*addresses(2))
    a, b = bench.claim()
    events = [OutboxEvent("msg:delivery", "k1", b"\x00one"), OutboxEvent("msg:complete", "k2", b"two")]
    with pytest.raises(RuntimeError), bench.store.group():
        bench.store.settle(bench.owner, [a.outcome(DELIVERED)], NOW, events=events)
        raise RuntimeError
    assert bench.store.drain_outbox(bench.owner, 10) == []
    bench.store.settle(bench.owner, [a.outcome(DELIVERED), b.outcome(DELIVERED)], NOW, events=events)
    first, second = bench.store.drain_outbox(bench.owner, 10)
    assert (first.name, first.key, first.payload) == ("msg:delivery", "k1", b"\x00one")
    assert first.id < second.id
    assert bench.store.drain_outbox(bench.owner, 10) == [first, second], "they stay until acknowledged"
    assert bench.store.drain_outbox(bench.owner, 10, after=first.id) == [second]
    assert bench.store.drain_outbox(bench.owner, 1) == [first]
    assert other.store.drain_outbox(other.owner, 10) == []
    bench.store.ack_outbox([first.id, first.id, 12345])
    bench.store.ack_outbox([])
    assert bench.store.drain_outbox(bench.owner, 10) == [second]
    assert bench.store.counts(job).delivered == 2


def test_events_survive_even_when_the_outcome_is_lost(bench: Bench) -> None:
    outcome = Outcome(recipient_id(1, 1), 77, DELIVERED)
    result = bench.store.settle(bench.owner, [outcome], NOW, events=[OutboxEvent("n", "k", b"")])
    assert result.lost == (outcome,)
    assert len(bench.store.drain_outbox(bench.owner, 10)) == 1


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
    (event,) = other.store.drain_outbox(other.owner, 10)
    assert event.name == "msg:indoubt"
    assert other.store.recover(other.owner, NOW + 70) == type(recovery)()


def test_the_events_of_a_recovery_are_what_describe_makes(bench: Bench, other: Bench) -> None:
    bench.load(*addresses(2))
    a, _ = bench.claim()
    bench.engine.journal.begin([(a.recipient_id, a.epoch)], "mx")
    bench.engine.journal.finish([(a.recipient_id, a.epoch, DELIVERED, "250")])
    bench.die()
    other.store.recover(other.owner, NOW, describe=lambda found: [OutboxEvent("n", f"{found.kind.value}", b"")])
    assert [event.key for event in other.store.drain_outbox(other.owner, 10)] == ["delivered"]


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
    assert sorted(event.name for event in other.store.drain_outbox(other.owner, 10)) == ["msg:indoubt", "n"]
    with pytest.raises(StoreError, match="closed"):
        bench.engine.journal.begin([(1, 1)], "mx")


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
    bench.settle(a.outcome(DEFERRED, next_attempt_at=NOW))
    result = bench.store.settle(bench.owner, [b.outcome(DELIVERED)], NOW + 1)
    assert result.completed == (job,)
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
    assert bench.store.cancel(Filter(domain="y.org"), NOW + 3) == Changed(1, 0)
    found = bench.store.job_or_none(job)
    assert found is not None
    assert (found.state, found.completed_at) == (JobState.COMPLETED, NOW + 3)


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
    first = bench.load("a@x.org", name="one")
    second = bench.load("a@x.org", name="two")
    (claim,) = bench.claim(job=first)
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
    assert oldest.lease is None
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

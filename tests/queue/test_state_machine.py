"""Two engines on one queue, in any order of calls, kills and clock steps, against a model of what was really sent.

The model knows what the receiving servers got.  After each step: the counters of every job equal a full count of its
rows; no recipient is in the hands of two engines; what is settled stays settled; a recipient whose message may have
been delivered is handed out again only in doubt, and never after its delivery was known.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field, replace

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.queue.model import (
    Claim,
    Filter,
    JobState,
    NewJob,
    NewRecipient,
    OutboxEvent,
    Outcome,
    OutcomeKind,
    Recovered,
    RecoveryKind,
)
from engine.queue.sqlite import SqliteStore
from engine.queue.store import Engine

LEASE_S = 100.0
DELAY_S = 50.0
DELIVERED, DEFERRED, FAILED, RELEASED = OutcomeKind
COUNTED = ("waiting", "deferred", "leased", "held", "delivered", "failed", "cancelled")

engines = st.integers(0, 1)
kinds = st.sampled_from([DELIVERED, DELIVERED, DEFERRED, FAILED, RELEASED])
seeds = st.integers(0, 1 << 30)


@dataclass
class Process:
    """One engine: its claims, and what it knows of those whose final octet it has sent."""

    store: SqliteStore
    engine: Engine
    claims: dict[int, Claim] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    replies: dict[int, OutcomeKind] = field(default_factory=dict)
    until: dict[int, float] = field(default_factory=dict)

    def drop(self, recipient: int) -> None:
        for known in (self.claims, self.replies):
            known.pop(recipient, None)
        self.begun.discard(recipient)


def event_of_doubt(found: Recovered) -> list[OutboxEvent]:
    """The event of a recipient that a recovery finds in doubt; others have none."""
    return [OutboxEvent("msg:indoubt", str(found.epoch), b"")] if found.kind is RecoveryKind.IN_DOUBT else []


class TwoEngines(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="outrider-machine-")
        self.now = 1_700_000_000.0
        self.processes: list[Process] = []
        self.jobs: list[int] = []
        #: servers said yes
        self.delivered: set[int] = set()
        #: (recipient, epoch) of attempts whose final octet was sent and whose reply did not say no
        self.doubtful: set[tuple[int, int]] = set()
        #: how the queue ended it
        self.ended: dict[int, str] = {}
        self.events = 0

    @initialize()
    def start(self) -> None:
        self.processes = [self._start(), self._start()]
        self.load(0, 4, True, False)
        self.load(1, 5, False, True)

    def _start(self) -> Process:
        store = SqliteStore(f"{self.folder}/queue.db", boot_id="boot")
        # a kill here is the loss of a lock, not of power
        store._db.execute("PRAGMA synchronous = OFF")
        return Process(store, store.register(self.now))

    def teardown(self) -> None:
        for process in self.processes:
            process.engine.journal.close()
            process.store.close()
        shutil.rmtree(self.folder)

    # what engines do

    @rule(which=engines, count=st.integers(1, 6), personalised=st.booleans(), expires=st.booleans())
    def load(self, which: int, count: int, personalised: bool, expires: bool) -> None:
        process = self.processes[which]
        job = NewJob("", b"", personalised=personalised, expires_at=self.now + 400 if expires else None)
        number = process.store.add_job(process.engine.owner, job, self.now)
        rows = [NewRecipient(f"user{row}@x{row % 2}.org", {"n": row} if personalised else None) for row in range(count)]
        process.store.add_recipients(number, [*rows, rows[0]])
        process.store.finish_loading(number, self.now)
        self.jobs.append(number)

    @rule(which=engines, limit=st.integers(1, 8), expired=st.booleans())
    def claim(self, which: int, limit: int, expired: bool) -> None:
        process = self.processes[which]
        ask = process.store.claim_expired if expired else process.store.claim
        for claim in ask(process.engine.owner, limit, self.now, LEASE_S):
            recipient = claim.recipient_id
            assert recipient not in self.delivered, "handed out after its delivery was known"
            assert recipient not in self.ended, "handed out after it was settled"
            assert claim.in_doubt or not self.is_doubtful(recipient), "may be sent twice and is not marked"
            for other in self.processes:
                # who has it still must have lost its lease, or it would be sent by both
                if recipient in other.claims:
                    assert other.until[other.claims[recipient].epoch] < self.now
            process.drop(recipient)
            process.claims[recipient] = claim
            process.until[claim.epoch] = claim.lease_until

    @rule(which=engines, seed=seeds)
    def send(self, which: int, seed: int) -> None:
        process = self.processes[which]
        for recipient, claim in random.Random(seed).sample(sorted(process.claims.items()), min(2, len(process.claims))):
            if recipient in process.begun:
                continue
            process.engine.journal.begin([(recipient, claim.epoch)], "mx")
            if self.now > process.until[claim.epoch]:
                process.engine.journal.finish([(recipient, claim.epoch, RELEASED, "")])
                process.replies[recipient] = RELEASED
            else:
                assert recipient not in self.delivered, "sent twice though the first reply was known"
                self.doubtful.add((recipient, claim.epoch))
            process.begun.add(recipient)

    @rule(which=engines, kind=kinds, seed=seeds)
    def reply(self, which: int, kind: OutcomeKind, seed: int) -> None:
        process = self.processes[which]
        waiting = sorted(process.begun - process.replies.keys())
        if not waiting:
            return
        recipient = random.Random(seed).choice(waiting)
        claim = process.claims[recipient]
        process.engine.journal.finish([(recipient, claim.epoch, kind, "text")])
        process.replies[recipient] = kind
        if kind is not DELIVERED:
            self.doubtful.discard((recipient, claim.epoch))

    @rule(which=engines, share=st.floats(0, 1), kind=kinds, seed=seeds)
    def settle(self, which: int, share: float, kind: OutcomeKind, seed: int) -> None:
        """Settle replies, and claims that were never sent; twice the same, and things that are not ours, do no harm."""
        process = self.processes[which]
        chooser = random.Random(seed)
        outcomes: list[Outcome] = []
        for recipient, claim in sorted(process.claims.items()):
            if chooser.random() > share or (recipient in process.begun and recipient not in process.replies):
                continue
            reply = process.replies.get(recipient, kind if kind in (DEFERRED, FAILED) else RELEASED)
            outcomes.append(claim.outcome(reply, next_attempt_at=self.now + 30 if reply is DEFERRED else None))
        foreign = [
            claim.outcome(DELIVERED)
            for other in self.processes
            for recipient, claim in sorted(other.claims.items())
            if other is not process
        ][:1]
        events = [OutboxEvent("msg:delivery", "k", b"")] * len(outcomes)
        batch = [*outcomes, *foreign, *map(replace, outcomes[:1])]
        result = process.store.settle(process.engine.owner, batch, self.now, events=events)
        self.events += len(outcomes)
        lost = set(map(id, result.lost))
        for outcome in foreign:
            assert id(outcome) in lost
        for outcome in outcomes:
            recipient = outcome.recipient_id
            if id(outcome) not in lost:
                self._end(recipient, outcome.kind)
            process.drop(recipient)

    @rule(which=engines, seed=seeds)
    def work(self, which: int, seed: int) -> None:
        """Some of all that an engine does, as far as it comes."""
        chooser = random.Random(seed)
        self.claim(which, chooser.randint(1, 6), chooser.random() < 0.1)
        for _ in range(chooser.randint(0, 3)):
            self.send(which, chooser.getrandbits(30))
        for _ in range(chooser.randint(0, 4)):
            self.reply(
                which, chooser.choice([DELIVERED, DELIVERED, DEFERRED, FAILED, RELEASED]), chooser.getrandbits(9)
            )
        if chooser.random() < 0.7:
            self.settle(which, chooser.random(), chooser.choice(list(OutcomeKind)), chooser.getrandbits(30))

    @rule(which=engines)
    def extend(self, which: int) -> None:
        process = self.processes[which]
        epochs = {claim.epoch for claim in process.claims.values()}
        lost = process.store.extend(process.engine.owner, epochs, self.now + LEASE_S)
        for recipient, claim in list(process.claims.items()):
            if claim.epoch not in lost:
                process.until[claim.epoch] = max(process.until[claim.epoch], self.now + LEASE_S)
            elif recipient not in process.begun:
                process.drop(recipient)

    @rule(which=engines)
    def recover(self, which: int) -> None:
        process = self.processes[which]
        recovery = process.store.recover(
            process.engine.owner, self.now, in_doubt_delay_s=DELAY_S, describe=event_of_doubt
        )
        for found in recovery.recipients:
            if found.kind is RecoveryKind.IN_DOUBT:
                assert (found.recipient_id, found.epoch) in self.doubtful, "in doubt though nothing was sent"
                self.events += 1
            elif found.kind is RecoveryKind.DELIVERED:
                self._end(found.recipient_id, DELIVERED)
            elif found.kind is RecoveryKind.FAILED:
                self._end(found.recipient_id, FAILED)

    @rule(which=engines)
    def kill(self, which: int) -> None:
        """The process is gone and another one takes its place: what was begun without a reply stays in doubt."""
        process = self.processes[which]
        process.engine.journal.close()
        process.store.close()
        self.processes[which] = self._start()

    @rule(which=engines, seed=seeds, is_killed=st.booleans())
    def take_over(self, which: int, seed: int, is_killed: bool) -> None:
        """One engine sends and then is killed or sleeps over the end of its lease; the other goes on with its work."""
        self.claim(which, 6, False)
        self.send(which, seed)
        if is_killed:
            self.kill(which)
        else:
            self.now += LEASE_S + 1
        self.recover(1 - which)
        for number in range(2):
            self.now += DELAY_S + 1
            self.work(1 - which, seed + number)

    @rule(which=engines)
    def retire(self, which: int) -> None:
        process = self.processes[which]
        for found in process.store.retire(process.engine, self.now, in_doubt_delay_s=DELAY_S).recipients:
            if found.kind is RecoveryKind.IN_DOUBT:
                assert (found.recipient_id, found.epoch) in self.doubtful
            elif found.kind is not RecoveryKind.DEFERRED:
                self._end(found.recipient_id, DELIVERED if found.kind is RecoveryKind.DELIVERED else FAILED)
        process.store.close()
        self.processes[which] = self._start()

    @rule(seconds=st.sampled_from([1.0, 31.0, 60.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def is_doubtful(self, recipient: int) -> bool:
        return any(attempt[0] == recipient for attempt in self.doubtful)

    def _end(self, recipient: int, kind: OutcomeKind) -> None:
        if kind is DELIVERED:
            assert recipient not in self.delivered, "settled as delivered twice"
            self.delivered.add(recipient)
        if kind in (DELIVERED, FAILED):
            assert recipient not in self.ended
            self.ended[recipient] = kind.name.lower()

    # what people do

    @precondition(lambda self: self.jobs)
    @rule(seed=seeds, what=st.sampled_from(["hold", "release", "retry", "release", "cancel"]), whole=st.booleans())
    def administer(self, seed: int, what: str, whole: bool) -> None:
        chooser = random.Random(seed)
        where = Filter(job_id=chooser.choice(self.jobs), domain=None if whole else "x1.org")
        store = self.processes[0].store
        if what == "hold":
            store.hold(where)
        elif what == "retry":
            store.retry(where, self.now)
        elif what == "release":
            store.release(where, self.now)
        elif chooser.random() < 0.3:
            store.cancel(where, self.now)

    # what holds always

    @invariant()
    def counters_equal_a_full_count(self) -> None:
        if not self.processes:
            return
        store = self.processes[0].store
        for job in store.jobs(1000):
            counted = dict.fromkeys(COUNTED, 0)
            rows = store._db.execute("SELECT state, attempts FROM recipients WHERE job = ?", (job.id,)).fetchall()
            for state, attempts in rows:
                if state in (0, 5) and job.state is JobState.CANCELLED:
                    counted["cancelled"] += 1
                elif state == 0:
                    counted["deferred" if attempts else "waiting"] += 1
                else:
                    counted[{1: "leased", 2: "delivered", 3: "failed", 4: "cancelled", 5: "held"}[state]] += 1
            assert counted == {name: getattr(job.counts, name) for name in COUNTED}
            assert job.counts.total == len(rows), "nothing is lost"
            assert (job.counts.unsettled == 0) == (job.completed_at is not None)

    @invariant()
    def leases_match_their_recipients(self) -> None:
        if not self.processes:
            return
        database = self.processes[0].store._db
        leases = dict(database.execute("SELECT epoch, remaining FROM leases").fetchall())
        leased = database.execute("SELECT epoch, count(*) FROM recipients WHERE state = 1 GROUP BY epoch").fetchall()
        assert leases == dict(leased)

    @invariant()
    def what_is_due_will_be_served(self) -> None:
        if not self.processes:
            return
        database = self.processes[0].store._db
        late = database.execute(
            "SELECT j.id FROM jobs j WHERE state = 0 AND serve_at > ? AND serve_at >"
            " (SELECT max(j.start_at, min(next_at)) FROM recipients r WHERE r.job = j.id AND r.state = 0)",
            (self.now,),
        ).fetchall()
        assert late == []

    @invariant()
    def settled_stays_settled(self) -> None:
        if not self.processes:
            return
        names = {2: "delivered", 3: "failed"}
        rows = self.processes[0].store._db.execute("SELECT id, state FROM recipients WHERE state IN (2, 3)").fetchall()
        assert {recipient: names[state] for recipient, state in rows} == self.ended

    @invariant()
    def no_event_is_lost(self) -> None:
        if self.processes:
            (count,) = self.processes[0].store._db.execute("SELECT count(*) FROM outbox").fetchone()
            assert self.processes[0].store.outbox_size() == count
            assert count == self.events


TestTwoEngines = TwoEngines.TestCase
# not shrunk: that takes minutes here, and the steps of a failure are printed either way
TestTwoEngines.settings = settings(max_examples=40, stateful_step_count=40, phases=[Phase.explicit, Phase.generate])

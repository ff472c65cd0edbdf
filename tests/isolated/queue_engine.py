"""An engine that "sends" by appending to a file; tests/queue/test_crash.py kills it at random moments.

Usage: queue_engine.py QUEUE SENT TRACE [load COUNT].  SENT is what the receiving server got: one line a message,
``recipient epoch in-doubt``, written by one write, as the final octet is.  TRACE is what this process knew, line by
line: ``B`` the begin is in the journal, ``F`` the reply is, ``C`` the settlement is committed.  What the queue knew is
in its outbox: ``msg:delivery`` by a settlement, ``recovered`` and ``msg:indoubt`` by a recovery, each with the key
``recipient:epoch``.  Ends when nothing is left to do.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterable, Iterator

from engine.queue.model import Claim, NewJob, NewRecipient, OutboxEvent, OutcomeKind, Recovered, RecoveryKind
from engine.queue.sqlite import SqliteStore
from engine.queue.store import Engine

BATCH = 40


def appender(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


class Worker:
    """One run of an engine."""

    def __init__(self, queue: str, sent: str, trace: str) -> None:
        self.store = SqliteStore(queue)
        self.engine: Engine = self.store.register(time.time())
        self.sent, self.trace = appender(sent), appender(trace)
        self.random = random.Random(os.getpid())

    def note(self, letter: str, flights: Iterable[tuple[int, int]]) -> None:
        os.write(self.trace, "".join(f"{letter} {recipient} {epoch}\n" for recipient, epoch in flights).encode())

    def recover(self) -> None:
        def describe(found: Recovered) -> list[OutboxEvent]:
            name = "msg:indoubt" if found.kind is RecoveryKind.IN_DOUBT else "recovered"
            return [OutboxEvent(name, f"{found.recipient_id}:{found.epoch}", b"")]

        self.store.recover(self.engine.owner, time.time(), in_doubt_delay_s=0.0, describe=describe)

    def deliver(self, claims: list[Claim]) -> None:
        """Several transactions, some replies known before others, then one commit for all."""
        journal = self.engine.journal
        while claims:
            size = self.random.randint(1, 10)
            transaction, claims = claims[:size], claims[size:]
            flights = [(claim.recipient_id, claim.epoch) for claim in transaction]
            journal.begin(flights, "mx.example.org")
            self.note("B", flights)
            for claim in transaction:
                os.write(self.sent, f"{claim.recipient_id} {claim.epoch} {claim.in_doubt:d}\n".encode())
            # the round trip: many of the kills should fall here
            time.sleep(0.0005)
            journal.finish([(*flight, OutcomeKind.DELIVERED, "250 ok") for flight in flights])
            self.note("F", flights)
            self.settle(transaction)

    def settle(self, claims: list[Claim]) -> None:
        outcomes = [claim.outcome(OutcomeKind.DELIVERED) for claim in claims]
        events = [OutboxEvent("msg:delivery", f"{claim.recipient_id}:{claim.epoch}", b"") for claim in claims]
        result = self.store.settle(self.engine.owner, outcomes, time.time(), events=events)
        assert not result.lost, "nobody else may have what we hold"
        self.note("C", [(claim.recipient_id, claim.epoch) for claim in claims])

    def run(self) -> None:
        rounds = 0
        while True:
            if rounds % 5 == 0:
                self.recover()
            rounds += 1
            claims = self.store.claim(self.engine.owner, BATCH, time.time(), 600.0)
            if claims:
                self.deliver(claims)
            elif all(job.counts.unsettled == 0 for job in self.store.jobs(100)):
                break
            else:
                time.sleep(0.005)
        self.store.retire(self.engine, time.time())
        self.store.close()

    def load(self, count: int) -> None:
        def recipients() -> Iterator[NewRecipient]:
            for number in range(count):
                yield NewRecipient(f"user{number}@example.org", {"n": number})

        job = self.store.add_job(self.engine.owner, NewJob("", b"body", personalised=True), time.time())
        self.store.add_recipients(job, recipients())
        self.store.finish_loading(job, time.time())


def main() -> None:
    worker = Worker(*sys.argv[1:4])
    os.write(1, b"ready\n")
    if sys.argv[4:5] == ["load"]:
        worker.load(int(sys.argv[5]))
        return
    worker.run()


if __name__ == "__main__":
    main()

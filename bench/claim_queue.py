"""The queue costs at most two thirds more than the SQLite that it stands on.

Claimed: claiming and settling recipients in batches of 500, each batch a commit that is on disk (WAL,
``synchronous=FULL``), runs at no less than 60 % of the rate of a bare loop over the same SQLite that does the same
writes: one table with an index on what is due, ids selected and marked as taken, committed, then marked as delivered
and committed.  The queue does more in these commits: leases with owner and epoch, counters a job, fencing, a look for
duplicates of an outcome, an event a message in the outbox where that is said.
Measured: both in turns, on files in one folder, loaded before the clock starts; a check counts the delivered rows.
Beside it: the same with an event for each recipient and with the journal's begin and finish, as an engine has it; and
how long a recovery takes, from the opening of the file, after an engine died with 20,000 of a million recipients in its
hands.
Falsified by a median ratio under 0.6.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from typing import TYPE_CHECKING, Final

from engine.queue.model import NewJob, NewRecipient, OutboxEvent, OutcomeKind
from engine.queue.sqlite import SqliteStore

from ._harness import RATE, WALL_US, Contender, Metric, Stopwatch

if TYPE_CHECKING:
    from ._harness import Harness, Timing

BATCH: Final = 500
#: where the files are: a disk, since the commits are what is measured; $OUTRIDER_BENCH_DIR chooses another
FOLDER: Final = os.environ.get("OUTRIDER_BENCH_DIR", "/var/tmp")
_SECONDS: Final = Metric("time", "s", False, lambda timing: timing.wall_s)


def run(bench: Harness) -> None:
    """Measure the claim."""
    count = bench.size(100_000, 2_000)
    bench.note(f"files in {FOLDER}; SQLite {sqlite3.sqlite_version}; batches of {BATCH}, each synced")
    what = "claim and settle, batches of 500, each synced"
    ours = Contender("outrider", _queue)
    bench.compare(what, ours, Contender("bare SQLite", _bare), data=count, metric=RATE, at_least=0.6, is_figure=True)
    full = Contender("outrider", _queue_with_events)
    bench.measure("the same with journal and an event each", full, data=count, metric=RATE, runs=3)
    total, leased = bench.size(1_000_000, 5_000), bench.size(20_000, 1_000)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        job = _die(f"{folder}/dead", total, leased)
        dead = Contender("outrider", lambda: _recover(f"{folder}/dead", job, leased))
        what = f"recovery of {leased:,} recipients of a dead engine, {total:,} in the queue"
        bench.measure(what, dead, metric=_SECONDS, also=(WALL_US,), runs=3)


def _load(store: SqliteStore, count: int) -> tuple[int, int]:
    owner = store.register(0.0).owner
    job = store.add_job(owner, NewJob("", b""), 0.0)
    store.add_recipients(job, (NewRecipient(f"user{number}@example.org") for number in range(count)))
    store.finish_loading(job, 0.0)
    return owner, job


def _queue(count: int, *, is_full: bool = False) -> Timing:
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        store = SqliteStore(f"{folder}/queue.db")
        owner, job = _load(store, count)
        journal = store._journals[owner]
        with Stopwatch() as watch:
            while claims := store.claim(owner, BATCH, time.time(), 600.0):
                events = []
                if is_full:
                    for claim in claims:
                        journal.begin([(claim.recipient_id, claim.epoch)], "mx.example.org")
                    journal.finish(
                        [(claim.recipient_id, claim.epoch, OutcomeKind.DELIVERED, "250 ok") for claim in claims]
                    )
                    events = [OutboxEvent("msg:delivery", str(claim.recipient_id), b"x" * 200) for claim in claims]
                outcomes = [claim.outcome(OutcomeKind.DELIVERED) for claim in claims]
                store.settle(owner, outcomes, time.time(), events=events)
        delivered = store.counts(job).delivered
        journal.close()
        store.close()
    return watch.timing(count, delivered)


def _queue_with_events(count: int) -> Timing:
    return _queue(count, is_full=True)


def _bare(count: int) -> Timing:
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        database = sqlite3.connect(f"{folder}/bare.db", isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA wal_autocheckpoint = 4096")
        database.execute("CREATE TABLE recipients (id INTEGER PRIMARY KEY, state INTEGER, next_at REAL, address TEXT)")
        database.execute("CREATE INDEX due ON recipients (next_at) WHERE state = 0")
        database.execute("BEGIN")
        rows = ((number, 0, 0.0, f"user{number}@example.org") for number in range(1, count + 1))
        database.executemany("INSERT INTO recipients VALUES (?, ?, ?, ?)", rows)
        database.execute("COMMIT")
        with Stopwatch() as watch:
            while True:
                database.execute("BEGIN IMMEDIATE")
                claims = database.execute(
                    "SELECT id, address FROM recipients WHERE state = 0 AND next_at <= ? ORDER BY next_at, id LIMIT ?",
                    (time.time(), BATCH),
                ).fetchall()
                database.executemany("UPDATE recipients SET state = 1 WHERE id = ?", [(row[0],) for row in claims])
                database.execute("COMMIT")
                if not claims:
                    break
                database.execute("BEGIN IMMEDIATE")
                database.executemany("UPDATE recipients SET state = 2 WHERE id = ?", [(row[0],) for row in claims])
                database.execute("COMMIT")
        (delivered,) = database.execute("SELECT count(*) FROM recipients WHERE state = 2").fetchone()
        database.close()
    return watch.timing(count, delivered)


def _die(folder: str, total: int, leased: int) -> int:
    """An engine with `leased` recipients in its hands, a tenth of them begun, as it was when it died; gives the job."""
    os.mkdir(folder)
    store = SqliteStore(f"{folder}/queue.db")
    owner, job = _load(store, total)
    journal = store._journals[owner]
    for _ in range(leased // BATCH):
        for claim in store.claim(owner, BATCH, 1.0, 600.0)[::10]:
            journal.begin([(claim.recipient_id, claim.epoch)], "mx.example.org")
    journal.close()
    store.close()
    return job


def _recover(dead: str, job: int, leased: int) -> Timing:
    """Another engine opens a copy of the queue and clears up."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(dead)) as parent:
        folder = shutil.copytree(dead, f"{parent}/copy")
        os.sync()
        with Stopwatch() as watch:
            store = SqliteStore(f"{folder}/queue.db")
            engine = store.register(2.0)
            recovery = store.recover(engine.owner, 2.0)
        counts = store.counts(job)
        store.retire(engine, 3.0)
        store.close()
    in_doubt = len(recovery.recipients)
    assert in_doubt == leased // 10, f"{in_doubt} in doubt"
    assert in_doubt + recovery.released == leased, f"{in_doubt} in doubt and {recovery.released} given back"
    return watch.timing(leased, (in_doubt, recovery.released, counts.waiting, counts.deferred))

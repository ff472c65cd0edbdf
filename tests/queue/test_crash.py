"""Real processes on one queue file, killed at random moments: nothing is lost, and what is sent twice was in doubt."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.queue.model import JobState, NewJob, NewRecipient
from engine.queue.sqlite import SqliteStore
from fakes.patience import PATIENCE_S, wait_for
from fakes.peers import PROJECT

Flight = tuple[int, int]
COUNT = 4000


class Folder:
    """The queue, what was sent, what the engines knew, and the processes that were started."""

    def __init__(self, path: Path) -> None:
        self.queue, self.sent, self.trace = (str(path / name) for name in ("queue.db", "sent", "trace"))
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "tests/isolated/queue_engine.py", self.queue, self.sent, self.trace, *more]
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", process.communicate(timeout=PATIENCE_S)[1].decode()
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors.decode()

    def lines(self, path: str) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in Path(path).read_text().splitlines()]
        return []

    def count_or_none(self, table: str) -> int:
        """Rows of a table of the queue; 0 while it cannot be read."""
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(self.queue)) as database:
            return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        return 0

    def traced(self, letter: str) -> set[Flight]:
        return {(int(row[1]), int(row[2])) for row in self.lines(self.trace) if row[0] == letter and len(row) == 3}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def load(folder: Folder, count: int = COUNT) -> int:
    store = SqliteStore(folder.queue)
    engine = store.register(time.time())
    job = store.add_job(engine.owner, NewJob("", b"body"), time.time())
    store.add_recipients(job, (NewRecipient(f"user{number}@example.org") for number in range(count)))
    store.finish_loading(job, time.time())
    store.retire(engine, time.time())
    store.close()
    return job


def check(folder: Folder, job: int, count: int = COUNT) -> int:
    """Everything that is promised, by what servers got, engines knew and the queue holds; how many were in doubt."""
    sent = [(int(recipient), int(epoch), int(doubt)) for recipient, epoch, doubt in folder.lines(folder.sent)]
    store = SqliteStore(folder.queue)
    try:
        store.check()
        found = store.job_or_none(job)
        assert found is not None
        assert found.state is JobState.COMPLETED
        assert found.counts.delivered == found.counts.total == count
        assert store._db.execute("SELECT count(*) FROM leases").fetchone() == (0,)
        assert store._db.execute("SELECT count(*) FROM engines").fetchone() == (0,)
        events = store._db.execute("SELECT name, key FROM outbox").fetchall()
    finally:
        store.close()
    assert [name.name for name in Path(folder.queue).parent.iterdir() if "inflight" in name.name] == []
    assert len(set(events)) == len(events), "each was committed once, with its outcome"
    known: dict[str, set[Flight]] = {"msg:delivery": set(), "recovered": set(), "msg:indoubt": set()}
    for name, key in events:
        recipient, _, epoch = key.partition(":")
        known[name].add((int(recipient), int(epoch)))
    committed, recovered, doubtful = known["msg:delivery"], known["recovered"], known["msg:indoubt"]
    # every recipient got the message and was settled once
    everyone = {job << 32 | number for number in range(1, count + 1)}
    assert {recipient for recipient, _, _ in sent} == everyone
    assert sorted(recipient for recipient, _ in committed | recovered) == sorted(everyone)
    # what was sent again: the attempt before was in doubt, and the engine that sent it again knew
    seen: dict[int, int] = {}
    for recipient, epoch, doubt in sent:
        if recipient in seen:
            assert (recipient, seen[recipient]) in doubtful
        assert doubt == any((recipient, earlier) in doubtful for earlier in range(epoch))
        seen[recipient] = epoch
    # in doubt is exactly what was begun and has no reply; a kill may only hide the last line of a trace
    begun, replied = folder.traced("B"), folder.traced("F")
    assert begun | {(recipient, epoch) for recipient, epoch, _ in sent} <= committed | recovered | doubtful
    assert not doubtful & (replied | committed | recovered)
    assert folder.traced("C") <= committed
    return len(doubtful)


@pytest.mark.slow
def test_an_engine_that_is_killed_again_and_again(folder: Folder, rng: random.Random) -> None:
    job = load(folder)
    for _ in range(10):
        process = folder.start()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    folder.finish(folder.start())
    check(folder, job)


@pytest.mark.slow
def test_two_engines_at_once_and_one_is_killed(folder: Folder, rng: random.Random) -> None:
    job = load(folder)
    steady = folder.start()
    for _ in range(4):
        process = folder.start()
        time.sleep(rng.uniform(0.005, 0.06))
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    folder.finish(steady)
    folder.finish(folder.start())
    check(folder, job)


@pytest.mark.slow
def test_two_engines_at_once_send_nothing_twice(folder: Folder) -> None:
    job = load(folder)
    both = [folder.start(), folder.start()]
    for process in both:
        folder.finish(process)
    assert check(folder, job) == 0
    assert len(folder.lines(folder.sent)) == COUNT


@pytest.mark.slow
def test_a_loader_that_is_killed_leaves_nothing_to_send(folder: Folder, rng: random.Random) -> None:
    process = folder.start("load", "1000000")
    wait_for(lambda: folder.count_or_none("jobs"), "it does not begin")
    time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    job = load(folder, 50)
    folder.finish(folder.start())
    assert job > 1
    check(folder, job, 50)
    store = SqliteStore(folder.queue)
    try:
        assert [found.id for found in store.jobs(10)] == [job]
        assert store._db.execute("SELECT count(*), count(DISTINCT job) FROM recipients").fetchone() == (50, 1)
        assert store._db.execute("SELECT count(*) FROM bodies").fetchone() == (1,)
        assert store._db.execute("SELECT count(*) FROM merges").fetchone() == (0,)
    finally:
        store.close()

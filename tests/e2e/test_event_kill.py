"""`kill -9` of the engine, of its action workers and of PostgreSQL, again and again: no event is lost, none invented.

And none is repeated that was not reported.  Each event that is handed on again says how often it was, and the queue
counts all of that, in the same commit, before it happens.  So a row tells which hand-on it is of, and what the queue
reports is exactly the sum of what the last rows of all recipients say.

The action is that of the documentation, in workers, with a PostgreSQL of the test's own.  In small it runs with every
test; a hundred thousand recipients and ten rounds are run by

    OUTRIDER_KILL_RECIPIENTS=100000 OUTRIDER_KILL_ROUNDS=10 .venv/bin/python -m pytest -s --timeout 3600 \
        -o faulthandler_timeout=0 tests/e2e/test_event_kill.py

which prints what it found.  Moments are random; what must hold does not depend on them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S
from fakes.private_postgresql import PrivatePostgresql

pytestmark = pytest.mark.slow

RECIPIENTS: Final = int(os.environ.get("OUTRIDER_KILL_RECIPIENTS", "400"))
ROUNDS: Final = int(os.environ.get("OUTRIDER_KILL_ROUNDS", "1"))
WORKERS: Final = 2
#: seconds without any progress after which something is wrong
_PATIENCE_S: Final = 60.0
_TABLE: Final = """
CREATE TABLE delivered (number SERIAL, recipient TEXT, message TEXT, redelivered INT);
CREATE FUNCTION record_Delivery(
    sender TEXT, local_part TEXT, domain TEXT, address TEXT, host TEXT, message TEXT, redelivered TEXT)
    RETURNS INT AS $$ INSERT INTO delivered (recipient, message, redelivered)
    VALUES (local_part || '@' || domain, message, redelivered::int) RETURNING number $$ LANGUAGE SQL
"""
_ACTION: Final = r"""
event_action = '''
${if eq {msg:delivery}{$event_name} \
{${lookup pgsql {SELECT * FROM record_Delivery( \
 '${quote_pgsql:$sender_address}', \
 '${quote_pgsql:$local_part}', \
 '${quote_pgsql:$domain}', \
 '${quote_pgsql:$host_address}', \
 '${quote_pgsql:${lc:$host}}', \
 '${quote_pgsql:$message_exim_id}', \
 '${quote_pgsql:$event_redelivered}')}} \
} {}}
'''
"""
#: what a worker tells of a commit that PostgreSQL has not answered
_IN_DOUBT: Final = re.compile(r" (\d+) events of event_action may be done twice: ")


class Scene:
    """An engine that sends, and everything that is killed."""

    def __init__(self, directory: Path, database: PrivatePostgresql, sink: SinkProcess) -> None:
        self.database = database
        self.user = Outrider(directory, sink.port, transport=_ACTION)
        text = self.user.config.read_text()
        self.user.config.write_text(f'{text}\n[actions]\nworkers = {WORKERS}\npgsql_servers = ["{database.server}"]\n')
        message, recipients = self.user.message(TEMPLATE), self.user.recipients(RECIPIENTS, domains=20)
        self._arguments = self.user.send_arguments(recipients, message, "--template")
        self._running = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.killed: Counter[str] = Counter()

    def run(self) -> None:
        """Start the engine unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self._running.close()
            self._process = self._running.enter_context(self.user.started(*self._arguments))

    def close(self) -> None:
        self._running.close()

    def kill_engine(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self.killed["engine"] += 1
        self.run()

    def kill_worker(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if workers := self.user.workers_of(self._process):
                    os.kill(random.choice(workers), signal.SIGKILL)
                    self.killed["worker"] += 1
                    return
            time.sleep(0.02)

    def kill_database(self) -> None:
        self.database.kill()
        self.killed["PostgreSQL"] += 1
        time.sleep(random.random())
        self.database.start()

    def recorded(self) -> dict[str, Counter[int]]:
        """Recipient -> number of the hand-on -> rows."""
        found: dict[str, Counter[int]] = defaultdict(Counter)
        with self.database.connect() as connection:
            for recipient, redelivered in connection.execute("SELECT recipient, redelivered FROM delivered"):
                found[recipient][redelivered] += 1
        return found

    def redelivered(self) -> int:
        """How often events were handed on again, as a person is told."""
        done = self.user.run("queue", "summary", "--config", "outrider.toml", "--json")
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["events"]["redelivered"])

    def recorded_count(self) -> int:
        with contextlib.suppress(psycopg.Error), self.database.connect() as connection:
            (row,) = connection.execute("SELECT count(*)::int FROM delivered").fetchall()
            return int(row[0])
        return 0

    def wait_for(self, count: int) -> None:
        """Wait until so much is recorded; the engine is started again if it came to its end meanwhile."""
        last, deadline = -1, time.monotonic() + _PATIENCE_S
        while (found := self.recorded_count()) < count:
            if found != last:
                last, deadline = found, time.monotonic() + _PATIENCE_S
            assert time.monotonic() < deadline, f"{found} of {count}: {self.user.log_text()[-2000:]}"
            self.run()
            time.sleep(0.02)

    def waiting(self) -> int:
        """Events in the outbox."""
        with contextlib.closing(sqlite3.connect(self.user.directory / "queue.db")) as queue:
            return int(queue.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def finish(self) -> None:
        """Deliver and record what is left."""
        deadline = time.monotonic() + 10 * _PATIENCE_S
        while True:
            if self._process is not None:
                self._process.wait(_PATIENCE_S * 10)
            done = self.user.run("run", "--config", "outrider.toml", "--drain", timeout_s=_PATIENCE_S * 10)
            assert done.returncode == 0, done.stderr
            if self.user.states() == {2: RECIPIENTS} and not self.waiting():
                return
            assert time.monotonic() < deadline, self.user.log_text()[-2000:]
            # what was in doubt is due a second later
            time.sleep(0.5)


def dead_letters(user: Outrider) -> Any:
    done = user.run("events", "dead", "list", "--config", "outrider.toml", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def database() -> Iterator[PrivatePostgresql]:
    with PrivatePostgresql() as made:
        with made.connect() as connection:
            connection.execute(_TABLE.encode())
        yield made


@pytest.mark.timeout(300 if RECIPIENTS < 10_000 else 3600)
def test_no_event_is_lost_and_none_invented(tmp_path: Path, database: PrivatePostgresql) -> None:
    began = time.monotonic()
    with SinkProcess(*(["--delay", "0.1"] if RECIPIENTS < 10_000 else [])) as sink:
        scene = Scene(tmp_path, database, sink)
        with contextlib.closing(scene):
            scene.run()
            for number in range(ROUNDS):
                scene.wait_for(int(RECIPIENTS * (number + random.random()) / (ROUNDS + 1)))
                victims: list[Callable[[], Any]] = [scene.kill_engine, scene.kill_worker, scene.kill_database]
                random.shuffle(victims)
                if ROUNDS == 1:
                    # a run as short as this may be over when it comes to its workers
                    victims.sort(key=lambda kill: kill != scene.kill_worker)
                for kill in victims:
                    kill()
                    time.sleep(0.3 * random.random())
            scene.wait_for(RECIPIENTS // 2)
            scene.finish()
        counts = sink.stop()
    recorded = scene.recorded()
    everybody = {f"user{number}@d{number % 20}.example" for number in range(RECIPIENTS)}
    rows, reported, log = sum(map(Counter.total, recorded.values())), scene.redelivered(), scene.user.log_text()
    #: rows of one hand-on: a server that dies may have done what it was asked for, and its clients ask again
    twice = rows - sum(map(len, recorded.values()))
    unanswered, doubtful = sum(map(int, _IN_DOUBT.findall(log))), log.count(" in doubt ")
    print(
        f"\n{RECIPIENTS} recipients in {time.monotonic() - began:.0f} s; killed: {dict(scene.killed)};"
        f" rows {rows}, {rows - len(recorded) - twice} of them by {reported} hand-ons that were reported, {twice} by"
        f" PostgreSQL's deaths;"
        f" mail: {counts['messages']} messages, {counts['duplicates']} of them again, {doubtful} in doubt"
    )
    assert recorded.keys() == everybody, "each one who got the message is recorded, and nobody else"
    assert counts["unique"] == RECIPIENTS
    assert scene.user.delivered().keys() == everybody
    assert sum(map(max, recorded.values())) == reported, "the last hand-on of each was run, and all were reported"
    assert all(min(numbers) >= 0 for numbers in recorded.values())
    # of those that are asked for one by one each worker has one at a time
    assert twice <= unanswered + WORKERS * scene.killed["PostgreSQL"]
    assert dead_letters(scene.user) == [], "who kills has nothing buried"
    assert counts["duplicates"] <= doubtful

"""The example of the event documentation as it stands, pasted into a configuration, against a real PostgreSQL.

One call for each recipient that is delivered, with its seven values as they were, and none that a cache has swallowed;
in the thread of the engine, and in action workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.databases import POSTGRESQL_PORT, Postgresql, postgresql
from fakes.fault_proxy import open_fault_proxy
from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S, wait_for
from fakes.peers import free_port
from fakes.searching import in_thread

pytestmark = pytest.mark.slow
in_either = pytest.mark.parametrize("workers", [0, 2])

#: as the documentation lays it out, but for the name of the function's schema
EXAMPLE = r"""
event_action = '''
${if eq {msg:delivery}{$event_name} \
{${lookup pgsql {SELECT * FROM record_Delivery( \
 '${quote_pgsql:$sender_address_domain}',\
 '${quote_pgsql:${lc:$sender_address_local_part}}', \
 '${quote_pgsql:$domain}', \
 '${quote_pgsql:${lc:$local_part}}', \
 '${quote_pgsql:$host_address}', \
 '${quote_pgsql:${lc:$host}}', \
 '${quote_pgsql:$message_exim_id}')}} \
} {}}
'''
"""
#: local parts as in an address, and as a value of the database
ODD = {
    "Ann": "ann",
    "o'brien": "o'brien",
    '"back\\\\slash"': '"back\\\\slash"',
    "jörg": "jörg",
    '"a\'); DROP TABLE delivered; --"': '"a\'); drop table delivered; --"',
    "%s$local_part{}": "%s$local_part{}",
}


@pytest.fixture
def database() -> Iterator[Postgresql]:
    with postgresql() as made:
        made.run("CREATE TABLE delivered (number SERIAL, a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT)")
        made.run(
            "CREATE FUNCTION record_Delivery(a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT)"
            " RETURNS INT AS $$ INSERT INTO delivered (a, b, c, d, e, f, g) VALUES (a, b, c, d, e, f, g)"
            " RETURNING number $$ LANGUAGE SQL"
        )
        yield made


def rows(database: Postgresql) -> list[tuple[str, ...]]:
    return database.run("SELECT a, b, c, d, e, f, g FROM delivered ORDER BY number")


def user_with(directory: Path, port: int, server: str, workers: int = 0, more: str = "", **options: str) -> Outrider:
    user = Outrider(directory, port, transport=EXAMPLE + more, **options)
    text = user.config.read_text()
    user.config.write_text(f'{text}\n[actions]\nworkers = {workers}\npgsql_servers = ["{server}"]\n')
    return user


@in_either
def test_each_delivered_recipient_is_one_call_with_its_values(
    tmp_path: Path, database: Postgresql, workers: int
) -> None:
    with SinkProcess() as sink:
        user = user_with(tmp_path, sink.port, database.server(), workers)
        lines = [json.dumps({"email": f"{local_part}@d.example"}) for local_part in ODD]
        (tmp_path / "r.jsonl").write_text("\n".join(lines) + "\n")
        done = user.send("r.jsonl", user.message())
        assert done.returncode == 0, done.stderr
    (message_id,) = {line.message_id for line in user.log()}
    assert sorted(rows(database)) == sorted(
        ("sender.example", "news", "d.example", value, "127.0.0.1", "127.0.0.1", message_id) for value in ODD.values()
    )
    assert "failed to expand" not in user.log_text()


def test_what_is_refused_or_fails_is_not_called_for(tmp_path: Path, database: Postgresql) -> None:
    with SinkProcess("--fail", "0.5") as sink:
        user = user_with(tmp_path, sink.port, database.server())
        # one message a recipient: a refusal at the end of a shared one would be everybody's
        user.send(user.recipients(40), user.message(TEMPLATE), "--template")
        sink.stop()
    delivered = user.delivered()
    assert 0 < len(delivered) < 40
    assert {f"{row[3]}@{row[2]}" for row in rows(database)} == set(delivered)
    assert len(rows(database)) == len(delivered)


@in_either
async def test_a_database_that_comes_back_gets_every_call(tmp_path: Path, database: Postgresql, workers: int) -> None:
    """What cannot be recorded now stays in the queue, whole; the next engine records it."""
    port = free_port()
    with SinkProcess() as sink:
        user = user_with(tmp_path, sink.port, database.server(port), workers, shutdown="5s")
        done = user.send(user.recipients(30), user.message())
        assert done.returncode == 0, "the mail does not wait for the action"
        assert rows(database) == []
        log = user.log_text()
        told = log.count("failed to expand event_action msg:delivery in remote_smtp: ")
        assert 1 <= told <= max(1, workers), "not once an event"
        assert "events wait in the queue for " in log
        async with open_fault_proxy("127.0.0.1", POSTGRESQL_PORT, listen_port=port):
            again = await in_thread(user.run, "run", "--config", "outrider.toml", "--drain")
            assert again.returncode == 0, again.stderr
    assert sorted(row[3] for row in rows(database)) == sorted(f"user{number}" for number in range(30))


def test_an_engine_that_is_killed_loses_no_event_and_invents_none(tmp_path: Path, database: Postgresql) -> None:
    """`kill -9` again and again: everyone who got the message is recorded, once or again, and nobody else.

    With workers: test_event_kill.py.
    """
    count = 400
    with SinkProcess("--delay", "0.01") as sink:
        user = user_with(tmp_path, sink.port, database.server())
        arguments = user.send_arguments(user.recipients(count), user.message(TEMPLATE), "--template")
        for _ in range(3):
            with user.started(*arguments) as process:
                before = len(rows(database))
                wait_for(
                    lambda before=before, process=process: (
                        len(rows(database)) >= before + 40  # type: ignore[misc]  # defaults
                        or process.poll() is not None
                    ),
                    "nothing is recorded",
                )
        done = user.run("run", "--config", "outrider.toml", "--drain")
        assert done.returncode == 0, done.stderr
        # what was in doubt is due a second later
        time.sleep(1.5)
        assert user.run("run", "--config", "outrider.toml", "--drain").returncode == 0
        counts = sink.stop()
    assert user.states() == {2: count}
    recorded = Counter(row[3] for row in rows(database))
    assert set(recorded) == {f"user{number}" for number in range(count)}
    assert counts["unique"] == count
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as queue:
        assert queue.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def test_workers_that_are_killed_lose_no_event_and_invent_none(tmp_path: Path, database: Postgresql) -> None:
    """`kill -9` of each worker in turn, with the engine at work: another one takes over what it had."""
    count = 800
    with SinkProcess() as sink:
        # slow enough that a machine with other things to do comes to all three in the first half of it
        rate = 'message_rate_per_host = "300/s"\n'
        user = user_with(tmp_path, sink.port, database.server(), workers=2, more=rate)
        with user.started(
            *user.send_arguments(user.recipients(count), user.message(TEMPLATE), "--template")
        ) as process:
            killed = 0
            deadline = time.monotonic() + PATIENCE_S
            while process.poll() is None and time.monotonic() < deadline:
                living = user.workers_of(process)
                if killed < 3 and living and len(rows(database)) >= 50 * (killed + 1):
                    os.kill(living[0], signal.SIGKILL)
                    killed += 1
                time.sleep(0.01)
            assert process.returncode == 0, user.log_text()[-2000:]
        counts = sink.stop()
    assert counts["unique"] == count
    recorded = Counter(row[3] for row in rows(database))
    assert set(recorded) == {f"user{number}" for number in range(count)}
    log = user.log_text()
    assert log.count("is gone: it died (signal 9); the next one starts in") == killed == 3
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as queue:
        assert queue.execute("SELECT count(*) FROM outbox").fetchone() == (0,)

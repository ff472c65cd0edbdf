"""A Python worker of a user beside a running engine, and somebody who looks on: all of it as a user would start it."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow

MODULE = """
import os
from engine.actions.api import Event, Worker

worker = Worker(group="crm")

def write(name, *words):
    with open(name, "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

@worker.on("msg:delivery", "msg:fail:*", batch=500, linger=0.05)
def record(events: list[Event]) -> None:
    write("recorded", *(event.text("local_part") for event in events))

@worker.on("msg:complete", batch=10)
async def complete(events: list[Event]) -> None:
    write("completed", *(event.text("message_exim_id") for event in events))

@worker.veto("smtp:connect", timeout=60)
def greeted(event: Event) -> None:
    write("asked", event.text("event_data"))

worker.veto("tcp:connect", timeout=60)(lambda event: "")
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the path of a socket has 107 octets."""
    with tempfile.TemporaryDirectory(prefix="out-") as folder:
        yield Path(folder)


class Desk:
    """A user with a worker in `crm.py`, and what it has written."""

    def __init__(self, place: Path, port: int) -> None:
        self.user = Outrider(place, port)
        sockets = f'worker_sockets = ["crm:{place}/crm.sock", "tail:{place}/tail.sock"]'
        self.user.config.write_text(f"{self.user.config.read_text()}\n[actions]\n{sockets}\n")
        (place / "crm.py").write_text(MODULE)

    def queue(self, count: int) -> None:
        name = self.user.recipients(count)
        done = self.user.send(name, self.user.message(TEMPLATE), "--template", "--queue-only", "--again")
        assert done.returncode == 0, done.stderr

    def lines(self, name: str) -> list[list[str]]:
        path = self.user.directory / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def words(self, name: str) -> Counter[str]:
        return Counter(word for line in self.lines(name) for word in line)

    @contextlib.contextmanager
    def working(self, processes: int) -> Iterator[None]:
        """`outrider worker run`, ended with SIGTERM."""
        words = ("worker", "run", "crm:worker", "--config", "outrider.toml", "--processes", str(processes))
        with self.user.started(*words) as process:
            yield
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


@contextlib.contextmanager
def tailing(user: Outrider, *events: str) -> Iterator[list[dict[str, Any]]]:
    """`outrider events tail --json`; what it shows, once the block has ended, and with it the engine."""
    shown: list[dict[str, Any]] = []
    with (user.directory / "shown").open("w") as file:
        words = ("events", "tail", "--config", "outrider.toml", "--json", *events)
        process = subprocess.Popen(user.command(*words), cwd=user.directory, stdout=file)
        try:
            yield shown
            assert process.wait(PATIENCE_S) == 0, "it ends with the engine"
        finally:
            process.kill()
            process.wait()
    shown += map(json.loads, (user.directory / "shown").read_text().splitlines())


def test_a_worker_and_an_onlooker_beside_a_running_engine(place: Path) -> None:
    with SinkProcess() as sink:
        desk = Desk(place, sink.port)
        user = desk.user
        with user.started("run", "--config", "outrider.toml") as engine:
            wait_for((place / "tail.sock").exists, "the engine does not start")
            with tailing(user, "--event", "msg:delivery", "--event", "tcp:*") as shown:
                with desk.working(2):
                    wait_for(lambda: user.log_text().count("attached itself") == 3, "nobody attaches")
                    desk.queue(1)
                    wait_for(lambda: (place / "shown").stat().st_size, "nothing is shown")
                    desk.queue(300)
                    wait_for(lambda: desk.words("recorded").total() >= 301, "not everything is recorded")
                    wait_for(lambda: desk.words("completed").total() >= 301, "not everything is complete")
                # the worker is away for a while; its group is configured, so what happens meanwhile is kept
                desk.queue(40)
                wait_for(lambda: user.states()[2] == 341, "mail waits for a worker")
                with desk.working(1):
                    wait_for(lambda: desk.words("recorded").total() >= 341, "what was kept does not come")
                    wait_for(lambda: desk.words("completed").total() >= 341, "what was kept does not come")
                engine.send_signal(signal.SIGTERM)
                assert engine.wait(PATIENCE_S) == 0
    assert desk.words("recorded") == Counter(
        [*(f"user{number}" for number in range(300)), *(f"user{number}" for number in range(40)), "user0"]
    )
    assert max(map(len, desk.lines("recorded"))) > 1, "in batches"
    assert len(desk.words("completed")) == 341
    assert desk.lines("asked")
    with contextlib.closing(sqlite3.connect(place / "queue.db")) as queue:
        assert queue.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    names = Counter(event["event"] for event in shown)
    assert names["msg:delivery"] >= 341
    assert names["tcp:connect"] >= 1
    assert names.keys() == {"msg:delivery", "tcp:connect", "tcp:close"}
    log = user.log_text()
    assert "failed" not in log
    assert log.count(" is gone: it died") == 3, "that is how a process looks that is told to end from outside"

"""One recipient of thousands whose event crashes the user's worker: all others recorded, that one a dead letter."""

from __future__ import annotations

import json
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from engine.cli import events
from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow

RECIPIENTS: Final = 2000
DEADLY: Final = "user1234"
MODULE: Final = """
import os, signal, time
from engine.actions.api import Event, Worker

worker = Worker(group="crm")

def write(name: str, lines: list[str]) -> None:
    with open(name, "a") as file:
        file.write("".join(f"{line}\\n" for line in lines))

@worker.on("msg:delivery", batch=100, linger=0.02)
def record(events: list[Event]) -> None:
    if not os.path.exists("mended"):
        for event in events:
            if event["local_part"] == b"DEADLY":
                write("begun", [str(event.redelivered)])
                os.kill(os.getpid(), signal.SIGSEGV)
                time.sleep(60)  # another thread may be the one that takes it
    write("recorded", [f"{event.text('local_part')} {event.redelivered}" for event in events])
""".replace("DEADLY", DEADLY)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the path of a socket has 107 octets."""
    with tempfile.TemporaryDirectory(prefix="out-") as folder:
        yield Path(folder)


def dead(user: Outrider, *words: str) -> Any:
    """What `outrider events dead … --json` says."""
    done = CliRunner().invoke(events.app, ["dead", *words, "--config", str(user.config), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_all_others_are_recorded_and_one_is_a_dead_letter_that_can_be_tried_again(place: Path) -> None:
    with SinkProcess() as sink:
        user = Outrider(place, sink.port)
        table = f'[actions]\nworker_sockets = ["crm:{place}/crm.sock"]\nworker_deaths = 2\n'
        user.config.write_text(f"{user.config.read_text()}\n{table}")
        (place / "crm.py").write_text(MODULE)

        def recorded() -> dict[str, list[int]]:
            found = defaultdict(list)
            if (place / "recorded").exists():
                for line in (place / "recorded").read_text().splitlines():
                    name, again = line.split()
                    found[name].append(int(again))
            return found

        arguments = user.send_arguments(user.recipients(RECIPIENTS), user.message(TEMPLATE), "--template")
        assert user.run(*arguments, "--queue-only").returncode == 0
        words = ("worker", "run", "crm:worker", "--config", "outrider.toml", "--processes", "2")
        with user.started("run", "--config", "outrider.toml") as engine, user.started(*words) as crew:
            wait_for(lambda: dead(user, "list"), "the deadly event is not buried")
            wait_for(lambda: len(recorded()) == RECIPIENTS - 1, "not all others are recorded")
            (letter,) = dead(user, "list")
            assert (letter["handler"], letter["group"], letter["attempts"]) == ("record", "crm", 2)
            assert letter["reason"] == "its worker ended 2 times, alone with it: signal 11"
            assert DEADLY not in recorded()
            begun = [int(line) for line in (place / "begun").read_text().split()]
            assert begun == sorted(set(begun)), "each run has a number of its own"
            assert letter["redelivered"] == begun[-1]
            (place / "mended").touch()
            assert dead(user, "retry", "--all") == {"changed": 1}
            wait_for(lambda: DEADLY in recorded(), "it is not tried again")
            crew.terminate()
            assert crew.wait(PATIENCE_S) == 0
            engine.send_signal(signal.SIGTERM)
            assert engine.wait(PATIENCE_S) == 0
        assert sink.stop()["unique"] == RECIPIENTS
    found = recorded()
    assert found.pop(DEADLY) == [begun[-1] + 1]
    assert found.keys() == {f"user{number}" for number in range(RECIPIENTS)} - {DEADLY}
    assert all(max(Counter(numbers).values()) == 1 for numbers in found.values()), "each run has a number of its own"
    assert dead(user, "list") == []
    log = user.log_text()
    assert log.count("is gone: it died (signal 11)") == len(begun)
    assert log.count(" is a dead letter of record: its worker ended 2 times") == 1

"""A running engine, and a person at another terminal: dead letters tried again, recipients cancelled, what waits."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.cli import events, queue
from fakes.outrider import Outrider, SinkProcess
from fakes.patience import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow


def told(user: Outrider, *words: str) -> Any:
    """What a command says; here and not in a process of its own, which takes a second to start."""
    group = {"events": events.app, "queue": queue.app}[words[0]]
    done = CliRunner().invoke(group, [*words[1:], "--config", str(user.config), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_an_engine_that_runs_takes_what_a_person_puts_back_and_tells_of_what_is_cancelled(tmp_path: Path) -> None:
    lines = tmp_path / "later" / "lines.jsonl"
    tables = f"""
[actions]
workers = 1
[handlers.lines]
driver = "jsonl"
file = "{lines}"
attempts = 1
events = ["msg:delivery", "msg:fail:internal"]
"""

    def handled() -> list[tuple[str, str]]:
        if not lines.exists():
            return []
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        return [(row["event"], f"{row['local_part']}@{row['domain']}") for row in rows]

    with SinkProcess() as sink:
        user = Outrider(tmp_path, sink.port)
        user.config.write_text(f"{user.config.read_text()}\n{tables}")
        with user.started("run", "--config", "outrider.toml") as daemon:
            wait_for(lambda: (tmp_path / "queue.db").exists(), "it does not start")
            assert user.send(user.recipients(3), user.message(), "--queue-only").returncode == 0
            # the directory is not there
            letters: list[dict[str, Any]] = []

            def has_letters() -> bool:
                letters[:] = told(user, "events", "dead", "list", "--event", "msg:d*")
                return len(letters) == 3

            wait_for(has_letters, "there are no dead letters")
            assert user.log_text().count("is a dead letter of lines: ") == 3
            assert {(letter["handler"], letter["group"]) for letter in letters} == {("lines", "main")}
            lines.parent.mkdir()
            assert told(user, "events", "dead", "retry", str(letters[1]["id"])) == {"changed": 1}
            wait_for(lambda: len(handled()) == 1, "it does not take what was put back")
            assert told(user, "events", "dead", "retry", "--all") == {"changed": 2}
            wait_for(lambda: len(handled()) == 3, "it does not take all that was put back")
            assert sorted(handled()) == [("msg:delivery", f"user{number}@d0.example") for number in range(3)]
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
        again = user.recipients(2, name="more.csv")
        assert user.send(again, user.message(), "--queue-only").returncode == 0
        job = told(user, "queue", "list")[0]["job"]
        assert told(user, "queue", "hold", str(job)) == {"changed": 2, "in_flight": 0}
        with user.started("run", "--config", "outrider.toml") as daemon:
            wait_for(lambda: bool(user.workers_of(daemon)), "it does not start again")
            assert told(user, "queue", "cancel", str(job)) == {"changed": 2, "in_flight": 0}
            wait_for(lambda: len(handled()) == 5, "it does not tell of what was cancelled")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
        assert sink.stop()["messages"] == 1
    assert handled()[3:] == [("msg:fail:internal", f"user{number}@d0.example") for number in range(2)]
    assert [line.address for line in user.log() if line.mark == "**"] == ["user0@d0.example:", "user1@d0.example:"]
    nothing = {"waiting": 0, "oldest_at": None, "oldest_age": None, "dead": 0}
    # those that were dead letters, which are tried again
    assert told(user, "queue", "summary")["events"] == {**nothing, "redelivered": 3, "oldest_wait_for": {}}

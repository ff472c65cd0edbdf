"""`outrider events dead list | show | retry | drop`, for people and with --json."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from engine.actions import _ring
from engine.cli.events import app
from engine.cli.exits import Exit
from engine.delivery.stored import pack_values
from engine.expand.certificates import Certificate
from engine.queue.model import PROGRAM, DeadLetter
from engine.queue.sqlite import SqliteStore

VALUES = {"local_part": "a", "event_data": b"250 \xff", "host_port": 25, "tls_out_sni": None}
NAMES = [*VALUES, "tls_out_peercert"]
PAYLOAD = _ring.pack((2, "smtp", "1vN-1", " ".join(NAMES), (), pack_values([*VALUES.values(), Certificate(b"0\x82")])))


@dataclass
class Scene:
    """A queue with three dead letters, and an engine."""

    path: str
    store: SqliteStore
    owner: int
    now: float

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["dead", *arguments, "--queue", f"sqlite://{self.path}"])

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def left(self) -> list[str]:
        return [letter.key for letter in self.store.dead_letters(10)]

    def put_back(self) -> list[tuple[str, str, str]]:
        self.store.adopt_outbox(self.owner)
        return [(event.key, event.handler, event.group) for event in self.store.drain_outbox(self.owner, 1000)]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    path, now = str(tmp_path / "queue.db"), time.time() - 10
    store = SqliteStore(path)
    engine = store.register(now)
    store.ack_outbox(
        [],
        [
            DeadLetter("msg:delivery", "k1", PAYLOAD, "crm", "g", "no\x1b[31m", 5, now - 60, now),
            DeadLetter("msg:delivery", "k2", b"\xc1", PROGRAM, "", "away", 9, now - 60, now),
            DeadLetter("msg:fail:delivery", "k3", b"\x01", "crm", "g", "no", 5, now - 60, now),
        ],
    )
    yield Scene(path, store, engine.owner, now)
    engine.journal.close()
    store.close()


def test_list_tells_what_was_given_up_and_why(scene: Scene) -> None:
    titles, *rows = [line.split("\t") for line in scene.ok("list").splitlines()]
    assert titles[:5] == ["id", "event", "key", "handler", "attempts"]
    assert [row[:5] for row in rows] == [
        ["1", "msg:delivery", "k1", "crm (g)", "5"],
        ["2", "msg:delivery", "k2", "event_action", "9"],
        ["3", "msg:fail:delivery", "k3", "crm (g)", "5"],
    ]
    assert rows[0][-1] == "no\\x1b[31m", "what a handler said cannot draw on the terminal"


def test_list_as_json_with_a_glob_and_pages(scene: Scene) -> None:
    (found,) = scene.json("list", "--event", "msg:fail:*")
    assert found == {
        "id": 3,
        "event": "msg:fail:delivery",
        "key": "k3",
        "handler": "crm",
        "group": "g",
        "reason": "no",
        "attempts": 5,
        "stored_at": scene.now - 60,
        "died_at": scene.now,
        "redelivered": 0,
    }
    first = scene.run("list", "--limit", "2")
    assert "(first 2 only; go on with --after 2)" in first.stderr
    assert [letter["id"] for letter in scene.json("list", "--after", "2")] == [3]


def test_show_tells_all_that_the_event_knew(scene: Scene) -> None:
    text = scene.ok("show", "1").splitlines()
    assert text[:2] == ["id: 1", "event: msg:delivery"]
    assert "reason: no\\x1b[31m" in text
    assert text[text.index("") + 1 :] == [
        *("transport: smtp", "message: 1vN-1", "local_part: a", "event_data: 250 \\xff"),
        *("host_port: 25", "tls_out_sni: -"),
        "tls_out_peercert: -----BEGIN CERTIFICATE-----\\nMII=\\n-----END CERTIFICATE-----\\n",
    ]
    assert scene.json("show", "1")["values"]["host_port"] == 25
    assert scene.json("show", "2")["values"] == {"payload": "1 octets that are no event of this version"}
    gone = scene.run("show", "9")
    assert (gone.exit_code, gone.stderr) == (Exit.DATA, "outrider: there is no dead letter 9\n")


def test_retry_puts_them_back_in_order_for_just_the_handler(scene: Scene) -> None:
    assert scene.ok("retry", "3", "1") == "2 dead letters put back\n"
    assert scene.left() == ["k2"]
    assert scene.put_back() == [("k1", "crm", "g"), ("k3", "crm", "g")]
    assert scene.json("retry", "--all") == {"changed": 1}
    assert scene.put_back()[-1] == ("k2", PROGRAM, "")
    assert scene.json("retry", "--all") == {"changed": 0}


def test_retry_by_event(scene: Scene) -> None:
    assert scene.ok("retry", "--event", "msg:d*") == "2 dead letters put back\n"
    assert scene.left() == ["k3"]


def test_retry_of_all_does_not_touch_what_is_given_up_meanwhile(scene: Scene) -> None:
    later = time.time() + 60
    scene.store.ack_outbox([], [DeadLetter("msg:delivery", "k4", b"", "crm", "g", "no", 5, later, later)])
    assert scene.ok("retry", "--all") == "3 dead letters put back\n"
    assert scene.left() == ["k4"]


def test_more_than_one_commit_holds(scene: Scene) -> None:
    now = scene.now
    letters = [DeadLetter("msg:delivery", f"m{n}", b"", "crm", "g", "no", 5, now, now) for n in range(1200)]
    scene.store.ack_outbox([], letters)
    assert scene.json("retry", "--all") == {"changed": 1203}
    assert [key for key, _, _ in scene.put_back()][:4] == ["k1", "k2", "k3", "m0"]


def test_drop_forgets_them(scene: Scene) -> None:
    assert scene.ok("drop", "2") == "1 dead letter dropped\n"
    assert scene.left() == ["k1", "k3"]
    assert scene.json("drop", "--all") == {"changed": 2}
    assert scene.left() == []
    assert scene.put_back() == []


@pytest.mark.parametrize("command", ["retry", "drop"])
@pytest.mark.parametrize("arguments", [[], ["1", "--all"], ["--all", "--event", "*"], ["1", "--event", "*"]])
def test_a_change_that_does_not_say_of_what_is_refused(scene: Scene, command: str, arguments: list[str]) -> None:
    assert scene.run(command, *arguments).exit_code == 2
    assert len(scene.left()) == 3


@pytest.mark.parametrize("command", ["retry", "drop"])
def test_one_number_that_is_wrong_changes_nothing(scene: Scene, command: str) -> None:
    done = scene.run(command, "1", "7")
    assert (done.exit_code, done.stderr) == (Exit.DATA, "outrider: there is no dead letter 7\n")
    assert len(scene.left()) == 3

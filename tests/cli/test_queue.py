"""`outrider queue summary | list | show | retry | hold | release | cancel | why`, for people and with --json."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from engine.cli.exits import Exit
from engine.cli.queue import app
from engine.queue.model import (
    PROGRAM,
    DeadLetter,
    JobCounts,
    NewJob,
    NewRecipient,
    OutboxEvent,
    OutcomeKind,
    RetryRecord,
)
from engine.queue.sqlite import SqliteStore
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT


@dataclass
class Scene:
    """A queue with a job of five recipients, one in each state that matters, and a job that is over."""

    path: str
    store: SqliteStore
    job: int
    done: int
    now: float

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--queue", f"sqlite://{self.path}"])

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def counts(self) -> JobCounts:
        return self.store.counts(self.job)


def load(store: SqliteStore, owner: int, now: float, name: str, *addresses: str, **options: float) -> int:
    job = store.add_job(owner, NewJob("s@example.com", b"body", name=name, **options), now)  # type: ignore[arg-type]
    store.add_recipients(job, map(NewRecipient, addresses))
    store.finish_loading(job, now)
    return job


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    path, now = str(tmp_path / "queue.db"), time.time()
    store = SqliteStore(path)
    engine = store.register(now)
    done = load(store, engine.owner, now, "old.csv", "gone@x.org")
    (claim,) = store.claim(engine.owner, 1, now, 60)
    store.settle(engine.owner, [claim.outcome(OutcomeKind.DELIVERED)], now)
    names = ("delivered@x.org", "failed@x.org", "deferred@y.org", "flying@y.org", "waiting@y.org")
    job = load(store, engine.owner, now, "list.csv", *names, expires_at=now + 86400)
    a, b, c, _ = store.claim(engine.owner, 4, now, 600)
    outcomes = [
        a.outcome(OutcomeKind.DELIVERED),
        b.outcome(OutcomeKind.FAILED, errno=-44, text="550 no\tsuch user\x1b[31m"),
        c.outcome(
            OutcomeKind.DEFERRED,
            next_attempt_at=now + 900,
            errno=111,
            text="Connection refused",
            retry_key="T:mx.y.org:192.0.2.1",
            in_doubt=True,
        ),
    ]
    record = RetryRecord("T:mx.y.org:192.0.2.1", now, now, now + 900, 111, text="Connection refused")
    store.settle(engine.owner, outcomes, now, retry_updates=[record])
    yield Scene(path, store, job, done, now)
    engine.journal.close()
    store.close()


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_tells_the_jobs_that_are_open(scene: Scene) -> None:
    titles, row = [line.split("\t") for line in scene.ok("list").splitlines()]
    shown = dict(zip(titles, row, strict=True))
    assert (shown["job"], shown["name"], shown["state"]) == (str(scene.job), "list.csv", "active")
    assert [shown[name] for name in ("total", "waiting", "deferred", "in flight", "delivered", "failed")] == [
        "5",
        "1",
        "1",
        "1",
        "1",
        "1",
    ]
    assert len(scene.ok("list", "--all").splitlines()) == 3


def test_list_as_json(scene: Scene) -> None:
    (job,) = scene.json("list")
    assert job["job"] == scene.job
    assert job["created_at"] == scene.now
    assert job["expires_at"] == scene.now + 86400
    assert (job["leased"], job["total"], job["state"], job["completed_at"]) == (1, 5, "active", None)
    assert [job["state"] for job in scene.json("list", "--all")] == ["completed", "active"]


def test_the_summary_counts_open_jobs_and_what_events_wait(scene: Scene) -> None:
    counts = {"waiting": 1, "deferred": 1, "leased": 1, "held": 0, "delivered": 1, "failed": 1, "cancelled": 0}
    nothing: dict[str, object] = {
        "waiting": 0,
        "oldest_at": None,
        "oldest_age": None,
        "dead": 0,
        "redelivered": 0,
        "oldest_wait_for": {},
    }
    assert scene.json("summary") == {"jobs": 1, **counts, "events": nothing}
    assert "events" not in scene.run("list").stderr
    owner = scene.store.register(scene.now)
    events = [
        OutboxEvent("msg:delivery", "a", b"", handler=PROGRAM),
        OutboxEvent("msg:delivery", "b", b"", group="crm\nmain:lines"),
    ]
    scene.store.settle(owner.owner, [], scene.now - 7200, events=events)
    letter = DeadLetter("msg:delivery", "c", b"", "crm", "g", "no", 3, scene.now, scene.now)
    scene.store.ack_outbox([], [letter])
    found = scene.json("summary")["events"]
    assert (found["waiting"], found["oldest_at"], found["dead"]) == (2, scene.now - 7200, 1)
    assert found["oldest_age"] >= 7200
    assert found["oldest_wait_for"] == {"event_action": 1, "crm": 1, "main:lines": 1}
    text = scene.ok("summary").splitlines()
    assert text[:2] == ["open jobs: 1", "waiting: 1"]
    assert text[-6].startswith("events that wait for their actions: 2, the oldest for 2h")
    assert set(text[-5:-2]) == {"  for event_action: 1", "  for crm: 1", "  for main:lines: 1"}
    assert text[-2:] == ["dead letters: 1", "events handed on again since the queue was made: 0"]
    assert scene.run("list").stderr == "(2 events wait for their actions, 1 dead letters)\n"
    owner.journal.close()


def test_list_of_an_empty_queue(tmp_path: Path) -> None:
    SqliteStore(str(tmp_path / "queue.db")).close()
    result = CliRunner().invoke(app, ["list", "--json", "--queue", f"sqlite://{tmp_path}/queue.db"])
    assert json.loads(result.stdout) == []


def test_show_tells_of_a_job_and_its_recipients(scene: Scene) -> None:
    text = scene.ok("show", str(scene.job))
    assert "name: list.csv" in text
    assert re.search(r"^1\tdelivered@x.org\tdelivered\t1\t", text, re.MULTILINE)
    assert "deferred (in doubt)" in text
    assert "550 no\\tsuch user\\x1b[31m" in text, "what a server said cannot draw on the terminal"


@pytest.mark.parametrize("more", [(str(1 << 31),), ("1", "--limit", "9" * 30), ("1", "--after", "9" * 30)])
def test_a_number_that_the_queue_cannot_have_is_a_mistake_of_usage(scene: Scene, more: tuple[str, ...]) -> None:
    assert scene.run("show", *more).exit_code == 2, "main() makes it 64"


def test_show_as_json_with_filters_and_pages(scene: Scene) -> None:
    everyone = scene.json("show", str(scene.job))
    assert [found["status"] for found in everyone["recipients"]] == [
        "delivered",
        "failed",
        "deferred",
        "in-flight",
        "waiting",
    ]
    deferred = everyone["recipients"][2]
    assert deferred["next_attempt_at"] == scene.now + 900
    assert (deferred["errno"], deferred["error"], deferred["in_doubt"]) == (111, "Connection refused", True)
    assert everyone["recipients"][0]["next_attempt_at"] is None
    some = scene.json("show", str(scene.job), "--domain", "Y.org", "--status", "waiting")
    assert [found["address"] for found in some["recipients"]] == ["waiting@y.org"]
    page = scene.run("show", str(scene.job), "--limit", "2", "--after", "1")
    assert "failed@x.org" in page.stdout
    assert "delivered@x.org" not in page.stdout
    assert "go on with --after 3" in page.stderr
    assert scene.json("show", str(scene.job), "--limit", "0")["recipients"] == []


def test_a_job_that_is_not_there_is_bad_data(scene: Scene) -> None:
    for arguments in (["show", "99"], ["hold", "99"], ["release", "99"], ["cancel", "99"], ["retry", "99"]):
        result = scene.run(*arguments)
        assert result.exit_code == Exit.DATA
        assert "outrider: there is no job 99" in result.stderr


# --- changing ---------------------------------------------------------------------------------------------------------


def test_hold_and_release_a_job(scene: Scene) -> None:
    assert scene.ok("hold", str(scene.job)).splitlines() == ["2 recipients held", "1 in flight, not touched"]
    assert scene.json("list")[0]["state"] == "held"
    assert scene.json("release", str(scene.job)) == {"changed": 2, "in_flight": 1}
    assert scene.json("list")[0]["state"] == "active"


def test_hold_and_release_one_recipient(scene: Scene) -> None:
    assert scene.ok("hold", "waiting@Y.ORG") == "1 recipient held\n"
    assert scene.counts().held == 1
    assert scene.json("release", "--domain", "y.org", "--job", str(scene.job)) == {"changed": 1, "in_flight": 1}
    assert scene.counts().held == 0


def test_retry_makes_the_deferred_due(scene: Scene) -> None:
    assert scene.json("retry", "--all") == {"changed": 1, "in_flight": 1}
    found = scene.json("show", str(scene.job), "--status", "deferred")["recipients"][0]
    assert found["next_attempt_at"] <= time.time()
    assert scene.store.all_retry_records(10) == []


@pytest.fixture
def configured(scene: Scene, tmp_path: Path) -> Path:
    """A configuration of the queue whose events go to the outbox."""
    file = tmp_path / "outrider.toml"
    action = "${if match{$event_name}{^msg:}{${acl{no}}}}"
    file.write_text(
        f'[main]\nprimary_hostname = "client.example"\nqueue = "sqlite://{scene.path}"\n'
        f"log_file = \"{tmp_path}/main.log\"\nevent_action = '{action}'\n"
    )
    return file


def test_cancel_with_a_configuration_tells_the_log_and_the_events(scene: Scene, configured: Path) -> None:
    words = ["cancel", str(scene.job), "--config", str(configured), "--json"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"changed": 2, "in_flight": 1}), result.output
    lines = (configured.parent / "main.log").read_text().splitlines()
    assert [line.split("** ")[1] for line in lines if "** " in line] == [
        f"{name}@y.org: delivery cancelled by administrator" for name in ("deferred", "waiting")
    ]
    engine = scene.store.register(scene.now)
    assert scene.store.adopt_outbox(engine.owner) > 0, "they wait for an engine"
    names = [event.name for event in scene.store.drain_outbox(engine.owner, 10)]
    assert names.count("msg:fail:internal") == 2
    assert scene.store._db.execute("SELECT count(*) FROM engines").fetchone() == (2,), "the command's own is gone"
    engine.journal.close()


def test_cancel_with_a_configuration_of_what_is_not_there(scene: Scene, configured: Path, tmp_path: Path) -> None:
    gone = CliRunner().invoke(app, ["cancel", "99", "--config", str(configured)])
    assert (gone.exit_code, gone.stderr) == (Exit.DATA, "outrider: there is no job 99\n")
    configured.write_text(f'[main]\nqueue = "sqlite://{tmp_path}/none.db"\n')
    none = CliRunner().invoke(app, ["cancel", "1", "--config", str(configured)])
    assert none.exit_code == Exit.TEMPORARY
    assert not (tmp_path / "none.db").exists()


def test_cancel_takes_back_what_is_not_in_flight(scene: Scene) -> None:
    assert scene.json("cancel", "--status", "waiting", "--all") == {"changed": 1, "in_flight": 0}
    assert scene.json("cancel", str(scene.job)) == {"changed": 1, "in_flight": 1}
    assert (scene.counts().cancelled, scene.counts().leased) == (2, 1)
    assert scene.json("list")[0]["state"] == "cancelled"


@pytest.mark.parametrize("command", ["retry", "hold", "release", "cancel"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which recipients"),
        (["x"], "neither the number of a job nor an address"),
        (["0"], "neither the number of a job nor an address"),
        ([str(1 << 31)], "neither the number of a job nor an address"),
        (["9" * 5000], "neither the number of a job nor an address"),
        (["\u0661"], "neither the number of a job nor an address"),
        (["1", "--job", "2"], "contradict each other"),
        (["--status", "lost"], "Invalid value"),
        (["--job", "0"], "Invalid value"),
    ],
)
def test_a_change_that_does_not_say_of_what_is_refused(
    scene: Scene, command: str, arguments: list[str], message: str
) -> None:
    before = scene.counts()
    result = scene.run(command, *arguments)
    assert result.exit_code == 2, "main() makes it 64"
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert scene.counts() == before


@pytest.mark.parametrize("arguments", [["hold", "a b@x.org"], ["hold", "--domain", "-x-"], ["why", "nobody"]])
def test_an_address_that_is_none_is_bad_data(scene: Scene, arguments: list[str]) -> None:
    result = scene.run(*arguments)
    assert result.exit_code == Exit.DATA
    assert result.stderr.startswith("outrider: ")


# --- why --------------------------------------------------------------------------------------------------------------


def why(scene: Scene, address: str) -> list[str]:
    return scene.ok("why", address).splitlines()


def test_why_says_what_a_deferred_recipient_waits_for(scene: Scene) -> None:
    title, *lines = why(scene, "deferred@y.org")
    assert title == f"deferred@y.org, job {scene.job} (list.csv), recipient 3: deferred"
    text = "\n".join(lines)
    assert re.search(r"next attempt at \S+ \S+ \(in 1[45]m\d*s?\), after 1 attempt", text)
    assert "it is in doubt: an earlier attempt may have delivered it" in text
    assert re.search(r"last error at \S+ \S+ \(111\): Connection refused", text)
    assert "host mx.y.org:192.0.2.1 has been failing since" in text
    assert "expires at" in text


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("delivered@x.org", r"delivered at \S+ \S+ after 1 attempt"),
        ("failed@x.org", r"failed for good after 1 attempt"),
        ("flying@y.org", r"engine \d+ \(pid \d+\) has it since .*; the lease ends at"),
        ("waiting@y.org", r"first attempt is due now: it waits for an engine to take it"),
    ],
)
def test_why_in_each_state(scene: Scene, address: str, reason: str) -> None:
    assert re.search(reason, why(scene, address)[1])


def test_why_when_held_and_cancelled(scene: Scene) -> None:
    scene.ok("hold", "waiting@y.org")
    assert why(scene, "waiting@y.org")[1] == "  held"
    scene.ok("hold", str(scene.job))
    assert why(scene, "deferred@y.org")[1] == f"  job {scene.job} is held"
    scene.ok("cancel", str(scene.job))
    assert why(scene, "deferred@y.org")[1] == f"  job {scene.job} was cancelled"


def test_why_as_json(scene: Scene) -> None:
    (found,) = scene.json("why", "flying@y.org")
    assert found["lease"]["is_alive"] is True
    assert found["lease"]["until"] == scene.now + 600
    (found,) = scene.json("why", "deferred@y.org", "--job", str(scene.job))
    assert found["retry_records"][0]["key"] == "T:mx.y.org:192.0.2.1"
    assert found["job_state"] == "active"
    assert len(found["reasons"]) >= 4


def test_why_of_nobody_is_bad_data(scene: Scene) -> None:
    result = scene.run("why", "nobody@x.org")
    assert result.exit_code == Exit.DATA
    assert result.stderr == "outrider: there is no recipient nobody@x.org in the queue\n"
    assert f"in job {scene.job}\n" in scene.run("why", "gone@x.org", "--job", str(scene.job)).stderr


# --- where the queue is -----------------------------------------------------------------------------------------------


def test_the_queue_of_a_configuration(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "outrider.toml"
    file.write_text(f'[main]\nqueue = "sqlite://{scene.path}"\n')
    result = CliRunner().invoke(app, ["list", "--json", "--config", str(file)])
    assert json.loads(result.stdout)[0]["job"] == scene.job
    both = scene.run("list", "--config", str(file))
    assert both.exit_code == 2
    assert CliRunner().invoke(app, ["list"]).exit_code == 2


def test_a_queue_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    runner = CliRunner()
    gone = runner.invoke(app, ["list", "--queue", f"sqlite://{tmp_path}/none.db"])
    assert (gone.exit_code, gone.stderr) == (Exit.TEMPORARY, f"outrider: there is no queue at {tmp_path}/none.db\n")
    (tmp_path / "text").write_text("hello" * 1000)
    text = runner.invoke(app, ["list", "--queue", f"sqlite://{tmp_path}/text"])
    assert text.exit_code == Exit.TEMPORARY
    assert "is not an Outrider queue" in text.stderr
    assert runner.invoke(app, ["list", "--queue", "mysql://x"]).exit_code == Exit.CONFIG


def test_looking_leaves_the_file_alone(scene: Scene) -> None:
    before = Path(scene.path).read_bytes()
    for command in (["list"], ["show", str(scene.job)], ["why", "waiting@y.org"]):
        scene.ok(*command)
    assert Path(scene.path).read_bytes() == before


def test_as_a_process(scene: Scene) -> None:
    """A pipe gets tab-separated lines, an error its exit status."""
    command = [sys.executable, "-c", "from engine.cli.queue import app; app()"]
    url = f"sqlite://{scene.path}"
    done = subprocess.run(
        [*command, "list", "--queue", url], capture_output=True, text=True, timeout=PATIENCE_S, cwd=PROJECT, check=True
    )
    assert done.stdout.splitlines()[1].split("\t")[:3] == [str(scene.job), "list.csv", "active"]
    assert done.stderr == ""
    bad = subprocess.run(
        [*command, "show", "99", "--queue", url],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=PROJECT,
        check=False,
    )
    assert (bad.returncode, bad.stdout) == (Exit.DATA, "")
    assert bad.stderr == "outrider: there is no job 99\n"

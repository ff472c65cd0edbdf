"""`outrider send --start-early`: mail arrives while the list is still read; cut off, it goes on and doubles nobody."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S

EARLY = ("--template", "--start-early", "--skip-invalid")


def wait_for_deliveries(user: Outrider, process: subprocess.Popen[bytes], more_than: int = 0) -> None:
    deadline = time.monotonic() + 50
    while user.states_or_none()[2] <= more_than and process.poll() is None:
        assert time.monotonic() < deadline, "nothing is delivered"
        time.sleep(0.01)


def queued(user: Outrider) -> int:
    return sum(user.states_or_none().values())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_mail_arrives_before_the_list_was_read(tmp_path: Path, processes: int) -> None:
    # long enough that a machine busy with other things has not read it all when the first mail is there
    count = 40_000 if processes == 1 else 6000
    with SinkProcess() as sink:
        user = Outrider(tmp_path, sink.port)
        recipients = user.recipients(count, domains=5)
        with (tmp_path / recipients).open("a") as file:
            file.write("no address,x,y\nuser1@D1.example,again,1\nlast@d1.example,last,last\n")
        arguments = user.send_arguments(recipients, user.message(TEMPLATE), *EARLY, "--processes", str(processes))
        with user.started(*arguments, "--json") as process:
            wait_for_deliveries(user, process)
            seen = queued(user)
            process.wait(PATIENCE_S)
        said = (tmp_path / "output").read_text()
        assert process.returncode == 0, said
        # several engines take longer to start than such a list to read
        assert processes > 1 or seen < count, "it waited for the whole list"
        counts = sink.stop()
    assert (counts["unique"], counts["duplicates"]) == (count + 1, 0)
    assert f"{count + 1:,} recipients queued as job 1, 1 duplicates dropped, 1 bad rows skipped" in said
    summary = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert summary["queue"] == {"job": 1, "delivered": count + 1, "failed": 0, "unsettled": 0}
    assert user.states() == {2: count + 1}


@pytest.mark.slow
def test_killed_while_both_go_on_the_same_command_sends_the_rest(tmp_path: Path, rng: random.Random) -> None:
    count = 12_000
    with SinkProcess("--delay", "2") as sink:
        user = Outrider(tmp_path, sink.port)
        arguments = user.send_arguments(user.recipients(count, domains=5), user.message(TEMPLATE), *EARLY)
        for _ in range(4):
            with user.started(*arguments) as process:
                wait_for_deliveries(user, process, user.states_or_none()[2])
                time.sleep(rng.random() * 0.2)
                process.kill()
        done = user.run(*arguments, "--wait", timeout_s=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        counts = sink.stop()
    assert counts["unique"] == count, "a recipient got nothing"
    assert user.states() == {2: count}
    doubtful = Counter(line.address for line in user.log() if line.mark == "==" and " in doubt" in f" {line.rest}")
    assert counts["duplicates"] <= doubtful.total(), "more came twice than was in doubt"
    assert set(user.delivered()) == {f"user{number}@d{number % 5}.example" for number in range(count)}


@pytest.mark.slow
def test_a_signal_ends_both_and_the_job_is_held_until_the_command_comes_again(tmp_path: Path) -> None:
    count = 20_000
    with SinkProcess("--delay", "2") as sink:
        user = Outrider(tmp_path, sink.port)
        arguments = user.send_arguments(user.recipients(count, domains=5), user.message(TEMPLATE), *EARLY)
        with user.started(*arguments) as process:
            wait_for_deliveries(user, process)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
        said = (tmp_path / "output").read_text()
        assert process.returncode == 75, said
        assert "stopped while the list was being queued" in said
        assert "job 1 is held, and the same command goes on with it" in said
        assert queued(user) < count
        delivered = user.states_or_none()[2]
        # what is held is delivered by nobody
        assert user.run("run", "--config", "outrider.toml", "--drain").returncode == 0
        assert user.states_or_none()[2] == delivered
        listed = user.run("queue", "list", "--config", "outrider.toml")
        assert "held" in listed.stdout
        done = user.run(*arguments, timeout_s=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        assert "going on with job 1, whose list was not read to its end" in done.stderr
        assert f"{count:,} recipients queued as job 1\n" in done.stderr, "what was there before counts as no duplicate"
        counts = sink.stop()
    assert (counts["unique"], counts["duplicates"]) == (count, 0)


def test_it_wants_bad_rows_to_be_skipped(tmp_path: Path) -> None:
    user = Outrider(tmp_path, 1)
    recipients, message = user.recipients(1), user.message(TEMPLATE)
    done = user.run(*user.send_arguments(recipients, message, "--template", "--start-early"))
    assert done.returncode == 64
    assert "--skip-invalid" in done.stderr
    done = user.run(*user.send_arguments(recipients, message, *EARLY, "--queue-only"))
    assert done.returncode == 64


def test_a_list_of_nobody_leaves_nothing_behind(tmp_path: Path) -> None:
    user = Outrider(tmp_path, 1)
    (tmp_path / "none.csv").write_text("email,name,number\nnonsense,x,1\n")
    done = user.run(*user.send_arguments("none.csv", user.message(TEMPLATE), *EARLY))
    assert done.returncode == 65
    assert "there is no recipient" in done.stderr
    assert user.states_or_none().total() == 0

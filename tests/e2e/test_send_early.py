"""`outrider send --start-early`: mail arrives while the list is still read; cut off, it goes on and doubles nobody."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S, wait_for

EARLY = ("--template", "--start-early", "--skip-invalid")
#: where the lists of `stopped_list` have the bad row: behind so many batches that there are claims between them
STOP = 10_000


def stopped_list(user: Outrider, count: int) -> tuple[str, Path]:
    """A list whose reading stops at a bad row until the test opens the file of rejects: it is a FIFO.

    So what has arrived by then has arrived before the list was read, however fast or slow anybody is.
    """
    name = user.recipients(count, domains=5)
    lines = (user.directory / name).read_text().splitlines(keepends=True)
    lines.insert(1 + STOP, "no address,x,y\n")
    (user.directory / name).write_text("".join(lines))
    rejects = user.directory / "rejects"
    os.mkfifo(rejects)
    return name, rejects


def wait_for_mail(directory: Path) -> None:
    wait_for(lambda: next(directory.rglob("*.eml"), None), "nothing arrives while the list is read")


def queued(user: Outrider) -> int:
    return sum(user.states_or_none().values())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_mail_arrives_before_the_list_was_read(tmp_path: Path, processes: int) -> None:
    count = STOP + 500
    with SinkProcess("--store", str(tmp_path / "store")) as sink:
        user = Outrider(tmp_path, sink.port)
        name, rejects = stopped_list(user, count)
        with (tmp_path / name).open("a") as file:
            file.write("user1@D1.example,again,1\nlast@d1.example,last,last\n")
        arguments = user.send_arguments(name, user.message(TEMPLATE), *EARLY, "--processes", str(processes))
        with user.started(*arguments, "--rejects", str(rejects), "--json") as process:
            wait_for_mail(tmp_path / "store")
            assert queued(user) <= STOP
            with rejects.open("rb") as gate:
                process.wait(PATIENCE_S)
                assert gate.read().count(b"\n") == 1
        said = (tmp_path / "output").read_text()
        assert process.returncode == 0, said
        counts = sink.stop()
    assert (counts["unique"], counts["duplicates"]) == (count + 1, 0)
    assert f"{count + 1:,} recipients queued as job 1, 1 duplicates dropped, 1 bad rows skipped" in said
    summary = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert summary["queue"] == {"job": 1, "delivered": count + 1, "failed": 0, "cancelled": 0, "unsettled": 0}
    assert user.states() == {2: count + 1}


@pytest.mark.slow
def test_killed_while_both_go_on_the_same_command_sends_the_rest(tmp_path: Path, rng: random.Random) -> None:
    count = 12_000
    with SinkProcess("--delay", "2") as sink:
        user = Outrider(tmp_path, sink.port)
        arguments = user.send_arguments(user.recipients(count, domains=5), user.message(TEMPLATE), *EARLY)
        for _ in range(4):
            with user.started(*arguments) as process:
                enough = user.states_or_none()[2] + rng.randrange(1, 1000)
                wait_for(
                    lambda enough=enough, process=process: (
                        user.states_or_none()[2] >= enough  # type: ignore[misc]  # defaults
                        or process.poll() is not None
                    ),
                    "nothing is delivered",
                )
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
    count = STOP + 3000
    with SinkProcess("--store", str(tmp_path / "store")) as sink:
        user = Outrider(tmp_path, sink.port)
        name, rejects = stopped_list(user, count)
        arguments = user.send_arguments(name, user.message(TEMPLATE), *EARLY, "--rejects", str(rejects))
        with user.started(*arguments) as process:
            wait_for_mail(tmp_path / "store")
            process.send_signal(signal.SIGTERM)
            # it may stop before it gets there
            gate = os.open(rejects, os.O_RDONLY | os.O_NONBLOCK)
            process.wait(PATIENCE_S)
            os.close(gate)
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
        rejects.unlink()
        done = user.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "going on with job 1, whose list was not read to its end" in done.stderr
        assert f"{count:,} recipients queued as job 1, 1 bad rows skipped (" in done.stderr, (
            "none counts as a duplicate"
        )
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

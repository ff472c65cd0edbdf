"""`outrider run`: drains at SIGTERM, reads its configuration again at SIGHUP, authenticates, outlives a full disk."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.outrider import MESSAGE, TEMPLATE, Outrider, SinkProcess
from fakes.patience import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow


def delivered(user: Outrider) -> int:
    return user.states_or_none()[2]


def output(user: Outrider) -> str:
    return (user.directory / "output").read_text()


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    with SinkProcess() as running:
        yield running


def queue_job(user: Outrider, count: int, name: str = "recipients.csv") -> None:
    done = user.send(user.recipients(count, name=name), user.message(TEMPLATE), "--template", "--queue-only", "--again")
    assert done.returncode == 0, done.stderr


def test_a_daemon_takes_what_comes_and_ends_when_told(tmp_path: Path, sink: SinkProcess) -> None:
    user = Outrider(tmp_path, sink.port)
    with user.started("run", "--config", "outrider.toml", "--json") as daemon:
        wait_for(lambda: (tmp_path / "queue.db").exists(), "it does not start")
        queue_job(user, 30)
        wait_for(lambda: delivered(user) == 30, "it delivers nothing")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    summary = json.loads(output(user).strip().splitlines()[-1])
    assert summary["delivered"] == 30
    counts = sink.stop()
    assert (counts["messages"], counts["duplicates"]) == (30, 0)
    assert not list(tmp_path.glob("queue.db-inflight-*")), "it left a journal behind"


def test_sighup_reads_the_configuration_again(tmp_path: Path, sink: SinkProcess) -> None:
    """A bad one changes nothing; a good one holds for everything that comes after; the counts go on."""
    user = Outrider(tmp_path, sink.port)
    good = user.config.read_text()
    with user.started("run", "--config", "outrider.toml", "--json") as daemon:
        wait_for(lambda: (tmp_path / "queue.db").exists(), "it does not start")
        queue_job(user, 10)
        wait_for(lambda: delivered(user) == 10, "it delivers nothing")
        for bad in ("[main\n", good.replace("main.log", "no/such/directory/main.log")):
            user.config.write_text(bad)
            before = output(user).count("stays as it was")
            daemon.send_signal(signal.SIGHUP)
            wait_for(lambda before=before: output(user).count("stays as it was") > before, "it says nothing")  # type: ignore[misc]  # a default
            assert daemon.poll() is None
        with SinkProcess() as other:
            text = good.replace(f":{sink.port}", f":{other.port}").replace('name = "smart"', 'name = "other"')
            user.config.write_text(text)
            before_it = user.engine_numbers()
            daemon.send_signal(signal.SIGHUP)
            wait_for(lambda: user.engine_numbers() - before_it, "it does not begin anew")
            queue_job(user, 10, "more.csv")
            wait_for(lambda: delivered(user) == 20, "it delivers nothing any more")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
            assert other.stop()["messages"] == 10
    assert sink.stop()["messages"] == 10
    assert user.log_text().count(" R=other T=") == 10
    assert user.log_text().count("the configuration was read again") == 1
    assert json.loads(output(user).strip().splitlines()[-1])["delivered"] == 20


def test_a_hangup_before_it_is_ready_is_no_end(tmp_path: Path, sink: SinkProcess) -> None:
    user = Outrider(tmp_path, sink.port)
    with user.started("run", "--config", "outrider.toml", "--json") as daemon:
        while not (tmp_path / "queue.db").exists():
            if is_ignored_or_caught(daemon.pid, signal.SIGHUP):
                daemon.send_signal(signal.SIGHUP)
            assert daemon.poll() is None
            time.sleep(0.01)
        queue_job(user, 3)
        wait_for(lambda: delivered(user) == 3, "it delivers nothing")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0


def is_ignored_or_caught(pid: int, number: signal.Signals) -> bool:
    """Whether the process outlives it: not before it has looked at its command line."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(status["SigIgn"], 16) | int(status["SigCgt"], 16)) >> (number - 1) & 1)


def test_a_hangup_storm_loses_nothing(tmp_path: Path) -> None:
    with SinkProcess("--delay", "2") as sink:
        user = Outrider(tmp_path, sink.port)
        queue_job(user, 700)
        with user.started("run", "--config", "outrider.toml", "--drain") as daemon:
            wait_for(lambda: delivered(user) > 0, "it does not start")
            for _ in range(4):
                with contextlib.suppress(ProcessLookupError):
                    daemon.send_signal(signal.SIGHUP)
                time.sleep(0.15)
            assert daemon.wait(PATIENCE_S) == 0
        counts = sink.stop()
    assert (counts["unique"], counts["duplicates"]) == (700, 0)
    assert user.states() == {2: 700}


@pytest.mark.parametrize(("password", "status", "messages"), [("right", 0, 20), ("wrong", 75, 0)])
def test_it_authenticates_to_a_smarthost(tmp_path: Path, password: str, status: int, messages: int) -> None:
    with SinkProcess("--auth", "me:right", "--require-tls") as sink:
        transport = (
            f'hosts_require_tls = "*"\nhosts_require_auth = "*"\nauth_username = "me"\nauth_password = "{password}"\n'
        )
        user = Outrider(tmp_path, sink.port, transport=transport, retry="F,2h,15m")
        done = user.send(user.recipients(20), user.message(TEMPLATE), "--template")
        assert done.returncode == status, done.stderr
        assert sink.stop()["messages"] == messages
    text = user.log_text() + (tmp_path / "main.jsonl").read_text()
    assert text.count(" A=SCRAM-SHA-256") == messages
    assert password not in text
    if not messages:
        assert "defer (-42)" in text


# --- the disk and the queue -------------------------------------------------------------------------------------------


def limited(user: Outrider, octets: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose files may not grow beyond `octets`."""
    return subprocess.run(
        ["prlimit", f"--fsize={octets}", *user.command(*arguments)],
        cwd=user.directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_no_room_while_loading(tmp_path: Path, sink: SinkProcess) -> None:
    """A clear error, nothing queued; with room again the same command sends everything once."""
    user = Outrider(tmp_path, sink.port)
    arguments = user.send_arguments(user.recipients(2500), user.message(TEMPLATE), "--template")
    done = limited(user, 120_000, *arguments)
    assert done.returncode == 75, done.stderr
    assert "queue.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert delivered(user) == 0
    again = user.run(*arguments)
    assert again.returncode == 0, again.stderr
    counts = sink.stop()
    assert (counts["unique"], counts["duplicates"]) == (2500, 0)


def test_no_room_while_sending(tmp_path: Path) -> None:
    """It ends or waits with a clear error; whoever gets it twice was in doubt before."""
    with SinkProcess("--delay", "1") as sink:
        user = Outrider(tmp_path, sink.port, main="claim_size = 50")
        arguments = user.send_arguments(user.recipients(1500), user.message(TEMPLATE), "--template")
        queued = user.run(*arguments, "--queue-only")
        assert queued.returncode == 0, queued.stderr
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        room = (tmp_path / "queue.db").stat().st_size + 60_000
        done = limited(user, room, *arguments)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert done.returncode == 75, done.stderr
            assert "queue" in done.stderr
        before = delivered(user)
        again = user.run(*arguments, "--wait")
        assert again.returncode == 0, again.stderr
        counts = sink.stop()
    assert done.returncode == 75, "there was room enough"
    assert before < 1500
    assert counts["unique"] == 1500
    in_doubt = sum(line.mark == "==" and " in doubt" in f" {line.rest}" for line in user.log())
    assert counts["duplicates"] <= in_doubt
    assert user.states() == {2: 1500}


def test_a_queue_that_another_process_has_locked(tmp_path: Path, sink: SinkProcess) -> None:
    """It waits for the lock and goes on; the lock is held for less than the time it waits."""
    user = Outrider(tmp_path, sink.port)
    queue_job(user, 200)
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        with user.started("run", "--config", "outrider.toml", "--drain") as daemon:
            time.sleep(0.8)
            assert daemon.poll() is None
            database.execute("ROLLBACK")
            assert daemon.wait(PATIENCE_S) == 0
    counts = sink.stop()
    assert (counts["unique"], counts["duplicates"]) == (200, 0)


def test_a_queue_that_is_damaged(tmp_path: Path, sink: SinkProcess) -> None:
    """It ends with an error that says so, and sends nothing."""
    user = Outrider(tmp_path, sink.port)
    queue_job(user, 500)
    with (tmp_path / "queue.db").open("r+b") as file:
        end = file.seek(0, 2)
        file.seek(8192)
        file.write(b"\xa5" * (end - 8192))
    done = user.run("run", "--config", "outrider.toml", "--drain")
    assert done.returncode == 75, done.stderr
    assert "corrupt" in done.stderr
    assert "Traceback" not in done.stderr
    assert sink.stop()["messages"] == 0


def test_a_send_that_is_killed_while_it_queues_begins_anew(tmp_path: Path, sink: SinkProcess) -> None:
    user = Outrider(tmp_path, sink.port)
    arguments = user.send_arguments(user.recipients(15_000, domains=3), user.message(MESSAGE), "--queue-only")
    with user.started(*arguments) as process:
        wait_for(lambda: (tmp_path / "queue.db").exists() or process.poll() is not None, "it does not start")
        time.sleep(0.1)
        process.kill()
        process.wait(PATIENCE_S)
    done = user.run(*arguments[:-1])
    assert done.returncode == 0, done.stderr
    counts = sink.stop()
    assert (counts["recipients"], counts["duplicates"]) == (15_000, 0)
    assert user.states() == {2: 15_000}

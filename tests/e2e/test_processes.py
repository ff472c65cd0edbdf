"""Several engine processes on one queue: killed, dropped, deferred, told by signals, held to limits; with window 8.

What the scenarios of test_kill and test_send show of one engine holds of several: nothing is lost, and twice comes only
what was reported as in doubt.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.counting_server import CountingServer
from fakes.outrider import TEMPLATE, Outrider, SinkProcess, header, stored, summary_of
from fakes.patience import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow

WINDOW = "pipeline_window = 8"
RUN = ("run", "--config", "outrider.toml", "--processes", "2", "--json")


def engines(user: Outrider) -> list[int]:
    """The process ids of the engines that are registered."""
    with contextlib.closing(sqlite3.connect(user.directory / "queue.db")) as database:
        return [pid for (pid,) in database.execute("SELECT pid FROM engines")]


def engines_or_none(user: Outrider) -> list[int]:
    """The same; none while the queue cannot be read."""
    try:
        return engines(user)
    except sqlite3.OperationalError:
        return []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def queue_job(user: Outrider, count: int, *, domains: int = 5, name: str = "recipients.csv") -> None:
    message = user.message(TEMPLATE)
    done = user.send(user.recipients(count, domains=domains, name=name), message, "--template", "--queue-only")
    assert done.returncode == 0, done.stderr


def doubtful(user: Outrider) -> Counter[str]:
    """Address -> how often the log says that it was in doubt."""
    return Counter(line.address for line in user.log() if line.mark == "==" and " in doubt" in f" {line.rest}")


def output(user: Outrider) -> str:
    return (user.directory / "output").read_text()


# --- deaths -----------------------------------------------------------------------------------------------------------


def kill_and_account(directory: Path, rng: random.Random, count: int, kills: int) -> int:
    """Send with two engines and kill one of them, or all, again and again; returns how many came twice."""
    store = directory / "store"
    with SinkProcess("--store", str(store), "--delay", "2") as sink:
        # small claims, so that both have some
        user = Outrider(directory, sink.port, main="claim_size = 20", transport=f'hosts_require_tls = "*"\n{WINDOW}')
        queue_job(user, count)
        kills_in_the_middle = 0
        for kill in range(kills):
            with user.started(*RUN, "--drain") as parent:
                for _ in range(2):
                    enough = user.states()[2] + rng.randrange(1, count // 10)
                    wait_for(lambda enough=enough: user.states()[2] >= enough, "it does not get on")  # type: ignore[misc]  # a default
                    pids = engines(user)
                    if kill % 2:
                        parent.kill()
                    for pid in pids if kill % 2 else [rng.choice(pids)]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    in_the_middle = user.states()[2] < count
                    kills_in_the_middle += in_the_middle
                    if kill % 2 or not in_the_middle:
                        break
                if not kill % 2 and in_the_middle:
                    wait_for(lambda: user.log_text().count(" is gone: signal 9;") > 0, "nothing tells of it")
                    parent.kill()
        assert kills_in_the_middle
        wait_for(lambda: not any(map(is_alive, engines(user))), "an engine outlives its parent")
        recipients, message = user.recipients(count, domains=5), user.message(TEMPLATE)
        done = user.send(recipients, message, "--template", "--processes", "2", "--wait")
        assert done.returncode == 0, done.stderr
        counts = sink.stop()
    assert counts["unique"] == count, "a recipient got nothing"
    received = Counter(header(message, "To").rpartition(" ")[2].strip("<>") for message in stored(store))
    addresses = {f"user{number}@d{number % 5}.example" for number in range(count)}
    assert received.keys() == addresses
    assert set(user.delivered()) == addresses
    told = doubtful(user)
    for address, times in received.items():
        assert times - 1 <= told[address], f"{address} came {times} times and was in doubt {told[address]} times"
    return counts["duplicates"]  # type: ignore[no-any-return]  # it comes from JSON


def test_kill_9_of_one_of_two_engines_and_of_all(tmp_path: Path, rng: random.Random) -> None:
    kill_and_account(tmp_path, rng, 2000, 2)


def test_deferrals_and_drops_end_in_delivery(tmp_path: Path) -> None:
    with SinkProcess("--defer", "0.2", "--drop", "0.03", "--seed", "4") as sink:
        user = Outrider(tmp_path, sink.port, transport=WINDOW)
        count = 500
        done = user.send(
            user.recipients(count, domains=3), user.message(TEMPLATE), "--template", "--wait", "--processes", "2"
        )
        assert done.returncode == 0, done.stderr
        counts = sink.stop()
    assert counts["unique"] == count
    assert counts["deferred"] > 50
    assert counts["dropped"] > 5
    # how many of the drops come behind an accepted message is chance
    assert counts["duplicates"] <= doubtful(user).total()
    assert set(user.delivered()) == {f"user{number}@d{number % 3}.example" for number in range(count)}
    assert user.states() == {2: count}


# --- what the parent passes on ----------------------------------------------------------------------------------------


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    with SinkProcess() as running:
        yield running


def test_both_engines_work_and_their_counts_are_added(tmp_path: Path, sink: SinkProcess) -> None:
    user = Outrider(tmp_path, sink.port, transport=WINDOW, main="claim_size = 20")
    queue_job(user, 600)
    done = user.run(*RUN, "--drain")
    assert done.returncode == 0, done.stderr
    assert summary_of(done)["delivered"] == 600
    assert summary_of(done)["sites"]["127.0.0.1"]["delivered"] == 600
    counts = sink.stop()
    assert (counts["messages"], counts["duplicates"]) == (600, 0)
    assert user.states() == {2: 600}
    assert not list(tmp_path.glob("queue.db-inflight-*")), "a journal was left behind"
    assert all(line.count("=>") <= 1 for line in user.log_text().splitlines()), "lines of two engines are mixed"


def test_sigterm_drains_and_sighup_reads_the_configuration_again(tmp_path: Path, sink: SinkProcess) -> None:
    user = Outrider(tmp_path, sink.port)
    good = user.config.read_text()
    with user.started(*RUN) as parent:
        wait_for(lambda: len(engines_or_none(user)) == 2, "they do not start")
        user.config.write_text("[main\n")
        parent.send_signal(signal.SIGHUP)
        wait_for(lambda: "stays as it was" in output(user), "nothing tells of the error")
        with SinkProcess() as other:
            user.config.write_text(good.replace(f":{sink.port}", f":{other.port}").replace('"smart"', '"other"'))
            before = set(engines(user))
            parent.send_signal(signal.SIGHUP)
            wait_for(lambda: len(user.engine_numbers() & {3, 4}) == 2, "they do not begin anew")
            assert set(engines(user)) == before, "the processes are the same"
            queue_job(user, 50)
            wait_for(lambda: user.states()[2] == 50, "nothing is delivered")
            pids = engines(user)
            parent.send_signal(signal.SIGTERM)
            assert parent.wait(PATIENCE_S) == 0
            assert other.stop()["messages"] == 50
    assert output(user).count("stays as it was") == 1, "told once, not by every process"
    assert json.loads(output(user).strip().splitlines()[-1])["delivered"] == 50
    assert not any(map(is_alive, pids))
    assert engines(user) == []


def test_engines_whose_parent_is_killed_drain_and_end(tmp_path: Path, sink: SinkProcess) -> None:
    user = Outrider(tmp_path, sink.port)
    with user.started(*RUN) as parent:
        wait_for(lambda: len(engines_or_none(user)) == 2, "they do not start")
        pids = engines(user)
        parent.kill()
        wait_for(lambda: not engines(user), "they do not end")
        wait_for(lambda: not any(map(is_alive, pids)), "they do not end")
    assert not list(tmp_path.glob("queue.db-inflight-*"))


def test_a_configuration_that_cannot_be_used_is_told_once(tmp_path: Path) -> None:
    user = Outrider(tmp_path, 9)
    user.config.write_text(user.config.read_text().replace("queue = ", "no_queue = "))
    done = user.run(*RUN)
    assert done.returncode == 78
    assert done.stderr.count("unknown key") == 1
    user.config.write_text(user.config.read_text().replace("no_queue = ", "queue = "))
    (tmp_path / "queue.db").write_text("something else")
    done = user.run(*RUN)
    assert done.returncode == 75, "the status of the engines"
    assert "queue.db" in done.stderr


# --- limits -----------------------------------------------------------------------------------------------------------


def deliver_together(user: Outrider, count: int, *commands: tuple[str, ...], engines_in_all: int) -> float:
    """Start engines, queue a job when all of them are there, and end them when it is delivered; when it was queued."""
    with contextlib.ExitStack() as stack:
        running: list[subprocess.Popen[bytes]] = [
            stack.enter_context(user.started("run", "--config", "outrider.toml", *command)) for command in commands
        ]

        def are_there() -> bool:
            assert all(process.poll() is None for process in running), output(user)
            return len(engines_or_none(user)) == engines_in_all

        wait_for(are_there, "they do not start")
        queue_job(user, count)
        wait_for(lambda: user.states()[2] == count, "it does not get on")
        for process in running:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_S) for process in running] == [0] * len(commands), output(user)
    with contextlib.closing(sqlite3.connect(user.directory / "queue.db")) as database:
        ((created_at,),) = database.execute("SELECT created_at FROM jobs")
    return float(created_at) + time.monotonic() - time.time()


@pytest.mark.parametrize(
    ("commands", "engines_in_all", "limit"),
    [
        pytest.param([("--processes", "3")], 3, 7, id="three under a parent"),
        pytest.param([(), ("--processes", "2")], 3, 1, id="fewer connections than engines"),
    ],
)
def test_connections_to_a_host_are_bounded_over_all_engines(
    tmp_path: Path, commands: list[tuple[str, ...]], engines_in_all: int, limit: int
) -> None:
    with CountingServer(delay_s=0.05) as server:
        user = Outrider(
            tmp_path,
            server.port,
            main="claim_size = 5",
            transport=f"connections_per_host = {limit}\nconnection_max_messages = 20",
        )
        count = 300 if limit > 1 else 60
        deliver_together(user, count, *commands, engines_in_all=engines_in_all)
        seen = server.seen
    assert seen.most <= limit
    assert Counter(seen.recipients).total() == len(set(seen.recipients)) == count


def test_connections_in_all_are_bounded_over_all_engines(tmp_path: Path) -> None:
    with CountingServer(delay_s=0.05) as server:
        user = Outrider(tmp_path, server.port, main="claim_size = 5\nmax_connections = 5", transport="")
        deliver_together(user, 250, (), ("--processes", "2"), engines_in_all=3)
    assert server.seen.most <= 5


def test_messages_a_second_are_bounded_over_all_engines(tmp_path: Path) -> None:
    """A lower bound on the time that it takes: no machine is so fast as to break it."""
    rate, count = 10, 50
    with CountingServer() as server:
        user = Outrider(tmp_path, server.port, main="claim_size = 1", transport=f'message_rate_per_host = "{rate}/s"')
        begun = deliver_together(user, count, (), ("--processes", "2"), engines_in_all=3)
        mails = server.seen.mails
    assert len(mails) == count
    # a second's worth may come at once
    assert mails[-1] - begun >= (count - rate - 1) / rate


def test_connections_a_second_are_bounded_over_all_engines(tmp_path: Path) -> None:
    with CountingServer() as server:
        user = Outrider(
            tmp_path,
            server.port,
            main="claim_size = 1",
            transport='connection_rate_per_host = "5/s"\nconnection_max_messages = 2',
        )
        begun = deliver_together(user, 60, (), (), engines_in_all=2)
        seen = server.seen.begun
    assert len(seen) >= 30
    assert seen[-1] - begun >= (len(seen) - 6) / 5

"""`outrider send` against the sink: what a user sends arrives, and what he is told is true."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.outrider import TEMPLATE, Outrider, SinkProcess, header, stored, summary_of
from fakes.patience import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow

StartSink = Callable[..., SinkProcess]


@pytest.fixture
def start_sink() -> Iterator[StartSink]:
    """Start a sink that ends with the test."""
    running: list[SinkProcess] = []

    def start(*arguments: str) -> SinkProcess:
        running.append(SinkProcess(*arguments))
        return running[-1]

    yield start
    for sink in running:
        sink.__exit__()


def test_a_personalised_job_is_one_message_a_recipient(tmp_path: Path, start_sink: StartSink) -> None:
    store = tmp_path / "store"
    sink = start_sink("--store", str(store), "--require-tls")
    user = Outrider(tmp_path, sink.port)
    count = 300
    done = user.send(user.recipients(count, domains=7), user.message(TEMPLATE), "--template", "--json")
    assert done.returncode == 0, done.stderr
    assert f"{count} recipients queued as job 1" in done.stderr
    summary = summary_of(done)
    assert summary["delivered"] == count
    assert summary["queue"] == {"job": 1, "delivered": count, "failed": 0, "cancelled": 0, "unsettled": 0}
    counts = sink.stop()
    assert (counts["messages"], counts["unique"], counts["duplicates"]) == (count, count, 0)
    assert counts["connections"] == counts["tls_connections"] == summary["connections"]
    messages = stored(store)
    assert Counter(header(message, "To") for message in messages) == Counter(
        f"Name {number} <user{number}@d{number % 7}.example>" for number in range(count)
    )
    for message in messages:
        number = header(message, "Subject").removeprefix("Number ")
        assert f"Dear Name {number}, your number is {number}.\r\n.a line that".encode() in message
        assert header(message, "Date")
    ids = {line.message_id for line in user.log() if line.mark == "=>"}
    assert {header(message, "Message-ID") for message in messages} == {f"<E{name}@client.example>" for name in ids}
    assert len(ids) == count
    assert user.log_text().count(" Completed\n") == count
    assert set(user.delivered().values()) == {1}
    assert all(" X=TLS1.3:" in line.rest and " CV=no" in line.rest for line in user.log())
    records = [json.loads(line) for line in (tmp_path / "main.jsonl").read_text().splitlines()]
    assert Counter(record["event"] for record in records) == {"delivered": count, "completed": count}


def test_a_shared_message_goes_to_many_recipients_in_one_transaction(tmp_path: Path, start_sink: StartSink) -> None:
    sink = start_sink("--store", str(tmp_path / "store"))
    user = Outrider(tmp_path, sink.port)
    done = user.send(user.recipients(250), user.message())
    assert done.returncode == 0, done.stderr
    counts = sink.stop()
    assert (counts["messages"], counts["recipients"], counts["duplicates"]) == (3, 250, 0)
    marks = Counter(line.mark for line in user.log())
    assert marks == {"=>": 3, "->": 247}
    assert len({line.message_id for line in user.log()}) == 1
    assert user.log_text().count(" Completed\n") == 1
    assert len(set(stored(tmp_path / "store"))) == 1


def test_sending_the_same_again_sends_nothing(tmp_path: Path, start_sink: StartSink) -> None:
    sink = start_sink()
    user = Outrider(tmp_path, sink.port)
    arguments = (user.recipients(20), user.message(TEMPLATE), "--template")
    assert user.send(*arguments).returncode == 0
    second = user.send(*arguments)
    assert second.returncode == 0
    assert "was sent before, as job 1" in second.stderr
    third = user.send(*arguments, "--again")
    assert third.returncode == 0
    counts = sink.stop()
    # another job is another message: its ids differ
    assert (counts["messages"], counts["duplicates"]) == (40, 0)


@pytest.mark.parametrize(
    ("sink_says", "status", "states"),
    [(("--fail", "1"), 69, {3: 30}), (("--defer", "1"), 75, {0: 30})],
)
def test_the_exit_status_tells_how_it_ended(
    tmp_path: Path, start_sink: StartSink, sink_says: tuple[str, str], status: int, states: dict[int, int]
) -> None:
    sink = start_sink(*sink_says)
    user = Outrider(tmp_path, sink.port, retry="F,2h,15m")
    done = user.send(user.recipients(30), user.message(TEMPLATE), "--template")
    assert done.returncode == status, done.stderr
    assert user.states() == states
    assert sink.stop()["messages"] == 0


def test_recipients_from_standard_input_with_duplicates(tmp_path: Path, start_sink: StartSink) -> None:
    sink = start_sink("--store", str(tmp_path / "store"))
    user = Outrider(tmp_path, sink.port)
    rows = [{"email": f"u{number % 8}@D.example", "name": f"Ünïcode {number % 8}", "number": 1} for number in range(10)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    done = user.send("-", user.message(TEMPLATE), "--template", input=lines.encode())
    assert done.returncode == 0, done.stderr
    assert "8 recipients queued as job 1, 2 duplicates dropped" in done.stderr
    assert sink.stop()["messages"] == 8
    assert {header(message, "To").rpartition(" ")[2] for message in stored(tmp_path / "store")} == {
        f"<u{number}@d.example>" for number in range(8)
    }


def test_deferrals_and_drops_end_in_delivery(tmp_path: Path, start_sink: StartSink) -> None:
    """Scenario 4: 20 % deferred, 5 % dropped; everybody gets it, and twice only who was in doubt."""
    sink = start_sink("--defer", "0.2", "--drop", "0.05", "--seed", "4")
    user = Outrider(tmp_path, sink.port)
    count = 500
    done = user.send(user.recipients(count, domains=3), user.message(TEMPLATE), "--template", "--wait")
    assert done.returncode == 0, done.stderr
    counts = sink.stop()
    assert counts["unique"] == count
    assert counts["deferred"] > 50
    assert counts["dropped"] > 10
    log = user.log()
    assert user.delivered().keys() == {f"user{number}@d{number % 3}.example" for number in range(count)}
    doubtful = sum(line.mark == "==" and line.rest.startswith("R=smart T=remote_smtp in doubt") for line in log)
    assert 0 < counts["duplicates"] <= doubtful
    assert user.states() == {2: count}


def test_a_stop_ends_in_time_and_a_second_start_goes_on(tmp_path: Path, start_sink: StartSink) -> None:
    sink = start_sink("--delay", "20")
    user = Outrider(tmp_path, sink.port, transport='hosts_require_tls = "*"\nconnections_per_host = 4')
    count = 800
    arguments = user.send_arguments(user.recipients(count), user.message(TEMPLATE), "--template")
    with user.started(*arguments) as process:
        wait_for(lambda: user.states_or_none()[2] >= 20, "it delivers nothing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 75
    before = user.states()
    assert 0 < before[2] < count
    assert before[1] == 0, "a lease was left behind"
    done = user.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "going on with job 1" in done.stderr
    counts = sink.stop()
    assert (counts["messages"], counts["unique"], counts["duplicates"]) == (count, count, 0)


def test_two_engines_on_one_queue_send_nothing_twice(tmp_path: Path, start_sink: StartSink) -> None:
    sink = start_sink()
    user = Outrider(tmp_path, sink.port, main="claim_size = 50")
    count = 1500
    done = user.send(user.recipients(count), user.message(TEMPLATE), "--template", "--queue-only")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "job 1\n"
    run = ("run", "--config", "outrider.toml", "--drain")
    with user.started(*run) as first, user.started(*run) as second:
        assert (first.wait(PATIENCE_S), second.wait(PATIENCE_S)) == (0, 0)
    counts = sink.stop()
    assert (counts["messages"], counts["unique"], counts["duplicates"]) == (count, count, 0)
    assert user.states() == {2: count}
    assert len(user.delivered()) == count


def test_a_stop_while_the_list_is_queued_queues_nothing(tmp_path: Path, start_sink: StartSink) -> None:
    sink = start_sink()
    user = Outrider(tmp_path, sink.port)
    arguments = user.send_arguments(user.recipients(400_000, domains=1000), user.message(TEMPLATE), "--template")
    with user.started(*arguments) as process:
        wait_for(user.states_or_none, "it queues nothing")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 75
    assert "nothing is queued" in (tmp_path / "output").read_text()
    assert user.states() == {}
    assert sink.stop()["messages"] == 0

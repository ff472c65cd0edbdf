"""Scenario 3: `kill -9` in the middle of a send, ten times: nothing is lost, and only what was in doubt comes twice."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from fakes.outrider import TEMPLATE, Outrider, SinkProcess, header, stored
from fakes.patience import wait_for

KILLS = 10


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(tmp_path: Path, rng: random.Random) -> None:
    count = 10_000
    with SinkProcess("--store", str(tmp_path / "store"), "--delay", "2") as sink:
        user = Outrider(tmp_path, sink.port)
        arguments = user.send_arguments(user.recipients(count, domains=5), user.message(TEMPLATE), "--template")
        kills_while_sending = 0
        for _ in range(KILLS):
            with user.started(*arguments) as process:
                # somewhere in the next twentieth of the list
                enough = user.states_or_none()[2] + rng.randrange(1, count // 20)
                wait_for(
                    lambda enough=enough, process=process: (
                        user.states_or_none()[2] >= enough  # type: ignore[misc]  # defaults
                        or process.poll() is not None
                    ),
                    "it does not get on",
                )
                kills_while_sending += process.poll() is None
                process.kill()
        assert kills_while_sending >= KILLS // 2, "the send is too fast to be killed in the middle"
        done = user.run(*arguments, "--wait")
        assert done.returncode == 0, done.stderr
        counts = sink.stop()
    assert counts["unique"] == count, "a recipient got nothing"
    assert user.states() == {2: count}
    addresses = [f"user{number}@d{number % 5}.example" for number in range(count)]
    received = Counter(header(message, "To").rpartition(" ")[2].strip("<>") for message in stored(tmp_path / "store"))
    assert received.keys() == set(addresses)
    twice = {address for address, times in received.items() if times > 1}
    assert len(twice) <= counts["duplicates"]
    doubtful = Counter(line.address for line in user.log() if line.mark == "==" and " in doubt" in f" {line.rest}")
    # each repetition has its line, and was in flight when the engine died
    assert twice <= doubtful.keys()
    for address in twice:
        assert received[address] - 1 <= doubtful[address]
    assert set(user.delivered()) == set(addresses)

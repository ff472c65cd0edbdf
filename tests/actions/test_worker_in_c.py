"""A worker in another language: what is written down about the channel is enough to be one; and many bad ones."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from engine.actions.channel import Outgoing
from engine.actions.supervisor import Supervisor
from fakes.action_links import Told
from fakes.compilers import compile_c
from fakes.patience import PATIENCE_S, until
from fakes.peers import PROJECT

RESTARTS = PROJECT / "tests/isolated/worker_restarts.py"
#: bad workers that a run of the tests starts; how to start ten thousand: see worker_restarts.py
COUNT = 150


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker."""
    return compile_c(PROJECT / "tests/isolated/worker_in_c.c11", tmp_path_factory.mktemp("worker") / "worker_in_c")


@pytest.mark.slow
async def test_a_worker_in_c_handles_events_and_ends_when_told(program: Path) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    supervisor = Supervisor(hub, 1, log=told.log, command=[str(program), "good"], ring_octets=4096)
    shape = hub.shape("msg:delivery", ("local_part", "domain"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        for number in range(1000):
            # the rings go round many times
            assert hub.submit_nowait(Outgoing(shape, b"m", b"%d" % number, (b"u" * (number % 300), b"example.org")))
        await until(lambda: not hub.held)
        assert await supervisor.stop(timeout_s=PATIENCE_S)
    assert told.ids == [b"%d" % number for number in range(1000)]
    assert told.lines == []


@pytest.mark.slow
def test_bad_workers_leave_nothing_behind_but_a_clear_line_each(program: Path) -> None:
    environment = {**os.environ, "COUNT": str(COUNT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(RESTARTS), str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout)
    assert counts["unclear"] == []
    assert counts["ends"] >= COUNT
    assert len(counts["lines"]) >= 7
    assert (counts["descriptors"], counts["held"], counts["done"]) == (0, 50, True)
    assert counts["grown_kib"] < 20_000

"""Engine processes under a parent: their words, their reports, what becomes of one that dies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.supervisor import Restart, own_command
from engine.cli.processes import STOP, TELL_S, Link, Processes, Tally, engine_command
from engine.delivery.progress import MAX_SITES, Progress, SiteCounts
from engine.queue.model import OutcomeKind
from fakes.patience import PATIENCE_S

#: a child that does what the file beside it says for its number: a status, `die`, or waits for a word
CHILD = """
import argparse, os, signal, socket, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--control-fd", type=int)
parser.add_argument("--number", type=int)
arguments, _ = parser.parse_known_args()
here = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(os.path.join(here, "starts"), "a") as file:
    file.write(f"{arguments.number}\\n")
sock = socket.socket(fileno=arguments.control_fd)
try:
    what = open(os.path.join(here, str(arguments.number))).read()
except FileNotFoundError:
    what = "wait"
if what == "die once":
    os.unlink(os.path.join(here, str(arguments.number)))
    os.kill(os.getpid(), signal.SIGKILL)
if what == "stubborn":
    while True:
        time.sleep(1)
if what == "wait":
    words = b""
    while not words.endswith(b"S") and not words.endswith(b"E") and (word := sock.recv(1)):
        words += word
    with open(os.path.join(here, f"words{arguments.number}"), "wb") as file:
        file.write(words)
    sys.exit(130 if words.endswith(b"E") else 0)
sys.exit(int(what))
"""


class Family:
    """Children that behave as a test says."""

    def __init__(self, directory: Path, count: int = 2, *, drain: bool = False) -> None:
        self.directory = directory
        (directory / "child.py").write_text(CHILD)
        self.lines: list[str] = []
        self.processes = Processes(
            count,
            [sys.executable, str(directory / "child.py")],
            drain=drain,
            log=self.lines.append,
            restart=Restart(first_s=0.01, most_s=0.02),
        )

    def behave(self, number: int, what: str) -> None:
        (self.directory / str(number)).write_text(what)

    def starts(self) -> list[str]:
        path = self.directory / "starts"
        return path.read_text().split() if path.exists() else []

    def words(self, number: int) -> bytes:
        return (self.directory / f"words{number}").read_bytes()

    async def wait_starts(self, count: int) -> None:
        with trio.fail_after(PATIENCE_S):
            while len(self.starts()) < count:  # noqa: ASYNC110 - it waits for other processes
                await trio.sleep(0.01)


@pytest.mark.slow
async def test_a_child_that_is_killed_is_started_again_and_a_line_tells_of_it(tmp_path: Path) -> None:
    family = Family(tmp_path)
    family.behave(1, "die once")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(family.processes.run)
        await family.wait_starts(3)
        family.processes.reload()
        family.processes.stop()
    assert sorted(family.starts()) == ["0", "1", "1"]
    (line,) = family.lines
    assert line.startswith("engine process 1 (")
    assert line.endswith(") is gone: signal 9; the next one starts in 0.01 s")
    assert family.words(0) == b"RS"
    assert family.processes.pids == {}


@pytest.mark.slow
@pytest.mark.parametrize("status", [75, 78])
async def test_an_error_that_another_start_would_not_cure_ends_all(tmp_path: Path, status: int) -> None:
    family = Family(tmp_path)
    family.behave(1, str(status))
    with trio.fail_after(PATIENCE_S):
        assert await family.processes.run() == status
    assert sorted(family.starts()) == ["0", "1"]
    assert family.words(0) == b"S"


@pytest.mark.slow
async def test_a_configuration_that_is_spoilt_later_ends_nobody(tmp_path: Path) -> None:
    """Who dies then comes back when it is mended; the others go on."""
    family = Family(tmp_path, 1)
    family.behave(0, "die once")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(family.processes.run)
        await family.wait_starts(1)
        family.behave(0, "78")
        await family.wait_starts(3)
        (tmp_path / "0").unlink()
        await family.wait_starts(4)
        family.processes.stop()
    assert "exit status 78" in family.lines[-1]


@pytest.mark.slow
async def test_a_machine_that_has_no_room_for_another_process_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family(tmp_path)
    family.behave(1, "die once")
    start, failures = trio.lowlevel.open_process, [errno.EMFILE, errno.EAGAIN]

    async def open_process(*arguments: Any, **options: Any) -> trio.Process:
        if len(family.processes.pids) == 1 and family.lines and failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return await start(*arguments, **options)

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(family.processes.run)
        await family.wait_starts(3)
        family.processes.stop()
    assert [line for line in family.lines if "cannot be started" in line] == [
        "an engine process cannot be started: Resource temporarily unavailable",
        "an engine process cannot be started: Too many open files",
    ]
    assert family.words(0) == b"S"


@pytest.mark.slow
async def test_one_that_ends_well_has_done_its_part_if_the_queue_is_drained(tmp_path: Path) -> None:
    family = Family(tmp_path, drain=True)
    family.behave(0, "0")
    family.behave(1, "0")
    with trio.fail_after(PATIENCE_S):
        assert await family.processes.run() == 0
    assert sorted(family.starts()) == ["0", "1"]
    assert family.lines == []


@pytest.mark.slow
async def test_one_that_ends_well_is_missed_otherwise(tmp_path: Path) -> None:
    family = Family(tmp_path, 1)
    family.behave(0, "0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(family.processes.run)
        await family.wait_starts(2)
        (tmp_path / "0").unlink()
        await family.wait_starts(3)
        family.processes.stop()
    assert "exit status 0" in family.lines[0]


@pytest.mark.slow
async def test_a_second_stop_ends_at_once_and_a_third_kills(tmp_path: Path) -> None:
    family = Family(tmp_path)
    family.behave(0, "stubborn")
    statuses: list[int] = []

    async def run() -> None:
        statuses.append(await family.processes.run())

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await family.wait_starts(2)
            for _ in range(3):
                family.processes.stop()
    assert statuses == [128 + signal.SIGKILL]


# --- a child's socket -------------------------------------------------------------------------------------------------


def count_some(progress: Progress) -> None:
    progress.count(OutcomeKind.DELIVERED, "a", number=5)
    progress.count(OutcomeKind.DEFERRED, "b", in_doubt=True)
    progress.connections = progress.opened = 3
    progress.actions["main"] = {"workers": 2, "waiting": 5, "done": 11}
    progress.events, progress.dead, progress.events_behind_s = 7, 2, 1.5


async def test_what_a_child_counts_is_what_its_parent_adds() -> None:
    ours, theirs = socket.socketpair()
    with ours, contextlib.closing(Link(theirs.detach())) as link:
        counted, added = Progress(), Progress()
        tally = Tally(added)
        count_some(counted)
        link.tell_last(counted)
        tally.add(json.loads(ours.recv(65_536)))
        counted.count(OutcomeKind.FAILED, "a")
        link.tell_last(counted)
        report = json.loads(ours.recv(65_536))
        assert report["sites"] == {"a": [5, 0, 1, 0]}, "what did not change is not told again"
        tally.add(report)
        assert added == counted
        again = Tally(added)
        again.add({**report, "actions": {"main": {"workers": 1, "waiting": 2, "done": 3}}})
        assert added.actions == {"main": {"workers": 3, "waiting": 7, "done": 14}}, "each has workers of its own"
        assert added.events == 7, "but the queue is one"
        again.end()
        assert added.actions == {"main": {"workers": 2, "waiting": 5, "done": 14}}
        tally.end()
        assert (added.connections, added.opened) == (0, 6)


def test_what_all_see_of_the_queue_is_not_added_up() -> None:
    added = Progress()
    for events in (7, 5):
        own = Progress(events=events, dead=1, events_behind_s=0.5)
        ours, theirs = socket.socketpair()
        with ours, contextlib.closing(Link(theirs.detach())) as link:
            link.tell_last(own)
            Tally(added).add(json.loads(ours.recv(65_536)))
    assert (added.events, added.dead, added.events_behind_s) == (5, 1, 0.5)


async def test_a_parent_that_is_gone_is_a_stop() -> None:
    ours, theirs = socket.socketpair()
    with contextlib.closing(Link(theirs.detach())) as link:
        ours.send(b"R")
        ours.close()
        assert [word async for word in link.words()] == [b"R", STOP]
        link.tell_last(Progress())


async def test_a_parent_that_reads_nothing_holds_nobody_up() -> None:
    """Reports that it reads later are whole."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    progress = Progress()
    for number in range(MAX_SITES):
        progress.count(OutcomeKind.DELIVERED, f"site{number}.example")
    octets = b""

    async def read() -> None:
        nonlocal octets
        ours.setblocking(False)
        stream = trio.socket.from_stdlib_socket(ours)
        while more := await stream.recv(65_536):
            octets += more

    with ours, contextlib.closing(Link(theirs.detach())) as link:
        with trio.move_on_after(3 * TELL_S):
            await link.tell(progress)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(link.tell_last, progress)
            link.close()
    added = Progress()
    tally = Tally(added)
    for line in octets.splitlines():
        tally.add(json.loads(line))
    assert added.sites == progress.sites


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=4), min_size=1, max_size=4))
def test_lives_add_up_in_whatever_order_their_reports_come(lives: list[list[int]]) -> None:
    progress = Progress()
    tallies = [Tally(progress) for _ in lives]
    for turn in range(max(map(len, lives))):
        for tally, life in zip(tallies, lives, strict=True):
            if turn < len(life):
                own = Progress(delivered=sum(life[: turn + 1]), sites={"s": SiteCounts(sum(life[: turn + 1]))})
                ours, theirs = socket.socketpair()
                with ours, contextlib.closing(Link(theirs.detach())) as link:
                    link.tell_last(own)
                    tally.add(json.loads(ours.recv(65_536)))
    assert progress.delivered == progress.sites["s"].delivered == sum(map(sum, lives))


def test_the_command_of_a_child_says_what_the_parent_was_told() -> None:
    command = engine_command(3, Path("a.toml"), "sqlite:///q", drain=True, job_id=7, wait=True)
    assert command == [
        *own_command(),
        *("run", "--processes", "3", "--config", "a.toml", "--queue", "sqlite:///q"),
        *("--job", "7", "--drain", "--wait"),
    ]

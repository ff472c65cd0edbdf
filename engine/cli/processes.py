"""Several engine processes on one queue: start them, watch them, tell them what a signal asks for, add up what they do.

Layer: command line.  Spec: issue "Speed" (`run --processes N`); design.md "Queue": leases make it safe.
Each child is a whole engine, with a journal and leases of its own; what they share is the queue, and through it the
limits (queue/_limits.py).  The parent does no mail.  It keeps one socket to each child: a child reads octets from it
(`STOP`, `RELOAD`, `END`) and writes lines of JSON with its counts, and its end says that the other side is gone.  Words
on a socket are neither lost nor counted twice, as signals are that come while a process starts, or that a service
manager sends to parent and children alike.
Invariants: a child does not outlive the parent for longer than a drain takes; one that dies is started again later and
later, and whoever lives takes over its leases (`recover`); one that ends with an error that another start would not
cure ends all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from ..actions.supervisor import Restart, own_command
from ..delivery.progress import Progress, SiteCounts
from .exits import Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

#: what a child is told: let what is in flight end; the same with the configuration read anew; end at once
STOP: Final = b"S"
RELOAD: Final = b"R"
END: Final = b"E"
#: seconds between two reports of a child
TELL_S: Final = 0.25
#: a child that lived so long has not failed at its start
_HEALTHY_S: Final = 30.0
#: seconds that a child may take to end at once, and a parent to take a last report
_END_S: Final = 5.0
_READ_OCTETS: Final = 65_536
#: how often a stop is asked for before children that do not end are killed
_KILLING_STOP: Final = 2
#: statuses that another start would not cure
_FATAL: Final = frozenset({Exit.USAGE, Exit.DATA, Exit.UNAVAILABLE, Exit.TEMPORARY, Exit.CONFIG})
_COUNTS: Final = ("delivered", "failed", "deferred", "waiting", "in_doubt", "connections", "opened", "tls")
#: what is told of the action workers of one engine and is over with it
_OF_LIVING: Final = frozenset({"workers", "waiting", "unacknowledged"})
#: what all engines see of the queue that they share: the last report holds
_OF_QUEUE: Final = ("events", "dead", "events_behind_s")


# --- the child's side -------------------------------------------------------------------------------------------------


class Link:
    """A child's end of the socket to its parent; lives through several engines, one after another.

    Raises:
        OSError: the descriptor is no socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._sock = socket.socket(fileno=descriptor)
        self._sock.setblocking(False)
        self._unsent = b""
        self._told: dict[str, SiteCounts] = {}

    def close(self) -> None:
        """Close the socket: the parent takes that for our end."""
        self._sock.close()

    async def words(self) -> AsyncIterator[bytes]:
        """What the parent says, a word each; `STOP` when the parent is gone."""
        sock = trio.socket.from_stdlib_socket(self._sock)
        while True:
            try:
                octet = await sock.recv(1)
            except OSError:
                octet = b""
            yield octet or STOP
            if not octet:
                return

    async def tell(self, progress: Progress) -> None:
        """Report what was counted, now and again, until cancelled."""
        while True:
            await trio.sleep(TELL_S)
            self._report(progress)

    def tell_last(self, progress: Progress) -> None:
        """Report what was counted in all.  Blocks for a bounded time."""
        self._sock.settimeout(_END_S)
        with contextlib.suppress(OSError):
            self._sock.sendall(self._unsent + self._line(progress))
        self._unsent = b""
        self._sock.setblocking(False)

    def _report(self, progress: Progress) -> None:
        # a parent that reads nothing costs one report, which stays in one piece
        unsent = self._unsent or self._line(progress)
        with contextlib.suppress(BlockingIOError):
            try:
                unsent = unsent[self._sock.send(unsent) :]
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
                unsent = b""
        self._unsent = unsent

    def _line(self, progress: Progress) -> bytes:
        sites = {label: counts for label, counts in progress.sites.items() if self._told.get(label) != counts}
        for label, counts in sites.items():
            self._told[label] = SiteCounts(**asdict(counts))
        report = {
            "phase": progress.phase,
            **{name: getattr(progress, name) for name in (*_COUNTS, *_OF_QUEUE)},
            "actions": progress.actions,
            "sites": {label: list(asdict(counts).values()) for label, counts in sites.items()},
        }
        return json.dumps(report).encode() + b"\n"


def pin(number: int, count: int) -> None:
    """Keep this process, the `number`-th of `count`, on a core of its own where there is one for each.

    With fewer processes than cores the kernel has room to do better; a process starts its action workers on its core.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == count:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {cores[number]})


# --- the parent's side ------------------------------------------------------------------------------------------------


class Tally:
    """Adds the reports of one life of a child to a `Progress` that all share."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._sites: dict[str, list[int]] = {}
        self._actions: dict[str, dict[str, int]] = {}
        #: what it says that it is about beside sending
        self.phase = ""

    def add(self, report: dict[str, Any]) -> None:
        """Take a report, which says what was counted since the child was started."""
        self.phase = report["phase"]
        for name in _COUNTS:
            self._set(name, report[name])
        for name in _OF_QUEUE:
            setattr(self._progress, name, report[name])
        self._set_actions(report["actions"])
        for label, numbers in report["sites"].items():
            counts = self._progress.site(label)
            before = self._sites.get(label, [0] * len(numbers))
            for name, now, then in zip(SiteCounts.__slots__, numbers, before, strict=True):
                setattr(counts, name, getattr(counts, name) + now - then)
            self._sites[label] = numbers

    def end(self) -> None:
        """The child has ended: what it did stays, its connections are gone."""
        self.phase = ""
        self._set("connections", 0)
        self._set_actions(
            {
                group: {name: 0 if name in _OF_LIVING else count for name, count in counts.items()}
                for group, counts in self._actions.items()
            }
        )

    def _set_actions(self, actions: dict[str, dict[str, int]]) -> None:
        for group, counts in actions.items():
            added, before = self._progress.actions.setdefault(group, {}), self._actions.get(group, {})
            for name, count in counts.items():
                added[name] = added.get(name, 0) + count - before.get(name, 0)
        self._actions = actions

    def _set(self, name: str, value: int) -> None:
        setattr(self._progress, name, getattr(self._progress, name) + value - self._counts[name])
        self._counts[name] = value


@dataclass(slots=True, eq=False)
class _Child:
    """A child that lives."""

    process: trio.Process
    sock: socket.socket
    tally: Tally

    def say(self, word: bytes) -> None:
        """Tell it a word; one that is ending reads no more."""
        with contextlib.suppress(OSError):
            self.sock.send(word)


@dataclass(slots=True, eq=False)
class Processes:
    """Keeps `count` engines running.

    Args:
        command: starts one; ``--control-fd N`` and ``--number K`` are added.
        drain: an engine that ends well has done its part; otherwise it is missed.
        progress: what all of them do together.
        log: takes a line; set by `running.run_processes`.
    """

    count: int
    command: Sequence[str]
    drain: bool
    progress: Progress = field(default_factory=Progress)
    log: Callable[[str], None] = print
    restart: Restart = field(default_factory=Restart)
    _children: dict[int, _Child] = field(default_factory=dict)
    _stopping: trio.Event = field(default_factory=trio.Event)
    _stops: int = 0
    _status: int = 0

    async def run(self) -> int:
        """Start the engines and watch them until all have ended; the worst of their exit statuses."""
        async with trio.open_nursery() as nursery:
            for number in range(self.count):
                nursery.start_soon(self._keep, number)
        return self._status

    def stop(self) -> None:
        """Let all of them drain; `run` returns then.  A second call ends them at once, a third kills them."""
        self._stops += 1
        self._stopping.set()
        self.progress.phase = "stopping"
        for child in self._children.values():
            if self._stops > _KILLING_STOP:
                child.process.kill()
            else:
                child.say(STOP if self._stops == 1 else END)

    def reload(self) -> None:
        """Let all of them read their configuration again."""
        for child in self._children.values():
            child.say(RELOAD)

    @property
    def pids(self) -> dict[int, int]:
        """Number -> process id of each that lives."""
        return {number: child.process.pid for number, child in self._children.items()}

    async def _keep(self, number: int) -> None:
        failures = 0
        was_up = False
        while not self._stopping.is_set():
            began = trio.current_time()
            status, pid = await self._live(number)
            if status == 0 and (self.drain or self._stopping.is_set()):
                return
            if self._is_over(status, was_up=was_up, was_started=pid > 0):
                self._status = max(self._status, status if status >= 0 else 128 - status)
                if not self._stopping.is_set():
                    self.stop()
                return
            is_healthy = trio.current_time() - began >= _HEALTHY_S
            was_up = was_up or is_healthy or status <= 0
            failures = 1 if is_healthy else failures + 1
            pause_s = self.restart.pause_s(failures)
            self.log(f"engine process {number} ({pid}) is gone: {_how(status)}; the next one starts in {pause_s:g} s")
            with trio.move_on_after(pause_s):
                await self._stopping.wait()

    def _is_over(self, status: int, *, was_up: bool, was_started: bool) -> bool:
        """Whether the end of a child is the end of all."""
        if self._stopping.is_set():
            return True
        # a configuration that was spoilt since the start is for the next reload to complain of, and a machine that has
        # no process or descriptor left now is no reason to end those that run
        return status in _FATAL and not (was_up and (status == Exit.CONFIG or not was_started))

    async def _live(self, number: int) -> tuple[int, int]:
        """One life of a child; its exit status, negative for a signal, and its process id, 0 if it has not begun."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            return self._not_started(error)
        with ours:
            try:
                process = await trio.lowlevel.open_process(
                    [*self.command, "--control-fd", str(theirs.fileno()), "--number", str(number)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C is for the parent, which tells its children what to do
                    start_new_session=True,
                )
            except OSError as error:
                return self._not_started(error)
            finally:
                theirs.close()
            tally = Tally(self.progress)
            child = self._children[number] = _Child(process, ours, tally)
            if self._stopping.is_set():
                child.say(STOP)
            try:
                await self._listen(ours, tally)
                await process.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)
                del self._children[number]
                tally.end()
        assert process.returncode is not None
        return process.returncode, process.pid

    def _not_started(self, error: OSError) -> tuple[int, int]:
        self.log(f"an engine process cannot be started: {error.strerror or error}")
        return Exit.TEMPORARY, 0

    async def _listen(self, sock: socket.socket, tally: Tally) -> None:
        """Take reports until the child closes its end, which it does by ending."""
        sock.setblocking(False)
        stream = trio.socket.from_stdlib_socket(sock)
        rest = b""
        while True:
            try:
                octets = await stream.recv(_READ_OCTETS)
            except ConnectionResetError:
                return  # it ended without having read what it was told
            if not octets:
                return
            *lines, rest = (rest + octets).split(b"\n")
            for line in lines:
                tally.add(json.loads(line))
            if not self._stopping.is_set():
                phases: Iterable[str] = (child.tally.phase for child in self._children.values())
                self.progress.phase = next(filter(None, phases), "")


async def _end(process: trio.Process) -> None:
    """See that a process is gone: it has ended, or we were cancelled."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with trio.move_on_after(_END_S):
            await process.wait()


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def engine_command(
    count: int, config: Path | None, queue: str | None, *, drain: bool, job_id: int | None = None, wait: bool = False
) -> list[str]:
    """The command of a child: `outrider run`, with what the parent was told."""
    command = [*own_command(), "run", "--processes", str(count)]
    if config is not None:
        command += ["--config", str(config)]
    if queue is not None:
        command += ["--queue", queue]
    if job_id is not None:
        command += ["--job", str(job_id)]
    return command + ["--drain"] * drain + ["--wait"] * wait

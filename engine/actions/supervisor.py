"""Start workers and keep them alive; let others attach themselves.

Layer: adapter, on trio.  Spec: issue text "Workers".
A worker of the engine's own is a process that is started with one end of a socket pair; one from outside connects to
a Unix socket.  From there both are the same: they are handed a transport, and served by the hub until they are gone.
Invariants: a process that was started here does not outlive `run`, and ends by itself when the engine is killed (its
control socket closes); one that dies before it got anything done, or in the middle of a question, is started again
later and later; every end leaves a line in the log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import ActionError
from . import attach
from .endings import Ending
from .hub import MAIN
from .transport import RING_OCTETS, make_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from .channel import Link
    from .hub import Hub

#: a worker that lived so long has not failed at its start
_HEALTHY_S: Final = 30.0
#: how long a process that was told to may take to end, and any after SIGTERM
_END_S: Final = 5.0
#: how long the kernel may take to tell of the end of one whose link is over
_DEAD_S: Final = 0.2
#: pause after a connection of a worker could not be accepted
_BREATH_S: Final = 1.0
#: workers that may be attached to one socket at one time
MAX_ATTACHED: Final = 64

_MAIN_LOG: Final = frozenset(["main"])


@dataclass(frozen=True, slots=True)
class Restart:
    """Pauses before a worker is started again, in seconds: `first_s`, then twice the last one, never over `most_s`."""

    first_s: float = 0.1
    most_s: float = 30.0

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return min(self.first_s * 2.0 ** min(failures - 1, 32), self.most_s)


def own_command(module: str = "engine.cli.main") -> list[str]:
    """How another process of ours is started: by a Python that finds modules where this one does.

    By itself `-m` looks into the current directory first, where anybody may have put a module of a name that we import.
    """
    try:
        looks_here = "" in sys.path or os.getcwd() in sys.path
    except OSError:  # it has been removed
        looks_here = "" in sys.path
    return [sys.executable, *(() if looks_here else ("-P",)), "-m", module]


def worker_command() -> list[str]:
    """How a worker of the engine's own is started; `--control-fd N` is added."""
    return own_command("engine.cli.serve")


class Supervisor:
    """Keeps `count` workers alive.

    Args:
        command: starts a worker; ``--control-fd N`` is added.
        settings: for the workers; a function, since a new configuration is for the next workers.
        log: takes a line, and the logs it is for.
    """

    def __init__(
        self,
        hub: Hub,
        count: int,
        *,
        log: Callable[[bytes, frozenset[str]], None],
        settings: Callable[[], Mapping[str, Any]] = dict,
        command: Sequence[str] | None = None,
        group: str = MAIN,
        ring_octets: int = RING_OCTETS,
        restart: Restart | None = None,
        healthy_s: float = _HEALTHY_S,
    ) -> None:
        self._hub = hub
        self._count = count
        self._log = log
        self._settings = settings
        self._command = list(command or worker_command())
        self._group = group
        self._ring_octets = ring_octets
        self._restart = restart or Restart()
        self._healthy_s = healthy_s
        self._is_stopping = False
        #: number -> process id of each that lives
        self.pids: dict[int, int] = {}
        #: how often a worker was started
        self.starts = 0
        #: number -> the link of each that lives, or of the last one that did
        self._links: dict[int, Link] = {}

    async def run(self) -> None:
        """Start the workers and watch them, until cancelled or stopped."""
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._keep, number)

    async def stop(self, *, timeout_s: float) -> bool:
        """Let the workers finish what they have; `run` ends then.  False if for so long they got nothing done."""
        self._is_stopping = True
        return await self._hub.drain(timeout_s=timeout_s)

    async def _keep(self, number: int) -> None:
        failures = 0
        while not self._is_stopping:
            begin = trio.current_time()
            why = await self._live(number)
            if self._is_stopping:
                return
            is_fine = trio.current_time() - begin >= self._healthy_s or self._got_on(number)
            failures = 1 if is_fine else failures + 1
            pause = self._restart.pause_s(failures)
            self._say(f"action worker {number} is gone: {why}; the next one starts in {pause:g} s")
            await trio.sleep(pause)

    def _got_on(self, number: int) -> bool:
        """Whether the last worker got events done, and left no question that may have ended it."""
        link = self._links.get(number)
        return link is not None and link.done > 0 and not link.unanswered

    async def _live(self, number: int) -> str:
        """One life of a worker; returns how it ended."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        try:
            try:
                process = await trio.lowlevel.open_process(
                    [*self._command, "--control-fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C is for the engine, which tells its workers what to do
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                return f"it cannot be started: {error.strerror or error}"
        finally:
            theirs.close()
        self.starts += 1
        self.pids[number] = process.pid
        self._links.pop(number, None)

        async def wait_ended() -> Ending | None:
            with trio.move_on_after(_DEAD_S):
                await process.wait()
            return None if process.returncode is None else Ending.of(process.returncode)

        def keep(link: Link) -> None:
            self._links[number] = link

        try:
            why = await _serve(self._hub, ours, self._group, self._settings(), self._ring_octets, keep, wait_ended)
            # one that was not told to end has died, or must
            with trio.move_on_after(_END_S if self._is_stopping else _DEAD_S):
                await process.wait()
        finally:
            del self.pids[number]
            await _end(process)
        return f"{why} ({_how(process.returncode)})"

    def _say(self, text: str) -> None:
        self._log(text.encode("utf-8", "replace"), _MAIN_LOG)


async def _serve(
    hub: Hub,
    sock: socket.socket,
    group: str,
    settings: Mapping[str, Any],
    ring_octets: int,
    on_link: Callable[[Link], None] | None = None,
    wait_ended: Callable[[], Awaitable[Ending | None]] | None = None,
) -> str:
    """Hand a transport over and serve the worker; returns why it ended."""
    try:
        transport, kind, descriptors = make_pair(ring_octets)
    except OSError as error:
        sock.close()
        return f"there is no transport for it: {error.strerror or error}"
    sock.setblocking(False)
    try:
        attach.hand_over(sock, kind, descriptors)
    except ActionError as error:
        transport.close()
        sock.close()
        return str(error)
    return await hub.serve(transport, sock, group=group, settings=settings, on_link=on_link, wait_ended=wait_ended)


async def _end(process: trio.Process) -> None:
    """See that a process is gone, the hard way if it must be."""
    with trio.CancelScope(shield=True):
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                return
            # it may have ended by itself just now
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with trio.move_on_after(_END_S):
                await process.wait()


def _how(returncode: int | None) -> str:
    return "it cannot be ended" if returncode is None else str(Ending.of(returncode))


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """A socket that workers of one group attach themselves to.

    Attributes:
        mode: permission bits.
        gid: group of the file, -1 to leave it.
        uids: users that may attach themselves beside the engine's own and root.
    """

    group: str
    path: str
    mode: int = 0o600
    gid: int = -1
    uids: Collection[int] = ()


async def serve_socket(
    hub: Hub,
    options: SocketOptions,
    *,
    log: Callable[[bytes, frozenset[str]], None],
    ring_octets: int = RING_OCTETS,
    settings: Mapping[str, Any] | None = None,
    no_more: trio.Event | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Let workers attach themselves, until cancelled; `task_status` is told at which path, when they can.

    Args:
        no_more: once it is set, those that are attached stay, and there are no new ones.

    Raises:
        ActionError: the socket cannot be made.
    """
    plain, path = attach.listen_free(options.path, mode=options.mode, gid=options.gid)
    listener = trio.socket.from_stdlib_socket(plain)
    attached = trio.CapacityLimiter(MAX_ATTACHED)

    async def serve(sock: socket.socket, name: str) -> None:
        links: list[Link] = []
        async with attached:
            why = await _serve(hub, sock, options.group, settings or {}, ring_octets, links.append)
        how = f" ({links[0].ending})" if links and links[0].ending is not None else ""
        log(f"{name} is gone: {why}{how}".encode("utf-8", "replace"), _MAIN_LOG)

    async def accept(nursery: trio.Nursery) -> None:
        while True:
            try:
                accepted, _ = await listener.accept()
            except OSError as error:
                # no descriptors left, most likely: mail needs them too, and gives them back
                log(f"no action worker can attach itself now: {error.strerror or error}".encode(), _MAIN_LOG)
                await trio.sleep(_BREATH_S)
                continue
            sock = socket.socket(fileno=accepted.detach())
            who = attach.credentials(sock)
            name = f"action worker of {options.group}" + (f" (process {who.pid}, user {who.uid})" if who else "")
            if not attach.may_attach(who, options.uids) or not attached.available_tokens:
                reason = "too many are attached" if not attached.available_tokens else "it may not attach itself"
                log(f"{name} refused: {reason}".encode(), _MAIN_LOG)
                sock.close()
                continue
            log(f"{name} attached itself".encode(), _MAIN_LOG)
            nursery.start_soon(serve, sock, name)

    async with trio.open_nursery() as nursery:
        try:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(accept, nursery)
                task_status.started(path)
                await (trio.Event() if no_more is None else no_more).wait()
                accepting.cancel_scope.cancel()
        finally:
            # in this order: from the close on the path may be another engine's
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener.close()

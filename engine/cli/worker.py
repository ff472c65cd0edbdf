"""`outrider worker`: processes that run event actions.

Layer: command line.  Spec: design.md "Command line"; issue text "Workers".
`run` is for workers of users: it keeps so many processes attached to each engine that listens at a socket
(`attach.paths`), whenever it comes, and starts those again that die.  What an engine starts by itself is serve.py.
Only the parent of a process is told how it ended, and the engine wants to know (endings.py): so each process hands a
copy of its control socket to this command, which says there how it ended, and then closes it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..actions import attach
from ..actions.endings import Ending
from ..actions.options import socket_of
from ..actions.supervisor import Restart
from ..actions.worker import load
from ..actions.worker import run as run_worker
from ..config import load as load_config
from ..errors import ActionError, ConfigError, EngineError
from .exits import Exit, exit_code, exit_on_error

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

app = typer.Typer(help="Run event actions.", no_args_is_help=True)

#: seconds between looks for engines
_LOOK_S: Final = 0.5
#: pauses before a process that died is started again
_RESTART: Final = Restart(0.25, 30.0)
#: how long a process has lived that has not failed at its start, in seconds
_HEALTHY_S: Final = 30.0
#: how long processes may take to end after SIGTERM
_END_S: Final = 15.0


@app.command()
def run(
    worker: Annotated[str, typer.Argument(help="package.module:worker, found as Python finds modules from here.")],
    attach_to: Annotated[
        str, typer.Option("--socket", help="Socket of the engine for this group of workers; default: that of --config.")
    ] = "",
    config: Annotated[str, typer.Option("--config", "-c", help="Configuration of the engine.")] = "",
    processes: Annotated[int, typer.Option(help="How many processes for each engine.", min=1, max=64)] = 1,
    once: Annotated[bool, typer.Option(help="End when the engine is gone, instead of waiting for the next.")] = False,
) -> None:
    """Run the handlers and vetoes of a Worker for an engine (SIGTERM or Ctrl-C ends it)."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    with exit_on_error():
        group = load(worker).group
        if bool(attach_to) == bool(config):
            raise ConfigError("either --socket or --config says where the engine is")
        path = attach_to or socket_of(load_config(config), group).path
        raise SystemExit(_Crew(worker, path, processes).run(once=once))


class _Ended(BaseException):
    """A signal ends the process; no handler of a user may swallow it."""


def _end(*_: object) -> None:
    raise _Ended


@dataclass(slots=True)
class _Post:
    """The place of one process.

    Attributes:
        desk: gets its control socket.
        failures: in a row; started_at: when it was; not_before: when the next may start, on the monotonic clock.
    """

    process: SpawnProcess | None = None
    desk: socket.socket | None = None
    failures: int = 0
    started_at: float = 0.0
    not_before: float = 0.0

    def tell_end(self, ending: Ending | None) -> None:
        """Say on its control socket how it ended, and let the engine know that it did."""
        desk, self.desk = self.desk, None
        if desk is None:
            return
        with desk, contextlib.suppress(OSError):
            _, descriptors, _, _ = socket.recv_fds(desk, 1, 1, socket.MSG_DONTWAIT)
            for fd in descriptors:
                with socket.socket(fileno=fd) as control:
                    if ending is not None:
                        control.send(str(ending).encode(), socket.MSG_DONTWAIT)


class _Crew:
    """Processes, so many for each engine that listens."""

    def __init__(self, worker: str, path: str, count: int) -> None:
        self._worker = worker
        self._path = path
        self._count = count
        self._posts: dict[tuple[str, int], _Post] = {}
        self._context = multiprocessing.get_context("spawn")

    def run(self, *, once: bool) -> int:
        """Until a signal ends it, or, if `once`, the engine; the exit status.

        Raises:
            ActionError: `once`, and there is no engine.
        """
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, _end)
        is_told = False
        try:
            while True:
                paths = [path for path in attach.paths(self._path) if attach.is_used(path)]
                if once and not self._posts and not paths:
                    raise ActionError(f"no engine at {self._path}")
                if not once and not paths and not is_told:
                    _tell(f"no engine at {self._path}; will look again")
                is_told = not paths
                if not (once and self._posts):
                    self._start_missing(paths)
                self._wait()
                failed = self._reap(paths, once=once)
                if failed is not None:
                    return failed
                if once and not any(post.process for post in self._posts.values()):
                    return Exit.OK
        except _Ended:
            return Exit.OK
        finally:
            self._stop()

    def _start_missing(self, paths: list[str]) -> None:
        now = time.monotonic()
        for path in paths:
            for number in range(self._count):
                post = self._posts.setdefault((path, number), _Post())
                if post.process is None and now >= post.not_before:
                    post.desk, theirs = socket.socketpair()
                    post.started_at = now
                    with theirs:
                        post.process = self._context.Process(
                            target=_child, args=(self._worker, path, theirs), daemon=True
                        )
                        post.process.start()

    def _wait(self) -> None:
        sentinels = [post.process.sentinel for post in self._posts.values() if post.process is not None]
        if sentinels:
            connection.wait(sentinels, timeout=_LOOK_S)
        else:
            time.sleep(_LOOK_S)

    def _reap(self, paths: list[str], *, once: bool) -> int | None:
        """Look who ended; the exit status if that ends everything."""
        for place, post in list(self._posts.items()):
            process = post.process
            if process is None or process.exitcode is None:
                if process is None and place[0] not in paths:
                    del self._posts[place]
                continue
            status, post.process = process.exitcode, None
            process.close()
            # it was told to end, or its engine has gone
            post.tell_end(None if status == Exit.OK else Ending.of(status))
            if status == Exit.OK:
                post.failures = 0
                continue
            if status == Exit.CONFIG or once:
                return status if status > 0 else 128 - status
            post.failures = 1 if time.monotonic() - post.started_at >= _HEALTHY_S else post.failures + 1
            pause = _RESTART.pause_s(post.failures)
            post.not_before = time.monotonic() + pause
            _tell(f"a worker process died ({Ending.of(status)}); the next one starts in {pause:g} s")
        return None

    def _stop(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        running = [post.process for post in self._posts.values() if post.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _END_S
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        for post in self._posts.values():
            post.tell_end(None)


def _child(place: str, path: str, desk: socket.socket) -> None:
    """Be a worker until the engine ends, or the process that started this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker, control = load(place), attach.connect(path)
        with desk:
            socket.send_fds(desk, [b"."], [control.fileno()])
        run_worker(worker, control)
    except _Ended:
        pass
    except EngineError as error:
        _tell(str(error))
        sys.exit(exit_code(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)


def _tell(text: str) -> None:
    print(f"outrider: {text}", file=sys.stderr, flush=True)

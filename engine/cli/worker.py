"""`outrider worker`: processes that run event actions.

Layer: command line.  Spec: design.md "Command line"; issue text "Workers".
`serve` is what an engine starts by itself; `run` is for workers of users, which attach themselves to a socket of the
engine and come back when that is gone for a while.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..actions import attach
from ..actions.api import Worker
from ..actions.worker import load
from ..actions.worker import run as run_worker
from ..errors import ActionError, ConfigError, EngineError
from .exits import Exit, exit_code, exit_on_error

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

app = typer.Typer(help="Run event actions.", no_args_is_help=True)

#: seconds between tries to reach the engine
_AGAIN_S: Final = 1.0
#: how long a process may take to end after SIGTERM
_END_S: Final = 15.0


@app.command()
def serve(
    control_fd: Annotated[int, typer.Option(help="Descriptor of the socket to the engine that started this.", min=0)],
) -> None:
    """Be a worker of the engine that started this process (internal)."""
    with exit_on_error():
        try:
            control = socket.socket(fileno=control_fd)
        except OSError as error:
            raise ActionError(f"descriptor {control_fd} is no socket: {error.strerror}") from None
        # the engine tells when it is enough; Ctrl-C is not for us
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run_worker(Worker(), control)


@app.command()
def run(
    worker: Annotated[str, typer.Argument(help="package.module:worker, found as Python finds modules from here.")],
    attach_to: Annotated[str, typer.Option("--socket", help="Socket of the engine for this group of workers.")],
    processes: Annotated[int, typer.Option(help="How many processes.", min=1, max=256)] = 1,
    once: Annotated[bool, typer.Option(help="End when the engine is gone, instead of waiting for the next.")] = False,
) -> None:
    """Run the handlers and vetoes of a Worker for an engine (SIGTERM or Ctrl-C ends it)."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    with exit_on_error():
        load(worker)
        if processes == 1:
            raise SystemExit(_attach(worker, attach_to, once))
        raise SystemExit(_run_many(worker, attach_to, processes, once))


def _run_many(worker: str, path: str, count: int, once: bool) -> int:
    """Run several processes; the exit status is the first one that is not 0."""
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_child, args=(worker, path, once), daemon=True) for _ in range(count)]
    for child in children:
        child.start()
    signal.signal(signal.SIGTERM, lambda *_: _stop(children))
    signal.signal(signal.SIGINT, lambda *_: _stop(children))
    for child in children:
        child.join()
    return next((child.exitcode or 0 for child in children if child.exitcode), 0)


def _stop(children: list[SpawnProcess]) -> None:
    for child in children:
        child.terminate()


def _child(worker: str, path: str, once: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_attach(worker, path, once))


class _Ended(BaseException):
    """A signal ends the process; no handler of a user may swallow it."""


def _attach(place: str, path: str, once: bool) -> int:
    """Be a worker until a signal ends it, or the engine if `once`."""

    def end(*_: object) -> None:
        raise _Ended

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    told = ""
    try:
        while True:
            try:
                run_worker(load(place), attach.connect(path))
                told = ""
                if once:
                    return Exit.OK
            except ConfigError:
                raise
            except ActionError as error:
                if once:
                    raise
                if str(error) != told:
                    told = str(error)
                    print(f"outrider: {told}; will try again", file=sys.stderr, flush=True)
            time.sleep(_AGAIN_S)
    except _Ended:
        return Exit.OK
    except EngineError as error:
        print(f"outrider: {error} (process {os.getpid()})", file=sys.stderr)
        return exit_code(error)

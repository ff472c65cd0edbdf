"""`outrider run`: deliver what is in the queue until told to stop.

Layer: command line.  Spec: design.md "Command line".
SIGHUP reads the configuration again: if it can be used, what is in flight ends under the old one and everything after
that goes by the new one; if it cannot, the error is told and nothing changes.  A SIGHUP that comes between two engines
is kept for the next.  With `--processes N` the parent does the reading first, and tells its children when it is good.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from .. import app
from ..config import Config, load
from ..delivery.progress import Progress
from ..errors import ConfigError, EngineError, StoreError
from ..logs.facts import Fact, FactKind
from .display import tell_summary
from .exits import Exit, exit_on_error
from .processes import Link, Processes, engine_command, pin
from .running import run_processes, run_with_signals

if TYPE_CHECKING:
    from ..delivery.core import Core


def run(
    config: Annotated[Path | None, typer.Option(help="Configuration file (TOML).")] = None,
    queue: Annotated[str | None, typer.Option(help="URL of the queue, instead of the configuration's.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is due any more.")] = False,
    processes: Annotated[
        int, typer.Option(help="Engines that work the queue, a process each; one a core is most.", min=1, max=256)
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    job: Annotated[int | None, typer.Option(hidden=True)] = None,
    wait: Annotated[bool, typer.Option("--wait", hidden=True)] = False,
    control_fd: Annotated[int | None, typer.Option(hidden=True, min=0)] = None,
    number: Annotated[int, typer.Option(hidden=True, min=0)] = 0,
) -> int:
    """Deliver what is in the queue, whoever put it there; SIGTERM drains, SIGHUP reads the configuration again."""
    with exit_on_error():
        task = _Task(config, queue, drain, job, wait)
        if control_fd is not None:
            pin(number, processes)
            with contextlib.closing(Link(control_fd)) as parent:
                _Daemon(task, parent).run()
            return Exit.OK
        if processes > 1:
            return _run_processes(task, processes, as_json)
        tell_summary(_Daemon(task).run(), as_json=as_json)
        return Exit.OK


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be delivered, and by which configuration.

    Attributes:
        job_id: this job only; wait: with `drain`, stay until everybody is settled (`outrider send`).
    """

    path: Path | None
    queue: str | None
    drain: bool
    job_id: int | None
    wait: bool

    def read(self) -> Config:
        """The configuration as it is now.  Raises ConfigError."""
        return app.with_queue(load(str(self.path)) if self.path is not None else Config(), self.queue)

    def compile_or_none(self) -> app.Compiled | None:
        """The same, compiled; None, and told, if it is of no use."""
        try:
            return app.compile_config(self.read())
        except ConfigError as error:
            _tell_refused(error)
            return None


def _run_processes(task: _Task, count: int, as_json: bool) -> int:
    """Several engines, each in a child."""
    progress = Progress()
    children = Processes(
        count,
        engine_command(count, task.path, task.queue, drain=task.drain, job_id=task.job_id, wait=task.wait),
        drain=task.drain,
        progress=progress,
    )
    status = trio.run(
        partial(run_processes, children, app.compile_config(task.read()), title="queue", read=task.compile_or_none)
    )
    tell_summary(progress, as_json=as_json)
    return status


class _Daemon:
    """One engine after another, each with the configuration that was read last and can be used."""

    def __init__(self, task: _Task, parent: Link | None = None) -> None:
        self._task = task
        self._parent = parent
        self._progress = Progress()
        self._hangups = 0
        # one that comes while this is read may mean what was written meanwhile
        signal.signal(signal.SIGHUP, self._keep_hangup)
        self._config = task.read()
        self._next: Config | None = None

    def run(self) -> Progress:
        """Run to the end; what was done."""
        while self._run_engine():
            pass
        # there is nothing left to read anew for: a hang-up that comes now must not spoil the exit status
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if self._parent is not None:
            self._parent.tell_last(self._progress)
        return self._progress

    def _keep_hangup(self, *_: object) -> None:
        self._hangups += 1

    def _run_engine(self) -> bool:
        """Run an engine to its end; True if another is to follow."""
        with contextlib.ExitStack() as stack:
            core = self._open(stack)
            if self._hangups:
                self._hangups = 0
                self._on_hangup(core)
            self._progress.phase = ""
            stopped = trio.run(self._serve, core)
        return self._next is not None and not stopped

    def _open(self, stack: contextlib.ExitStack) -> Core:
        """The next engine; with the configuration before where that of a SIGHUP turns out to be of no use."""
        fresh, self._next = self._next, None
        open_engine = partial(
            app.open_engine,
            progress=self._progress,
            log_to_stderr=not sys.stderr.isatty(),
            may_be_alone=self._parent is None,
        )
        if fresh is not None:
            try:
                core = stack.enter_context(open_engine(fresh))
            except (ConfigError, StoreError) as error:
                _tell_refused(error)
            else:
                self._config = fresh
                core.log.write([Fact(FactKind.NOTE, core.clock(), text="the configuration was read again")])
                return core
        return stack.enter_context(open_engine(self._config))

    async def _serve(self, core: Core) -> bool:
        return await run_with_signals(
            core,
            job_id=self._task.job_id,
            drain=self._task.drain,
            wait=self._task.wait,
            title="queue",
            display=self._parent is None,
            on_hangup=lambda: self._on_hangup(core),
            parent=self._parent,
        )

    def _on_hangup(self, core: Core) -> None:
        fresh = self._task.compile_or_none()
        if fresh is None:
            return
        self._next = fresh.config
        core.progress.phase = "reading the configuration"
        core.stop()


def _tell_refused(error: EngineError) -> None:
    print(f"outrider: the configuration stays as it was: {error}", file=sys.stderr, flush=True)

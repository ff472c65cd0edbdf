"""`outrider run`: deliver what is in the queue until told to stop.

Layer: command line.  Spec: design.md "Command line".
SIGHUP reads the configuration again: if it can be used, what is in flight ends under the old one and everything after
that goes by the new one; if it cannot, the error is told and nothing changes.  A SIGHUP that comes between two engines
is kept for the next.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from .. import app
from ..config import Config, load
from ..delivery.progress import Progress
from ..errors import ConfigError, EngineError, StoreError
from .display import tell_summary
from .exits import Exit, exit_on_error
from .running import run_with_signals

if TYPE_CHECKING:
    from ..delivery.core import Core


def run(
    config: Annotated[Path | None, typer.Option(help="Configuration file (TOML).")] = None,
    queue: Annotated[str | None, typer.Option(help="URL of the queue, instead of the configuration's.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is due any more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Deliver what is in the queue, whoever put it there; SIGTERM drains, SIGHUP reads the configuration again."""
    with exit_on_error():
        _Daemon(config, queue, drain).run(as_json)
        return Exit.OK


class _Daemon:
    """One engine after another, each with the configuration that was read last and can be used."""

    def __init__(self, path: Path | None, queue: str | None, drain: bool) -> None:
        self._path = path
        self._queue = queue
        self._drain = drain
        self._progress = Progress()
        self._hangups = 0
        self._config = self._read()
        self._next: Config | None = None

    def _read(self) -> Config:
        return app.with_queue(load(str(self._path)) if self._path is not None else Config(), self._queue)

    def run(self, as_json: bool) -> None:
        signal.signal(signal.SIGHUP, self._keep_hangup)
        while self._run_engine():
            pass
        # there is nothing left to read anew for: a hang-up that comes now must not spoil the exit status
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        tell_summary(self._progress, as_json=as_json)

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
        log_to_stderr = not sys.stderr.isatty()
        if fresh is not None:
            try:
                core = stack.enter_context(app.open_engine(fresh, progress=self._progress, log_to_stderr=log_to_stderr))
            except (ConfigError, StoreError) as error:
                _tell_refused(error)
            else:
                self._config = fresh
                return core
        return stack.enter_context(app.open_engine(self._config, progress=self._progress, log_to_stderr=log_to_stderr))

    async def _serve(self, core: Core) -> bool:
        return await run_with_signals(core, drain=self._drain, title="queue", on_hangup=lambda: self._on_hangup(core))

    def _on_hangup(self, core: Core) -> None:
        try:
            fresh = self._read()
            app.check(fresh)
        except ConfigError as error:
            _tell_refused(error)
            return
        self._next = fresh
        core.progress.phase = "reading the configuration"
        core.stop()


def _tell_refused(error: EngineError) -> None:
    print(f"outrider: the configuration stays as it was: {error}", file=sys.stderr, flush=True)

"""Run an engine for a command: signals, the display, the end.

Layer: command line.  Spec: design.md "Command line".
The first SIGTERM or Ctrl-C lets what is in flight end, the second ends at once (the in-flight journal then tells the
next engine what was under way).  SIGHUP is for whoever asks for it; to others it says that their terminal is gone,
which is a stop unless it is ignored (nohup).  A parent says the same in words, and that does not count as a signal.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING

import trio

from .. import app
from ..delivery.run import run
from ..errors import ConfigError
from ..logs.facts import Fact, FactKind
from .display import show
from .processes import END, RELOAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..delivery.core import Core
    from .processes import Link, Processes

#: exit status of a command that was ended by the second signal, as shells count it
INTERRUPTED = 130


async def run_with_signals(
    core: Core,
    *,
    job_id: int | None = None,
    drain: bool = True,
    wait: bool = False,
    title: str = "",
    total: int | None = None,
    display: bool = True,
    on_hangup: Callable[[], None] | None = None,
    parent: Link | None = None,
) -> bool:
    """Run the engine until it is done or told to stop; True if a signal stopped it.

    Args:
        display: show how it goes on.
        on_hangup: called at SIGHUP instead of stopping.
        parent: whom to report to and to obey, in a process that was started as one of several.

    Raises:
        StoreError: the queue cannot be used any more.
        SystemExit: a second signal came.
    """
    stopped = False
    app.spare_collector()

    async def watch() -> None:
        with trio.open_signal_receiver(*_watched(hangup=on_hangup is not None)) as signals:
            async for number in signals:
                if number == signal.SIGHUP and on_hangup is not None:
                    on_hangup()
                    continue
                if stopped:
                    sys.exit(INTERRUPTED)
                stop()

    def stop() -> None:
        nonlocal stopped
        stopped = True
        core.progress.phase = "stopping"
        core.stop()

    async def obey(parent: Link) -> None:
        async for word in parent.words():
            if word == RELOAD and on_hangup is not None:
                on_hangup()
            elif word == END:
                sys.exit(INTERRUPTED)
            elif not stopped:
                stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        if parent is not None:
            nursery.start_soon(obey, parent)
            nursery.start_soon(parent.tell, core.progress)
        async with contextlib.AsyncExitStack() as stack:
            if display:
                await stack.enter_async_context(show(core.progress, total=total, title=title))
            await run(core, job_id=job_id, drain=drain, wait=wait)
        nursery.cancel_scope.cancel()
    return stopped


def _watched(*, hangup: bool) -> list[signal.Signals]:
    """The signals to look for; `hangup`: a hang-up means something even to one that was started to outlive it."""
    if hangup or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        return [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT]


async def run_processes(
    children: Processes,
    compiled: app.Compiled,
    *,
    title: str = "",
    total: int | None = None,
    read: Callable[[], app.Compiled | None] | None = None,
) -> int:
    """Run several engines until they are done or told to stop; the worst of their exit statuses.

    Args:
        compiled: says where the log is.
        read: reads the configuration again at SIGHUP, None if it is of no use; without it SIGHUP is a stop.

    Raises:
        ConfigError: a log file cannot be opened.
    """
    log_to_stderr = not sys.stderr.isatty()
    log = app.open_log(compiled, log_to_stderr=log_to_stderr)
    children.log = lambda text: log.write([Fact(FactKind.NOTE, time.time(), text=text)])

    async def watch() -> None:
        nonlocal log
        with trio.open_signal_receiver(*_watched(hangup=read is not None)) as signals:
            async for number in signals:
                if number != signal.SIGHUP or read is None:
                    children.stop()
                elif (fresh := read()) is not None:
                    children.reload()
                    with contextlib.suppress(ConfigError):  # its children tell of it
                        old, log = log, app.open_log(fresh, log_to_stderr=log_to_stderr)
                        old.close()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with show(children.progress, total=total, title=title):
                status = await children.run()
            nursery.cancel_scope.cancel()
    finally:
        log.close()
    return status

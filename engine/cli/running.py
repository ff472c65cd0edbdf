"""Run an engine for a command: signals, the display, the end.

Layer: command line.  Spec: design.md "Command line".
The first SIGTERM or Ctrl-C lets what is in flight end, the second ends at once (the in-flight journal then tells the
next engine what was under way).  SIGHUP is for whoever asks for it; to others it says that their terminal is gone,
which is a stop unless it is ignored (nohup).
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

import trio

from ..delivery.run import run
from .display import show

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..delivery.core import Core

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
) -> bool:
    """Run the engine until it is done or told to stop; True if a signal stopped it.

    Args:
        display: show how it goes on.
        on_hangup: called at SIGHUP instead of stopping.

    Raises:
        StoreError: the queue cannot be used any more.
        SystemExit: a second signal came.
    """
    stopped = False
    watched = [signal.SIGTERM, signal.SIGINT]
    if on_hangup is not None or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        watched.append(signal.SIGHUP)

    async def watch() -> None:
        nonlocal stopped
        with trio.open_signal_receiver(*watched) as signals:
            async for number in signals:
                if number == signal.SIGHUP and on_hangup is not None:
                    on_hangup()
                    continue
                if stopped:
                    sys.exit(INTERRUPTED)
                stopped = True
                core.progress.phase = "stopping"
                core.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with contextlib.AsyncExitStack() as stack:
            if display:
                await stack.enter_async_context(show(core.progress, total=total, title=title))
            await run(core, job_id=job_id, drain=drain, wait=wait)
        nursery.cancel_scope.cancel()
    return stopped

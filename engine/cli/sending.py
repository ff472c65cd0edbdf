"""One run of `outrider send`, once all that was given is read: queue the job, deliver it, say what became of it.

Layer: command line.  Spec: design.md "Command line"; issue "First mail out", "Telling".
The list is queued first and delivered then, or, with `early`, delivered while it is still being read: its batches are
loaded in the queue's thread between claims and commits.  A reading that is cut off, by a signal or an error, then ends
the run: what is in flight ends, what was queued stays, the job is held, and the same command goes on with it.
Invariants: the job is whole, or held, or gone when this returns; an error of the list comes after the last delivery.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from .. import app
from ..delivery.loading import load
from ..delivery.run import raise_completions
from ..errors import EngineError
from ..queue.model import JobState
from ..queue.store import QueueFull, QueueLocked
from .display import show, summary, tell_summary
from .exits import Exit
from .processes import Processes, engine_command
from .running import run_processes, run_with_signals

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import Config
    from ..delivery.core import Core
    from ..delivery.loading import Loaded, Loader
    from ..queue.model import Job

#: recipients in one commit while others are delivered, which waits for it
EARLY_BATCH: Final = 1000
#: seconds between two tries to load into a queue that is full or locked, while others are delivered
RETRY_LOAD_S: Final = 1.0
_QUEUEING: Final = "queueing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line says of a send.

    Attributes:
        name: of the job, for people.
        config_path, queue: as given, for further engine processes.
        processes: engines that deliver.
        wait: stay until everybody is settled.
        rejects: where bad rows are written; quiet: they are told one by one, which a display would spoil.
        as_json: print the summary as JSON.
    """

    name: str
    config: Config
    config_path: Path | None
    queue: str | None
    processes: int
    wait: bool
    rejects: Path | None
    quiet: bool
    as_json: bool


class Sending:
    """See the module's text.

    Args:
        loader: of the job; not begun.
        job: what was found of it in the queue, None for nothing.
    """

    def __init__(self, core: Core, given: Given, loader: Loader, job: Job | None) -> None:
        self._core = core
        self._given = given
        self._loader = loader
        self._job = job
        #: recipients of it that had been taken back when this began
        self._cancelled = job.counts.cancelled if job is not None else 0
        #: several engine processes deliver
        self._children: Processes | None = None
        self._stop_loading = threading.Event()
        #: what a loading beside deliveries came to; an error is told when they have ended
        self._loaded: Loaded | None = None
        self._failure: EngineError | None = None

    async def run(self, *, early: bool, queue_only: bool) -> int:
        """Queue the job unless it is there, deliver it unless it is only to be queued; the exit status.

        Raises:
            EngineError: the list or the queue is of no use.
        """
        job = self._job
        if job is not None:
            _tell(_known_job(job))
        if job is not None and not job.is_cut_off:
            return await self._deliver_whole(job, queue_only)
        if early:
            return await self._deliver_early()
        return await self._deliver_whole(await self._queue(), queue_only)

    # the list first

    async def _queue(self) -> Job:
        core, given = self._core, self._given
        async with AsyncExitStack() as shown:
            if not given.quiet:
                core.progress.phase = _QUEUEING
                await shown.enter_async_context(show(core.progress, title=given.name))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_loading_at_signal)
                done = await core.database.call(partial(load, self._loader, is_stopped=self._stop_loading.is_set))
                nursery.cancel_scope.cancel()
        core.progress.phase = ""
        core.progress.started_at = None
        self._tell_loaded(done)
        return done.job

    async def _stop_loading_at_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._stop_loading.set()

    async def _deliver_whole(self, job: Job, queue_only: bool) -> int:
        core = self._core
        if queue_only:
            await self._retire()
            print(json.dumps({"job": job.id}) if self._given.as_json else f"job {job.id}")
            return Exit.OK
        counts = job.counts
        core.progress.earlier = counts.delivered + counts.failed + counts.cancelled
        core.progress.waiting = counts.deferred
        if self._given.processes > 1:
            await self._retire()
        return await self._end(job.id, await self._deliver(job.id, counts.total))

    # both at once

    async def _deliver_early(self) -> int:
        core, loader = self._core, self._loader
        await core.database.call(loader.begin)
        core.progress.phase = _QUEUEING
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._load_beside)
            status = await self._deliver(loader.job_id, None)
            self._stop_loading.set()
        if self._given.processes > 1:
            await self._retire()
        if await core.database.call(core.database.store.job_or_none, loader.job_id) is not None:
            status = await self._end(loader.job_id, status)
        if self._failure is not None:
            raise self._failure
        # the rest of the list is still to be sent
        return status or (Exit.TEMPORARY if self._loaded is None else Exit.OK)

    async def _load_beside(self) -> None:
        """Load the list while it is delivered; an error ends both."""
        core, loader = self._core, self._loader
        try:
            while not self._is_stopped():
                try:
                    if await core.database.call(loader.step, EARLY_BATCH):
                        continue
                    self._loaded = await core.database.call(self._finish)
                except (QueueLocked, QueueFull):
                    # deliveries wait for the same, and tell of it
                    await trio.sleep(RETRY_LOAD_S)
                    continue
                if core.progress.phase == _QUEUEING:
                    core.progress.phase = ""
                core.progress.total = self._loaded.job.counts.total
                self._tell_loaded(self._loaded)
                return
            _tell(f"stopped while the list was being queued: {loader.what_stays}")
        except EngineError as error:
            self._failure = error
            self._stop_delivery()
        # whatever it is, the job must not be left as one that somebody is loading
        await core.database.call(loader.abandon)

    def _finish(self) -> Loaded:
        """In the queue's thread: the job is whole, and may be complete with that."""
        core = self._core
        done = self._loader.finish()
        if done.job.state is JobState.COMPLETED:
            raise_completions(core, [done.job.id])
            fact = core.completion_of_job(done.job.id)
            if fact is not None:
                core.log.write([fact])
        return done

    def _is_stopped(self) -> bool:
        return self._stop_loading.is_set() or self._core.stopping.is_set()

    def _stop_delivery(self) -> None:
        if self._children is not None:
            self._children.stop()
        else:
            self._core.stop()

    # delivering

    async def _deliver(self, job_id: int, total: int | None) -> int:
        """Deliver a job; the exit status if that is no matter of the job."""
        core, given = self._core, self._given
        core.progress.total = total or 0
        if given.processes == 1:
            await run_with_signals(core, job_id=job_id, wait=given.wait, title=given.name, total=total)
            return Exit.OK
        command = engine_command(
            given.processes, given.config_path, given.queue, drain=True, job_id=job_id, wait=given.wait
        )
        self._children = Processes(given.processes, command, drain=True, progress=core.progress)
        compiled = app.compile_config(given.config)
        return await run_processes(self._children, compiled, title=given.name, total=total)

    async def _retire(self) -> None:
        core = self._core
        await core.database.call(core.database.store.retire, core.engine, core.clock())

    # telling

    async def _end(self, job_id: int, status: int) -> int:
        """Say what became of the job; the exit status."""
        core = self._core
        after = await core.database.call(core.database.store.counts, job_id)
        core.progress.reconcile(after.unsettled, after.cancelled - self._cancelled)
        if self._given.as_json:
            settled = {"delivered": after.delivered, "failed": after.failed, "cancelled": after.cancelled}
            queue = {"job": job_id, **settled, "unsettled": after.unsettled}
            print(json.dumps({**summary(core.progress, time.monotonic()), "queue": queue}, ensure_ascii=False))
        else:
            tell_summary(core.progress)
        if status:
            return status
        if after.unsettled:
            _tell(f"job {job_id}: {after.unsettled:,} still queued; `outrider run` or the same command goes on with it")
            return Exit.TEMPORARY
        return Exit.UNAVAILABLE if after.failed or after.cancelled else Exit.OK

    def _tell_loaded(self, done: Loaded) -> None:
        rejects = self._given.rejects
        notes = [f"{done.accepted:,} recipients queued as job {done.job.id}"]
        if done.duplicates:
            notes.append(f"{done.duplicates:,} duplicates dropped")
        if done.skipped:
            notes.append(f"{done.skipped:,} bad rows skipped" + (f" (see {rejects})" if rejects else ""))
        _tell(", ".join(notes))


def _known_job(job: Job) -> str:
    if job.is_cut_off:
        return f"going on with job {job.id}, whose list was not read to its end"
    if job.state is JobState.COMPLETED:
        return f"this was sent before, as job {job.id}, and is complete; --again sends it once more"
    return f"going on with job {job.id}, which has {job.counts.unsettled:,} of {job.counts.total:,} left"


def _tell(text: str) -> None:
    with suppress(OSError):  # mail does not wait for somebody who reads this
        print(f"outrider: {text}", file=sys.stderr, flush=True)

"""A whole delivery on warm connections, everything on, costs at most 100 µs of CPU: 10,000 a second from one core.

How: 50,000 recipients of 50 domains with merge data are queued (not timed); then the engine delivers a personalised
4 KiB message to each: template, routing by MX, DANE required (`3 1 1`, verified by digest), TLS 1.3, a window of 8, a
queue that is on disk after every commit, in-flight journal, main log, and an event action on each delivery.  The engine
is pinned to one core.  The other has an `outrider sink` in a process of its own; it answers the engine's DNS questions,
too, as a validating resolver would.  Measured is the CPU time of the engine with all its threads and workers, and the
time on the clock.  Right: the sink has each recipient once, the queue says that each is delivered, the log has a line
with CV=dane for each, and each event was recorded once by its action.  That is seen in a run before those that are
timed; of those the counts are looked at.

Peer: smtplib of Python in a process of its own, one connection with TLS, the same messages composed beforehand: no
queue, no log, no template, no DANE, no events, and it may not crash.

What would falsify it: a median over 100 µs, or under 10,000 a second where the sink has a core of its own; an engine
that needs less CPU than the sink (the sink would then be what is measured).

`python -m bench deliver_warm --where` tells where the time goes; see bench/_where.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from engine import app
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import Loader, load
from engine.delivery.run import run as deliver
from engine.logs.writer import LogWriter
from engine.queue.model import NewJob
from engine.queue.sqlite import SqliteStore

from ._harness import CPU_US, RATE, Contender, Stopwatch, Timing, peer, pinned
from ._where import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.core import Core

    from ._harness import Harness

#: recipients of a run; connections are made for each run, and so many that they do not count
COUNT: Final = 50_000
_DOMAINS: Final = 50
_HOST: Final = "mx.sink.example"
_SENDER: Final = "news@sender.example"
TEMPLATE: Final = (
    "From: News <news@sender.example>\nTo: {{ name }} <{{ email }}>\nSubject: Number {{ number }}\n\nDear {{ name }},\n"
    + "a line of text that is the same for everybody who gets this, and it is long\n" * 52
    + "Yours, {{ number }}\n"
)
CONFIGURATION: Final = """
[main]
primary_hostname = "sender.example"
queue = "sqlite://{directory}/queue.db"
log_file = "{directory}/main.log"
[dns]
nameservers = ["{nameserver}"]
[[routers]]
name = "dnslookup"
driver = "dnslookup"
self = "send"
transport = "smtp"
[transports.smtp]
driver = "smtp"
port = {port}
hosts_require_dane = "*"
pipeline_window = {window}
"""
#: with it every delivery is an event that a worker appends to a file
EVENTS: Final = """
[actions]
workers = 1
[handlers.audit]
driver = "jsonl"
file = "{directory}/events.jsonl"
events = ["msg:delivery"]
"""


def where(*, quick: bool = False) -> str:
    """A table of where the CPU time of a delivery goes, for people; after a run to warm up."""
    cores = sorted(os.sched_getaffinity(0))
    with pinned(cores[0]), Sink(cores[-1]) as sink, Engine(sink, 8, 500 if quick else COUNT) as engine:
        engine.run()
        engine.profile = Profile((LogWriter, "write", "log"), (SqliteStore, "claim", "queue: claim"))
        engine.run()
        return f"{engine.profile.table(engine.count, engine.workers_s)}\n\n{engine.profile.dearest(engine.count)}"


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(COUNT, 500)
    cores = sorted(os.sched_getaffinity(0))
    with pinned(cores[0]), Sink(cores[-1]) as sink:
        with Engine(sink, 8, min(count, 5000)) as engine, Sink(cores[-1], "--track") as watched:
            engine.sink = watched
            engine.run()
            engine.check()
            watched.check(engine.sent)
        sent = 0
        for window, has_events in ((8, True),) if bench.quick else ((8, True), (8, False), (1, True)):
            is_figure = window == 8 and has_events
            with Engine(sink, window, count if is_figure else count // 5, has_events=has_events) as engine:
                what = f"personalised 4 KiB, DANE, queue, log, {'' if has_events else 'no '}events, window {window}"
                ours = Contender("outrider", engine.run)
                bench.measure(
                    what,
                    ours,
                    metric=CPU_US,
                    also=(RATE,),
                    runs=3,
                    at_most=100 if is_figure else None,
                    is_figure=is_figure,
                )
                if is_figure:
                    bench.measure("the sink beside it", Contender("its sink", engine.sink_share), metric=CPU_US, runs=1)
                sent += engine.sent
        sink.check(sent)
    with Sink() as sink, Engine(sink, 8, count // 5) as engine, peer("smtplib_loop", bench.note) as loop:
        bench.compare(
            "beside smtplib with nothing but the wire",
            Contender("outrider", lambda _: engine.run()),
            loop,
            data=(sink.port, [octets for _, octets in engine.messages(count // 5)]),
            metric=CPU_US,
            pairs=3,
            at_most=1,
        )


class Sink:
    """An `outrider sink` in a process of its own, with the names of the domains that it serves."""

    def __init__(self, core: int | None = None, *options: str) -> None:
        command = [sys.executable, "-m", "engine", "sink", "--listen", "127.0.0.1:0", "--dns", "127.0.0.1:0", "--json"]
        self._popen = subprocess.Popen([*command, "--host-name", _HOST, *options], stdout=subprocess.PIPE, text=True)
        if core is not None:
            os.sched_setaffinity(self._popen.pid, {core})
        first = json.loads(self._output.readline())
        self.port: int = first["port"]
        self.nameserver: str = first["dns"]

    @property
    def _output(self) -> Any:
        return self._popen.stdout

    @property
    def cpu_s(self) -> float:
        """CPU time of its main thread, which does all the work."""
        return int(Path(f"/proc/{self._popen.pid}/schedstat").read_text().split()[0]) / 1e9

    def check(self, count: int) -> None:
        """Stop it, and see that it had so many messages over TLS, none of them twice if it tracks them."""
        self._popen.terminate()
        counts = json.loads(self._popen.communicate(timeout=20)[0].splitlines()[-1])
        assert counts["messages"] == count, f"{counts} instead of {count}"
        if counts["unique"]:
            assert (counts["unique"], counts["duplicates"]) == (count, 0), counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.terminate()
        self._popen.communicate(timeout=20)


class Engine:
    """An engine with a queue in a temporary directory; each run queues a job and delivers it."""

    def __init__(self, sink: Sink, window: int, count: int, *, has_events: bool = True) -> None:
        self.sink = sink
        self.count = count
        self._has_events = has_events
        #: messages of all runs
        self.sent = 0
        self._window = window
        self._directory = tempfile.mkdtemp(prefix="outrider-bench-")
        self._last = Timing(0, 0.0)
        #: CPU time of a run for one recipient: what it takes to start and to stop, a worker's interpreter most of all
        self._start_cpu_s: float | None = None
        #: CPU time of the workers of the last run
        self.workers_s = 0.0
        #: takes a profile of the next run
        self.profile: Profile | None = None

    def run(self) -> Timing:
        """Deliver to everybody; the time of queueing is left out, and so is what it takes to start and to stop."""
        if self._start_cpu_s is None:
            self._start_cpu_s = self._run(1).cpu_s
        timing = self._run(self.count)
        return replace(timing, cpu_s=timing.cpu_s - self._start_cpu_s)

    def _run(self, count: int) -> Timing:
        text = (CONFIGURATION + (EVENTS if self._has_events else "")).format(
            directory=self._directory, port=self.sink.port, nameserver=self.sink.nameserver, window=self._window
        )
        profile = self.profile if count > 1 else None
        app.spare_collector()  # as `outrider run` does
        with app.open_engine(loads(text.encode())) as core:
            new_job = NewJob(
                _SENDER,
                TEMPLATE.encode(),
                is_template=True,
                personalised=True,
                options=JobOptions(salt=b"bench").to_mapping(),
            )
            store = core.database.store
            recipients = itertools.islice(self._recipients(), count)
            job = load(Loader(store, core.engine.owner, new_job, _composer(time.time()), recipients, now=time.time)).job
            sink_cpu_s, workers_s = self.sink.cpu_s, _children_s()
            with profile or contextlib.nullcontext(), Stopwatch() as watch:
                trio.run(_deliver, core, job.id)
            self._last = Timing(count, watch.wall_s, self.sink.cpu_s - sink_cpu_s, count)
            self.workers_s = _children_s() - workers_s
            delivered, waiting = store.counts(job.id).delivered, store.outbox_size()
        assert delivered == count, f"{delivered} of {count} were delivered"
        assert not waiting, f"{waiting} events were left"
        self.sent += delivered
        return watch.timing(count, delivered)

    def sink_share(self) -> Timing:
        """What the sink needed for the run before."""
        return self._last

    def check(self) -> None:
        """See that the main log has a verified delivery for each recipient, and that each event was recorded once."""
        log = (Path(self._directory) / "main.log").read_text()
        lines = set(re.findall(rf"^\S+ \S+ \S+ => (\S+) .* H={re.escape(_HOST)} .* X=TLS1\.3:\S+ CV=dane ", log, re.M))
        assert len(lines) == self.count, f"{len(lines)} verified deliveries in the log"
        rows = [json.loads(row) for row in (Path(self._directory) / "events.jsonl").read_text().splitlines()]
        assert len(rows) == len({row["id"] for row in rows}) == self.sent, (
            f"{len(rows)} events for {self.sent} messages"
        )

    def _recipients(self) -> Iterator[Recipient]:
        for number in range(self.count):
            yield Recipient(f"user{number}@d{number % _DOMAINS}.example", {"name": f"Name {number}", "number": number})

    def messages(self, count: int) -> Iterator[tuple[str, bytes]]:
        """The messages, composed beforehand, for a peer that composes none."""
        composer = _composer(0.0)
        for number, recipient in zip(range(count), self._recipients(), strict=True):
            made = composer.compose(recipient.address, recipient.merge or {}, f"1-{number}", 0.0)
            yield recipient.address, made.render(eightbit=True, smtputf8=False).content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


def _composer(created_at: float) -> Composer:
    return Composer.for_job(
        TEMPLATE.encode(),
        is_template=True,
        personalised=True,
        sender=_SENDER,
        host_name="sender.example",
        created_at=created_at,
    )


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _deliver(core: Core, job_id: int) -> None:
    await deliver(core, job_id=job_id)

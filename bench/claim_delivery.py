"""A whole delivery, everything on: template, durable queue, TLS, journal, log, settlement.

How: recipients with merge data are queued (not timed); then the engine delivers a personalised 4 KiB message to each of
them over TLS 1.3 to an `outrider sink` in a process of its own, with the main log on and every commit synced.  Measured
is the CPU time of the engine's process, all threads, and beside it that of the sink for the same messages.  Right: the
sink has each recipient once, and the queue says that each is delivered.

Peer: smtplib of Python in a process of its own, one connection with TLS, the same messages composed beforehand: no
queue, no log, no template, no events, and it may not crash.

What would falsify it: an engine that needs less than twice the CPU of the sink (the sink would then be what is
measured), or a smtplib that needs less CPU a message than the engine does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import trio

from engine import app
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import load
from engine.delivery.run import run as deliver
from engine.queue.model import NewJob

from ._harness import CPU_US, RATE, Contender, Stopwatch, Timing, peer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.core import Core

    from ._harness import Harness

TEMPLATE = (
    "From: News <news@sender.example>\nTo: {{ name }} <{{ email }}>\nSubject: Number {{ number }}\n\nDear {{ name }},\n"
    + "a line of text that is the same for everybody who gets this, and it is long\n" * 52
    + "Yours, {{ number }}\n"
)
CONFIGURATION = """
[main]
primary_hostname = "sender.example"
queue = "sqlite://{directory}/queue.db"
log_file = "{directory}/main.log"
[[routers]]
name = "sink"
driver = "manualroute"
route_list = ["* 127.0.0.1:{port}"]
self = "send"
transport = "smtp"
[transports.smtp]
driver = "smtp"
hosts_require_tls = "*"
pipeline_window = {window}
"""


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(10_000, 400)
    for window in (1, 4, 8):
        with Sink() as sink, _Engine(sink, window, count) as engine:
            what = f"personalised 4 KiB over TLS, window {window}"
            ours = Contender("outrider", engine.run)
            bench.measure(what, ours, metric=CPU_US, runs=3)
            bench.measure(what, ours, metric=RATE, runs=3)
            if window == 8:
                bench.compare(what, ours, Contender("its sink", engine.sink_share), metric=CPU_US, pairs=3, at_least=2)
    with Sink() as sink, _Engine(sink, 8, count) as engine, peer("smtplib_loop", bench.note) as loop:
        bench.compare(
            "CPU a delivery, window 8, against smtplib with nothing but the wire",
            Contender("outrider", lambda _: engine.run()),
            loop,
            data=(sink.port, [octets for _, octets in engine.messages(count)]),
            metric=CPU_US,
            pairs=3,
            at_most=1,
            is_figure=True,
        )


class Sink:
    """An `outrider sink` in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "engine", "sink", "--listen", "127.0.0.1:0", "--json"]
        self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._popen.stdout is not None
        self.port: int = json.loads(self._popen.stdout.readline())["port"]

    @property
    def cpu_s(self) -> float:
        """CPU time of its main thread, which does all the work."""
        return int(Path(f"/proc/{self._popen.pid}/schedstat").read_text().split()[0]) / 1e9

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.terminate()
        self._popen.communicate(timeout=20)


class _Engine:
    """An engine with a queue in a temporary directory; each run queues a job and delivers it."""

    def __init__(self, sink: Sink, window: int, count: int) -> None:
        self._sink = sink
        self._count = count
        self._directory = tempfile.mkdtemp(prefix="outrider-bench-")
        text = CONFIGURATION.format(directory=self._directory, port=sink.port, window=window)
        self._config = loads(text.encode())
        self._last_sink_cpu_s = 0.0
        self._last_wall_s = 0.0

    def run(self) -> Timing:
        """Deliver to everybody; the time of queueing is left out."""
        with app.open_engine(self._config) as core:
            composer = Composer.for_job(
                TEMPLATE.encode(),
                is_template=True,
                personalised=True,
                sender="news@sender.example",
                host_name="sender.example",
                created_at=time.time(),
            )
            new_job = NewJob(
                "news@sender.example",
                TEMPLATE.encode(),
                is_template=True,
                personalised=True,
                options=JobOptions(salt=b"bench").to_mapping(),
            )
            store = core.database.store
            job = load(store, core.engine.owner, new_job, composer, self._recipients(), now=time.time).job
            sink_cpu_s = self._sink.cpu_s
            with Stopwatch() as watch:
                trio.run(_deliver, core, job.id)
            self._last_sink_cpu_s = self._sink.cpu_s - sink_cpu_s
            self._last_wall_s = watch.wall_s
            delivered = store.counts(job.id).delivered
        assert delivered == self._count, f"{delivered} of {self._count} were delivered"
        return watch.timing(self._count, delivered)

    def sink_share(self) -> Timing:
        """What the sink needed for the run before."""
        return Timing(self._count, self._last_wall_s, self._last_sink_cpu_s, self._count)

    def _recipients(self) -> Iterator[Recipient]:
        for number in range(self._count):
            yield Recipient(f"user{number}@d{number % 50}.example", {"name": f"Name {number}", "number": number})

    def messages(self, count: int) -> Iterator[tuple[str, bytes]]:
        """The messages, composed beforehand, for a peer that composes none."""
        composer = Composer.for_job(
            TEMPLATE.encode(),
            is_template=True,
            personalised=True,
            sender="news@sender.example",
            host_name="sender.example",
            created_at=0.0,
        )
        for number, recipient in zip(range(count), self._recipients(), strict=True):
            made = composer.compose(recipient.address, recipient.merge or {}, f"1-{number}", 0.0)
            yield recipient.address, made.render(eightbit=True, smtputf8=False).content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


async def _deliver(core: Core, job_id: int) -> None:
    await deliver(core, job_id=job_id)

"""The engine as a contender: a queue in a temporary directory, a job that is queued, and its delivery to the sink."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import trio

from engine import app
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import Loader, load
from engine.delivery.run import run as deliver
from engine.queue.model import NewJob
from engine.tls.context import TlsContexts

from ._harness import Stopwatch, Timing
from ._mail import SENDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.core import Core

    from ._sink import Sink
    from ._where import Profile

#: where queues are: a disk, since commits are to cost what they cost; $OUTRIDER_BENCH_DIR chooses another
FOLDER: Final = os.environ.get("OUTRIDER_BENCH_DIR", "/var/tmp")

_HEAD: Final = (
    "From: News <news@sender.example>\nTo: {{ name }} <{{ email }}>\nSubject: Number {{ number }}\n\nDear {{ name }},\n"
)
_LINE: Final = "a line of text that is the same for everybody who gets this, and it is long\n"
_END: Final = "Yours, {{ number }}\n"
#: octets of what the engine puts in front: Date, Message-ID, MIME
_ADDED: Final = 200

_CONFIGURATION: Final = """
[main]
primary_hostname = "sender.example"
queue = "sqlite://{directory}/queue.db"
log_file = "{directory}/main.log"
max_connections = {connections}
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
{tls}
pipeline_window = {window}
connections_per_host = {connections}
connection_max_messages = {max_messages}
"""

#: what makes every delivery an event that a worker appends to a file; see `Work.more`
EVENTS: Final = """
[actions]
workers = 1
[handlers.audit]
driver = "jsonl"
file = "{directory}/events.jsonl"
events = ["msg:delivery"]
"""


def template(octets: int = 4096) -> bytes:
    """A personalised message that is about so large when it is sent."""
    lines = max((octets - len(_HEAD) - len(_END) - _ADDED) // (len(_LINE) + 1), 0)
    return (_HEAD + _LINE * lines + _END).encode()


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine delivers, and how.

    Attributes:
        count: recipients, over so many `domains`; octets: of a message, about.
        window: transactions in flight on a connection; connections: at a time, at most.
        max_messages: on one connection; 0 without limit.
        tls: with DANE, or in clear; resumes: sessions of TLS are kept.
        more: further lines of the transport's table, and tables behind it; ``{directory}`` is that of the run.
    """

    count: int
    domains: int = 50
    octets: int = 4096
    window: int = 8
    connections: int = 20
    max_messages: int = 0
    tls: bool = True
    resumes: bool = True
    more: str = ""


class Engine:
    """An engine whose queue is in a temporary directory; each run queues a job and delivers it.

    Attributes:
        directory: of the last run: ``queue.db``, ``main.log``.
        began_at: monotonic second at which the last run began to deliver; workers_s: CPU time of its workers.
        profile: of the next runs.
    """

    def __init__(self, sink: Sink, work: Work) -> None:
        self._sink = sink
        self.work = work
        self._folder = tempfile.mkdtemp(prefix="outrider-bench-", dir=FOLDER)
        self._runs = itertools.count()
        #: CPU time of a run for one recipient
        self._start_cpu_s: float | None = None
        self.directory = Path(self._folder)
        self.began_at = 0.0
        self.workers_s = 0.0
        self.profile: Profile | None = None

    def run(self) -> Timing:
        """Deliver to everybody; the time of queueing is left out.

        The timing's count is of the delivered.  Raises AssertionError if somebody is neither delivered nor deferred, or
        if the action of an event is still to run.
        """
        return self._run(self.work)

    def run_once_started(self) -> Timing:
        """The same, without what it takes to start and to stop, a worker's interpreter most of all; the sink counts
        anew."""
        if self._start_cpu_s is None:
            profile, self.profile = self.profile, None
            self._start_cpu_s = self._run(replace(self.work, count=1)).cpu_s
            self.profile = profile
        self._sink.mark()
        timing = self._run(self.work)
        return replace(timing, cpu_s=timing.cpu_s - self._start_cpu_s, check=timing.count)

    def verified(self) -> int:
        """How many deliveries over a connection that DANE has verified the log of the last run tells of."""
        log = (self.directory / "main.log").read_text()
        return len(set(re.findall(r"^\S+ \S+ \S+ => (\S+) .* X=TLS1\.3:\S+ CV=dane ", log, re.M)))

    def _run(self, work: Work) -> Timing:
        shutil.rmtree(self.directory)
        self.directory = Path(self._folder, str(next(self._runs)))
        self.directory.mkdir(parents=True)
        body = template(work.octets)
        app.spare_collector()  # as `outrider run` does
        with app.open_engine(loads(configuration_text(self._sink, work, str(self.directory)).encode())) as core:
            if not work.resumes:
                core.contexts = TlsContexts(clock=time.time, session_limit=0)
            options = JobOptions(salt=b"bench").to_mapping()
            new_job = NewJob(SENDER, body, is_template=True, personalised=True, options=options)
            store = core.database.store
            loader = Loader(
                store, core.engine.owner, new_job, composer(body, time.time()), recipients(work), now=time.time
            )
            job = load(loader).job
            workers_s = _children_s()
            self.began_at = time.monotonic()
            with self.profile or contextlib.nullcontext(), Stopwatch() as watch:
                trio.run(_deliver, core, job.id)
            self.workers_s = _children_s() - workers_s
            counts, left = store.counts(job.id), store.outbox_size()
        if counts.delivered + counts.deferred != work.count:
            raise AssertionError(f"of {work.count} recipients {counts}")
        if left:
            raise AssertionError(f"{left} events were left")
        return watch.timing(counts.delivered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def configuration_text(sink: Sink, work: Work, directory: str) -> str:
    """A configuration that sends everything to the sink."""
    return _CONFIGURATION.format(
        directory=directory,
        nameserver=sink.nameserver,
        port=sink.port,
        tls='hosts_require_dane = "*"' if work.tls else 'hosts_avoid_tls = "*"\nhosts_try_dane = ""',
        window=work.window,
        connections=work.connections,
        max_messages=work.max_messages,
    ) + work.more.replace("{directory}", directory)


def composer(body: bytes, created_at: float) -> Composer:
    """What makes the messages of a template."""
    return Composer.for_job(
        body, is_template=True, personalised=True, sender=SENDER, host_name="sender.example", created_at=created_at
    )


def recipients(work: Work) -> Iterator[Recipient]:
    """The recipients with their merge data."""
    for number in range(work.count):
        yield Recipient(f"user{number}@d{number % work.domains}.example", {"name": f"Name {number}", "number": number})


def messages(work: Work) -> Iterator[tuple[str, bytes]]:
    """The messages, composed beforehand, for a peer that composes none."""
    ours = composer(template(work.octets), 0.0)
    for number, recipient in enumerate(recipients(work)):
        made = ours.compose(recipient.address, recipient.merge or {}, f"1-{number}", 0.0)
        yield recipient.address, made.render(eightbit=True, smtputf8=False).content


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _deliver(core: Core, job_id: int) -> None:
    await deliver(core, job_id=job_id)

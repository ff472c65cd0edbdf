"""The engine as a contender: a queue in a temporary directory, a job that is queued, and its delivery to the sink."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import trio

from engine import app
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import Loader, load
from engine.delivery.run import run as deliver
from engine.queue.model import NewJob

from ._harness import Stopwatch, Timing
from ._mail import SENDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.core import Core

    from ._sink import Sink

#: where queues are: a disk, since commits are to cost what they cost; $OUTRIDER_BENCH_DIR chooses another
FOLDER: Final = os.environ.get("OUTRIDER_BENCH_DIR", "/var/tmp")

_HEAD: Final = (
    "From: News <news@sender.example>\nTo: {{ name }} <{{ email }}>\nSubject: Number {{ number }}\n\nDear {{ name }},\n"
)
_LINE: Final = "a line of text that is the same for everybody who gets this, and it is long\n"
#: octets of what the engine puts in front: Date, Message-ID, MIME
_ADDED: Final = 200

_CONFIGURATION: Final = """
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
{tls}
pipeline_window = {window}
connections_per_host = {connections}
connection_max_messages = 0
"""


def template(octets: int = 4096) -> bytes:
    """A personalised message that is about so large when it is sent."""
    return (_HEAD + _LINE * max((octets - len(_HEAD) - _ADDED) // (len(_LINE) + 1), 0)).encode()


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine delivers, and how.

    Attributes:
        count: recipients, over so many `domains`; octets: of a message, about.
        window: transactions in flight on a connection; connections: at a time, at most.
        tls: with DANE, or in clear.
        more: further lines of the transport's table, and tables behind it.
    """

    count: int
    domains: int = 50
    octets: int = 4096
    window: int = 8
    connections: int = 20
    tls: bool = True
    more: str = ""


class Engine:
    """An engine whose queue is in a temporary directory; each run queues a job and delivers it."""

    def __init__(self, sink: Sink, work: Work) -> None:
        self._sink = sink
        self._work = work
        self._directory = tempfile.mkdtemp(prefix="outrider-bench-", dir=FOLDER)
        self._runs = itertools.count()
        #: monotonic second at which the last run began to deliver
        self.began_at = 0.0

    def run(self) -> Timing:
        """Deliver to everybody; the time of queueing is left out.

        The timing's count is of the delivered.  Raises AssertionError if somebody is neither delivered nor deferred.
        """
        work = self._work
        body = template(work.octets)
        directory = f"{self._directory}/{next(self._runs)}"
        os.mkdir(directory)
        with app.open_engine(loads(configuration_text(self._sink, work, directory).encode())) as core:
            composer = Composer.for_job(
                body,
                is_template=True,
                personalised=True,
                sender=SENDER,
                host_name="sender.example",
                created_at=time.time(),
            )
            options = JobOptions(salt=b"bench").to_mapping()
            new_job = NewJob(SENDER, body, is_template=True, personalised=True, options=options)
            store = core.database.store
            job = load(Loader(store, core.engine.owner, new_job, composer, recipients(work), now=time.time)).job
            self.began_at = time.monotonic()
            with Stopwatch() as watch:
                trio.run(_deliver, core, job.id)
            counts = store.counts(job.id)
        if counts.delivered + counts.deferred != work.count:
            raise AssertionError(f"of {work.count} recipients {counts}")
        return watch.timing(counts.delivered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


def configuration_text(sink: Sink, work: Work, directory: str) -> str:
    """A configuration that sends everything to the sink."""
    return (
        _CONFIGURATION.format(
            directory=directory,
            nameserver=sink.nameserver,
            port=sink.port,
            tls='hosts_require_dane = "*"' if work.tls else 'hosts_avoid_tls = "*"\nhosts_try_dane = ""',
            window=work.window,
            connections=work.connections,
        )
        + work.more
    )


def recipients(work: Work) -> Iterator[Recipient]:
    """The recipients with their merge data."""
    for number in range(work.count):
        yield Recipient(f"user{number}@d{number % work.domains}.example", {"name": f"Name {number}", "number": number})


async def _deliver(core: Core, job_id: int) -> None:
    await deliver(core, job_id=job_id)

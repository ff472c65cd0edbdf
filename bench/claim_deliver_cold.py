"""A fresh connection a message costs at most 1.3 times the CPU of a bare loop that says the same, half of Postfix.

How: 4 KiB messages, each to one recipient, each over a connection of its own: TCP, banner, EHLO, STARTTLS, handshake,
EHLO, MAIL, RCPT, the message, QUIT, and nothing is resumed.  Ours is the whole engine, from the claim in the queue to
the commit: routing by MX, TLSA looked up, DANE-EE verified, composed, the journal, main log and queue written to disk;
at most 20 connections at a time.  The bare loop says the same octets over blocking sockets and pyOpenSSL, one after
another, and looks at no certificate; it runs in this process, as the engine does.  Postfix delivers the same load over
TLS without reuse (its default), from when its queue is released.  Queueing and start-up are left out for all.
The sink is on the other core, where there are two.  Measured is CPU time, a message, of everything but the sink.
Right: the sink has every message once, over as many connections at least; in our log each is delivered with CV=dane.

Two cases.  *One host*: what a message costs that has a connection of its own, once the host is known; this is the
figure.  *Domains*: each message goes to a domain and host of its own that nobody has heard of before, so that its MX,
address and TLSA records are looked up as well; the bare loop looks nothing up.  Told beside: the share of the sink.

What would falsify it: a median over 1.3 × the bare loop, or over 0.5 × Postfix.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import trio
from OpenSSL import SSL

from engine import app
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import Loader, load
from engine.delivery.run import run as deliver
from engine.queue.model import NewJob
from engine.tls.context import TlsContexts

from ._harness import CPU_US, Contender, Stopwatch, Timing, peer, pinned
from ._mail import SENDER
from ._sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.core import Core

    from ._harness import Harness
    from ._mail import Load

#: messages of a run; quick ones only show that it works
COUNT: Final = 400
_CONNECTIONS: Final = 20
_TEMPLATE: Final = (
    "From: News <news@sender.example>\nTo: {{ name }} <{{ email }}>\nSubject: Number {{ number }}\n\nDear {{ name }},\n"
    + "a line of text that is the same for everybody who gets this, and it is long\n" * 48
)
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
hosts_require_dane = "*"
connections_per_host = {connections}
connection_max_messages = 1
"""


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(COUNT, 20)
    cores = sorted(os.sched_getaffinity(0))
    pairs = 3
    with pinned(cores[0]):
        with (
            Sink(core=cores[-1]) as sink,
            Engine(sink, count) as engine,
            peer("postfix", bench.note, core=cores[0]) as postfix,
        ):
            bare = Contender("bare loop", _bare, SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode())
            bench.compare(
                "one host, a connection a message",
                sink.judged(Contender("outrider", engine.run)),
                sink.judged(bare, sink.load(count)),
                metric=CPU_US,
                pairs=pairs,
                at_most=1.3,
                is_figure=True,
            )
            if postfix is not None:
                bench.compare(
                    "one host, a connection a message, beside Postfix without reuse",
                    sink.judged(Contender("outrider", engine.run)),
                    sink.judged(postfix, sink.load(count)),
                    metric=CPU_US,
                    pairs=pairs,
                    at_most=0.5,
                )
            engine.check()
        with Sink(core=cores[-1], own_hosts=True) as sink, Engine(sink, count, domains=count) as engine:
            bench.compare(
                "each to a domain of its own, nothing known of it",
                sink.judged(Contender("outrider", engine.run)),
                sink.judged(bare, sink.load(count)),
                metric=CPU_US,
                pairs=pairs,
            )
            engine.check()


class Engine:
    """An engine with a queue in a temporary directory; each run queues a job and delivers it.

    Args:
        domains: recipients are spread over so many; others in each run.
    """

    def __init__(self, sink: Sink, count: int, *, domains: int = 1) -> None:
        self._sink = sink
        self._count = count
        self._domains = domains
        self._runs = 0
        self._sent = 0
        self._directory = tempfile.mkdtemp(prefix="outrider-bench-")
        #: CPU time of a run for one recipient: what it takes to start and to stop
        self._start_cpu_s: float | None = None

    def run(self) -> Timing:
        """Deliver to everybody; the time of queueing is left out, and so is what it takes to start and to stop."""
        if self._start_cpu_s is None:
            self._start_cpu_s = self._run(1).cpu_s
            self._sink.mark()
        timing = self._run(self._count)
        found = self._sink.arrived(self._count)
        # one that was opened while the last messages were taken by others is left without any
        assert found.connections >= self._count, f"{found.connections} connections for {self._count} messages"
        return replace(timing, cpu_s=timing.cpu_s - self._start_cpu_s)

    def _run(self, count: int) -> Timing:
        self._runs += 1
        text = _CONFIGURATION.format(
            directory=self._directory,
            port=self._sink.port,
            nameserver=self._sink.nameserver,
            connections=_CONNECTIONS,
        )
        with app.open_engine(loads(text.encode())) as core:
            core.contexts = TlsContexts(clock=time.time, session_limit=0)
            new_job = NewJob(
                SENDER,
                _TEMPLATE.encode(),
                is_template=True,
                personalised=True,
                options=JobOptions(salt=b"bench").to_mapping(),
            )
            store = core.database.store
            composer = Composer.for_job(
                _TEMPLATE.encode(),
                is_template=True,
                personalised=True,
                sender=SENDER,
                host_name="sender.example",
                created_at=time.time(),
            )
            job = load(Loader(store, core.engine.owner, new_job, composer, self._recipients(count), now=time.time)).job
            with Stopwatch() as watch:
                trio.run(_deliver, core, job.id)
            delivered = store.counts(job.id).delivered
        assert delivered == count, f"{delivered} of {count} were delivered"
        self._sent += delivered
        return watch.timing(count)

    def _recipients(self, count: int) -> Iterator[Recipient]:
        for number in range(count):
            address = f"user{number}@d{number % self._domains}.r{self._runs}.example"
            yield Recipient(address, {"name": f"Name {number}", "number": number})

    def check(self) -> None:
        """See that the main log has a verified delivery for each message."""
        lines = re.findall(r"^\S+ \S+ \S+ => (\S+) .* X=TLS1\.3:\S+ CV=dane ", self._log, re.M)
        assert len(lines) == self._sent, f"{len(lines)} verified deliveries in the log of {self._sent}"

    @property
    def _log(self) -> str:
        return (Path(self._directory) / "main.log").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


async def _deliver(core: Core, job_id: int) -> None:
    await deliver(core, job_id=job_id)


def _bare(work: Load) -> Timing:
    """The loop: what must be said for a message, and nothing else."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    messages = work.messages()
    with Stopwatch() as watch:
        for recipient, octets in messages:
            plain = socket.create_connection(("127.0.0.1", work.port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _read_reply(plain)
            plain.sendall(b"EHLO sender.example\r\n")
            _read_reply(plain)
            plain.sendall(b"STARTTLS\r\n")
            _read_reply(plain)
            secure = SSL.Connection(context, plain)
            secure.set_tlsext_host_name(b"mx.bench.test")
            secure.set_connect_state()
            secure.do_handshake()
            secure.sendall(b"EHLO sender.example\r\n")
            _read_reply(secure)
            envelope = f"MAIL FROM:<{SENDER}> SIZE={len(octets)}\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
            secure.sendall(envelope.encode())
            found = b""
            while b"354" not in found:
                found += secure.recv(65536)
            secure.sendall(octets + b".\r\n")
            _read_reply(secure)
            secure.sendall(b"QUIT\r\n")
            _read_reply(secure)
            secure.shutdown()
            plain.close()
    return watch.timing(len(messages))


def _read_reply(connection: socket.socket | SSL.Connection) -> bytes:
    """One reply, to its last line."""
    found = b""
    while not re.search(rb"(?:^|\n)[2-5][0-9][0-9] [^\n]*\n\Z", found):
        found += connection.recv(65536)
    return found

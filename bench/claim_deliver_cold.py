"""A fresh connection a message costs at most 1.3 times the CPU of a bare loop that says the same, half of Postfix.

How: 4 KiB messages, each to one recipient, each over a connection of its own: TCP, banner, EHLO, STARTTLS, handshake,
EHLO, MAIL, RCPT, the message, QUIT, and nothing is resumed.  Ours is the whole engine, from the claim in the queue to
the commit: routing by MX, TLSA looked up, DANE-EE verified, composed, the journal, main log and queue written to disk;
at most 20 connections at a time.  The bare loop says the same over blocking sockets and pyOpenSSL, one after another,
and looks at no certificate; it runs in this process, as the engine does.  Postfix delivers the same load over TLS
without reuse (its default), from when its queue is released.  Queueing and start-up are left out for all.
The sink is on the other core, where there are two.  Measured is CPU time, a message, of everything but the sink.
Right: the sink has every message once, over as many connections at least; in our log each is delivered with CV=dane.

The key exchange is what sink and sender agree on: with ours and the bare loop X25519MLKEM768, with a Postfix whose
OpenSSL is too old for it X25519, which needs less CPU.  So Postfix is met twice: as things are, and at a sink that
knows X25519 only.  From the second connection on ours sends one key share, for the group that the host took, where the
library by itself sends two; what is offered is the same.

Two cases.  *One host*: what a message costs that has a connection of its own, once the host is known; this is the
figure.  *Domains*: each message goes to a domain and host of its own that nobody has heard of before, so that its MX,
address and TLSA records are looked up as well; the bare loop looks nothing up.

What would falsify it: a median over 1.3 × the bare loop, or over 0.5 × Postfix as things are.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from ._engine import Engine, Work
from ._harness import CPU_US, Contender, Stopwatch, Timing, peer, pinned
from ._mail import SENDER
from ._sink import Sink

if TYPE_CHECKING:
    from ._harness import Harness
    from ._mail import Load

#: messages of a run; quick ones only show that it works
COUNT: Final = 400


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(COUNT, 20)
    cores = sorted(os.sched_getaffinity(0))
    pairs = 3
    work = Work(count, domains=1, max_messages=1, resumes=False)
    bare = Contender("bare loop", _bare, SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode())
    with pinned(cores[0]):
        with peer("postfix", bench.note, core=cores[0]) as postfix:
            with Sink(core=cores[-1]) as sink, Engine(sink, work) as engine:
                ours = sink.judged(Contender("outrider", _ours), sink, engine)
                bench.compare(
                    "one host, a connection a message",
                    ours,
                    sink.judged(bare, sink.load(count)),
                    metric=CPU_US,
                    pairs=pairs,
                    at_most=1.3,
                    is_figure=True,
                )
                if postfix is not None:
                    bench.compare(
                        "one host, a connection a message, beside Postfix without reuse",
                        ours,
                        sink.judged(postfix, sink.load(count)),
                        metric=CPU_US,
                        pairs=pairs,
                        at_most=0.5,
                    )
            with Sink(core=cores[-1], groups="X25519") as sink, Engine(sink, work) as engine:
                bench.compare(
                    "the same, all with X25519",
                    sink.judged(Contender("outrider", _ours), sink, engine),
                    None if postfix is None else sink.judged(postfix, sink.load(count)),
                    sink.judged(bare, sink.load(count)),
                    metric=CPU_US,
                    pairs=pairs,
                )
        each_its_own = Work(count, domains=count, max_messages=1, resumes=False)
        with Sink(core=cores[-1], own_hosts=True) as sink, Engine(sink, each_its_own) as engine:
            bench.compare(
                "each to a domain of its own, nothing known of it",
                sink.judged(Contender("outrider", _ours), sink, engine),
                sink.judged(bare, sink.load(count)),
                metric=CPU_US,
                pairs=pairs,
            )


def _ours(sink: Sink, engine: Engine) -> Timing:
    timing = engine.run_once_started()
    count, found = engine.work.count, sink.arrived(engine.work.count)
    # one that was opened while the last messages were taken by others is left without any
    assert found.connections >= count, f"{found.connections} connections for {count} messages"
    assert engine.verified() == count, f"{engine.verified()} verified deliveries in the log of {count}"
    return timing


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

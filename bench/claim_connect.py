"""A new connection with DANE costs at most 1.3 times the CPU of a bare loop that says the same, a resumed one 0.8.

How: `outrider sink` in a process of its own on the other core, with a self-made certificate.  Ours opens a session as a
delivery does (TCP, banner, EHLO, STARTTLS, handshake, the certificate matched with a TLSA record ``3 1 1``, EHLO) and
says QUIT.  The bare loop says the same over blocking sockets and pyOpenSSL, one connection after another, and looks at
no certificate.  All run in this process in turns; measured is its CPU time, a connection.  Then ours again, where the
sessions of the connections before may be resumed, against the same bare loop that resumes nothing.  Right: every
connection ends with the capabilities of the sink, ours is proved by DANE each time, and is resumed each time or never.

The figure is taken with 20 connections at a time, for that is how an engine opens them: a turn of trio's loop, and the
sleep in epoll before it, serve several.  Told beside it: one connection after another, which pays for a turn of the
loop at each of its seven waits; a loop of trio with nothing around it, to tell that price; and a bare loop that
resumes, the least that a resumed connection can cost.

The octets are not quite the same: from the second connection on ours knows which group the host took for the key
exchange and sends one key share, where the library by itself sends two; what is offered is the same.

What would falsify it: a median ratio over 1.3 for new connections, or over 0.8 for resumed ones, 20 at a time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import trio
from OpenSSL import SSL

from engine.net.opener import open_session
from engine.net.session import SessionOptions
from engine.policy.hosts import Host
from engine.policy.plan import Plan, TlsLevel
from engine.smtp import HostMemory
from engine.tls import tlsa
from engine.tls.context import TlsContexts, TlsOptions
from engine.tls.dane import judge
from engine.tls.facts import ChainVerdict

from ._harness import CPU_US, Contender, Stopwatch, pinned

if TYPE_CHECKING:
    from ._harness import Harness, Timing

_PROGRAM = "import typer; from engine.cli.sink import sink; app = typer.Typer(); app.command()(sink); app()"
#: connections that ours opens at a time, for the figure
AT_A_TIME = 20
_NAME = "mx.bench.test"
_HELO = "client.bench.test"
#: ends the reply to EHLO of the sink after STARTTLS; the same for both
_LAST_LINE = b"\r\n250 "


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(300, 20)
    cores = sorted(os.sched_getaffinity(0))
    with pinned(cores[0]), _Sink(cores[-1]) as sink:
        bare = Contender("bare loop", lambda: _bare(sink.port, count), SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode())
        resuming = Contender("bare loop that resumes", lambda: _bare(sink.port, count, is_resumed=True), bare.version)
        waiting = Contender("bare trio", lambda: trio.run(_bare_trio, sink.port, count), trio.__version__)

        def ours(at_a_time: int, *, is_resumed: bool = False) -> Contender:
            return Contender("outrider", lambda: trio.run(_ours, sink, count, is_resumed, at_a_time))

        figure = f"new connection with DANE-EE, {AT_A_TIME} at a time"
        bench.compare(figure, ours(AT_A_TIME), bare, metric=CPU_US, at_most=1.3, is_figure=True)
        bench.compare(
            f"resumed connection with DANE-EE, {AT_A_TIME} at a time",
            ours(AT_A_TIME, is_resumed=True),
            bare,
            resuming,
            metric=CPU_US,
            at_most=0.8,
        )
        bench.compare("new connection with DANE-EE, one after another", ours(1), bare, waiting, metric=CPU_US)
        bench.compare(
            "resumed connection with DANE-EE, one after another", ours(1, is_resumed=True), bare, metric=CPU_US
        )


class _Sink:
    """The sink's process."""

    def __init__(self, core: int) -> None:
        command = [sys.executable, "-c", _PROGRAM, "--json", "--host-name", _NAME]
        self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._popen.pid, {core})
        assert self._popen.stdout is not None
        first = json.loads(self._popen.stdout.readline())
        self.port: int = first["port"]
        self.record = tlsa.from_text(first["tlsa"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.kill()
        self._popen.communicate()


async def _ours(sink: _Sink, count: int, is_resumed: bool, at_a_time: int = 1) -> Timing:
    contexts = TlsContexts()
    host = Host(_NAME, "127.0.0.1")
    plan = Plan(TlsLevel.DANE, sni=_NAME, reference_names=(_NAME,), tlsa=(sink.record,))
    options = SessionOptions(helo_name=_HELO, plan=plan)
    tls = TlsOptions(verify_certificates=None, resumption=is_resumed)
    memory = HostMemory()

    def decide(chain: tuple[bytes, ...]) -> ChainVerdict:
        verdict = judge(plan.tlsa, chain, plan.reference_names, now=datetime.datetime.now(datetime.UTC))
        return ChainVerdict(verdict.is_match, verdict.is_match, verdict.reason)

    async def connect() -> bool:
        session = await open_session(host, sink.port, options, contexts, memory, decide=decide, tls_options=tls)
        facts = session.facts.tls
        await session.quit()
        assert session.capabilities.pipelining
        return facts is not None and facts.dane and (facts.resumed is is_resumed)

    # so that the host is known, and there is a session
    await connect()
    right = 0
    numbers = iter(range(count))

    async def connect_on() -> None:
        nonlocal right
        for _ in numbers:
            is_right = await connect()
            right += is_right

    with Stopwatch() as watch:
        if at_a_time == 1:
            await connect_on()
        else:
            async with trio.open_nursery() as nursery:
                for _ in range(at_a_time):
                    nursery.start_soon(connect_on)
    return watch.timing(count, right)


def _bare_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(b"DEFAULT:!aNULL:!eNULL")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _bare(port: int, count: int, *, is_resumed: bool = False) -> Timing:
    context = _bare_context()
    session: SSL.Session | None = None
    hello = b"EHLO " + _HELO.encode() + b"\r\n"
    right = 0
    with Stopwatch() as watch:
        for _ in range(count):
            plain = socket.create_connection(("127.0.0.1", port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.recv(65536)
            plain.sendall(hello)
            _read_hello(plain)
            plain.sendall(b"STARTTLS\r\n")
            plain.recv(65536)
            secure = SSL.Connection(context, plain)
            secure.set_tlsext_host_name(_NAME.encode())
            secure.set_connect_state()
            if session is not None:
                secure.set_session(session)
            secure.do_handshake()
            secure.sendall(hello)
            right += b"PIPELINING" in _read_hello(secure)
            secure.sendall(b"QUIT\r\n")
            secure.recv(65536)
            if is_resumed:
                session = secure.get_session()
            secure.shutdown()
            plain.close()
    return watch.timing(count, right)


def _read_hello(connection: socket.socket | SSL.Connection) -> bytes:
    found = b""
    while _LAST_LINE not in found or not found.endswith(b"\r\n"):
        found += connection.recv(65536)
    return found


async def _bare_trio(port: int, count: int) -> Timing:
    context = _bare_context()
    hello = b"EHLO " + _HELO.encode() + b"\r\n"
    right = 0
    with Stopwatch() as watch:
        for _ in range(count):
            channel = trio.socket.socket()
            await channel.connect(("127.0.0.1", port))
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = trio.SocketStream(channel)
            await stream.receive_some(65536)
            await stream.send_all(hello)
            found = b""
            while _LAST_LINE not in found or not found.endswith(b"\r\n"):
                found += await stream.receive_some(65536)
            await stream.send_all(b"STARTTLS\r\n")
            await stream.receive_some(65536)
            secure = SSL.Connection(context, None)
            secure.set_tlsext_host_name(_NAME.encode())
            secure.set_connect_state()
            await _shake_hands(secure, stream)
            secure.send(hello)
            await stream.send_all(secure.bio_read(65536))
            found = b""
            while _LAST_LINE not in found or not found.endswith(b"\r\n"):
                found += await _receive(secure, stream)
            right += b"PIPELINING" in found
            secure.send(b"QUIT\r\n")
            await stream.send_all(secure.bio_read(65536))
            await _receive(secure, stream)
            secure.shutdown()
            await stream.send_all(secure.bio_read(65536))
            await stream.aclose()
    return watch.timing(count, right)


async def _shake_hands(secure: SSL.Connection, stream: trio.SocketStream) -> None:
    while True:
        is_done = True
        try:
            secure.do_handshake()
        except SSL.WantReadError:
            is_done = False
        with contextlib.suppress(SSL.WantReadError):
            await stream.send_all(secure.bio_read(65536))
        if is_done:
            return
        secure.bio_write(await stream.receive_some(65536))


async def _receive(secure: SSL.Connection, stream: trio.SocketStream) -> bytes:
    while True:
        try:
            return secure.recv(65536)
        except SSL.WantReadError:
            secure.bio_write(await stream.receive_some(65536))

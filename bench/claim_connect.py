"""A new connection with DANE costs at most 1.3 times the CPU of a bare loop that says the same, a resumed one 0.8.

How: `outrider sink` in a process of its own, with a self-made certificate.  Ours opens a session as a delivery does
(TCP, banner, EHLO, STARTTLS, handshake, the certificate matched with a TLSA record ``3 1 1``, EHLO) and says QUIT; one
after another, with trio.  The bare loop says the same octets over blocking sockets and pyOpenSSL and looks at no
certificate.  A third says them with trio and nothing around it, to tell what waiting with trio costs by itself: each
of the seven waits of a connection is a turn of its loop and of epoll.  All run in this process in turns; measured is
its CPU time, a connection.  Then ours again, where the sessions of the connections before may be resumed.  Right: every
connection ends with the capabilities of the sink, ours is proved by DANE each time, and is resumed each time or never.

What would falsify it: a median ratio over 1.3 for new connections, or over 0.8 for resumed ones.
"""

from __future__ import annotations

import contextlib
import datetime
import json
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

from ._harness import CPU_US, Contender, Stopwatch

if TYPE_CHECKING:
    from ._harness import Harness, Timing

_PROGRAM = "import typer; from engine.cli.sink import sink; app = typer.Typer(); app.command()(sink); app()"
_NAME = "mx.bench.test"
_HELO = "client.bench.test"
#: ends the reply to EHLO of the sink after STARTTLS; the same for both
_LAST_LINE = b"\r\n250 "


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(300, 20)
    with _Sink() as sink:
        bare = Contender("bare loop", lambda: _bare(sink.port, count), SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode())
        fresh = Contender("outrider", lambda: trio.run(_ours, sink, count, False))
        resumed = Contender("outrider", lambda: trio.run(_ours, sink, count, True))
        waiting = Contender("bare trio", lambda: trio.run(_bare_trio, sink.port, count), trio.__version__)
        bench.compare("new connection with DANE-EE", fresh, bare, metric=CPU_US, at_most=1.3, is_figure=True)
        bench.compare("resumed connection with DANE-EE", resumed, bare, metric=CPU_US, at_most=0.8)
        bench.compare("new connection, beside the least that trio needs", fresh, waiting, metric=CPU_US)


class _Sink:
    """The sink's process."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _PROGRAM, "--json", "--host-name", _NAME]
        self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._popen.stdout is not None
        first = json.loads(self._popen.stdout.readline())
        self.port: int = first["port"]
        self.record = tlsa.from_text(first["tlsa"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.kill()
        self._popen.communicate()


async def _ours(sink: _Sink, count: int, is_resumed: bool) -> Timing:
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
        return facts is not None and facts.dane and facts.resumed is is_resumed

    if is_resumed:
        await connect()
    right = 0
    with Stopwatch() as watch:
        for _ in range(count):
            right += await connect()
    return watch.timing(count, right)


def _bare_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(b"DEFAULT:!aNULL:!eNULL")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _bare(port: int, count: int) -> Timing:
    context = _bare_context()
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
            secure.do_handshake()
            secure.sendall(hello)
            right += b"PIPELINING" in _read_hello(secure)
            secure.sendall(b"QUIT\r\n")
            secure.recv(65536)
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

"""Certificates and handshaken pairs for the tests of TLS.

Everything is made once a process: keys cost milliseconds.
"""

from __future__ import annotations

import datetime
import functools
from typing import TYPE_CHECKING

import trio
import trio.testing

from engine.net.stream import TlsStream, serve_tls, start_tls
from engine.policy.plan import Plan, TlsLevel
from engine.tls.context import TlsContexts, TlsOptions, engine_for_server, server_context
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.patience import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from OpenSSL import SSL

    from engine.tls.context import ClientHandshake
    from engine.tls.engine import TlsEngine

NAME = "mx.example.org"
MANDATORY = Plan(TlsLevel.MANDATORY, sni=NAME)
VERIFIED = Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=(NAME,))


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@functools.cache
def authority() -> Identity:
    return make_authority("Outrider test root", now=now())


@functools.cache
def leaf(*names: str, days: int = 90) -> Identity:
    return make_leaf(list(names) or [NAME], now=now(), issuer=authority(), days=days)


@functools.cache
def server() -> SSL.Context:
    return server_context(leaf())


def anchors(directory: Path) -> str:
    """Path of a file with the root of `authority`."""
    path = directory / "root.pem"
    path.write_bytes(authority().chain_pem)
    return str(path)


def verifying(directory: Path) -> TlsContexts:
    """Contexts that trust `authority`."""
    return TlsContexts(TlsOptions(verify_certificates=anchors(directory)))


def shake(handshake: ClientHandshake, context: SSL.Context | None = None) -> tuple[TlsEngine, TlsEngine]:
    """Do the handshake of a client with a fresh server in memory; returns both engines."""
    client, peer = handshake.engine, engine_for_server(context or server())
    done = False
    for _ in range(10):
        done = client.handshake()
        peer.feed(client.pending_output())
        served = peer.handshake()
        client.feed(peer.pending_output())
        if done and served:
            break
    assert done
    return client, peer


async def stream_pair(
    *, sockets: bool = False, yield_every: int = 1, contexts: TlsContexts | None = None, plan: Plan = MANDATORY
) -> tuple[TlsStream, TlsStream]:
    """A client and a server stream with TLS between them, over memory or over loopback."""
    left: trio.abc.Stream
    right: trio.abc.Stream
    if sockets:
        left, right = await socket_pair()
    else:
        left, right = trio.testing.memory_stream_pair()
    served: list[TlsStream] = []

    async def serve() -> None:
        served.append(await serve_tls(right, server(), timeout_s=PATIENCE_S))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = await start_tls(left, plan, contexts or TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S)
    for stream in (client, served[0]):
        stream._yield_every = yield_every
        if stream._tcp is not None:
            stream._tcp._yield_every = yield_every
    return client, served[0]


class Pairs:
    """Makes pairs of streams and closes what is left of them."""

    def __init__(self) -> None:
        self._streams: list[trio.abc.AsyncResource] = []

    async def tls(
        self,
        *,
        sockets: bool = False,
        yield_every: int = 1,
        contexts: TlsContexts | None = None,
        plan: Plan = MANDATORY,
    ) -> tuple[TlsStream, TlsStream]:
        pair = await stream_pair(sockets=sockets, yield_every=yield_every, contexts=contexts, plan=plan)
        self._streams += pair
        return pair

    async def tcp(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        pair = await socket_pair()
        self._streams += pair
        return pair

    async def aclose(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a TCP connection over loopback."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = listeners[0]
    try:
        left = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        right = await listener.accept()
    finally:
        await listener.aclose()
    return left, right

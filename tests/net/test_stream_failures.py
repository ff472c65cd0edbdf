"""TLS that fails: nothing goes out in clear, the reason is kept, and sessions survive every way a connection ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from engine.errors import TlsPolicyError
from engine.net.stream import TlsStream, serve_tls, start_tls
from engine.policy.plan import Plan
from engine.tls.context import TlsContexts, server_context
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import MANDATORY, NAME, VERIFIED, Pairs, leaf, server, socket_pair, verifying

#: content types of TLS records (RFC 8446 §5.1)
CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23


@pytest.fixture
async def pairs() -> AsyncIterator[Pairs]:
    made = Pairs()
    yield made
    await made.aclose()


async def everything(stream: trio.abc.Stream) -> bytes:
    found = b""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                data = await stream.receive_some()
            except trio.BrokenResourceError:
                return found
            if not data:
                return found
            found += data


def record_types(octets: bytes) -> list[int]:
    """The content types of TLS records; fails on anything else, such as clear text."""
    found = []
    while octets:
        assert len(octets) >= 5
        assert octets[1] == 3, octets
        found.append(octets[0])
        octets = octets[5 + int.from_bytes(octets[3:5]) :]
    return found


@pytest.mark.parametrize(
    "answer", [b"454 not now\r\n", b"220 ok\r\n250 ok\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b"\0" * 100]
)
async def test_after_a_failed_handshake_only_records_have_been_sent(pairs: Pairs, answer: bytes) -> None:
    # R43
    left, right = await pairs.tcp()
    received = b""

    async def peer() -> None:
        nonlocal received
        received = await right.receive_some()
        await right.send_all(answer)
        received += await everything(right)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer)
        with pytest.raises(TlsPolicyError):
            await start_tls(left, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S)
    assert record_types(received) in ([HANDSHAKE], [HANDSHAKE, ALERT])
    assert left.socket.fileno() == -1


class Gone(trio.abc.Stream):
    """A transport whose peer answers once and takes nothing more after the first flight."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.sent = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += 1
        if self.sent > 1:
            raise trio.BrokenResourceError("Broken pipe")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        answer, self._answer = self._answer, b""
        return answer

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_the_reason_of_a_failure_is_not_lost_with_the_connection() -> None:
    gone = Gone(b"454 not now\r\n")
    with pytest.raises(TlsPolicyError, match="error:SSL routines"):
        await start_tls(gone, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S)


async def test_a_server_tells_its_reason_and_closes(pairs: Pairs) -> None:
    left, right = await pairs.tcp()
    await left.send_all(b"EHLO client.test\r\n")
    with pytest.raises(TlsPolicyError, match=r"\(SSL_accept\): error:SSL routines"):
        await serve_tls(right, server(), timeout_s=PATIENCE_S)
    assert record_types(await everything(left)) in ([], [ALERT])
    assert right.socket.fileno() == -1


@pytest.mark.parametrize("cut", range(0, 300, 23))
async def test_a_handshake_that_is_cut_anywhere_ends_as_an_error(pairs: Pairs, cut: int) -> None:
    """The server's flight up to `cut` octets, then the end of the connection."""
    left, right = await pairs.tcp()
    client_side, server_side = trio.testing.memory_stream_pair()

    async def serve() -> None:
        with pytest.raises(TlsPolicyError):
            await serve_tls(server_side, server(), timeout_s=PATIENCE_S)

    async def between() -> None:
        await client_side.send_all(await right.receive_some())
        flight = await client_side.receive_some()
        await right.send_all(flight[:cut])
        await right.send_eof()
        await everything(right)
        await client_side.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(between)
        with pytest.raises(TlsPolicyError, match="closed the connection"):
            await start_tls(left, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S)


# Sessions, over sockets and to one endpoint


class Listening:
    """A TLS server at one endpoint, so that sessions can be resumed."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.context = server_context(leaf())

    async def pair(self, contexts: TlsContexts, plan: Plan = MANDATORY) -> tuple[TlsStream, TlsStream]:
        left = await trio.open_tcp_stream(*self.listener.socket.getsockname()[:2])
        right = await self.listener.accept()
        served: list[TlsStream] = []

        async def serve() -> None:
            served.append(await serve_tls(right, self.context, timeout_s=PATIENCE_S))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client = await start_tls(left, plan, contexts, host_name=NAME, timeout_s=PATIENCE_S)
        return client, served[0]


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Listening(listener)


async def quit_in_order(client: TlsStream, peer: TlsStream) -> None:
    await client.aclose()
    await peer.aclose()


async def reset_by_peer(client: TlsStream, peer: TlsStream) -> None:
    assert peer._tcp is not None
    peer._tcp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await peer._tcp.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()


async def cut_without_close_notify(client: TlsStream, peer: TlsStream) -> None:
    assert peer._tcp is not None
    await peer._tcp.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()


async def aborted(client: TlsStream, peer: TlsStream) -> None:
    client.abort()
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(peer)


async def forgotten(client: TlsStream, peer: TlsStream) -> None:
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(peer)


@pytest.mark.parametrize("end", [quit_in_order, reset_by_peer, cut_without_close_notify, aborted, forgotten])
async def test_the_session_survives_the_end_of_its_connection(
    listening: Listening, end: Callable[[TlsStream, TlsStream], object]
) -> None:
    # dane-tls.md 0.2: the library marks a session unusable if its connection is freed before it was shut down.
    contexts = TlsContexts()
    resumed = []
    for _ in range(3):
        client, peer = await listening.pair(contexts)
        await peer.send_all(b"220 ok\r\n")
        assert await client.receive_some() == b"220 ok\r\n"
        resumed.append(client.facts.resumed)
        await end(client, peer)  # type: ignore[misc]
        del client, peer
    assert resumed == [False, True, True]


async def test_a_session_is_not_resumed_before_anything_was_read(listening: Listening) -> None:
    # Its ticket comes behind the handshake (TLS 1.3).
    contexts = TlsContexts()
    for _ in range(2):
        client, peer = await listening.pair(contexts)
        assert not client.facts.resumed
        await client.aclose()
        await peer.aclose()


async def test_a_resumed_session_keeps_its_verdict_and_its_plan(listening: Listening, tmp_path: Path) -> None:
    contexts = verifying(tmp_path)
    for plan, expected in [(VERIFIED, (False, True)), (VERIFIED, (True, True)), (MANDATORY, (False, False))]:
        client, peer = await listening.pair(contexts, plan)
        await peer.send_all(b"220 ok\r\n")
        await client.receive_some()
        assert (client.facts.resumed, client.facts.verified) == expected
        await client.aclose()
        await peer.aclose()


async def test_both_ends_may_close_at_once() -> None:
    left, right = await socket_pair()
    served: list[TlsStream] = []

    async def serve() -> None:
        served.append(await serve_tls(right, server(), timeout_s=PATIENCE_S))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = await start_tls(left, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        nursery.start_soon(served[0].aclose)

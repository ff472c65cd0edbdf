"""TLS and TCP streams over trio: engine/net/stream.py."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from engine.errors import ConfigError, TlsPolicyError
from engine.net.stream import TlsStream, serve_tls, start_tls
from engine.net.tcp import tune
from engine.policy.plan import Plan, TlsLevel
from engine.tls.context import TlsContexts, TlsOptions
from engine.tls.facts import ChainVerdict
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import MANDATORY, NAME, VERIFIED, Pairs, leaf, server, verifying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def pairs() -> AsyncIterator[Pairs]:
    made = Pairs()
    yield made
    await made.aclose()


# Against Python's own TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_talks_to_another_library(pairs: Pairs, version: ssl.TLSVersion, tmp_path: Path) -> None:
    files = tmp_path / "server.pem"
    files.write_bytes(leaf().chain_pem + leaf().key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files)
    context.maximum_version = version
    left, right = await pairs.tcp()
    peer = trio.SSLStream(right, context, server_side=True)
    data = bytes(range(256)) * 4096

    async def echo() -> None:
        received = b""
        while len(received) < len(data):
            received += await peer.receive_some(65536)
        await peer.send_all(received)
        assert await peer.receive_some() == b""
        await peer.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        client = await start_tls(left, VERIFIED, verifying(tmp_path), host_name=NAME, timeout_s=PATIENCE_S)
        assert client.facts.version == version.name.replace("TLSv1_", "TLS1.")
        assert client.facts.verified
        await client.send_all(data)
        received = b""
        while len(received) < len(data):
            received += await client.receive_some()
        assert received == data
        await client.aclose()


# Traffic


@pytest.mark.parametrize("sockets", [False, True], ids=["memory", "sockets"])
async def test_much_data_in_both_directions_at_a_time(pairs: Pairs, sockets: bool) -> None:
    client, peer = await pairs.tls(sockets=sockets, yield_every=16)
    data = bytes(range(251)) * 20_000

    async def send(stream: TlsStream) -> None:
        await stream.send_all(data)

    async def receive(stream: TlsStream) -> None:
        received = bytearray()
        while len(received) < len(data):
            received += await stream.receive_some()
        assert received == data

    async with trio.open_nursery() as nursery:
        for stream in (client, peer):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)
    await client.aclose()
    await peer.aclose()


async def test_receive_gives_at_most_what_was_asked_for(pairs: Pairs) -> None:
    client, peer = await pairs.tls()
    await client.send_all(b"abcdef")
    assert await peer.receive_some(2) == b"ab"
    assert await peer.receive_some() == b"cdef"
    with pytest.raises(ValueError, match="at least 1"):
        await peer.receive_some(0)


async def test_a_cancelled_receive_loses_nothing(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    for _ in range(3):
        with trio.move_on_after(0.01) as scope:
            await peer.receive_some()
        assert scope.cancelled_caught
    await client.send_all(b"still here")
    assert await peer.receive_some() == b"still here"


async def test_a_receive_in_a_cancelled_scope_takes_nothing(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    await client.send_all(b"later")
    with trio.CancelScope() as scope:
        scope.cancel()
        await peer.receive_some()
    assert scope.cancelled_caught
    assert await peer.receive_some() == b"later"


async def test_a_cancelled_send_breaks_the_stream(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"x" * 50_000_000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()
    await peer.aclose()


async def test_two_senders_or_two_receivers_are_refused(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.receive_some()
        nursery.start_soon(client.send_all, b"x" * 50_000_000)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.send_all(b"x")
        with pytest.raises(trio.BusyResourceError):
            await client.wait_send_all_might_not_block()
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(peer)


async def test_busy_streams_let_others_run(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True, yield_every=16)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        for _ in range(160):
            await client.send_all(b"x")
        await peer.receive_some()
        nursery.cancel_scope.cancel()
    assert turns >= 10


# The end


async def test_an_orderly_end_is_empty_bytes(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    await client.send_all(b"QUIT\r\n")
    await client.aclose()
    assert await peer.receive_some() == b"QUIT\r\n"
    assert await peer.receive_some() == b""
    await peer.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await peer.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await peer.receive_some()
    await peer.aclose()


async def test_a_cut_connection_is_broken_for_the_client_and_an_end_for_the_server(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    await peer.send_all(b"250 ok\r\n")
    assert peer._tcp is not None
    await peer._tcp.aclose()
    assert await client.receive_some() == b"250 ok\r\n"
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.receive_some()
    assert isinstance(caught.value.__cause__, TlsPolicyError)
    assert "without close_notify" in str(caught.value)

    client, peer = await pairs.tls(sockets=True)
    await peer.send_all(b"250 ok\r\n")
    # Octets left unread, such as the session tickets of TLS 1.3, would make the kernel send a reset instead of an end.
    assert await client.receive_some() == b"250 ok\r\n"
    assert client._tcp is not None
    await client._tcp.aclose()
    assert await peer.receive_some() == b""


async def test_a_reset_is_broken(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    assert peer._tcp is not None
    peer._tcp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await peer._tcp.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()


async def test_garbage_after_the_handshake_is_broken(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    assert peer._tcp is not None
    await peer._tcp.send_all(b"550 in clear\r\n")
    with pytest.raises(trio.BrokenResourceError, match=r"TLS session: \(SSL_connect\)"):
        await client.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")


async def test_close_does_not_wait_for_a_peer_that_does_not_read(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    with trio.move_on_after(0.05):
        await client.send_all(b"x" * 50_000_000)
    with trio.fail_after(1):
        await client.aclose()
    await trio.aclose_forcefully(peer)


async def test_closing_wakes_who_waits(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
    await peer.aclose()


# Handshakes


async def failing(
    pairs: Pairs,
    answer: bytes | None,
    *,
    timeout_s: float = 5,
    plan: Plan = MANDATORY,
    contexts: TlsContexts | None = None,
) -> tuple[TlsPolicyError, bool]:
    """A handshake with a peer that says `answer`; the error, and whether the transport was closed."""
    left, right = await pairs.tcp()

    async def peer() -> None:
        await right.receive_some()
        if answer:
            await right.send_all(answer)
        elif answer is not None:
            await right.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer)
        with pytest.raises(TlsPolicyError) as caught:
            await start_tls(left, plan, contexts or TlsContexts(), host_name=NAME, timeout_s=timeout_s)
    await right.aclose()
    return caught.value, left.socket.fileno() == -1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"454 not now\r\n", "TLS session: (SSL_connect): error:"),
        (b"", "TLS session: (SSL_connect): the peer closed the connection"),
        (None, "TLS session: (SSL_connect): timed out"),
    ],
)
async def test_a_failed_handshake_closes_the_transport(pairs: Pairs, answer: bytes | None, text: str) -> None:
    # R43: nothing can be sent in clear on the same connection.
    error, closed = await failing(pairs, answer, timeout_s=0.2 if answer is None else 5)
    assert error.message.startswith(text)
    assert (error.errno, error.retry_name) == (-37, "tls_required")
    assert closed


async def judged(pairs: Pairs, plan: Plan, contexts: TlsContexts, decide: object = None) -> bytes:
    """A handshake that is completed and then refused; what the server got."""
    left, right = await pairs.tcp()
    received = b"?"

    async def serve() -> None:
        nonlocal received
        stream = await serve_tls(right, server(), timeout_s=PATIENCE_S)
        received = await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(TlsPolicyError):
            await start_tls(left, plan, contexts, host_name=NAME, timeout_s=PATIENCE_S, decide=decide)  # type: ignore[arg-type]
    assert left.socket.fileno() == -1
    return received


async def test_a_refused_certificate_ends_the_connection_without_an_octet(pairs: Pairs, tmp_path: Path) -> None:
    other = Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=("other.example.org",))
    assert await judged(pairs, other, verifying(tmp_path)) == b""
    dane = Plan(TlsLevel.DANE, sni=NAME, tlsa=(b"\x03\x01\x01" + bytes(32),))
    contexts = TlsContexts()
    assert await judged(pairs, dane, contexts, lambda _: ChainVerdict(accepted=False, message="no match")) == b""
    assert contexts.session_count == 0


async def test_a_cancelled_handshake_closes_the_transport(pairs: Pairs) -> None:
    left, right = await pairs.tcp()
    with trio.move_on_after(0.05):
        await start_tls(left, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=60)
    assert left.socket.fileno() == -1
    await right.aclose()


async def test_bad_options_close_the_transport(pairs: Pairs) -> None:
    left, right = await pairs.tcp()
    with pytest.raises(ConfigError):
        await start_tls(
            left, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=1, options=TlsOptions(require_ciphers="nonsense")
        )
    assert left.socket.fileno() == -1
    await right.aclose()


@pytest.mark.parametrize("octets", [b"EHLO a\r\n", b"", None])
async def test_a_server_handshake_fails_in_bounded_time(pairs: Pairs, octets: bytes | None) -> None:
    left, right = await pairs.tcp()
    if octets:
        await left.send_all(octets)
    elif octets is not None:
        await left.aclose()
    with pytest.raises(TlsPolicyError, match="SSL_accept"):
        await serve_tls(right, server(), timeout_s=0.2)
    assert right.socket.fileno() == -1
    await left.aclose()


async def test_sessions_are_kept_after_the_first_read_and_resumed(pairs: Pairs) -> None:
    contexts = TlsContexts()
    client, peer = await pairs.tls(contexts=contexts)
    assert contexts.session_count == 0
    await peer.send_all(b"250 ok\r\n")
    await client.receive_some()
    assert contexts.session_count == 1
    # as after a lost connection: the transport is gone before anything was said
    client.abort()
    await trio.aclose_forcefully(client)
    again, peer_again = await pairs.tls(contexts=contexts)
    assert again.facts.resumed
    for stream in (peer, again, peer_again):
        await trio.aclose_forcefully(stream)


async def test_sessions_of_sockets_are_bound_to_the_endpoint(pairs: Pairs) -> None:
    contexts = TlsContexts()
    for _ in range(2):
        client, peer = await pairs.tls(sockets=True, contexts=contexts)
        await peer.send_all(b"250 ok\r\n")
        await client.receive_some()
        assert not client.facts.resumed  # another port each time
        await client.aclose()
        await peer.aclose()
    assert contexts.session_count == 2


async def test_tune_sets_what_smtp_wants(pairs: Pairs) -> None:
    left, right = await pairs.tcp()
    tune(left.socket)
    assert left.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    one, other = socket.socketpair()
    with one, other:
        tune(one)
    await left.aclose()
    await right.aclose()

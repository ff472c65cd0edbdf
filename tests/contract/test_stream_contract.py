"""The contract of trio's streams, as trio's own suite has it, for TCP and TLS streams over memory and over sockets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from engine.net.stream import TlsStream, start_tls
from engine.net.tcp import TcpStream
from engine.tls.context import TlsContexts
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import MANDATORY, NAME, Pairs, leaf, socket_pair


@pytest.fixture
async def pairs() -> AsyncIterator[Pairs]:
    made = Pairs()
    yield made
    await made.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("sockets", [False, True], ids=["memory", "sockets"])
async def test_tls_keeps_the_contract_of_a_stream(pairs: Pairs, sockets: bool) -> None:
    async def make() -> tuple[TlsStream, TlsStream]:
        client, peer = await pairs.tls(sockets=sockets)
        # The suite closes without ceremony and expects an end, not an error.
        client._ragged_eof_ok = True
        return client, peer

    await trio.testing.check_two_way_stream(make, None)


@pytest.mark.slow
async def test_tls_against_another_library_keeps_the_contract(tmp_path: Path) -> None:
    files = tmp_path / "server.pem"
    files.write_bytes(leaf().chain_pem + leaf().key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files)
    made: list[trio.abc.AsyncResource] = []

    async def make() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        left, right = await socket_pair()
        peer = trio.SSLStream(right, context, server_side=True, https_compatible=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.do_handshake)
            client = await start_tls(left, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S)
        client._ragged_eof_ok = True
        client._yield_every = 1
        assert client._tcp is not None
        client._tcp._yield_every = 1
        made.extend((client, peer))
        return client, peer

    await trio.testing.check_two_way_stream(make, None)
    for stream in made:
        await trio.aclose_forcefully(stream)


@pytest.mark.slow
async def test_tcp_keeps_the_contract_of_a_half_closeable_stream(pairs: Pairs) -> None:
    async def make() -> tuple[TcpStream, TcpStream]:
        left, right = await pairs.tcp()
        return TcpStream(left, yield_every=1), TcpStream(right, yield_every=1)

    async def make_clogged() -> tuple[TcpStream, TcpStream]:
        left, right = await make()
        for stream in (left, right):
            while stream._send_nowait(b"x" * 65536):
                pass
        return left, right

    await trio.testing.check_half_closeable_stream(make, make_clogged)

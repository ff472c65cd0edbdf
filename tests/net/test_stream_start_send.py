"""The half of `send_all` that does not wait: `start_send` and `finish_send`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from engine.net.stream import TlsStream
from engine.net.tcp import TcpStream
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import Pairs

#: more than the kernel takes, in pieces of this size
PIECE = bytes(range(256)) * 256


@pytest.fixture
async def pairs() -> AsyncIterator[Pairs]:
    made = Pairs()
    yield made
    await made.aclose()


async def make(pairs: Pairs, kind: str) -> tuple[TcpStream | TlsStream, trio.abc.Stream]:
    if kind == "tls":
        return await pairs.tls(sockets=True)
    left, right = await pairs.tcp()
    return TcpStream(left), right


def fill(stream: TcpStream | TlsStream) -> int:
    """Send until something is left; returns how many pieces were handed over, the last not whole."""
    count = 1
    while stream.start_send(PIECE):
        count += 1
    return count


async def drain(stream: trio.abc.Stream, count: int) -> bytes:
    octets = b""
    while len(octets) < count:
        octets += await stream.receive_some(1 << 20)
    return octets


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_what_the_kernel_takes_at_once(pairs: Pairs, kind: str) -> None:
    stream, peer = await make(pairs, kind)
    assert stream.start_send(b"abc")
    assert stream.start_send(b"")
    await stream.send_all(b"def")
    assert await drain(peer, 6) == b"abcdef"


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_the_rest_follows_in_order(pairs: Pairs, kind: str) -> None:
    stream, peer = await make(pairs, kind)
    count = fill(stream)
    with pytest.raises(trio.BusyResourceError):
        stream.start_send(b"x")
    with pytest.raises(trio.BusyResourceError):
        await stream.send_all(b"x")
    received: list[bytes] = []

    async def read() -> None:
        received.append(await drain(peer, count * len(PIECE) + 3))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await stream.finish_send()
        await stream.send_all(b"end")
    assert received[0] == PIECE * count + b"end"


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_reading_goes_on_while_something_is_left(pairs: Pairs, kind: str) -> None:
    stream, peer = await make(pairs, kind)
    fill(stream)
    await peer.send_all(b"hello")
    with trio.fail_after(PATIENCE_S):
        assert await stream.receive_some() == b"hello"
    with trio.move_on_after(0.01):
        await stream.finish_send()


async def test_a_cancelled_rest_breaks_tls_for_good(pairs: Pairs) -> None:
    stream, _ = await make(pairs, "tls")
    fill(stream)
    with trio.move_on_after(0.01) as scope:
        await stream.finish_send()
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        stream.start_send(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")


async def test_a_large_piece_over_tls_is_left_as_a_whole(pairs: Pairs) -> None:
    stream, peer = await make(pairs, "tls")
    large = PIECE * 5
    assert not stream.start_send(large)
    received: list[bytes] = []

    async def read() -> None:
        received.append(await drain(peer, len(large)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await stream.finish_send()
    assert received == [large]


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_closed_or_broken_stream_says_so(pairs: Pairs, kind: str) -> None:
    stream, peer = await make(pairs, kind)
    await trio.aclose_forcefully(peer)

    async def send_on() -> None:
        for _ in range(100):
            stream.start_send(b"x")
            await trio.sleep(0.001)

    with pytest.raises(trio.BrokenResourceError):
        await send_on()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        stream.start_send(b"x")

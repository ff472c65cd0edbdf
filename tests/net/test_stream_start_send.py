"""What trio's streams do not have: `start_send` and `finish_send`, `is_lockstep`, `send_last`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio

from engine.net.stream import TlsStream
from engine.net.tcp import TcpStream
from engine.tls.context import TlsContexts
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


async def test_who_is_in_lockstep_waits_for_the_answer_before_he_reads(pairs: Pairs) -> None:
    """What was sent has to be answered first, so there is a wait instead of a read that is bound to fail."""
    stream, peer = await make(pairs, "tcp")
    me = trio.lowlevel.current_task()
    waits = 0

    class Waits(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal waits
            waits += task is me

    async def waits_for(answer: bytes, question: bytes = b"") -> int:
        """How often an answer was waited for that was there already."""
        await peer.send_all(answer)
        if question:
            await stream.send_all(question)
        before = waits
        assert await stream.receive_some() == answer
        return waits - before

    trio.lowlevel.add_instrument(Waits())
    assert await waits_for(b"not in lockstep", b"question") == 0
    stream.is_lockstep = True
    assert await waits_for(b"answer", b"question") == 1
    assert await waits_for(b"more of it") == 0
    stream.is_lockstep = False
    assert await waits_for(b"not in lockstep", b"question") == 0


async def test_tls_over_a_socket_knows_lockstep_too(pairs: Pairs) -> None:
    client, _ = await pairs.tls(sockets=True)
    for value in (True, False):
        client.is_lockstep = value
        assert isinstance(client.transport, TcpStream)
        assert client.is_lockstep is client.transport.is_lockstep is value
    in_memory, _ = await pairs.tls()
    in_memory.is_lockstep = True
    assert not in_memory.is_lockstep


async def test_who_is_in_lockstep_notices_the_end(pairs: Pairs) -> None:
    left, right = await pairs.tcp()
    stream = TcpStream(left)
    stream.is_lockstep = True
    await stream.send_all(b"x")
    await right.aclose()
    with contextlib.suppress(trio.BrokenResourceError):  # it had not read what was sent
        assert await stream.receive_some() == b""
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


async def test_the_last_words_close_our_direction_and_the_answer_is_heard(pairs: Pairs) -> None:
    client, peer = await pairs.tls(sockets=True)
    await client.send_last(b"QUIT\r\n")
    assert await peer.receive_some() == b"QUIT\r\n"
    assert await peer.receive_some() == b""
    await peer.send_all(b"221 bye\r\n")
    assert await client.receive_some() == b"221 bye\r\n"
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"NOOP\r\n")


async def test_the_last_words_leave_the_session_to_be_resumed(pairs: Pairs) -> None:
    contexts = TlsContexts()
    client, peer = await pairs.tls(contexts=contexts)
    await client.send_last(b"QUIT\r\n")
    await peer.send_all(b"221 bye\r\n")
    assert await client.receive_some() == b"221 bye\r\n"
    await client.aclose()
    assert (await pairs.tls(contexts=contexts))[0].facts.resumed

"""Who speaks first after a handshake sends its last flight and its first words in one piece (`leave_last`)."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing

from engine.errors import TlsPolicyError
from engine.net.stream import serve_tls, start_tls
from engine.policy.plan import Plan, TlsLevel
from engine.tls.context import TlsContexts
from engine.tls.facts import ChainVerdict
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import MANDATORY, NAME, server


class Counting(trio.abc.Stream):
    """A stream that keeps what is sent over it, piece by piece."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.pieces: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def shake(*, leave_last: bool, talk: bool = True) -> list[bytes]:
    """A handshake, then a word each way, the client's or the server's first; what the client sent."""
    left, right = trio.testing.memory_stream_pair()
    counting = Counting(left)

    async def serve() -> None:
        peer = await serve_tls(right, server(), timeout_s=PATIENCE_S)
        if not talk:
            await peer.send_all(b"hello")
        assert await peer.receive_some() == b"words"
        await peer.send_all(b"bye")
        await peer.aclose()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client = await start_tls(
                counting, MANDATORY, TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S, leave_last=leave_last
            )
            if not talk:
                assert await client.receive_some() == b"hello"
            await client.send_all(b"words")
            assert await client.receive_some() == b"bye"
            pieces = list(counting.pieces)
            await client.aclose()
    return pieces


@pytest.mark.parametrize(("leave_last", "pieces"), [(True, 2), (False, 3)])
async def test_the_last_flight_goes_with_the_first_words(leave_last: bool, pieces: int) -> None:
    sent = await shake(leave_last=leave_last)
    assert len(sent) == pieces
    assert (b"words" in b"".join(sent)) is False


async def test_it_goes_before_anything_is_waited_for() -> None:
    assert len(await shake(leave_last=True, talk=False)) == 3


async def test_a_refused_certificate_ends_it_without_a_word() -> None:
    """The peer learns that the handshake is over and that we leave; nothing that we had to say was ever written."""
    left, right = trio.testing.memory_stream_pair()
    counting = Counting(left)
    heard: list[bytes] = []

    async def serve() -> None:
        # it has all it needs, and may or may not find out that nobody is there any more
        with contextlib.suppress(TlsPolicyError):
            peer = await serve_tls(right, server(), timeout_s=PATIENCE_S)
            heard.append(bytes(await peer.receive_some()))
            await peer.aclose()

    plan = Plan(TlsLevel.DANE, sni=NAME, tlsa=(b"\3\1\1" + bytes(32),))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(TlsPolicyError):
                await start_tls(
                    counting,
                    plan,
                    TlsContexts(),
                    host_name=NAME,
                    timeout_s=PATIENCE_S,
                    leave_last=True,
                    decide=lambda _: ChainVerdict(False, message="no match"),
                )
    assert b"".join(heard) == b""
    assert len(counting.pieces) == 2

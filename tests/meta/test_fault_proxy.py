"""The fault proxy does what it says, at the octet it says; a test tool that lies makes every test lie."""

from __future__ import annotations

import functools
import random
import ssl

import pytest
import trio
import trustme

from fakes.fault_proxy import (
    TO_CLIENT,
    TO_SERVER,
    Answer,
    Cut,
    Dribble,
    Fault,
    FaultProxy,
    Inject,
    Point,
    Replace,
    Reset,
    Stall,
    inject_after_starttls,
    open_fault_proxy,
    random_fault,
    refuse_starttls,
    strip_starttls,
    swap_certificate,
)
from fakes.patience import PATIENCE_S

AUTHORITY = trustme.CA()
EHLO = b"250-upper.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n"


async def serve(stream: trio.abc.Stream) -> None:
    """Echo each line in upper case; EHLO and STARTTLS as a mail server does."""
    buffer = b""
    try:
        while data := await stream.receive_some(1024):
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                if line.startswith(b"EHLO"):
                    await stream.send_all(EHLO)
                elif line.startswith(b"STARTTLS"):
                    await stream.send_all(b"220 go ahead\r\n")
                    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                    AUTHORITY.issue_cert("upper.test").configure_cert(context)
                    await serve(trio.SSLStream(stream, context, server_side=True, https_compatible=True))
                    return
                else:
                    await stream.send_all(line.upper() + b"\n")
    except (trio.BrokenResourceError, OSError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


@pytest.fixture
async def port(nursery: trio.Nursery) -> int:
    listeners = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    number: int = listeners[0].socket.getsockname()[1]
    return number


async def receive(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    with trio.fail_after(PATIENCE_S):
        while len(data) < count and (piece := await stream.receive_some(count - len(data))):
            data += piece
    return data


async def connect(proxy: FaultProxy) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", proxy.port)


async def test_without_a_fault_everything_passes_and_is_kept(port: int) -> None:
    async with open_fault_proxy("127.0.0.1", port) as proxy, await connect(proxy) as stream:
        big = b"x" * 200_000 + b"\n"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"hello\n" + big)
            assert await receive(stream, 6 + len(big)) == b"HELLO\n" + big.upper()
        await stream.send_eof()
        assert await receive(stream, 1) == b""
    (connection,) = proxy.connections
    assert bytes(connection.sent) == b"hello\n" + big
    assert bytes(connection.received) == b"HELLO\n" + big.upper()
    assert not connection.is_open


@pytest.mark.parametrize("octets", [0, 1, 5, 6, 7, 11])
async def test_a_cut_is_at_the_octet(port: int, octets: int) -> None:
    async with open_fault_proxy("127.0.0.1", port, [Fault(Point(TO_CLIENT, octets=octets), Cut())]) as proxy:
        async with await connect(proxy) as stream:
            await stream.send_all(b"hello\nworld\n")
            assert await receive(stream, 100) == b"HELLO\nWORLD\n"[:octets]
        assert proxy.connections[0].fired


async def test_a_reset_is_an_error_for_the_client(port: int) -> None:
    async with open_fault_proxy("127.0.0.1", port, [Fault(Point(TO_SERVER, after=b"hel"), Reset())]) as proxy:
        async with await connect(proxy) as stream:
            await stream.send_all(b"hello\n")
            with pytest.raises(trio.BrokenResourceError):
                await receive(stream, 1)
        assert bytes(proxy.connections[0].sent) == b"hel"


async def test_a_stall_passes_nothing_more_until_it_ends(port: int) -> None:
    faults = [[Fault(Point(TO_CLIENT, after=b"\n"), Stall())], [Fault(Point(TO_CLIENT, after=b"\n"), Stall(0.05))]]
    async with open_fault_proxy("127.0.0.1", port, lambda number: faults[number]) as proxy:
        async with await connect(proxy) as stream:
            await stream.send_all(b"a\nb\n")
            assert await receive(stream, 2) == b"A\n"
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.1):
                await stream.receive_some(1)
        async with await connect(proxy) as stream:
            await stream.send_all(b"a\nb\n")
            assert await receive(stream, 4) == b"A\nB\n"


async def test_dribbling_changes_the_pieces_and_not_the_octets(port: int) -> None:
    faults = [Fault(Point(TO_CLIENT, octets=2), Dribble(octets=3, pause_s=0.001, count=3))]
    async with open_fault_proxy("127.0.0.1", port, faults) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"abcdefghijklmnopqrstuvwxyz\n")
        assert await receive(stream, 27) == b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\n"


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
async def test_patterns_are_found_whatever_the_pieces(port: int, piece: int) -> None:
    faults = [
        Fault(Point(TO_SERVER, before=b"bad"), Replace(b"good")),
        Fault(Point(TO_SERVER, after=b"one\n"), Inject(b"two\n")),
        Fault(Point(TO_SERVER, before=b"ask\n"), Answer(b"told\n")),
    ]
    async with open_fault_proxy("127.0.0.1", port, faults) as proxy, await connect(proxy) as stream:
        text = b"babad\none\nask\nbabbad\n"
        for start in range(0, len(text), piece):
            await stream.send_all(text[start : start + piece])
            await trio.sleep(0.002)
        # what is answered at once may overtake what has to come back from the server
        data = await receive(stream, len(b"BAGOOD\nONE\nTWO\ntold\nBABBAD\n"))
        assert data.replace(b"told\n", b"", 1) == b"BAGOOD\nONE\nTWO\nBABBAD\n"
        assert b"told\n" in data


async def test_starttls_is_hidden_or_refused(port: int) -> None:
    async with open_fault_proxy("127.0.0.1", port, strip_starttls()) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"EHLO c.test\r\n")
        assert await receive(stream, len(EHLO)) == EHLO.replace(b"STARTTLS", b"XXXXXXXX")
    refusal = b"454 no\r\n"
    async with open_fault_proxy("127.0.0.1", port, refuse_starttls(refusal)) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"STARTTLS\r\n")
        assert await receive(stream, 8) == refusal
        await stream.send_all(b"still clear\n")
        assert await receive(stream, 12) == b"STILL CLEAR\n"
    assert b"STARTTLS" not in proxy.connections[0].sent


async def test_clear_text_comes_in_one_piece_with_the_reply_to_starttls(port: int) -> None:
    faults = inject_after_starttls(b"250 evil\r\n")
    async with open_fault_proxy("127.0.0.1", port, faults) as proxy, await connect(proxy) as stream:
        await stream.send_all(b"EHLO c.test\r\n")
        assert await receive(stream, len(EHLO)) == EHLO
        await stream.send_all(b"STARTTLS\r\n")
        with trio.fail_after(PATIENCE_S):
            assert await stream.receive_some(1000) == b"220 go ahead\r\n250 evil\r\n"


async def test_the_swapped_certificate_is_seen_and_the_clear_text_passes(port: int) -> None:
    other = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    other.issue_cert("upper.test").configure_cert(context)
    async with open_fault_proxy("127.0.0.1", port, swap_certificate(context)) as proxy:
        for authority in (other, AUTHORITY):
            trust = ssl.create_default_context()
            authority.configure_trust(trust)
            async with await connect(proxy) as stream:
                await stream.send_all(b"STARTTLS\r\n")
                assert await receive(stream, 14) == b"220 go ahead\r\n"
                tls = trio.SSLStream(stream, trust, server_hostname="upper.test", https_compatible=True)
                if authority is AUTHORITY:
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await tls.do_handshake()
                    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
                else:
                    await tls.send_all(b"secret\n")
                    assert await receive(tls, 7) == b"SECRET\n"
    assert bytes(proxy.connections[0].sent) == b"STARTTLS\r\nsecret\n"
    assert b"secret" not in proxy.connections[1].sent


async def test_any_random_fault_leaves_nothing_behind(port: int, rng: random.Random) -> None:
    async with open_fault_proxy("127.0.0.1", port, lambda _: [random_fault(rng, octets=20)]) as proxy:
        for _ in range(30):
            async with await connect(proxy) as stream:
                with trio.move_on_after(0.1):
                    try:
                        await stream.send_all(b"hello\nworld\n")
                        await receive(stream, 12)
                    except trio.BrokenResourceError:
                        pass
    assert not any(connection.is_open for connection in proxy.connections)


def test_a_fault_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of"):
        Point(TO_CLIENT)
    with pytest.raises(ValueError, match="give `before`"):
        Fault(Point(TO_CLIENT, octets=1), Replace(b""))

"""The sink over sockets: engine/net/sink.py.  Clients here speak by hand; real ones are in tests/e2e."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from engine.net.sink import Sink, SinkOptions, open_sink
from engine.net.stream import TlsStream, start_tls
from engine.smtp.server import ServerOptions
from engine.tls.context import TlsContexts
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import MANDATORY, NAME, server

MAIL = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
MESSAGE = MAIL + b"BDAT 3 LAST\r\nx\r\n"


class Client:
    """A client that says what it is told to; every wait is bounded."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._rest = b""

    async def say(self, octets: bytes, replies: int = 1) -> list[bytes]:
        """Send, and read as many replies; fewer if the connection ends."""
        await self.stream.send_all(octets)
        return await self.hear(replies)

    async def hear(self, replies: int = 1) -> list[bytes]:
        found: list[bytes] = []
        with trio.fail_after(PATIENCE_S):
            while len(found) < replies:
                line, separator, rest = self._rest.partition(b"\r\n")
                if not separator:
                    try:
                        data = await self.stream.receive_some()
                    except trio.BrokenResourceError:
                        data = b""
                    if not data:
                        break
                    self._rest += data
                    continue
                self._rest = rest
                if line[3:4] == b" ":
                    found.append(line)
        return found

    async def at_end(self) -> bool:
        return await self.hear() == []


@contextlib.asynccontextmanager
async def dialled(sink: Sink, *, ehlo: bool = True) -> AsyncIterator[Client]:
    stream = await trio.open_tcp_stream(*sink.address)
    try:
        client = Client(stream)
        if ehlo:
            assert [line[:3] for line in [*await client.hear(), *await client.say(b"EHLO client.test\r\n")]] == [
                b"220",
                b"250",
            ]
        yield client
    finally:
        await trio.aclose_forcefully(stream)


def options(**values: Any) -> SinkOptions:
    names = set(ServerOptions.__dataclass_fields__)
    dialogue = ServerOptions(**{name: values.pop(name) for name in list(values) if name in names})
    return SinkOptions(server=dialogue, **values)


def code(lines: list[bytes]) -> list[bytes]:
    return [line[:3] for line in lines]


# Taking mail


async def test_mail_is_taken_kept_and_counted() -> None:
    async with open_sink(options(keep_messages=1)) as sink, dialled(sink) as client:
        assert code(await client.say(MESSAGE, 3)) == [b"250"] * 3
        assert code(await client.say(MESSAGE + b"QUIT\r\n", 4)) == [b"250"] * 3 + [b"221"]
        assert await client.at_end()
        with trio.fail_after(PATIENCE_S):
            await sink.wait_messages(2)
        assert [message.octets for message in sink.messages] == [b"x\r\n"]
        counts = sink.counts
        assert (counts.messages, counts.recipients, counts.octets, counts.connections) == (2, 2, 6, 1)


async def test_who_waits_for_messages_is_woken() -> None:
    async with open_sink() as sink, trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE_S):
            nursery.start_soon(sink.wait_messages, 1)
            nursery.start_soon(sink.wait_messages, 2)
            async with dialled(sink) as client:
                await client.say(MESSAGE, 3)
                await client.say(MESSAGE, 3)


async def test_a_half_closed_client_gets_its_replies() -> None:
    for delay_s in (0.0, 0.05):
        async with open_sink(options(delay_s=delay_s)) as sink, dialled(sink) as client:
            await client.stream.send_all(MESSAGE + b"NOOP\r\n")
            assert isinstance(client.stream, trio.SocketStream)
            await client.stream.send_eof()
            assert code(await client.hear(4)) == [b"250"] * 4
            assert await client.at_end()


async def test_an_early_talker_is_answered_in_order() -> None:
    async with open_sink() as sink, dialled(sink, ehlo=False) as client:
        assert code(await client.say(b"EHLO a\r\n" + MESSAGE + b"QUIT\r\n", 6)) == [b"220"] + [b"250"] * 4 + [b"221"]


async def test_the_connection_that_drops_says_nothing_more() -> None:
    async with open_sink(options(drop=1.0, seed=4)) as sink:
        for number in range(1, 30):
            async with dialled(sink) as client:
                lines = await client.say(MESSAGE, 4)
                assert len(lines) <= 3
                assert await client.at_end()
            assert sink.counts.dropped == number
        assert 0 < sink.counts.messages < 29


async def test_the_same_seed_does_the_same() -> None:
    async def run(seed: int) -> list[list[bytes]]:
        async with open_sink(options(defer=0.3, fail=0.3, seed=seed)) as sink:
            found = []
            for _ in range(10):
                async with dialled(sink) as client:
                    found.append(code(await client.say(MAIL, 2)))
            return found

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)


async def test_counts_agree_with_what_many_clients_were_told(rng: random.Random) -> None:
    told: Counter[bytes] = Counter()
    closed = 0
    async with open_sink(options(defer=0.2, fail=0.1, drop=0.05, seed=rng.getrandbits(32))) as sink:

        async def client_task(left: int) -> None:
            nonlocal closed
            while left:
                async with dialled(sink) as client:
                    while left:
                        left -= 1
                        lines = await client.say(MESSAGE + b"RSET\r\n", 4)
                        told.update(b" ".join(line.split(b" ")[:2]) for line in lines[1:3])
                        if len(lines) < 4:
                            closed += 1
                            break

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(client_task, 100)
        counts = sink.counts
    assert counts.dropped == closed > 0
    assert counts.deferred == told[b"450 4.2.1"] + told[b"451 4.3.0"] > 0
    assert counts.failed == told[b"550 5.1.1"] + told[b"554 5.6.0"] > 0
    # A message may be taken and the connection dropped instead of the reply: the client is in doubt.
    assert 0 <= counts.messages - told[b"250 2.0.0"] <= closed
    assert sum(told.values()) >= 800


# Delays


async def test_replies_are_late_but_in_order_and_together() -> None:
    async with open_sink(options(delay_s=0.1)) as sink:
        start = trio.current_time()
        async with dialled(sink) as client:
            assert code(await client.say(MESSAGE * 20, 60)) == [b"250"] * 60
            assert code(await client.say(b"QUIT\r\n")) == [b"221"]
            assert await client.at_end()
        # greeting, EHLO, one flight, QUIT
        assert trio.current_time() - start >= 0.4
        assert sink.counts.messages == 20


@pytest.mark.slow
async def test_a_flood_under_delay_is_bounded() -> None:
    async with open_sink(options(delay_s=30.0)) as sink:
        stream = await trio.open_tcp_stream(*sink.address)
        async with stream:
            sent = 0
            with trio.move_on_after(1) as scope:
                while sent < 100 << 20:
                    await stream.send_all(b"VRFY x\r\n" * 8192)
                    sent += 65_536
            # The sink stopped reading: what was taken is what fits the buffers of the kernel and `DELAYED_OCTETS`.
            assert scope.cancelled_caught


# TLS


async def everything(stream: trio.abc.Stream) -> bytes:
    found = b""
    with trio.fail_after(PATIENCE_S):
        while data := await stream.receive_some():
            found += data
    return found


async def secured(client: Client, contexts: TlsContexts | None = None) -> TlsStream:
    assert code(await client.say(b"STARTTLS\r\n")) == [b"220"]
    client.stream = await start_tls(
        client.stream, MANDATORY, contexts or TlsContexts(), host_name=NAME, timeout_s=PATIENCE_S
    )
    return client.stream


async def test_starttls_and_mail_over_it() -> None:
    async with open_sink(options(tls=server(), keep_messages=5, require_tls=True)) as sink, dialled(sink) as client:
        assert code(await client.say(b"MAIL FROM:<>\r\n")) == [b"530"]
        stream = await secured(client)
        assert code(await client.say(MAIL, 2)) == [b"503", b"503"]
        assert code(await client.say(b"EHLO client.test\r\n" + MESSAGE + b"QUIT\r\n", 5)) == [b"250"] * 4 + [b"221"]
        # the end of TLS, not just of TCP
        assert await stream.receive_some() == b""
        assert sink.messages[0].tls
        assert (sink.counts.tls_connections, sink.counts.tls_failed) == (1, 0)


async def test_octets_sent_behind_starttls_are_not_taken_for_encrypted_ones() -> None:
    async with open_sink(options(tls=server(), keep_messages=5)) as sink:
        async with dialled(sink) as client:
            assert code(await client.say(b"STARTTLS\r\nEHLO evil\r\n" + MESSAGE, 9)) == [b"554"]
        async with dialled(sink) as client:
            # In two pieces the second meets the handshake, and fails it.
            assert code(await client.say(b"STARTTLS\r\n")) == [b"220"]
            await client.stream.send_all(b"EHLO evil\r\n" + MESSAGE)
            with contextlib.suppress(trio.BrokenResourceError):
                await client.stream.receive_some()
        assert sink.messages == []
        assert sink.counts.messages == 0
        with trio.fail_after(PATIENCE_S):
            while not sink.counts.tls_failed:  # noqa: ASYNC110 - nobody tells of it
                await trio.sleep(0.01)


async def test_a_dropped_tls_connection_ends_without_close_notify() -> None:
    async with open_sink(options(tls=server(), drop=1.0, seed=1)) as sink, dialled(sink) as client:
        stream = await secured(client)
        await stream.send_all(b"EHLO a\r\n" + MESSAGE)
        with pytest.raises(trio.BrokenResourceError):
            await everything(stream)
        assert sink.counts.dropped == 1


# Limits and bad clients


async def test_connections_over_the_limit_are_answered_421() -> None:
    async with open_sink(options(max_connections=2)) as sink:
        async with dialled(sink), dialled(sink), dialled(sink, ehlo=False) as third:
            assert code(await third.hear()) == [b"421"]
            assert await third.at_end()
        with trio.fail_after(PATIENCE_S):
            while True:
                async with dialled(sink, ehlo=False) as again:
                    if code(await again.hear()) == [b"220"]:
                        break
        assert sink.counts.refused_connections >= 1


async def test_a_silent_client_is_dropped(mock_clock: trio.testing.MockClock) -> None:
    async with open_sink(options(idle_timeout_s=60.0)) as sink, dialled(sink) as client:
        await client.stream.send_all(MAIL + b"DATA\r\nno end")
        assert code(await client.hear(3)) == [b"250", b"250", b"354"]
        # all that came is read, and the sink waits for more
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(59.0)
        await client.stream.send_all(b" yet")
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(61.0)
        assert await client.at_end()
        assert sink.counts.messages == 0


async def test_a_client_that_talks_is_not_silent(mock_clock: trio.testing.MockClock) -> None:
    async with open_sink(options(idle_timeout_s=60.0)) as sink, dialled(sink) as client:
        for _ in range(6):
            mock_clock.jump(20.0)
            assert code(await client.say(b"NOOP\r\n")) == [b"250"]


@pytest.mark.slow
async def test_a_client_that_never_reads_stops_being_read() -> None:
    async with open_sink(options(idle_timeout_s=1.5)) as sink, dialled(sink) as client:
        sent = 0
        stream = client.stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE_S):
            while sent < 100 << 20:
                await stream.send_all(b"VRFY x\r\n" * 8192)
                sent += 65_536
        # What was taken is what fits the buffers of the kernel, whatever was offered.
        assert sent < 64 << 20
        async with dialled(sink) as other:
            assert code(await other.say(MESSAGE, 3)) == [b"250"] * 3


async def test_a_line_without_end_is_refused_and_the_connection_goes_on() -> None:
    async with open_sink() as sink, dialled(sink) as client:
        for _ in range(30):
            await client.stream.send_all(b"x" * 100_000)
        assert code(await client.say(b"\r\nNOOP\r\n", 2)) == [b"500", b"250"]


async def test_nonsense_ends_with_421_even_if_more_follows() -> None:
    # The replies are not destroyed by a reset, since the sink goes on to read for a while.
    async with open_sink() as sink, dialled(sink) as client:
        lines = code(await client.say(b"\0\xff\r\n" * 60_000, 52))
        assert lines == [b"500"] * 50 + [b"421"]
        assert sink.counts.messages == 0


@pytest.mark.slow
async def test_many_connections_at_a_time() -> None:
    async with open_sink(options(max_connections=2000)) as sink:
        ready = 0
        everybody = trio.Event()

        async def client_task() -> None:
            nonlocal ready
            async with dialled(sink) as client:
                ready += 1
                if ready == 400:
                    everybody.set()
                await everybody.wait()
                assert code(await client.say(MESSAGE + b"QUIT\r\n", 4)) == [b"250"] * 3 + [b"221"]

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(400):
                    nursery.start_soon(client_task)
        assert (sink.counts.messages, sink.counts.connections) == (400, 400)


async def test_clients_that_vanish_do_no_harm(rng: random.Random) -> None:
    async with open_sink(options(tls=server(), keep_messages=1000)) as sink:
        for _ in range(40):
            stream = await trio.open_tcp_stream(*sink.address)
            octets = b"EHLO a\r\n" + MESSAGE * 3 + rng.choice([b"QUIT\r\n", b"STARTTLS\r\n", b"\x16\x03\x01junk"])
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(octets[: rng.randrange(len(octets))])
            if rng.random() < 0.5:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
        async with dialled(sink) as client:
            assert code(await client.say(MESSAGE, 3)) == [b"250"] * 3
        assert len(sink.messages) == sink.counts.messages >= 1


# Duplicates


async def test_duplicates_are_counted_by_message_id_and_recipient() -> None:
    def mail(message_id: bytes, *recipients: bytes) -> bytes:
        text = b"Subject: x\r\n%s\r\nbody\r\n" % message_id
        rcpts = b"".join(b"RCPT TO:<%s>\r\n" % recipient for recipient in recipients)
        return b"MAIL FROM:<>\r\n%sBDAT %d LAST\r\n%s" % (rcpts, len(text), text)

    flights = [
        mail(b"Message-ID: <1@x>\r\n", b"a@b", b"c@d"),
        mail(b"message-id:\r\n <1@x> \r\n", b"a@b"),
        mail(b"Message-ID: <2@x>\r\n", b"a@b"),
        mail(b"X-Message-ID: <2@x>\r\n", b"a@b"),
        mail(b"\r\nMessage-ID: <3@x>\r\n", b"a@b"),
    ]
    async with open_sink(options(track=True)) as sink, dialled(sink) as client:
        for flight in flights:
            await client.say(flight, flight.count(b"RCPT") + 2)
        counts = sink.counts
    assert (counts.unique, counts.duplicates, counts.message_ids, counts.without_id) == (3, 1, 2, 2)
    assert counts.messages == 5


# Listening


async def test_it_cannot_listen_twice_on_one_port() -> None:
    async with open_sink() as sink:
        with pytest.raises(OSError, match=r".+"):
            async with open_sink(options(port=sink.port)):
                pass


async def test_a_name_with_two_addresses_gets_one_port() -> None:
    async with open_sink(options(host="localhost")) as sink:
        stream = await trio.open_tcp_stream("127.0.0.1", sink.port)
        await stream.aclose()


async def test_what_the_block_raises_comes_out_as_it_went_in() -> None:
    with pytest.raises(KeyError, match=r"^'x'$"):
        async with open_sink() as sink, dialled(sink):
            raise KeyError("x")


async def test_the_end_of_the_block_ends_every_connection() -> None:
    async with open_sink() as sink:
        stream = await trio.open_tcp_stream(*sink.address)
        client = Client(stream)
        await client.say(b"EHLO a\r\n" + MAIL, 4)
    assert await client.at_end()
    await stream.aclose()
    assert sink.counts.to_dict()["messages"] == 0

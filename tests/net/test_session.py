"""A session at work: flights, callbacks, limits, idleness, the end; against the sink and against scripts."""

from __future__ import annotations

import random

import pytest
import trio

from engine.errors import DeliveryError, LocalProtocolError, Scope, StoreError
from engine.net.opener import open_session
from engine.net.session import BLOCK_OCTETS
from engine.net.sink import SinkOptions, open_sink
from engine.policy.plan import CLEAR, Plan
from engine.smtp import Content, HostMemory, Rung, Transaction, TransactionResult
from engine.smtp.server import ServerOptions
from engine.tls.context import TlsContexts
from fakes.patience import PATIENCE_S
from fakes.scripted_mx import in_memory, on_loopback
from fakes.sessions import CHUNKED, GROUPED, HOST, LOCK_STEP, Sender, open_on, options
from fakes.smtp_talk import CONTENT, codes, transaction
from fakes.tls_pairs import MANDATORY, server

ALL = ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "ENHANCEDSTATUSCODES", "STARTTLS", "LIMITS")


def messages(count: int, size: int = 500) -> list[Transaction]:
    """Messages that differ, each to a recipient of its own, with lines that want stuffing."""
    given = []
    for number in range(count):
        head = b"Message-ID: <%d@b>\r\n\r\n.\r\n..x\r\n" % number
        body = (b"%072d\r\n" % number) * max(1, (size - len(head)) // 74)
        given.append(transaction(b"%d@d" % number, content=Content(head + body)))
    return given


@pytest.mark.parametrize("plan", [CLEAR, MANDATORY], ids=["clear", "tls"])
@pytest.mark.parametrize("window", [0, 1, 8])
@pytest.mark.parametrize("without", ["", "CHUNKING", "PIPELINING", "CHUNKING PIPELINING"])
@pytest.mark.parametrize("size", [300, 20_000])
async def test_every_message_arrives_once_byte_for_byte(plan: Plan, window: int, without: str, size: int) -> None:
    offered = tuple(keyword for keyword in ALL if keyword not in without.split())
    sent = messages(20, size)
    sink_options = SinkOptions(tls=server(), server=ServerOptions(extensions=offered), keep_messages=100)
    async with open_sink(sink_options) as sink:
        memory = HostMemory()
        session = await open_session(HOST, sink.port, options(plan, window=window), TlsContexts(), memory)
        sender = await Sender(sent).run(session)
        await session.quit()
        assert sender.error is None
        assert [message.octets for message in sink.messages] == [given.content.octets for given in sent]
        assert [message.recipients for message in sink.messages] == [given.recipients for given in sent]
        assert sink.counts.sync_errors == 0
    assert [result.transaction for result in sender.results] == sent
    assert all(result.final is not None and result.final.is_success for result in sender.results)
    assert [each for group in sender.before_final for each in group] == sent
    is_windowed = window > 1 and "PIPELINING" not in without
    assert (memory.rung is Rung.WINDOWED) == (is_windowed or (window == 1 and "PIPELINING" not in without))
    if is_windowed and "CHUNKING" not in without and size < 1000:
        assert max(map(len, sender.before_final)) == window


async def test_a_large_message_and_many_recipients() -> None:
    large = Content((b"x" * 70 + b"\r\n.\r\n") * 40_000)
    recipients = tuple(b"%d@d" % number for number in range(900))
    for offered in (ALL, tuple(keyword for keyword in ALL if keyword != "CHUNKING")):
        sink_options = SinkOptions(tls=server(), server=ServerOptions(extensions=offered), keep_messages=9)
        async with open_sink(sink_options) as sink:
            session = await open_session(HOST, sink.port, options(MANDATORY), TlsContexts(), HostMemory())
            sender = await Sender([transaction(*recipients, content=large) for _ in range(2)]).run(session)
            await session.quit()
            assert [len(result.accepted) for result in sender.results] == [900, 900]
            assert [message.octets for message in sink.messages] == [large.octets] * 2


@pytest.mark.parametrize("offered", [ALL, ("PIPELINING",)], ids=["BDAT", "DATA"])
async def test_it_is_told_before_the_end_of_a_message_that_has_an_envelope_behind_it(offered: tuple[str, ...]) -> None:
    """The end of the first message and the envelope of the second go out in one write, and not in one block."""
    first, second = Content(b"x" * (BLOCK_OCTETS - 302) + b"\r\n"), Content(b"y\r\n" * 30_000)
    recipients = tuple(b"recipient-%d@domain.example" % number for number in range(60))
    sent = [transaction(), transaction(content=first), transaction(*recipients, content=second)]
    async with open_sink(SinkOptions(server=ServerOptions(extensions=offered), keep_messages=9)) as sink:
        memory = HostMemory(rung=Rung.WINDOWED, swallows=True)
        wide = options(max_flight_octets=BLOCK_OCTETS)
        session = await open_session(HOST, sink.port, wide, TlsContexts(), memory)
        told: list[bytes] = []
        start_send = session._start_send
        assert start_send is not None

        def note(*block: bytes | memoryview) -> bool:
            if first.octets[-1000:] in b"".join(block):
                told.append(b"end")
            return start_send(*block)

        session._start_send = note
        sender = Sender(sent)

        def before_final(transactions: list[Transaction]) -> None:
            told.extend(each.recipients[0] for each in transactions)

        await session.run(sender.next_transaction, sender.results.extend, before_final)
        await session.quit()
        assert [message.octets for message in sink.messages] == [given.content.octets for given in sent]
    assert told == [b"c@d", b"c@d", b"end", recipients[0]]


async def test_dsn_parameters_reach_the_server() -> None:
    async with open_sink(SinkOptions(keep_messages=1)) as sink:
        session = await open_session(HOST, sink.port, options(), TlsContexts(), HostMemory())
        given = transaction(b"c@d", ret="HDRS", envid=b"a b", notify=("FAILURE", "DELAY"), orcpt=[b"rfc822;x@y"])
        await Sender([given]).run(session)
        await session.quit()
        received = sink.messages[0]
    assert received.mail_parameters == (b"SIZE=%d" % len(CONTENT), b"RET=HDRS", b"ENVID=a+20b")
    assert received.rcpt_parameters == ((b"ORCPT=rfc822;x@y", b"NOTIFY=FAILURE,DELAY"),)


@pytest.mark.parametrize("window", [1, 4])
async def test_a_sink_that_refuses_at_random_and_one_message_after_the_other(window: int) -> None:
    """Each outcome is that of its own message: the sink's counts agree."""
    sent = messages(300)
    sink_options = SinkOptions(server=ServerOptions(defer=0.2, fail=0.2), seed=7, keep_messages=1000)
    async with open_sink(sink_options) as sink:
        session = await open_session(HOST, sink.port, options(window=window), TlsContexts(), HostMemory())
        sender = await Sender(sent).run(session)
        await session.quit()
        taken = [message.recipients[0] for message in sink.messages]
        deferred, failed = sink.counts.deferred, sink.counts.failed
    assert sender.error is None
    outcome: dict[str, list[bytes]] = {"2": [], "4": [], "5": []}
    for result in sender.results:
        reply = result.final or result.recipients[0]
        assert reply is not None
        assert not isinstance(reply, DeliveryError)
        outcome[str(reply.code)[0]].append(result.transaction.recipients[0])
    assert outcome["2"] == taken
    assert (len(outcome["4"]), len(outcome["5"])) == (deferred, failed)


@pytest.mark.parametrize("offered", [ALL, ("PIPELINING",), ()], ids=["all", "PIPELINING", "nothing"])
async def test_only_what_is_in_doubt_can_arrive_twice(offered: tuple[str, ...]) -> None:
    """Bulk-sending rule 6, with a sink that hangs up at any point of a transaction."""
    given_ones = [*messages(100), *messages(25, 45_000), *messages(10, 80_000)]
    random.Random(1).shuffle(given_ones)
    sent = {id(given): given for given in given_ones}
    doubtful: set[int] = set()
    sink_options = SinkOptions(server=ServerOptions(extensions=offered, drop=0.1), seed=3, keep_messages=1000)
    async with open_sink(sink_options) as sink:
        memory = HostMemory()
        left = dict(sent)
        while left:
            memory.rung = Rung.WINDOWED
            session = await open_session(HOST, sink.port, options(window=4), TlsContexts(), memory)
            sender = await Sender(left.values()).run(session)
            await session.aclose()
            for result in sender.results:
                number = id(result.transaction)
                if result.final is not None and result.final.is_success:
                    del left[number]
                elif result.in_doubt:
                    doubtful.add(number)
        arrived = [message.octets for message in sink.messages]
    by_octets = {given.content.octets: number for number, given in sent.items()}
    assert set(arrived) == set(by_octets)
    twice = {by_octets[octets] for octets in arrived if arrived.count(octets) > 1}
    assert twice
    assert twice <= doubtful
    assert len(arrived) - len(sent) <= len(doubtful)


# The pull model


async def test_none_means_not_now_and_is_asked_again() -> None:
    async with open_sink() as sink:
        session = await open_session(HOST, sink.port, options(window=1), TlsContexts(), HostMemory())
        waiting: list[Transaction] = [transaction()]
        asked: list[bool] = []
        done: list[object] = []

        def next_transaction() -> Transaction | None:
            asked.append(bool(waiting))
            return waiting.pop() if waiting else None

        def on_results(results: list[TransactionResult]) -> None:
            done.extend(results)
            if len(done) < 3:
                waiting.append(transaction())

        await session.run(next_transaction, on_results, lambda transactions: None)
        assert len(done) == 3
        assert asked == [True, True, True, False]
        assert session.is_usable
        assert session.sent_count == 3
        await Sender().run(session)
        assert session.sent_count == 4
        await session.quit()


async def test_replies_that_come_while_we_send_lead_on_to_the_next_message() -> None:
    flight = "C: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\n<chunk>\nS: 250 queued\n"
    opening = CHUNKED.replace("S: 250-PIPELINING\n", "")
    async with in_memory(opening + flight * 3) as (stream, mx):
        session = await open_on(stream)
        send_all = stream.send_all

        async def slow(data: bytes | bytearray | memoryview) -> None:
            await send_all(data)
            await trio.testing.wait_all_tasks_blocked()

        stream.send_all = slow  # type: ignore[method-assign]
        sender = await Sender(messages(3)).run(session)
        assert len(sender.results) == 3
        assert all(result.final is not None for result in sender.results)
        await mx.wait_done()
        assert mx.done
        await session.aclose()


async def test_the_host_may_allow_no_more_messages() -> None:
    async with open_sink(SinkOptions(server=ServerOptions(max_messages=3))) as sink:
        session = await open_session(HOST, sink.port, options(), TlsContexts(), HostMemory())
        assert session.max_messages == 3
        sender = await Sender(messages(5)).run(session)
        assert sender.error is None
        assert len(sender.results) == 3
        assert len(sender.left) == 2
        assert not session.is_usable
        await session.quit()
        again = await Sender().run(session)
        assert (again.results, len(again.left)) == ([], 1)


async def test_the_rest_after_452_goes_in_another_transaction() -> None:
    """RT-4."""
    async with open_sink(SinkOptions(server=ServerOptions(max_recipients=2, extensions=("PIPELINING",)))) as sink:
        session = await open_session(HOST, sink.port, options(), TlsContexts(), HostMemory())
        assert session.max_recipients is None
        sender = await Sender([transaction(b"1@d", b"2@d", b"3@d")]).run(session)
        assert codes(sender.result) == [250, 250, None]
        assert sender.result.rest == [2]
        assert session.is_usable
        again = await Sender([transaction(b"3@d")]).run(session)
        assert codes(again.result) == [250]
        await session.quit()
        assert sink.counts.recipients == 3


async def test_what_a_host_cannot_have_is_told_at_once() -> None:
    async with open_sink(SinkOptions(server=ServerOptions(extensions=()), keep_messages=9)) as sink:
        session = await open_session(HOST, sink.port, options(), TlsContexts(), HostMemory())
        sender = await Sender([transaction(content=Content(b"\xff\r\n")), transaction()]).run(session)
        await session.quit()
        first, second = sender.results
        assert first.error is not None
        assert first.error.permanent
        assert first.error.scope is Scope.MESSAGE
        assert second.final is not None
        assert len(sink.messages) == 1


async def test_one_task_at_a_time() -> None:
    async with in_memory(LOCK_STEP + "C: MAIL\n<stall>") as (stream, _):
        session = await open_on(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Sender().run, session)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(LocalProtocolError):
                await Sender().run(session)
            nursery.cancel_scope.cancel()


# before_final


async def test_nothing_is_completed_before_it_is_noted() -> None:
    """The note comes before the octets: the server of this script has not got them when it is made."""
    for opening, said in [(LOCK_STEP, b"DATA\r\n"), (CHUNKED, b"RCPT TO:<c@d>\r\n")]:
        body = "C: DATA\nS: 354 go\n<data>" if opening is LOCK_STEP else "<chunk>"
        script = f"{opening}C: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\n{body}\nS: 250 queued\nC: QUIT\nS: 221 bye"
        async with in_memory(script) as (stream, mx):
            session = await open_on(stream)
            last: list[bytes] = []
            done: list[object] = []
            left = [transaction()]
            await session.run(
                lambda left=left: left.pop() if left else None,  # type: ignore[misc]
                done.extend,
                lambda transactions, last=last, mx=mx: last.append(mx.heard[-1]),  # type: ignore[misc]
            )
            assert last == [said]
            await session.quit()
            assert mx.done


async def test_an_error_of_before_final_stops_the_octets() -> None:
    script = GROUPED + "C: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\nC: DATA\nS: 354 go\n<deaf>"
    async with in_memory(script) as (stream, mx):
        session = await open_on(stream)
        sender = Sender()

        def refuse(transactions: list[Transaction]) -> None:
            raise StoreError("disk full")

        with pytest.raises(StoreError, match="disk full"):
            await session.run(sender.next_transaction, sender.results.extend, refuse)
        assert not session.is_usable
        assert not sender.result.in_doubt
        assert sender.result.error is not None
        assert sender.result.error.scope is Scope.LOCAL
        await session.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert mx.heard[-1] == b"DATA\r\n"


async def test_of_a_large_message_only_the_last_block_is_in_doubt(autojump_clock: trio.testing.MockClock) -> None:
    large = Content((b"x" * 70 + b"\r\n") * (3 * BLOCK_OCTETS // 72))
    script = CHUNKED + "C: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\nC: BDAT\n<octets 70000>\n<stall>"
    async with in_memory(script) as (stream, _):
        session = await open_on(stream)
        # A stream in memory takes everything: hold back what is above two blocks.
        sent = 0
        send_all = stream.send_all

        async def held(data: bytes | bytearray | memoryview) -> None:
            nonlocal sent
            sent += len(data)
            if sent > 2 * BLOCK_OCTETS:
                await trio.sleep_forever()
            await send_all(data)

        stream.send_all = held  # type: ignore[method-assign]
        sender = await Sender([transaction(content=large)]).run(session)
        assert sender.before_final == []
        assert not sender.result.in_doubt
        assert sender.error is not None
        assert sender.error.scope is Scope.HOST
        assert sender.message.startswith(f"SMTP timeout after sending data block ({BLOCK_OCTETS} ")
        assert trio.current_time() == pytest.approx(200, rel=1 / 64)


# Between two messages


async def test_a_server_that_closes_while_idle_costs_nothing() -> None:
    script = GROUPED + "C: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\nC: DATA\nS: 354 go\n<data>\nS: 250 queued\n<wait 0.05>"
    for end in ("S: 421 4.4.2 timeout", "<cut>", "<reset>"):
        async with on_loopback(f"{script}\n{end}\n") as (port, mx):
            session = await open_session(HOST, port, options(), TlsContexts(), HostMemory())
            await Sender().run(session)
            assert session.is_usable
            with trio.fail_after(PATIENCE_S):
                await session.wait_idle()
            assert not session.is_usable
            sender = await Sender().run(session)
            assert sender.results == []
            assert sender.error is None
            with trio.fail_after(PATIENCE_S):
                await mx[0].wait_done()
            assert len(sender.left) == 1
            assert (session._client.closing is not None) == end.startswith("S:")
            await session.quit()


async def test_news_that_came_while_nobody_listened_is_read_before_anything_is_sent() -> None:
    script = GROUPED + "C: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\nC: DATA\nS: 354 go\n<data>\nS: 250 queued\n"
    async with on_loopback(script + "<wait 0.01>\nS: 421 bye\n") as (port, mx):
        session = await open_session(HOST, port, options(), TlsContexts(), HostMemory())
        await Sender().run(session)
        with trio.fail_after(PATIENCE_S):
            await mx[0].wait_done()
        sender = await Sender().run(session)
        assert sender.results == []
        assert not session.is_usable
        assert session.memory.rung is Rung.GROUPED
        await session.aclose()


async def test_waiting_may_be_cancelled_without_harm() -> None:
    async with open_sink() as sink:
        session = await open_session(HOST, sink.port, options(), TlsContexts(), HostMemory())
        for _ in range(3):
            with trio.move_on_after(0.01):
                await session.wait_idle()
            assert session.is_usable
            assert (await Sender().run(session)).result.final is not None
        await session.quit()


async def test_nonsense_while_idle_ends_the_session() -> None:
    async with in_memory(LOCK_STEP + "S: hello?\n<deaf>") as (stream, _):
        session = await open_on(stream)
        await session.wait_idle()
        assert not session.is_usable
        assert session.memory.rung is Rung.LOCK_STEP
        await session.quit()


# The end


@pytest.mark.parametrize("end", ["S: 221 bye", "<cut>", "<stall>", "<deaf>", "<flood 100000 x>", "S: what"])
async def test_quit_ends_whatever_the_server_does(end: str, autojump_clock: trio.testing.MockClock) -> None:
    async with in_memory(f"{LOCK_STEP}C: QUIT\n{end}\n") as (stream, _):
        session = await open_on(stream)
        await session.quit()
        assert trio.current_time() < 10
        assert not session.is_usable
        await session.quit()
        await session.aclose()


async def test_a_cancelled_quit_closes() -> None:
    async with in_memory(f"{LOCK_STEP}C: QUIT\n<stall>") as (stream, _):
        session = await open_on(stream)
        with trio.move_on_after(0.01) as scope:
            await session.quit()
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")

"""Resolver: servers in turn, UDP and TCP, and whatever a server or a forger may send."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import pytest
import trio
import trio.testing

from engine.net.dns_datagrams import Datagrams
from engine.net.dns_servers import Server
from engine.policy.answers import Answer, Mx, Status
from fakes.dns_server import Reply, resolver_for, serve_dns

if TYPE_CHECKING:
    pass

MX = ("example.test", "MX")
ZONE = {
    MX: Reply(records=["20 B.example.test.", "10 a.example.test."], ad=True),
    ("a.example.test", "A"): Reply(records=["192.0.2.1", "192.0.2.2"]),
    ("a.example.test", "AAAA"): Reply(records=["2001:DB8::1"]),
}


async def test_truncated_over_udp_is_asked_over_tcp() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True)}) as server:
        resolver = resolver_for(server)
        assert (await resolver.query(*MX)).mx == (Mx(10, "a.test"),)
        assert [query[2] for query in server.queries] == ["udp", "tcp"]
        assert resolver.counts.tcp == 1


async def test_garbled_over_udp_is_asked_over_tcp() -> None:
    reply = Reply(records=["10 a.test."], mangle=lambda wire: wire[:-20], mangle_tcp=False)
    async with serve_dns({MX: reply}) as server:
        assert (await resolver_for(server).query(*MX)).mx == (Mx(10, "a.test"),)
        assert [query[2] for query in server.queries] == ["udp", "tcp"]


async def test_garbled_everywhere_is_an_error_after_the_other_servers() -> None:
    reply = Reply(records=["10 a.test."], mangle=lambda wire: wire[:-20])
    async with serve_dns({MX: reply}) as bad, serve_dns(ZONE) as good:
        assert (await resolver_for(bad).query(*MX)).status is Status.SERVFAIL
        answer = await resolver_for(bad, good).query(*MX)
        assert (answer.status, answer.server) == (Status.OK, good.address)


async def test_tcp_that_is_refused_is_an_error() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True)}) as server:
        server.listens_tcp = False
        answer = await resolver_for(server).query(*MX)
        assert answer.status is Status.SERVFAIL
        assert "closed" in answer.extended_error or "lost" in answer.extended_error


@pytest.mark.parametrize(
    "forge",
    [
        lambda wire: bytes([wire[0] ^ 1]) + wire[1:],
        lambda wire: wire[:13] + bytes([wire[13] ^ 3]) + wire[14:],
        lambda wire: wire[:2] + bytes([wire[2] & 0x7F]) + wire[3:],
        lambda wire: wire[:11],
        lambda wire: b"",
    ],
    ids=["id", "question", "not a response", "short", "empty"],
)
async def test_what_does_not_match_the_question_is_passed_over(forge: object) -> None:
    """RFC 5452 §9"""
    async with serve_dns({MX: Reply(records=["10 a.test."], mangle=forge, repeat=True)}) as server:  # type: ignore[arg-type]
        assert (await resolver_for(server).query(*MX)).mx == (Mx(10, "a.test"),)
        assert [query[2] for query in server.queries] == ["udp"]


def fold_question(wire: bytes) -> bytes:
    """The same message with its question in lower case."""
    end = wire.index(b"\0", 12)
    return wire[:12] + wire[12:end].lower() + wire[end:]


async def test_a_question_with_letters_of_another_case_is_asked_over_tcp() -> None:
    """A forger who has guessed id and port has not guessed the case of 11 letters."""
    forged = Reply(records=["10 evil.test."], mangle=fold_question, mangle_tcp=False)
    async with serve_dns({MX: forged}) as server:
        resolver = resolver_for(server)
        for number in range(3):
            assert (await resolver.query(*MX)).status is Status.OK
            resolver.flush()
            assert [query[2] for query in server.queries] == ["udp", "tcp"] * (number + 1)


async def test_a_server_that_folds_case_over_tcp_too_is_believed_from_then_on() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], mangle=fold_question)}) as server:
        resolver = resolver_for(server)
        for _ in range(3):
            assert (await resolver.query(*MX)).mx == (Mx(10, "a.test"),)
            resolver.flush()
        assert [query[2] for query in server.queries] == ["udp", "tcp", "udp", "udp"]


async def test_a_referral_is_no_denial() -> None:
    """R6: an authority of some other zone, listed as name server by mistake, must not fail mail for good."""
    lame = Reply(mangle=lambda wire: wire[:3] + bytes([wire[3] & 0x7F]) + wire[4:])
    async with serve_dns({MX: lame}) as first, serve_dns(ZONE) as second:
        alone = await resolver_for(first).query(*MX)
        assert (alone.status, alone.extended_error) == (Status.SERVFAIL, "the server does not resolve names for us")
        assert (await resolver_for(first, second).query(*MX)).server == second.address


async def test_a_server_without_edns() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], refuse_edns=True)} | {("b.test", "A"): Reply()}) as server:
        resolver = resolver_for(server)
        assert (await resolver.query(*MX)).mx == (Mx(10, "a.test"),)
        before = len(server.queries)
        await resolver.query("b.test", "A")
        assert len(server.queries) == before + 1
        assert dns.message.from_wire(server.wires[-1]).edns == -1


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
async def test_the_next_server_is_asked_after_an_error(rcode: str) -> None:
    async with serve_dns({MX: Reply(rcode=rcode)}) as first, serve_dns(ZONE) as second:
        answer = await resolver_for(first, second).query(*MX)
        assert (answer.status, answer.server) == (Status.OK, second.address)
        alone = await resolver_for(first).query(*MX)
        assert alone.status is Status.SERVFAIL
        assert alone.extended_error == rcode


@pytest.mark.parametrize(
    ("mangle", "text"),
    [
        (lambda wire: wire[:2] + bytes([wire[2] | 2]) + wire[3:], "truncated response over TCP"),
        (lambda wire: bytes([wire[0] ^ 1]) + wire[1:], "the response over TCP is not ours"),
    ],
    ids=["truncated", "another's"],
)
async def test_nonsense_over_tcp_is_an_error(mangle: Callable[[bytes], bytes], text: str) -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True)}) as server:
        respond = server.respond

        def mangled(wire: bytes, transport: str) -> tuple[list[bytes], float]:
            (octets,), delay_s = respond(wire, transport)
            return [mangle(octets) if transport == "tcp" else octets], delay_s

        server.respond = mangled  # type: ignore[method-assign]
        answer = await resolver_for(server).query(*MX)
        assert answer.status is Status.SERVFAIL
        assert text in answer.extended_error


async def test_a_response_code_without_a_name_is_an_error() -> None:
    reply = Reply(mangle=lambda wire: wire[:3] + bytes([wire[3] & 0xF0 | 12]) + wire[4:])
    async with serve_dns({MX: reply}) as server:
        answer = await resolver_for(server).query(*MX)
        assert (answer.status, answer.extended_error) == (Status.SERVFAIL, "response code 12")


async def test_a_server_that_is_not_there_costs_no_time() -> None:
    async with serve_dns(ZONE) as server:
        resolver = resolver_for("127.0.0.1:1", server, timeout_s=3600.0)
        assert (await resolver.query(*MX)).server == server.address
        assert (await resolver_for("127.0.0.1:1").query(*MX)).status is Status.SERVFAIL


async def test_a_lost_datagram_is_sent_again(mock_clock: trio.testing.MockClock) -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], drop=1)}) as server:
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await resolver_for(server, timeout_s=60.0).query(*MX))

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            while not server.queries:  # no sleep ends on a clock that stands still
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(30.0)
        assert answers[0].status is Status.OK
        assert len(server.queries) == 2


async def test_a_silent_server_is_a_timeout_within_the_time() -> None:
    async with serve_dns({MX: Reply(drop=-1)}) as server:
        answer = await resolver_for(server, timeout_s=0.6).query(*MX)
        assert answer.status is Status.TIMEOUT
        assert answer.is_error
        # where a machine stops for a while, more than one is due at its end
        assert 0 < len(server.queries) <= 3


async def test_a_silent_server_is_asked_last_for_a_while() -> None:
    async with serve_dns({MX: Reply(drop=-1), ("a.test", "A"): Reply()}) as silent, serve_dns(ZONE) as server:
        resolver = resolver_for(silent, server, timeout_s=1.5)
        assert (await resolver.query(*MX)).server == server.address
        assert (await resolver.query("a.example.test", "A")).server == server.address
        assert silent.count("a.example.test", "A") == 0


async def test_servers_take_turns_in_longer_and_longer_rounds(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    def send(_: Datagrams, server: Server, exchange: object) -> None:
        asked.append((server.address, trio.current_time()))

    monkeypatch.setattr(Datagrams, "_send", send)
    start = trio.current_time()
    answer = await resolver_for("192.0.2.1", "192.0.2.2", timeout_s=15.0).query(*MX)
    assert answer.status is Status.TIMEOUT
    assert trio.current_time() - start == pytest.approx(15.0)
    assert [(address, round(at - start, 6)) for address, at in asked] == [
        ("192.0.2.1", 0),
        ("192.0.2.2", 2),
        ("192.0.2.1", 4),
        ("192.0.2.2", 8),
        ("192.0.2.1", 12),
    ]


async def test_a_server_that_floods_with_forgeries_costs_the_time_of_one_question() -> None:
    """Each datagram is thrown away; the question ends as a timeout, the next one is not touched."""
    async with serve_dns({MX: Reply(mangle=lambda wire: b"\0" * 12), ("a.test", "A"): Reply()}) as server:
        resolver = resolver_for(server, timeout_s=0.3)
        assert (await resolver.query(*MX)).status is Status.TIMEOUT
        assert (await resolver.query("a.test", "A")).status is Status.NODATA


async def test_a_tcp_reply_that_never_comes_ends_in_time() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], truncate=True, drop_tcp=True)}) as server:
        resolver = resolver_for(server, timeout_s=0.6)
        assert (await resolver.query(*MX)).is_error


async def test_a_reply_in_dribbles_over_tcp() -> None:
    async with serve_dns(ZONE) as server, trio.open_nursery() as nursery:

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                query = await stream.receive_some(4096)
                (octets,), _ = server.respond(query[2:], "tcp")
                framed = len(octets).to_bytes(2, "big") + octets
                for at in range(len(framed)):
                    await stream.send_all(framed[at : at + 1])

        server.zone[MX].truncate = True
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as datagrams:
            await datagrams.bind(("127.0.0.1", port))

            async def truncate() -> None:
                wire, peer = await datagrams.recvfrom(4096)
                await datagrams.sendto(server.respond(wire, "udp")[0][0], peer)

            nursery.start_soon(truncate)
            answer = await resolver_for(f"127.0.0.1:{port}").query(*MX)
        server.zone[MX].truncate = False
        assert len(answer.mx) == 2
        nursery.cancel_scope.cancel()

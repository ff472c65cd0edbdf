"""Resolver: what is kept and for how long, one query for one question, and the bounds of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from engine.net.resolver import ERROR_TTL_S, Resolver
from engine.policy.answers import Answer, Mx, Status
from fakes.dns_server import ManualClock, Reply, resolver_for, serve_dns
from fakes.patience import PATIENCE_S

if TYPE_CHECKING:
    pass

MX = ("example.test", "MX")
ZONE = {
    MX: Reply(records=["20 B.example.test.", "10 a.example.test."], ad=True),
    ("a.example.test", "A"): Reply(records=["192.0.2.1", "192.0.2.2"]),
    ("a.example.test", "AAAA"): Reply(records=["2001:DB8::1"]),
}


async def test_answers_are_kept_for_their_ttl_and_no_longer() -> None:
    clock = ManualClock()
    async with serve_dns({MX: Reply(records=["10 a.test."], ttl=100)}) as server:
        resolver = resolver_for(server, clock=clock)
        await resolver.query(*MX)
        clock.now += 60
        kept = await resolver.query("EXAMPLE.test.", "MX")
        assert (kept.ttl_s, len(server.queries)) == (40, 1)
        assert resolver.counts.cache_hits == 1
        clock.now += 40
        assert resolver.cached_or_none(*MX) is None
        await resolver.query(*MX)
        assert len(server.queries) == 2


async def test_denials_are_kept_for_the_negative_ttl() -> None:
    """RFC 2308 §5"""
    clock = ManualClock()
    async with serve_dns({("b.test", "A"): Reply(), MX: Reply(rcode="NXDOMAIN", soa=None)}) as server:
        resolver = resolver_for(server, clock=clock)
        for _ in range(2):
            await resolver.query("no.test", "A")
            await resolver.query(*MX)
        assert len(server.queries) == 2
        clock.now += 10
        await resolver.query("no.test", "A")
        assert len(server.queries) == 2
        await resolver.query(*MX)
        assert len(server.queries) == 3, "a denial without SOA is not kept beyond a burst"


async def test_errors_are_kept_for_seconds_only() -> None:
    """R6"""
    clock = ManualClock()
    async with serve_dns({MX: Reply(rcode="SERVFAIL", soa=600)}) as server:
        resolver = resolver_for(server, clock=clock)
        await resolver.query(*MX)
        assert (await resolver.query(*MX)).status is Status.SERVFAIL
        assert len(server.queries) == 1
        clock.now += ERROR_TTL_S
        server.zone[MX] = ZONE[MX]
        assert (await resolver.query(*MX)).status is Status.OK


async def test_what_is_kept_is_given_without_a_wait_and_told_of_all_the_same() -> None:
    async with serve_dns(ZONE) as server:
        resolver = resolver_for(server, clock=ManualClock())
        told: list[Answer] = []
        resolver.on_failure = told.append
        assert resolver.query_nowait(*MX) is None
        answer = await resolver.query(*MX)
        assert resolver.query_nowait("EXAMPLE.test.", "MX") == answer
        missing = await resolver.query("missing.test", "A")
        assert resolver.query_nowait("missing.test", "A") == missing
        assert told == [missing, missing]
        assert len(server.queries) == 2


async def test_a_ttl_of_zero_or_beyond_reason() -> None:
    zone = {
        ("zero.test", "A"): Reply(records=["192.0.2.1"], ttl=0),
        ("long.test", "A"): Reply(records=["192.0.2.1"], ttl=2**30),
    }
    async with serve_dns(zone) as server:
        resolver = resolver_for(server)
        for _ in range(2):
            assert (await resolver.query("zero.test", "A")).ttl_s == 0
        assert len(server.queries) == 2
        assert (await resolver.query("long.test", "A")).ttl_s == 86400


async def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago() -> None:
    zone = {(f"n{number}.test", "A"): Reply(records=["192.0.2.1"]) for number in range(4)}
    async with serve_dns(zone) as server:
        resolver = resolver_for(server, cache_size=3)
        for number in (0, 1, 2, 0, 3):
            await resolver.query(f"n{number}.test", "A")
        assert resolver.cached_or_none("n1.test", "A") is None
        assert resolver.cached_or_none("n0.test", "A") is not None
        resolver.flush()
        assert resolver.cached_or_none("n0.test", "A") is None


async def test_a_large_answer_counts_as_several() -> None:
    zone = {(f"n{number}.test", "A"): Reply(records=["192.0.2.1"]) for number in range(8)}
    zone["big.test", "TXT"] = Reply(records=[b"\xff" + bytes([number]) * 255 for number in range(20)], truncate=True)
    async with serve_dns(zone) as server:
        resolver = resolver_for(server, cache_size=10)
        for number in range(8):
            await resolver.query(f"n{number}.test", "A")
        await resolver.query("big.test", "TXT")
        kept = [number for number in range(8) if resolver.cached_or_none(f"n{number}.test", "A") is not None]
    # 20 strings of 256 octets and what goes with them are 6 KiB
    assert kept == [5, 6, 7]
    assert resolver._kept.used_units == 10


async def test_the_ad_bit_is_kept_with_the_answer() -> None:
    async with serve_dns(ZONE) as server:
        resolver = resolver_for(server)
        for _ in range(2):
            assert (await resolver.query(*MX)).secure is True
            assert (await resolver.query("a.example.test", "A")).secure is False
        assert len(server.queries) == 2


async def test_one_query_in_flight_for_one_question() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], ttl=0, delay_s=0.05)}) as server:
        resolver = resolver_for(server)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(resolver.query, *MX)
        assert len(server.queries) == 1
        assert not resolver._flights


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_a_cancelled_waiter_takes_nobody_with_it(cancelled: int, mock_clock: trio.testing.MockClock) -> None:
    """The clock stands still until one is cancelled: no answer comes before."""
    async with serve_dns({MX: Reply(records=["10 a.test."], delay_s=0.1)}) as server:
        resolver = resolver_for(server)
        scopes = [trio.CancelScope() for _ in range(3)]
        statuses: dict[int, Status] = {}

        async def ask(number: int) -> None:
            with scopes[number]:
                statuses[number] = (await resolver.query(*MX)).status

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
            while not server.queries:  # no sleep ends on this clock
                await trio.lowlevel.checkpoint()
            scopes[cancelled].cancel()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.1)
        assert statuses == {number: Status.OK for number in range(3) if number != cancelled}
        assert not resolver._flights


async def test_questions_in_flight_are_bounded() -> None:
    zone = {(f"n{number}.test", "A"): Reply(records=["192.0.2.1"], delay_s=0.02) for number in range(12)}
    async with serve_dns(zone) as server:
        resolver = resolver_for(server, max_in_flight=3)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, resolver._in_flight)
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as asking:
                for name, rdtype in zone:
                    asking.start_soon(resolver.query, name, rdtype)
            nursery.cancel_scope.cancel()
        assert most == 3
        assert len(server.queries) == 12


async def test_counts_tell_of_secure_answers() -> None:
    """R10"""
    async with serve_dns(ZONE | {("bad.test", "A"): Reply(rcode="SERVFAIL")}) as server:
        resolver = resolver_for(server)
        await resolver.query(*MX)
        await resolver.query("a.example.test", "A")
        await resolver.query("bad.test", "A")
        counts = resolver.counts
        assert (counts.secure, counts.insecure, counts.errors) == (1, 1, 1)


async def test_over_ipv6() -> None:
    async with serve_dns(ZONE, host="::1") as server:
        server.zone[MX].truncate = True
        answer = await resolver_for(server).query(*MX)
        server.zone[MX].truncate = False
        assert (answer.status, answer.server) == (Status.OK, server.address)


# --- what is asked ahead ----------------------------------------------------------------------------------------------


async def test_what_was_asked_ahead_is_there_and_nobody_was_told() -> None:
    async with serve_dns(ZONE) as server:
        resolver = resolver_for(server)
        told: list[Answer] = []
        resolver.on_failure = told.append
        ended = trio.Event()
        assert resolver.ask_ahead("Missing.test", "A", ended.set)
        with trio.fail_after(PATIENCE_S):
            await ended.wait()
        answer = resolver.peek("missing.test.", "A")
        assert answer is not None
        assert not told
        resolver.tell(answer)
        assert told == [answer]
        assert not resolver.ask_ahead("missing.test", "A", ended.set), "it is kept"
        resolver.forget("missing.test", "A")
        assert resolver.peek("missing.test", "A") is None


async def test_who_asks_what_is_asked_ahead_waits_for_the_same() -> None:
    async with serve_dns({MX: Reply(records=["10 a.test."], delay_s=0.02)}) as server:
        resolver = resolver_for(server)
        ended: list[int] = []
        for number in range(3):
            assert resolver.ask_ahead(*MX, lambda number=number: ended.append(number))  # type: ignore[misc]  # a lambda
        assert (await resolver.query(*MX)).status is Status.OK
        assert ended == [0, 1, 2]
        assert len(server.queries) == 1


@pytest.mark.parametrize("reply", [Reply(rcode="SERVFAIL"), Reply(drop=-1), Reply(records=["10 a."], truncate=True)])
async def test_what_is_asked_ahead_ends_whatever_the_server_does(reply: Reply) -> None:
    async with serve_dns({MX: reply}) as server:
        resolver = resolver_for(server, timeout_s=0.3)
        ended = trio.Event()
        assert resolver.ask_ahead(*MX, ended.set)
        assert resolver.ask_ahead("x" * 64 + ".test", "MX", lambda: None), "which is no name"
        with trio.fail_after(PATIENCE_S):
            await ended.wait()
        assert resolver.peek(*MX) is not None
        assert not resolver._flights


async def test_answers_that_are_alike_are_kept_once() -> None:
    zone = {(f"n{number}.test", "MX"): Reply(records=["10 mx.test."]) for number in range(5)}
    async with serve_dns(zone) as server:
        resolver = resolver_for(server)
        for name, rdtype in zone:
            await resolver.query(name, rdtype)
            kept = resolver.cached_or_none(name, rdtype)
            assert kept is not None
            assert (kept.name, kept.canonical_name, kept.mx) == (name, name, (Mx(10, "mx.test"),))
        assert len({id(shape) for _, shape in resolver._kept._kept._kept.values()}) == 1


def test_a_resolver_may_be_used_in_one_run_after_another() -> None:
    """What the end of a run cut off is asked anew."""

    async def main(resolver: list[Resolver]) -> None:
        async with serve_dns(ZONE | {("late.test", "A"): Reply(drop=1)}) as server:
            if not resolver:
                resolver.append(resolver_for(server, timeout_s=30.0))
                assert resolver[0].ask_ahead("late.test", "A", lambda: None)
                assert (await resolver[0].query(*MX)).status is Status.OK
                return
            resolver[0].servers = resolver_for(server).servers
            resolver[0]._labels = resolver_for(server)._labels
            resolver[0].flush()
            with trio.fail_after(PATIENCE_S):
                assert (await resolver[0].query(*MX)).status is Status.OK

    resolver: list[Resolver] = []
    for _ in range(2):
        trio.run(main, resolver)
    assert resolver[0]._in_flight == 0

"""Datagrams: many questions over few sockets, each told of its outcome once."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from engine.net import dns_datagrams
from engine.net.dns_datagrams import PORTS, Datagrams
from engine.net.dns_message import Response, make_query
from engine.net.dns_servers import parse_server
from fakes.dns_server import DnsServer, Reply, serve_dns
from fakes.patience import PATIENCE_S

if TYPE_CHECKING:
    from engine.net.dns_datagrams import Outcome

A = Reply(records=["192.0.2.1"])


def names(count: int) -> list[str]:
    return [f"n{number}.test" for number in range(count)]


async def ask_all(server: DnsServer, wanted: list[str], *, at_once: int, wait_s: float = PATIENCE_S) -> list[Outcome]:
    """What came of a question for each name, in the order in which it came."""
    datagrams, outcomes = Datagrams(), list[object]()
    limiter = trio.CapacityLimiter(at_once)

    async def ask(name: str) -> None:
        async with limiter:
            question = make_query(name, "A", edns=True)
            try:
                outcomes.append(
                    await datagrams.exchange(parse_server(server.address), question, trio.current_time() + wait_s)
                )
            except (OSError, trio.TooSlowError) as error:
                outcomes.append(error)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for name in wanted:
                nursery.start_soon(ask, name)
    assert not datagrams._open_count
    return outcomes  # type: ignore[return-value]  # of that type each


async def test_many_questions_go_over_few_sockets_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_datagrams, "QUESTIONS_A_PORT", 8)
    count = 200
    zone = {(name, "A"): A for name in names(count)}
    async with serve_dns(zone) as server:
        outcomes = await ask_all(server, names(count), at_once=60)
        assert len(outcomes) == count
        assert all(isinstance(outcome, Response) and outcome.addresses for outcome in outcomes)
        ports = [server.source_ports.count(port) for port in set(server.source_ports)]
    # 16 at a time; when the last came, some had taken few
    assert 200 // 8 <= len(ports) <= 200 // 8 + PORTS
    assert max(ports) <= 8


async def test_a_socket_is_given_up_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_datagrams, "PORTS", 1)
    monkeypatch.setattr(dns_datagrams, "_PORT_AGE_S", -1.0)
    async with serve_dns({(name, "A"): A for name in names(5)}) as server:
        await ask_all(server, names(5), at_once=1)
        assert len(set(server.source_ports)) == 5


async def test_what_comes_too_late_is_no_answer_to_the_next_question() -> None:
    zone = {("n0.test", "A"): Reply(records=["192.0.2.9"], delay_s=0.1), ("n1.test", "A"): A}
    async with serve_dns(zone) as server:
        datagrams, at = Datagrams(), parse_server(server.address)
        with pytest.raises(trio.TooSlowError):
            await datagrams.exchange(at, make_query("n0.test", "A", edns=True), trio.current_time() + 0.01)
        found = await datagrams.exchange(at, make_query("n1.test", "A", edns=True), trio.current_time() + PATIENCE_S)
        assert found is not None
        assert found.addresses == ("192.0.2.1",)
        await trio.sleep(0.15)
        assert not datagrams._open_count


async def test_everybody_is_told_that_the_server_is_not_there() -> None:
    outcomes = await ask_all(DnsServer({}, port=1), names(100), at_once=100)
    assert len(outcomes) == 100
    assert all(isinstance(outcome, OSError) for outcome in outcomes)


async def test_each_question_has_its_own_time() -> None:
    async with serve_dns({("n0.test", "A"): Reply(drop=-1), ("n1.test", "A"): Reply(drop=-1)}) as server:
        datagrams, at = Datagrams(), parse_server(server.address)
        ended: list[tuple[str, type[object]]] = []
        done = [trio.Event(), trio.Event()]
        start = trio.current_time()

        def end(name: str, outcome: object) -> None:
            ended.append((name, type(outcome)))
            done[len(ended) - 1].set()

        with trio.fail_after(PATIENCE_S):
            for name, seconds in (("n0.test", 0.2), ("n1.test", 0.05)):
                datagrams.ask(at, make_query(name, "A", edns=True), start + seconds, partial(end, name))
            await done[1].wait()
        assert ended == [("n1.test", trio.TooSlowError), ("n0.test", trio.TooSlowError)]
        assert trio.current_time() - start >= 0.2


async def test_who_is_cancelled_leaves_nothing_behind() -> None:
    async with serve_dns({("n0.test", "A"): Reply(drop=-1)}) as server:
        datagrams = Datagrams()
        with trio.move_on_after(0.05) as scope:
            await datagrams.exchange(parse_server(server.address), make_query("n0.test", "A", edns=True), 1e9)
        assert scope.cancelled_caught
        assert not datagrams._open_count


async def test_time_limits_that_are_not_needed_any_more_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_datagrams, "_STALE", 8)
    async with serve_dns({(name, "A"): A for name in names(50)}) as server:
        datagrams = Datagrams()
        for name in names(50):
            await datagrams.exchange(parse_server(server.address), make_query(name, "A", edns=True), 1e9)
            assert len(datagrams._deadlines) <= 10


async def test_two_questions_with_one_id_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_datagrams, "PORTS", 1)
    zone = {(name, "A"): Reply(records=[f"192.0.2.{number}"], delay_s=0.02) for number, name in enumerate(names(20))}
    async with serve_dns(zone) as server:
        datagrams, found = Datagrams(), dict[str, object]()

        async def ask(name: str) -> None:
            question = make_query(name, "A", edns=True)
            question = question._replace(id=7, wire=b"\0\7" + question.wire[2:])
            response = await datagrams.exchange(parse_server(server.address), question, 1e9)
            found[name] = response.addresses if response is not None else None

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for name in names(20):
                    nursery.start_soon(ask, name)
        assert found == {name: (f"192.0.2.{number}",) for number, name in enumerate(names(20))}
        assert len(set(server.source_ports)) == 1
        assert len({wire[:2] for wire in server.wires}) == 20


class Full:
    """A socket whose buffer has no room at first."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._is_full = True

    def send(self, octets: bytes) -> int:
        if self._is_full:
            self._is_full = False
            raise BlockingIOError
        return self._channel.send(octets)

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)


async def test_a_socket_without_room_loses_one_question_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_datagrams, "PORTS", 1)
    async with serve_dns({(name, "A"): A for name in names(2)}) as server:
        datagrams, at = Datagrams(), parse_server(server.address)
        port = datagrams._port(at)
        port.channel = Full(port.channel)  # type: ignore[assignment]  # it does what is asked of one
        lost: list[object] = []
        datagrams.ask(at, make_query("n0.test", "A", edns=True), trio.current_time() + PATIENCE_S, lost.append)
        found = await datagrams.exchange(at, make_query("n1.test", "A", edns=True), trio.current_time() + PATIENCE_S)
        assert isinstance(found, Response)
        assert not lost
        assert len(server.queries) == 1

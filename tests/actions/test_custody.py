"""An event that ends each worker it gets: found, alone with one at last, and buried; all others handled, in order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing

from engine.actions import channel, custody, frames
from engine.actions.channel import Outgoing
from engine.actions.hub import Hub
from fakes.action_links import Puppet, Told, puppet
from fakes.patience import until

FIELDS = ("local_part", "domain")
SEGFAULT, UNTOLD = b"signal 11", b""


def outgoing(hub: Hub, number: int, messages: int = 7) -> Outgoing:
    shape = hub.shape("msg:delivery", FIELDS)
    return Outgoing(shape, f"m{number % messages}", b"%d" % number, (b"u%d" % number, b"d"), token=number)


def end(worker: Puppet, ending: bytes) -> None:
    """The process ends, and its parent tells how, if it knows."""
    if ending:
        worker.control.send(ending)
    worker.die()


class Crew:
    """Workers that are started again: each handles batches, and ends in the middle of one that has a poisonous event.

    Attributes:
        handled: what was handled, in order; deaths: how many workers have ended.
    """

    def __init__(self, hub: Hub, *poison: int, batch: int = 20, ending: bytes = SEGFAULT) -> None:
        self._hub = hub
        self._poison = set(poison)
        self._batch = batch
        self._ending = ending
        self.handled: list[int] = []
        self.deaths = 0

    async def keep(self) -> None:
        """One worker after the other, until cancelled."""
        while True:
            async with puppet(self._hub) as (worker, ends):
                worker.ready("msg:*")
                while await self._work(worker):
                    pass
                self.deaths += 1
                end(worker, self._ending)
                await until(lambda ends=ends: ends)  # type: ignore[misc]  # mypy cannot infer a default

    async def _work(self, worker: Puppet) -> bool:
        """Handle a batch; False if that ends the worker."""
        batch = [await worker.hear(frames.EVENT)]
        worker.inbox += worker.transport.take()
        while len(batch) < self._batch and worker.inbox:
            batch += [frame for frame in (worker.inbox.pop(0),) if frame[0] == frames.EVENT]
        numbers = [int(frame[3]) for frame in batch]
        if self._poison & set(numbers):
            return False
        self.handled += numbers
        worker.say(*frames.ack_frame([frame[1] for frame in batch]))
        return True

    def check(self, told: Told, total: int, messages: int = 7) -> None:
        """Each event was handled once, in the order of its message, but those that are buried."""
        assert sorted(self.handled) == sorted(set(range(total)) - self._poison)
        per_message = defaultdict(list)
        for number in self.handled:
            per_message[number % messages].append(number)
        assert all(numbers == sorted(numbers) for numbers in per_message.values())
        assert sorted(one.id for one in told.done) == sorted(b"%d" % number for number in range(total))
        assert {int(one.id) for one in told.done if one.dead} == self._poison


@pytest.mark.parametrize("poison", [(299,), (0, 1), (50, 57, 290)])
@pytest.mark.parametrize(("workers", "batch"), [(1, 500), (3, 20)])
async def test_an_event_that_ends_its_workers_is_buried_and_no_other(
    poison: tuple[int, ...], workers: int, batch: int
) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    crew = Crew(hub, *poison, batch=batch)
    hub.submit_many([outgoing(hub, number) for number in range(300)])
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(crew.keep)
        await until(lambda: not hub.held)
        # what comes later goes as always
        hub.submit_many([outgoing(hub, number) for number in range(300, 320)])
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    crew.check(told, 320)
    for one in told.done:
        for place, dead in (one.dead or {}).items():
            assert (place, dead.handler, dead.attempts) == ("main:h", "h", 3)
            assert dead.error == "its worker ended 3 times, alone with it: signal 11"
    # the first end of each worker, at most two to get each event alone, and three alone
    assert crew.deaths <= workers + 5 * len(poison)


async def test_the_number_of_workers_that_an_event_may_end_is_an_option() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",), deaths=1)
    crew = Crew(hub, 5, ending=b"exit status 7")
    hub.submit_many([outgoing(hub, number) for number in range(10)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew.keep)
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    crew.check(told, 10)
    assert [dead.error for one in told.done for dead in (one.dead or {}).values()] == [
        "its worker ended alone with it: exit status 7"
    ]


@pytest.mark.parametrize("ending", [UNTOLD, b"signal 9", b"signal 15", b"signal 2"])
async def test_who_kills_a_worker_has_no_event_buried(ending: bytes) -> None:
    """However often, and always with the same events."""
    told = Told()
    hub = told.make_hub(expected=("main",))
    hub.submit_many([outgoing(hub, number) for number in range(30)])
    for _ in range(10):
        async with puppet(hub) as (worker, ends):
            worker.ready("msg:*")
            await worker.hear(frames.EVENT)
            end(worker, ending)
            await until(lambda ends=ends: ends)  # type: ignore[misc]  # mypy cannot infer a default
    # and after a crash, too, when they are handed on one by one
    for _ in range(10):
        for how in (SEGFAULT, ending):
            async with puppet(hub) as (worker, ends):
                worker.ready("msg:*")
                frame = await worker.hear(frames.EVENT)
                if how == SEGFAULT:
                    worker.say(*frames.ack_frame([frame[1]]))
                    if not hub.held:
                        break
                    await worker.hear(frames.EVENT)
                end(worker, how)
                await until(lambda ends=ends: ends)  # type: ignore[misc]
    assert not [one for one in told.done if one.dead]
    crew = Crew(hub)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew.keep)
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    assert sorted(int(one.id) for one in told.done) == list(range(30))


async def test_a_worker_that_the_kernel_kills_for_want_of_memory_has_ended_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = count()
    monkeypatch.setattr(channel, "oom_kills", lambda: next(kills))
    told = Told()
    hub = told.make_hub(expected=("main",))
    crew = Crew(hub, 11, ending=b"signal 9")
    hub.submit_many([outgoing(hub, number) for number in range(40)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew.keep)
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    crew.check(told, 40)


async def test_a_veto_that_ends_its_worker_has_no_event_buried() -> None:
    """Nobody knows which of both it was."""
    told = Told()
    hub = told.make_hub(expected=("main",), deaths=1)
    hub.submit_nowait(outgoing(hub, 0))
    shape = hub.shape("tls:cert", FIELDS)
    for _ in range(6):
        async with puppet(hub) as (worker, ends), trio.open_nursery() as nursery:
            worker.ready("msg:*", vetoes=(("tls:cert", 30.0, False),))
            await worker.hear(frames.EVENT)
            nursery.start_soon(hub.ask, shape, (b"", b""))
            await worker.hear(frames.ASK)
            end(worker, SEGFAULT)
            await until(lambda ends=ends: ends)  # type: ignore[misc]  # mypy cannot infer a default
            nursery.cancel_scope.cancel()
    assert (hub.held, told.done) == (1, [])
    crew = Crew(hub, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew.keep)
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    assert crew.deaths == 1


async def test_nothing_live_goes_to_a_worker_that_is_alone_with_an_event() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    hub.submit_nowait(outgoing(hub, 0))
    live = hub.shape("tcp:close", FIELDS)
    for dropped in (0, 1, 1):
        async with puppet(hub) as (worker, ends):
            worker.ready("*")
            await worker.hear(frames.EVENT)
            hub.publish(live, (b"", b""))
            assert hub.report()[0].counts.dropped == dropped
            if not dropped:
                assert (await worker.hear(frames.EVENT))[1] == 0
            # the last one handles it
            if dropped:
                break
            end(worker, SEGFAULT)
            await until(lambda ends=ends: ends)  # type: ignore[misc]  # mypy cannot infer a default


@pytest.mark.parametrize("waits", [True, False])
async def test_suspects_that_end_nobody_hold_up_the_others_for_a_while_only(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is away, or a handler takes long."""
    monkeypatch.setattr(custody, "_PATIENCE_S", (0.1, 3600.0) if waits else (3600.0, 0.1))
    told = Told()
    hub = told.make_hub(expected=("main",), silence_s=100.0)
    monkeypatch.setattr(channel, "_SILENCE_CHECK_S", 0.05)
    hub.submit_many([outgoing(hub, number) for number in range(3)])
    async with puppet(hub) as (worker, ends):
        worker.ready("msg:*")
        await worker.hear(frames.EVENT)
        end(worker, SEGFAULT)
        await until(lambda: ends)
    async with puppet(hub) as (worker, _):
        worker.ready("msg:*")
        first = await worker.hear(frames.EVENT)
        hub.submit_nowait(outgoing(hub, 3))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not worker.inbox + worker.transport.take(), "it is alone with the first"
        if waits:
            worker.say(frames.ALIVE)
        rest = [await worker.hear(frames.EVENT) for _ in range(3)]
        assert [int(frame[3]) for frame in (first, *rest)] == [0, 1, 2, 3]
        worker.say(*frames.ack_frame([frame[1] for frame in (first, *rest)]))
        await until(lambda: not hub.held)
    assert not [one for one in told.done if one.dead]


async def test_what_a_worker_had_is_handed_on_when_it_is_counted_and_its_messages_wait_for_it() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    asked: list[tuple[list[int], Callable[[], None]]] = []

    def on_again(events: list[Outgoing], counted: Callable[[], None]) -> None:
        asked.append(([int(event.id) for event in events], counted))

    hub.on_again = on_again
    async with puppet(hub) as (other, _), puppet(hub) as (worker, ends):
        worker.ready("msg:*")
        await until(lambda: hub.report()[0].workers == 1)
        hub.submit_many([outgoing(hub, number, messages=10) for number in (1, 2, 11)])
        for _ in range(3):
            await worker.hear(frames.EVENT)
        end(worker, UNTOLD)
        await until(lambda: ends)
        other.ready("msg:*")
        await until(lambda: hub.report()[0].workers == 1)
        hub.submit_many([outgoing(hub, number, messages=10) for number in (21, 3, 12)])
        assert (await other.hear(frames.EVENT))[3] == b"3", "no other message waits"
        ((numbers, counted),) = asked
        assert numbers == [1, 2, 11]
        assert not other.inbox + other.transport.take()
        assert hub.report()[0].waiting == 5
        counted()
        arrived = [int((await other.hear(frames.EVENT))[3]) for _ in range(5)]
        assert sorted(arrived) == [1, 2, 11, 12, 21]
        assert [number for number in arrived if number % 10 == 1] == [1, 11, 21]
        assert [number for number in arrived if number % 10 == 2] == [2, 12]
        counted()


async def test_a_group_that_is_no_more_is_done_with_what_was_in_custody() -> None:
    """One that came by itself: nobody waits for it."""
    told = Told()
    hub = told.make_hub()
    asked: list[Any] = []
    hub.on_again = lambda events, counted: asked.append(counted)
    async with puppet(hub) as (worker, ends), puppet(hub) as (other, _):
        for one in (worker, other):
            one.ready("msg:*")
        await until(lambda: hub.report() and hub.report()[0].workers == 2)
        hub.submit_many([outgoing(hub, number, messages=50) for number in range(20)])
        await worker.hear(frames.EVENT)
        end(worker, SEGFAULT)
        await until(lambda: ends)
        assert asked
    await until(lambda: not hub.held)
    assert Counter(int(one.id) for one in told.done) == Counter(range(20))
    for counted in asked:
        counted()
    assert hub.report() == []


async def test_suspects_are_handed_on_only_when_that_is_counted() -> None:
    """Also those of a part that has ended another worker, though somebody is idle."""
    told = Told()
    hub = told.make_hub(expected=("main",))
    asked: list[tuple[list[int], Callable[[], None]]] = []
    hub.on_again = lambda events, counted: asked.append(([int(event.id) for event in events], counted))
    hub.submit_many([outgoing(hub, number) for number in range(3)])
    async with puppet(hub) as (idle, _):
        for expected in ([0, 1, 2], [0]):
            async with puppet(hub) as (worker, ends):
                worker.ready("msg:*")
                await worker.hear(frames.EVENT)
                if expected == [0, 1, 2]:
                    await until(lambda: hub.report()[0].unacknowledged == 3)
                end(worker, SEGFAULT)
                await until(lambda ends=ends: ends)  # type: ignore[misc]  # mypy cannot infer a default
            numbers, counted = asked.pop()
            assert numbers == expected
            if expected == [0]:
                idle.ready("msg:*")
                await until(lambda: hub.report()[0].workers == 1)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert [frame[0] for frame in idle.inbox + idle.transport.take()] == [frames.HELLO]
            counted()
        for number in range(3):
            frame = await idle.hear(frames.EVENT)
            assert int(frame[3]) == number
            idle.say(*frames.ack_frame([frame[1]]))
        await until(lambda: not hub.held)
    assert not [one for one in told.done if one.dead]

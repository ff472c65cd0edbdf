"""The outbox while the queue is read and written by others: each event is handed on once, and acknowledged at last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import msgpack
import pytest
import trio
import trio.testing

from engine.delivery.outbox import Outbox
from engine.delivery.settlement import StoreThread
from engine.delivery.stored import Stored, pack_values
from engine.queue.model import PROGRAM, OutboxEvent, OutcomeKind
from engine.queue.store import Store
from fakes.engine_world import MakeWorld, World

_T = TypeVar("_T")

ACTION = "event_action = '''${if match{$event_name}{^msg:}{${acl{note}}}}'''"
ACLS = "[acls]\nnote = '''\naccept logwrite = x\n'''\n"


class SlowThread(StoreThread):
    """A queue's thread whose reads are done at once, and told late."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.told = trio.Event()

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        found = function(*arguments)
        if function == self.store.drain_outbox:
            await self.told.wait()
        return found


def event(number: int) -> OutboxEvent:
    payload = cast("bytes", msgpack.packb([2, "smtp", f"m{number}", "event_data", [], pack_values([b"x"])]))
    return OutboxEvent("msg:delivery", f"m{number}/1/1/msg:delivery", payload, handler=PROGRAM)


def stored(make_world: MakeWorld, *events: OutboxEvent) -> tuple[World, Outbox, list[int]]:
    """An outbox over a queue with these events, and the numbers of what it hands on."""
    world = make_world(
        hosts="127.0.0.1:9", main=ACTION, transport=ACTION, retry=f'pattern = "*"\nrule = "F,1h,5m"\n{ACLS}'
    )
    world.store.settle(world.core.engine.owner, (), 0.0, events=events)
    world.core.database = world.core.settlement._database = SlowThread(world.store)
    assert world.core.events is not None
    outbox = Outbox(world.core, world.core.events)
    handed: list[int] = []

    def take(event: OutboxEvent, stored: Stored) -> bool:
        del stored
        handed.append(event.id)
        return True

    outbox._local.add_nowait = take  # type: ignore[method-assign]
    return world, outbox, handed


async def test_what_is_acknowledged_while_it_is_read_again_is_not_run_again(make_world: MakeWorld) -> None:
    events = [event(1), event(2)]
    world, outbox, handed = stored(make_world, *events)
    thread = cast("SlowThread", world.core.database)
    thread.told.set()
    await outbox._read()
    assert handed == [1, 2]
    thread.told = trio.Event()
    outbox.look_again()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox._read)
        await trio.testing.wait_all_tasks_blocked()
        # the reader has found both, and is not told of it yet
        outbox._on_done_here(events[:1])
        await outbox._acknowledge_now()
        thread.told.set()
    assert handed == [1, 2]
    assert [left.id for left in world.store.drain_outbox(world.core.engine.owner, 10)] == [2]


async def test_looking_for_something_to_acknowledge_does_not_keep_the_next_from_it(
    make_world: MakeWorld, autojump_clock: trio.testing.MockClock
) -> None:
    events = [event(1)]
    world, outbox, _ = stored(make_world, *events)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.core.settlement.run)
        nursery.start_soon(outbox._acknowledge)
        await trio.testing.wait_all_tasks_blocked()
        await outbox._acknowledge_now()
        outbox._on_done_here(events)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert world.store.outbox_size() == 0


async def test_what_is_done_leaves_the_outbox_in_the_commit_of_the_next_settlement(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    events = [event(1), event(2), event(3)]
    world, outbox, _ = stored(make_world, *events)
    world.add_job("a@d.example")
    (claim,) = world.claim()
    commits: list[list[str]] = []
    group = world.store.group

    @contextlib.contextmanager
    def counting() -> Iterator[None]:
        with group():
            commits.append([])
            yield

    def noted(name: str) -> Callable[..., Any]:
        call = getattr(world.store, name)

        def told(*arguments: Any, **options: Any) -> Any:
            commits[-1].append(name)
            return call(*arguments, **options)

        return told

    for name in ("settle", "ack_outbox"):
        monkeypatch.setattr(world.store, name, noted(name))
    monkeypatch.setattr(world.store, "group", counting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.core.settlement.run)
        nursery.start_soon(outbox._acknowledge)
        await trio.testing.wait_all_tasks_blocked()
        outbox._on_done_here(events[:2])
        world.core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED))
        await trio.testing.wait_all_tasks_blocked()
        assert commits == [["ack_outbox", "settle"]]
        assert world.store.outbox_size() == 1
        outbox._on_done_here(events[2:])
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert commits[1:] == [["ack_outbox", "settle"]], "one of its own, soon, if there is no other"
    assert world.store.outbox_size() == 0


@pytest.mark.parametrize("handler", ["", PROGRAM, "jsonl"])
async def test_an_event_of_another_version_is_kept_for_whom_it_was(make_world: MakeWorld, handler: str) -> None:
    world, outbox, handed = stored(make_world, OutboxEvent("msg:delivery", "k", b"?", handler=handler))
    cast("SlowThread", world.core.database).told.set()
    await outbox._read()
    await outbox._acknowledge_now()
    (letter,) = world.store.dead_letters(10)
    assert (letter.handler, letter.payload, letter.reason) == (handler, b"?", "another version has stored it")
    assert handed == []
    assert world.store.outbox_size() == 0


async def test_an_engine_that_listens_to_no_event_leaves_those_of_others_alone(make_world: MakeWorld) -> None:
    """Such as a `send` by another configuration, beside or after an engine that was killed."""
    world = make_world(hosts="127.0.0.1:9")
    assert world.core.events is None
    dead = world.store.register(world.clock())
    world.store.settle(dead.owner, (), world.clock(), events=[event(1), event(2)])
    dead.journal.close()
    await world.run()
    assert "2 events that it had not seen acknowledged wait for an engine that listens to events" in world.log.lines
    heir = world.store.register(world.clock())
    assert world.store.adopt_outbox(heir.owner) == 2
    assert [left.key[:2] for left in world.store.drain_outbox(heir.owner, 10)] == ["m1", "m2"]

"""What it means that a live event has no answer in time: `event_timeout`, `event_timeout_action`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator

import pytest
import trio

from engine import app
from engine.actions.lookups import LookupRegistry
from engine.actions.programs import Settings
from engine.actions.workers import Workers
from engine.delivery.events import Events
from engine.events import Contact, Happening
from engine.expand import Scope
from engine.logs.facts import FactKind
from engine.queue.model import RecipientState
from fakes.action_links import puppet
from fakes.engine_world import MakeWorld, RealClock, World
from fakes.mx_scripts import GREET, QUIT, TAKES_ONE, servers
from fakes.patience import until

#: asks a server of which more below, at one event
ASKS = "${if eq{$event_name}{smtp:connect}{${lookup redis{GET x}}}}"
LOST = "failed to expand event_action"


def world_for(
    make_world: MakeWorld, silence: str, action: str, *, hosts: str = "127.0.0.1:9", redis: str = ""
) -> World:
    options = f'event_timeout = "1s"\nevent_timeout_action = "{silence}"\n'
    if redis:
        options += f'redis_servers = ["{redis}/0/"]\n'
    return make_world(
        hosts=hosts,
        transport=f"event_action = '{action}'",
        retry=f'pattern = "*"\nrule = "F,1h,5m"\n[actions]\n{options}',
        clock=RealClock(),
    )


# --- with workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silence", ["ignore", "refuse"])
@pytest.mark.parametrize("event", ["tcp:connect", "smtp:connect", "tls:cert", "smtp:ehlo", "tcp:close"])
async def test_a_worker_that_says_nothing(
    make_world: MakeWorld, autojump_clock: trio.testing.MockClock, silence: str, event: str
) -> None:
    """The three that can refuse their step do, if they are told to; the others never."""
    world = world_for(make_world, silence, "${lookup redis{GET x}}")
    workers = Workers(1, settings=Settings(), window=10, silence_s=1000.0)
    compiled = world.core.events
    assert compiled is not None
    events = world.core.events = Events(world.core, compiled._actions, {}, workers)
    async with puppet(workers.hub) as (worker, _):
        worker.ready()
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        result = await events.live("smtp", event, Happening(Contact(transport="smtp")))
        assert trio.current_time() - before == pytest.approx(1.0)
    refuses = silence == "refuse" and event in ("tcp:connect", "smtp:connect", "tls:cert")
    assert (result.text, bool(result.error)) == ((b"no answer in 1s", False) if refuses else (b"", True))


@pytest.mark.parametrize("silence", ["ignore", "refuse"])
async def test_no_worker_at_all_is_as_one_that_says_nothing(
    make_world: MakeWorld, autojump_clock: trio.testing.MockClock, silence: str
) -> None:
    world = world_for(make_world, silence, "${lookup redis{GET x}}")
    compiled = world.core.events
    assert compiled is not None
    workers = Workers(1, settings=Settings(), window=10, silence_s=1000.0)
    events = Events(world.core, compiled._actions, {}, workers)
    result = await events.live("smtp", "tls:cert", Happening(Contact(transport="smtp")))
    assert result.text == (b"no answer in 1s" if silence == "refuse" else b"")


# --- without workers, through a whole delivery ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def mute_server(enough: trio.Event) -> AsyncIterator[str]:
    """A server that takes a question, says nothing for longer than anybody waits, and hangs up when told to."""

    async with trio.open_nursery() as nursery:

        async def say_nothing(stream: trio.SocketStream) -> None:
            async with stream:
                await enough.wait()

        serve = functools.partial(trio.serve_tcp, say_nothing, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def look_up_for_real(world: World) -> None:
    registry, make = LookupRegistry(app.lookup_options(world.core.config)), world.core.make_scope

    def make_scope(variables: dict[str, object]) -> Scope:
        scope = make(variables)
        scope.lookups = registry
        return scope

    world.core.make_scope = make_scope


@pytest.mark.slow
@pytest.mark.parametrize("silence", ["ignore", "refuse"])
async def test_a_lookup_that_takes_too_long(make_world: MakeWorld, silence: str) -> None:
    script = TAKES_ONE if silence == "ignore" else GREET.partition("C: EHLO")[0] + QUIT
    enough = trio.Event()
    async with mute_server(enough) as redis, servers([script]) as (hosts, _):
        world = world_for(make_world, silence, ASKS, hosts=hosts, redis=redis)
        look_up_for_real(world)
        world.add_job("a@d.example")

        async def hang_up_when_it_is_told() -> None:
            await until(lambda: any("no answer in 1s" in line for line in world.log.lines))
            enough.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up_when_it_is_told)
            await world.run()
    lost = [fact for fact in world.log.facts if fact.text.startswith(LOST)]
    state, _, errno, text = world.state("a@d.example")
    if silence == "ignore":
        # as an expansion that fails: two log lines, and nothing changes
        assert [(fact.text, fact.is_panic) for fact in lost] == [
            (f"{LOST} smtp:connect in smtp: no answer in 1s", True)
        ]
        assert state is RecipientState.DELIVERED
        return
    assert lost == []
    refused = "deferred by smtp:connect event expansion: no answer in 1s"
    assert (state, errno, text) == (RecipientState.QUEUED, -27, refused)
    assert [fact.text for fact in world.log.facts if fact.kind is FactKind.DEFERRED] == [refused]

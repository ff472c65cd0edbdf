"""Workers for the tests of event actions: in a thread of this process, or played by the test itself.

`working` runs a real worker loop in a thread, behind a real transport; `Puppet` is the worker's end of a transport, so
that a test can say whatever a broken or hostile worker might.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio

from engine.actions import attach, frames
from engine.actions.api import ATTEMPTS, Backoff, Worker
from engine.actions.channel import Link, Outgoing
from engine.actions.hub import Hub
from engine.actions.transport import Transport, make_pair, open_end
from engine.actions.worker import Runner
from engine.errors import EngineError
from fakes.patience import until

#: small enough to be filled in a test
OCTETS = 1 << 16


class Told:
    """What a hub told: `done` events in order, lines of the log."""

    def __init__(self) -> None:
        self.done: list[Outgoing] = []
        self.lines: list[str] = []

    def on_done(self, events: list[Outgoing]) -> None:
        self.done += events

    def log(self, text: bytes, logs: frozenset[str], event: Outgoing | None = None, /) -> None:
        self.lines.append(text.decode("utf-8", "replace"))

    @property
    def gone(self) -> list[str]:
        """The lines of workers that are gone."""
        return [line for line in self.lines if " is gone: " in line]

    @property
    def ids(self) -> list[bytes]:
        return [event.id for event in self.done]

    def make_hub(self, **options: Any) -> Hub:
        return Hub(on_done=self.on_done, log=self.log, **options)


@contextlib.asynccontextmanager
async def working(
    hub: Hub,
    worker: Worker,
    *,
    kind: int | None = None,
    settings: Mapping[str, Any] | None = None,
    attempts: int = ATTEMPTS,
    backoff: Backoff | None = None,
    octets: int = OCTETS,
) -> AsyncIterator[Link]:
    """A worker in a thread, served by the hub; drained at the end."""
    transport, kind, descriptors = make_pair(octets, kind=kind)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    attach.hand_over(ours, kind, descriptors)
    ends: list[str] = []

    def work() -> None:
        try:
            Runner(worker, attach.receive(theirs), theirs, attempts=attempts, backoff=backoff).run()
        except EngineError as error:
            ends.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    links: list[Link] = []
    try:
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                why = await hub.serve(transport, ours, group=worker.group, settings=settings, on_link=links.append)
                ends.append(why)

            nursery.start_soon(serve)
            await until(lambda: links and (links[0].ready is not None or ends))
            assert not ends, ends
            yield links[0]
            with trio.move_on_after(5):
                links[0].dismiss()
                await until(lambda: ends)
            nursery.cancel_scope.cancel()
    finally:
        await trio.to_thread.run_sync(thread.join, 10.0)
        assert not thread.is_alive()


class Puppet:
    """The worker's end of a transport, and of the control socket."""

    def __init__(self, transport: Transport, control: socket.socket) -> None:
        self.transport = transport
        self.control = control
        self.inbox: list[Any] = []

    def say(self, *frame: Any) -> None:
        assert self.transport.put(frame)
        self.transport.flush()

    def ready(self, *patterns: str, group: str = "main", vetoes: tuple[Any, ...] = ()) -> None:
        self.say(frames.READY, frames.VERSION, 1, group, tuple(("h", pattern) for pattern in patterns), vetoes)

    async def hear(self, *kinds: int) -> Any:
        """The next frame of one of these kinds; others are dropped."""
        found: list[Any] = []

        def look() -> bool:
            self.inbox += self.transport.take()
            while self.inbox and not found:
                frame = self.inbox.pop(0)
                if frame[0] in kinds:
                    found.append(frame)
            return bool(found)

        await until(look)
        return found[0]

    def die(self) -> None:
        self.control.close()
        self.transport.close()


@contextlib.asynccontextmanager
async def puppet(hub: Hub, group: str = "main", *, octets: int = OCTETS) -> AsyncIterator[tuple[Puppet, list[str]]]:
    """A worker that the test plays, and the list that gets the reason when the hub is done with it."""
    transport, kind, descriptors = make_pair(octets)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    played = Puppet(open_end(kind, descriptors), theirs)
    ends: list[str] = []

    async def serve() -> None:
        ends.append(await hub.serve(transport, ours, group=group))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            yield played, ends
            nursery.cancel_scope.cancel()
    finally:
        played.die()

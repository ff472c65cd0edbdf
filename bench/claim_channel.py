"""The channel to an action worker carries a million events a second one way, three times what anything else does.

How: one producer and one consumer process; events with 16 values, 400 octets as msgpack, made beforehand.
The producer writes until the consumer has seen the last one; of each event the consumer looks at the number, of one in
a batch at a value (ours unpacks a value when it is looked at; the peers cannot help but make all of them).  A second
comparison makes ours unpack all sixteen, too.  Right: count, sum of the numbers and octets of a value are what they
must be.  Peers do the same work: multiprocessing.Queue, ZeroMQ over ipc with msgpack, and msgpack over a Unix socket in
batches of 64 KiB; the figure is the ratio to the last one, which is the fastest of them.
A million a second takes two idle cores; the CPU time that the busier of the two processes needs for an event tells
whether it would on a machine that has none.
Beside it: a veto, asked by trio (`Link.ask`) and answered by a handler in a worker process, against two eventfds and
nothing else between the same kinds of processes; what is told is the median of a run.  Questions follow one another at
once; how it is if one comes a millisecond, when the processes have gone to sleep and their code has left the caches, is
told too, without a target.

What would falsify it: a median ratio under 3 to any of the peers, a rate under a million on two idle cores or more than
a microsecond of CPU time for an event, a veto of more than 1.5 times the bare eventfds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import resource
import select
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

import trio

from engine.actions import attach
from engine.actions.api import Event, Worker
from engine.actions.channel import Link
from engine.actions.frames import Shape
from engine.actions.transport import make_pair, open_end
from engine.actions.worker import run as run_worker

from ._harness import CPU_US, Contender, Metric, Stopwatch, Timing, peer
from ._peers._stream import EVENTS, VALUES, Check, forked, one_way

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from engine.actions.transport import Transport

    from ._harness import Harness

#: events put into the ring at one time
_BATCH = 256
#: between two vetoes, where there is a pause
_PAUSE_S = 0.001
_MEDIAN = Metric("median round trip", "µs", False, lambda timing: 1e6 * timing.wall_s / timing.count)


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    ours = Contender("outrider", stream)
    whole = Contender("outrider", functools.partial(stream, every_value=True))
    count = bench.size(1_000_000, 20_000)
    with peer("unix_socket", bench.note) as sockets:
        bench.compare("events one way", ours, sockets, data=count, pairs=9, at_least=3, is_figure=True)
        bench.compare("events one way, every value looked at", whole, sockets, data=count, pairs=5)
    with peer("zmq_ipc", bench.note) as zeromq, peer("mp_queue", bench.note) as queue:
        few = bench.size(200_000, 20_000)
        bench.compare("events one way, slower peers", ours, zeromq, queue, data=few, pairs=3, at_least=3)
    bench.measure("events one way, alone", ours, data=count, at_least=1_000_000)
    busier = Contender("outrider", busier_process)
    bench.measure("events one way, CPU of the busier process", busier, data=count, metric=CPU_US, at_most=1)
    paced = Contender("outrider", functools.partial(ask, pause_s=_PAUSE_S))
    with peer("eventfd_pingpong", bench.note) as bare:
        vetoes = bench.size(10_000, 500)
        bench.compare("veto", Contender("outrider", ask), bare, data=vetoes, metric=_MEDIAN, at_most=1.5)
    with peer("eventfd_paced", bench.note) as bare:
        bench.compare("veto, one a millisecond", paced, bare, data=bench.size(1000, 50), metric=_MEDIAN, pairs=5)


# --- one way ----------------------------------------------------------------------------------------------------------


def stream(count: int, every_value: bool = False) -> Timing:
    """Events from here to another process."""
    end, kind, descriptors = make_pair()

    def produce(count: int) -> None:
        for start in range(0, count, _BATCH):
            frames = EVENTS[start & 1023 : (start & 1023) + min(_BATCH, count - start)]
            sent = 0
            while (sent := sent + end.put_many(frames, sent)) < len(frames):
                end.flush()
                if end.wait_for_room():
                    _wait(end)
            end.flush()

    with contextlib.closing(end):
        return one_way(count, _consume, produce, kind, descriptors, every_value)


def busier_process(count: int) -> Timing:
    """As `stream`; the CPU time is that of the process that needs more."""
    before = _children_s()
    timing = stream(count)
    return dataclasses.replace(timing, cpu_s=max(timing.cpu_s, _children_s() - before))


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _wait(end: Transport) -> None:
    if end.sleep():
        select.select([end], [], [])
    end.awake()


def _consume(kind: int, descriptors: list[int], every_value: bool, count: int, done: Connection) -> None:
    check = Check()
    with contextlib.closing(open_end(kind, descriptors)) as end:
        done.send("ready")
        while check.count < count:
            frames = end.take()
            if frames:
                check.add(frames)
                if every_value:
                    for frame in frames:
                        frame[4].to_tuple()
            else:
                _wait(end)
        done.send(check.result)


# --- there and back ---------------------------------------------------------------------------------------------------


class _Owner:
    """Who is told what happens on the link: nobody cares."""

    def on_ready(self, link: Link, ready: Any) -> None:
        self.ready.set()

    def on_done(self, link: Link, events: Any) -> None: ...

    def on_log(self, link: Link, line: Any, event: Any = None) -> None: ...

    def on_tick(self, link: Link) -> None: ...

    def __init__(self) -> None:
        self.ready = trio.Event()


def ask(count: int, pause_s: float = 0.0) -> Timing:
    """Vetoes, one after the other."""
    ours, theirs = socket.socketpair()
    with forked(veto_worker, theirs, ours):
        theirs.close()
        return trio.run(_ask, ours, count, pause_s)


async def _ask(control: socket.socket, count: int, pause_s: float) -> Timing:
    control.setblocking(False)
    end, kind, descriptors = make_pair()
    attach.hand_over(control, kind, descriptors)
    owner = _Owner()
    link = Link(end, control, owner, group="main")
    shape = Shape(1, "tls:cert", tuple(f"v{number}" for number in range(len(VALUES))))
    times: list[float] = []
    answered = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await owner.ready.wait()
        with Stopwatch() as watch:
            for _ in range(count):
                if pause_s:
                    await trio.sleep(pause_s)
                begin = time.perf_counter()
                answer = await link.ask(shape, b"", VALUES, 5.0)
                times.append(time.perf_counter() - begin)
                answered += answer.text == b"no"
        link.dismiss()
    return Timing(count, statistics.median(times) * count, watch.cpu_s, answered)


def veto_worker(control: socket.socket, engine: socket.socket, _: Connection) -> None:
    """The process that answers."""
    # or it would never see that the engine is gone
    engine.close()
    worker = Worker()

    @worker.veto("tls:cert")
    def refuse(event: Event) -> str:
        return "no" if event["v4"] == 25 else ""

    run_worker(worker, control)

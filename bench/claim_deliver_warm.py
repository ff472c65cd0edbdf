"""A whole delivery on warm connections, everything on, costs at most 100 µs of CPU: 10,000 a second from one core.

How: 50,000 recipients of 50 domains with merge data are queued (not timed); then the engine delivers a personalised
4 KiB message to each: template, routing by MX, DANE required (`3 1 1`, verified by digest), TLS 1.3, a window of 8, a
queue that is on disk after every commit, in-flight journal, main log, and an event action on each delivery.  The engine
is pinned to one core.  The other has the sink in a process of its own; it answers the engine's DNS questions, too, as
a validating resolver would.  Measured is the CPU time of the engine with all its threads and workers, and the
time on the clock.  Right: the sink has each recipient once, the queue says that each is delivered, the log has a line
with CV=dane for each, and each event was recorded once by its action.  That is seen in a run before those that are
timed; of those the counts are looked at.

Peer: smtplib of Python in a process of its own, one connection with TLS, the same messages composed beforehand: no
queue, no log, no template, no DANE, no events, and it may not crash.

What would falsify it: a median over 100 µs, or under 10,000 a second where the sink has a core of its own; an engine
that needs less CPU than the sink (the sink would then be what is measured).

`python -m bench deliver_warm --where` tells where the time goes; see bench/_where.py.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine.logs.writer import LogWriter
from engine.queue.sqlite import SqliteStore

from ._engine import EVENTS, Engine, Work, messages
from ._harness import CPU_US, RATE, Contender, Timing, peer, pinned
from ._sink import Sink
from ._where import Profile

if TYPE_CHECKING:
    from ._harness import Harness

#: with an event for a worker on each delivery; connections are renewed as they are by default
WORK: Final = Work(50_000, max_messages=500, more=EVENTS)


def where(*, quick: bool = False) -> str:
    """A table of where the CPU time of a delivery goes, for people; after a run to warm up."""
    cores = sorted(os.sched_getaffinity(0))
    work = replace(WORK, count=500) if quick else WORK
    with pinned(cores[0]), Sink(core=cores[-1], track=False) as sink, Engine(sink, work) as engine:
        engine.run()
        engine.profile = Profile((LogWriter, "write", "log"), (SqliteStore, "claim", "queue: claim"))
        engine.run()
        return f"{engine.profile.table(work.count, engine.workers_s)}\n\n{engine.profile.dearest(work.count)}"


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    whole = replace(WORK, count=bench.size(WORK.count, 500))
    part = replace(whole, count=whole.count // 5)
    cores = sorted(os.sched_getaffinity(0))
    with pinned(cores[0]):
        with Sink(core=cores[-1]) as sink, Engine(sink, replace(whole, count=min(whole.count, 5000))) as engine:
            sink.judged(Contender("outrider", engine.run_once_started)).run()
            _check(engine)
        with Sink(core=cores[-1], track=False) as sink:
            _measure(bench, sink, whole, is_figure=True)
            if not bench.quick:
                _measure(bench, sink, replace(part, more=""))
                _measure(bench, sink, replace(part, window=1))
    with Sink(track=False) as sink, Engine(sink, part) as engine, peer("smtplib_loop", bench.note) as loop:
        bench.compare(
            "beside smtplib with nothing but the wire",
            Contender("outrider", lambda _: engine.run_once_started()),
            loop,
            data=(sink.port, [octets for _, octets in messages(part)]),
            metric=CPU_US,
            pairs=3,
            at_most=1,
        )


def _measure(bench: Harness, sink: Sink, work: Work, *, is_figure: bool = False) -> None:
    events = "events" if work.more else "no events"
    last = Timing(0, 0.0)
    with Engine(sink, work) as engine:

        def ours() -> Timing:
            nonlocal last
            before_s = sink.cpu_s
            timing = engine.run_once_started()
            arrived = sink.arrived(work.count)
            assert arrived.messages == timing.count == work.count, f"{timing.count} were delivered, {arrived} came"
            last = Timing(work.count, timing.wall_s, arrived.cpu_s - before_s, work.count)
            return timing

        bench.measure(
            f"personalised 4 KiB, DANE, queue, log, {events}, window {work.window}",
            Contender("outrider", ours),
            metric=CPU_US,
            also=(RATE,),
            runs=3,
            at_most=100 if is_figure else None,
            is_figure=is_figure,
        )
        if is_figure:
            bench.measure("the sink beside it", Contender("its sink", lambda: last), metric=CPU_US, runs=1)


def _check(engine: Engine) -> None:
    """See that the main log has a verified delivery for each recipient, and that each event was recorded once."""
    count = engine.work.count
    assert engine.verified() == count, f"{engine.verified()} verified deliveries in the log"
    rows = [json.loads(row) for row in (engine.directory / "events.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == count, f"{len(rows)} events for {count} messages"

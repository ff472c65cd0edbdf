"""Large messages go at the speed of the line: at 100 KiB, 80 % of what a bare TLS pipe moves.

How: the engine delivers personalised messages of 2, 10, 100 KiB and 1 MiB, over TLS with DANE and in clear, from a
queue on disk, with a window of 8 over 20 connections and up to 1 MiB in flight on each (`pipeline_size`; by default
large messages take two round trips, which is told beside it), to `bench._sink` in a process of its own; it is pinned to
one core and the sink to the other. In turns with it, a bare pipe: the same number of blocks of the same size over one
connection, TLS 1.3 or clear, by Python's `ssl`, between two processes on the same cores, the reader of which drops what
it reads. Told is the rate, in MB (10^6 octets of content) a second. And, as the sink does more than drop what it reads,
its own ceiling: the same content as transactions written beforehand, blocking sockets, nothing else. Right: the sink
has every message once.

What would falsify it: a median ratio under 0.8 at 100 KiB over TLS.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ._engine import Engine, Work
from ._harness import Contender, Metric, peer, pinned
from ._sink import Sink

if TYPE_CHECKING:
    from ._harness import Harness, Timing

#: octets of a message -> messages of a run, enough for what is done once a job and once a connection to be a small part
SIZES: Final = {2 << 10: 6000, 10 << 10: 6000, 100 << 10: 6000, 1 << 20: 600}
#: octets of the transactions that are written beforehand, which are all in memory
_READY_OCTETS: Final = 1 << 27
_FIGURE: Final = 100 << 10
_MORE: Final = 'pipeline_size = "1M"\n'


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    cores = sorted(os.sched_getaffinity(0))
    with (
        pinned(cores[0]),
        peer("tls_pipe", bench.note, core=cores[0]) as pipe,
        peer("bdat_pipe", bench.note, core=cores[0]) as ceiling,
    ):
        for tls in (True, False):
            for octets, full in SIZES.items() if not bench.quick else [(_FIGURE, SIZES[_FIGURE])]:
                count = bench.size(full, max(full // 100, 4))
                ready = min(count, _READY_OCTETS // octets)
                what = f"{octets >> 10} KiB, {'TLS' if tls else 'clear text'}"
                rate = _content_rate(octets)
                is_figure = tls and octets == _FIGURE
                with (
                    Sink(core=cores[-1]) as sink,
                    Engine(sink, Work(count, octets=octets, tls=tls, more=_MORE)) as engine,
                    Engine(sink, Work(count, octets=octets, tls=tls)) as cautious,
                ):
                    bench.compare(
                        what,
                        _done(sink.judged(Contender("outrider", engine.run))),
                        pipe and _done(pipe, (count, octets, tls, cores[-1])),
                        ceiling and _done(ceiling, sink.load(ready, octets=octets, connections=2, tls=tls)),
                        metric=rate,
                        pairs=3,
                        at={"octets": octets, "tls": float(tls)},
                        at_least=0.8 if is_figure else None,
                        is_figure=is_figure,
                    )
                    if octets > 64 << 10:
                        ours = _done(sink.judged(Contender("outrider", cautious.run)))
                        bench.measure(f"{what}, pipeline_size as it is by default", ours, metric=rate, runs=1)


def _content_rate(octets: int) -> Metric:
    return Metric("content", "MB/s", True, lambda timing: octets * timing.count / timing.wall_s / 1e6)


def _done(contender: Contender, *arguments: object) -> Contender:
    """The same with these arguments; each has seen for itself that everything came."""

    def run() -> Timing:
        timing: Timing = contender.run(*arguments)
        return replace(timing, check="everything came")

    return replace(contender, run=run)

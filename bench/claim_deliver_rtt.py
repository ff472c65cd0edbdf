"""Far away is nearly as good as near: at 30 ms and a window of 8, six times what two round trips a message allow.

A site lets a sender have so many connections C, and no more; with k round trips of R seconds a message it then takes at
most C / (k R) messages a second, whatever the sender's speed.  Most senders need k = 2 to 5; with a window of W
transactions in flight k is 1/W.

How: `bench._sink` sends each reply so many milliseconds after its command came, as far away a server would be (a timer;
no packet is held back, so TCP and the TLS handshake cost no time here).  The engine delivers a personalised 4 KiB
message to each recipient over TLS with DANE, from a queue on disk, over 20 connections; the clock runs from the first
claim to the last commit, so connecting and the climb from lock-step to the window are in it.  A grid of delays (0, 10,
30, 100 ms), windows (1, 2, 4, 8) and shares of deferred recipients (0, 5, 20 %).  Beside it, over the same sink at 30
ms: Postfix with TLS reuse, aiosmtplib and nodemailer, each with 20 connections too.  Right: the sink has every message
once, and who was not delivered was deferred.

What would falsify it: a median under six times 20 / (2 x 0.03 s) = 333 a second at 30 ms with a window of 8.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ._engine import Engine, Work
from ._harness import RATE, Contender, Metric, peer, pinned
from ._sink import Sink

if TYPE_CHECKING:
    from ._harness import Harness

CONNECTIONS: Final = 20
DELAYS_MS: Final = (0, 10, 30, 100)
WINDOWS: Final = (1, 2, 4, 8)
DEFERRALS: Final = (0.0, 0.05, 0.2)
#: where the figure is taken
_DELAY_MS: Final = 30
_WINDOW: Final = 8
#: seconds that a cell of the grid should take, about; and the most it does
_CELL_S: Final = 1.5
_CELL_COUNT: Final = 5000
#: senders beside us -> round trips a message that they are thought to need, to choose how much they send
_PEERS: Final = {"aiosmtplib_pool": 4, "nodemailer_pool": 4, "postfix_reuse": 5}


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    cores = sorted(os.sched_getaffinity(0))
    with pinned(cores[0]):
        _figure(bench, cores[-1])
        _beside(bench, cores)
        delays = (0, 10) if bench.quick else DELAYS_MS
        for defer in (0.0, 0.2) if bench.quick else DEFERRALS:
            for delay_ms in delays:
                with Sink(core=cores[-1], delay_s=delay_ms / 1000, defer=defer) as sink:
                    for window in (1, 8) if bench.quick else WINDOWS:
                        _cell(bench, sink, delay_ms, window, defer)


def _figure(bench: Harness, sink_core: int) -> None:
    allowed = two_round_trips(_DELAY_MS)
    work = Work(bench.size(10_000, 300), window=_WINDOW, connections=CONNECTIONS)
    metric = Metric("rate over two round trips'", "×", True, lambda timing: timing.count / timing.wall_s / allowed)
    with Sink(core=sink_core, delay_s=_DELAY_MS / 1000) as sink, Engine(sink, work) as engine:
        ours = sink.judged(Contender("outrider", engine.run))
        what = f"{_DELAY_MS} ms, window {_WINDOW}, {CONNECTIONS} connections; two round trips allow {allowed:.0f}/s"
        bench.measure(what, ours, metric=metric, also=(RATE,), runs=5, at_least=6, is_figure=True)


def _beside(bench: Harness, cores: list[int]) -> None:
    with Sink(core=cores[-1]) as sink, peer("bdat_pipe", bench.note, core=cores[0]) as ceiling:
        if ceiling is not None:
            load = sink.load(bench.size(20_000, 400), connections=CONNECTIONS)
            bench.measure("0 ms, what the sink can take", sink.judged(ceiling, load), runs=1, warm_up=False)
    with Sink(core=cores[-1], delay_s=_DELAY_MS / 1000) as sink:
        for name, round_trips in list(_PEERS.items())[: 1 if bench.quick else None]:
            with peer(name, bench.note, core=cores[0]) as contender:
                if contender is not None:
                    count = int(4 * CONNECTIONS / (round_trips * _DELAY_MS / 1000))
                    load = sink.load(bench.size(count, 40), connections=CONNECTIONS)
                    theirs = sink.judged(contender, load)
                    at = {"delay_ms": _DELAY_MS, "window": 0, "defer": 0.0}
                    bench.measure(f"{_DELAY_MS} ms, beside it", theirs, runs=1, warm_up=False, at=at)


def _cell(bench: Harness, sink: Sink, delay_ms: int, window: int, defer: float) -> None:
    # half of what the round trips allow, since connecting costs some as well
    count = min(int(_CELL_S * CONNECTIONS * window / (2 * delay_ms / 1000)), _CELL_COUNT) if delay_ms else _CELL_COUNT
    work = Work(bench.size(count, 100), window=window, connections=CONNECTIONS)
    at = {"delay_ms": delay_ms, "window": window, "defer": defer}
    with Engine(sink, work) as engine:
        ours = sink.judged(Contender("outrider", engine.run))
        what = f"{delay_ms} ms, window {window}, {100 * defer:.0f} % deferred"
        bench.measure(what, ours, runs=1, warm_up=False, at=at)


def two_round_trips(delay_ms: float) -> float:
    """Messages a second that two round trips a message allow."""
    return CONNECTIONS / (2 * delay_ms / 1000)

"""The sink is no bottleneck: it takes a message over TLS in at most 12 µs of one core when messages come in bulk.

How: the sink (engine/net/sink.py) runs in a process of its own.  A client that costs little (blocking sockets, messages
written before the time is taken) sends 4 KiB messages with windows of 1 and 32 transactions in flight, in clear and
over TLS 1.3. Measured is the CPU time of the sink's process, user and system, so that the client and a busy machine do
not count; the rate is told beside it.  Right: every message is answered with 250, and the sink's own count agrees.

Why 12 µs: a sender that does nothing but hand ready octets to trio and pyOpenSSL needs that much for a message with 32
in flight (design.md, "Speed").  The engine does everything else besides, so it cannot be half as cheap as the sink.

What would falsify it: a median over 12 µs on an idle machine, or an engine that needs less than what is told here for
the same window (see claim_deliver_warm).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._flights import Flights
from ._harness import CPU_US, RATE, Contender, Timing
from ._sink import Sink

if TYPE_CHECKING:
    from ._harness import Harness


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    for tls in (False, True):
        for connections, window, full in ((20, 1, 10_000), (1, 32, 40_000)):
            count = bench.size(full, 640)
            with (
                Sink(track=False) as sink,
                Flights(
                    sink.port, connections=connections, window=window, count=count, octets=4096, tls=tls
                ) as flights,
            ):
                contender = Contender("sink", lambda sink=sink, flights=flights: _run(sink, flights))
                what = f"{'TLS' if tls else 'clear text'}, {connections} × {window} in flight"
                is_figure = tls and window == 32
                bench.measure(
                    what,
                    contender,
                    metric=CPU_US,
                    also=(RATE,),
                    at_most=12 if is_figure else None,
                    is_figure=is_figure,
                )


def _run(sink: Sink, flights: Flights) -> Timing:
    """Send all flights; the time is the sink's."""
    sink.mark()
    before = sink.arrived()
    taken = flights.send()
    after = sink.arrived(flights.count)
    assert taken == after.messages == flights.count, f"{taken} of {flights.count} messages were taken, sink: {after}"
    return Timing(taken, after.at - before.at, after.cpu_s - before.cpu_s, taken)

"""For a second of CPU, at least 7 times as many deliveries as Postfix with TLS reuse, and 70 times as many as Exim.

How: the engine of claim_deliver_warm, with everything on (queue on disk, template, DANE, TLS 1.3, a window of 8, main
log, an event for a worker with each delivery), and beside it others that send mail of the same size to the same sink,
in turns: Postfix with and without reuse of TLS connections, Exim, OpenSMTPD, nodemailer's pool, aiosmtplib and
smtp-source. All are pinned to one core, the sink to the other. Mail servers get their queue filled with their delivery
held back, which is not timed; then all of their processes are counted until the sink has everything and their queue is
empty, less what an idle start of the server takes. Their files are synced as they would be, their logs are on; they
check no certificate, which we do, and run no event. The libraries are given messages that were composed before, and
keep none of them. Each server has the settings with which it was cheapest here (see bench/_peers). How many messages
each sends differs, since some need hundreds of times as long; what is told is for one. "ready octets" is no sender: it
is what the sink can take. Right: the sink has every message once.

What would falsify it: a median ratio under 7 to Postfix with TLS reuse, or under 70 to Exim.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ._engine import Engine
from ._harness import CPU_US, RATE, Contender, Metric, peer, pinned
from ._sink import Sink
from .claim_deliver_warm import WORK

if TYPE_CHECKING:
    from ._harness import Harness

PER_CPU_S: Final = Metric("for a second of CPU", "1/s", True, lambda timing: timing.count / timing.cpu_s)
#: peer -> messages of a run, and of a quick one; the first is the one of the figure, the others come as they are
_PEERS: Final = {
    "postfix_reuse": (3000, 30),
    "postfix": (1000, 0),
    "opensmtpd": (100, 0),
    "nodemailer_pool": (3000, 0),
    "aiosmtplib_pool": (3000, 0),
    "smtp_source": (5000, 30),
    "bdat_pipe": (20_000, 40),
}
_EXIM: Final = (300, 10)
_PAIRS: Final = 3


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    cores = sorted(os.sched_getaffinity(0))
    with pinned(cores[0]), Sink(core=cores[-1]) as sink, ExitStack() as stack:
        engine = stack.enter_context(Engine(sink, replace(WORK, count=bench.size(20_000, 200))))
        engine.run_once_started()
        ours = sink.judged(Contender("outrider", engine.run_once_started))

        def theirs(name: str, full: int, quick: int) -> Contender | None:
            contender = stack.enter_context(peer(name, bench.note, core=cores[0]))
            return contender and sink.judged(contender, sink.load(bench.size(full, quick)))

        peers = [theirs(name, *counts) for name, counts in _PEERS.items() if bench.size(*counts)]
        bench.compare(
            "4 KiB over TLS, beside senders with warm connections",
            ours,
            *peers,
            metric=PER_CPU_S,
            also=(CPU_US, RATE),
            pairs=_PAIRS,
            warm_up=False,
            at_least=7,
            is_figure=True,
        )
        bench.compare(
            "4 KiB over TLS, beside Exim",
            ours,
            theirs("exim", *_EXIM),
            metric=PER_CPU_S,
            also=(CPU_US, RATE),
            pairs=_PAIRS,
            warm_up=False,
            at_least=70,
        )

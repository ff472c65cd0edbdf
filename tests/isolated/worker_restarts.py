"""An engine whose worker is bad, thousands of times, and then good; prints what is left behind.

Run by tests/actions/test_worker_in_c.py with few; by hand, for ten thousand, which take half a minute:
    cc -std=c11 -D_GNU_SOURCE -x c tests/isolated/worker_in_c.c11 -o /tmp/worker_in_c
    COUNT=10000 python tests/isolated/worker_restarts.py /tmp/worker_in_c

Every end must be told in one line with a reason, no event may be lost, and neither descriptors, processes nor memory
may be left.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.actions.channel import Outgoing
from engine.actions.hub import Hub
from engine.actions.supervisor import Restart, Supervisor

#: events that are to be handled all the time
EVENTS: Final = 50
#: what the line about the end of a bad worker must match
CLEAR: Final = re.compile(
    r"action worker \d is gone: "
    r"(it died|it sent what is no frame: .{5,120}|the worker went before it had its transport: .{5,40})"
    r" \((signal (9|15)|exit status [34])\); the next one starts in 0 s"
)
#: what is said beside it of one that had events
HANDED_ON: Final = re.compile(r"\d+ events that a worker of main had not acknowledged are handed on again")


class Engine:
    """A hub, its events, and what it said."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.lines: Counter[str] = Counter()
        self.unclear: list[str] = []
        self.hub = Hub(on_done=self.on_done, log=self.log, expected=("main",))
        shape = self.hub.shape("msg:delivery", ("local_part", "domain"))
        for number in range(EVENTS):
            event = Outgoing(shape, b"m%d" % (number % 5), b"%d" % number, (b"u" * number, b"example.org"))
            assert self.hub.submit_nowait(event)

    def on_done(self, events: list[Outgoing]) -> None:
        self.done += [event.id for event in events]

    def log(self, text: bytes, logs: frozenset[str], event: Outgoing | None = None, /) -> None:
        line = text.decode()
        if HANDED_ON.fullmatch(line):
            return
        if not CLEAR.fullmatch(line):
            self.unclear.append(line)
        self.lines[re.sub(r"[0-9]+", "N", line).partition(" is gone: ")[2].partition(";")[0]] += 1

    async def suffer(self, program: str, count: int) -> float:
        """Start bad workers, four at a time; returns the seconds it took."""
        supervisor = Supervisor(
            self.hub, 4, log=self.log, command=[program, "mix"], restart=Restart(0, 0), ring_octets=1 << 16
        )
        begin, enough = time.monotonic(), self.lines.total() + count
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            while self.lines.total() < enough:  # noqa: ASYNC110 - nothing here can be waited for
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert supervisor.pids == {}
        return time.monotonic() - begin

    async def recover(self, program: str) -> None:
        """A good worker gets all events."""
        supervisor = Supervisor(self.hub, 1, log=self.log, command=[program, "good"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            with trio.fail_after(300):
                while self.hub.held:  # noqa: ASYNC110 - nothing here can be waited for
                    await trio.sleep(0.01)
                assert await supervisor.stop(timeout_s=100)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def main() -> None:
    count = int(os.environ.get("COUNT", "100"))
    engine = Engine()
    # the first ones fill caches
    await engine.suffer(sys.argv[1], count // 5)
    before = descriptors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took_s = await engine.suffer(sys.argv[1], count)
    after = descriptors(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = engine.hub.held
    await engine.recover(sys.argv[1])
    print(
        {
            "ends": engine.lines.total(),
            "seconds": round(took_s, 1),
            "descriptors": after[0] - before[0],
            "grown_kib": after[1] - before[1],
            "held": held,
            "done": sorted(set(map(int, engine.done))) == list(range(EVENTS)) and len(engine.done) == EVENTS,
            "unclear": engine.unclear[:5],
            "lines": dict(engine.lines.most_common(20)),
        }
    )


trio.run(main)

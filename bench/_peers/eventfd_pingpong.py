"""What waking costs: trio waits for an eventfd, a blocking process answers with another; nothing is sent."""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import TYPE_CHECKING

import trio

from .._harness import Stopwatch, Timing
from ._stream import forked

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

label = "bare eventfds, trio and a blocking process"


def version() -> str:
    return f"trio {trio.__version__}, Linux {platform.release()}"


def run(count: int, pause_s: float = 0.0) -> Timing:
    ask, answer = os.eventfd(0), os.eventfd(0)

    async def main() -> list[float]:
        times = []
        for _ in range(count):
            if pause_s:
                await trio.sleep(pause_s)
            begin = time.perf_counter()
            os.eventfd_write(ask, 1)
            await trio.lowlevel.wait_readable(answer)
            os.eventfd_read(answer)
            times.append(time.perf_counter() - begin)
        return times

    try:
        with forked(_answer, ask, answer, count) as connection:
            assert connection.recv() == "ready"
            with Stopwatch() as watch:
                times = trio.run(main)
        return Timing(count, statistics.median(times) * count, watch.cpu_s, count)
    finally:
        os.close(ask)
        os.close(answer)


def _answer(ask: int, answer: int, count: int, done: Connection) -> None:
    done.send("ready")
    for _ in range(count):
        os.eventfd_read(ask)
        os.eventfd_write(answer, 1)

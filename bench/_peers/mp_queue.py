"""multiprocessing.Queue: pickle, a thread, a pipe."""

from __future__ import annotations

import multiprocessing
import platform
from typing import TYPE_CHECKING, Any

from ._stream import EVENTS, Check, one_way

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .._harness import Timing

label = "multiprocessing.Queue"


def version() -> str:
    return platform.python_version()


def run(count: int) -> Timing:
    queue: Any = multiprocessing.get_context("fork").Queue(10_000)

    def produce(count: int) -> None:
        for number in range(count):
            queue.put(EVENTS[number & 1023])

    try:
        return one_way(count, _consume, produce, queue)
    finally:
        queue.close()
        queue.join_thread()


def _consume(queue: Any, count: int, done: Connection) -> None:
    check = Check()
    done.send("ready")
    while check.count < count:
        check.add([queue.get()])
    done.send(check.result)

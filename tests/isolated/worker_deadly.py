"""An engine's own worker that one event ends: ``worker_deadly.py HOW --control-fd N``; the rest to $WORKER_FILE."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable

from engine.actions.api import Event, Worker
from engine.actions.worker import run

#: the local part that no process survives
DEADLY = b"u77"
WAYS: dict[str, Callable[[], None]] = {
    # of this thread, which would go on for a moment otherwise
    "crash": lambda: signal.raise_signal(signal.SIGSEGV),
    "exit in silence": lambda: os._exit(0),
}

worker = Worker()


@worker.on("msg:delivery", batch=50, linger=0.01)
def record(events: list[Event]) -> None:
    for event in events:
        if event["local_part"] == DEADLY:
            WAYS[sys.argv[1]]()
    with open(os.environ["WORKER_FILE"], "a") as file:
        file.write("".join(f"{event.id.decode()}\n" for event in events))


@worker.veto("tls:cert", timeout=30.0)
def crash(event: Event) -> None:
    WAYS[sys.argv[1]]()


if __name__ == "__main__":
    run(worker, socket.socket(fileno=int(sys.argv[3])))

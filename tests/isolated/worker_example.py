"""Workers of users, for tests that run them in processes of their own: what they see they write to $WORKER_FILE."""

from __future__ import annotations

import os
import signal
import time

from engine.actions.api import Event, Worker

worker = Worker(group="crm")
#: dies in the middle of a batch, once for each $WORKER_FILE.died that is not there yet
mortal = Worker(group="crm")


def _write(text: str) -> None:
    with open(os.environ["WORKER_FILE"], "a") as file:
        file.write(text)


@worker.on("msg:delivery", batch=50)
def record(events: list[Event]) -> None:
    _write("".join(f"{event.id.decode()} {event.text('local_part')} {os.getpid()}\n" for event in events))


@worker.veto("tls:cert", timeout=60.0)
def pin(event: Event) -> str | None:
    return "not pinned" if event["local_part"] == b"refused" else None


@mortal.on("msg:delivery", batch=20)
def record_and_die(events: list[Event]) -> None:
    _write("".join(f"{event.id.decode()} x {os.getpid()}\n" for event in events))
    try:
        os.close(os.open(os.environ["WORKER_FILE"] + ".died", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

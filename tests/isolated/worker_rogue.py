"""Broken and hostile workers, as processes: ``worker_rogue.py HOW --control-fd N``."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time

from engine.actions import attach, frames
from engine.actions.transport import Rings


def main() -> None:
    how, control = sys.argv[1], socket.socket(fileno=int(sys.argv[3]))
    if how == "dies at once":
        os._exit(3)
    transport = attach.receive(control)
    assert isinstance(transport, Rings)
    if how == "says garbage":
        transport.put((1, 2, 3))
    elif how == "writes garbage":
        memory = transport._memory
        dice = random.Random(1)
        for _ in range(2000):
            memory[512 + dice.randrange(8000)] = dice.randrange(256)
        os.eventfd_write(transport._wakes_them, 1)
    elif how == "dies in a frame":
        transport.put(frames.ready_frame(frames.Ready(frames.VERSION, os.getpid(), "main", (("h", "*"),), ())))
        transport.flush()
        # what `put` does first: the record, but not yet the position behind it
        memory = transport._memory
        memory[4096 + (1 << 22) + 64 : 4096 + (1 << 22) + 96] = b"\xff" * 32
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "takes events and dies":
        transport.put(frames.ready_frame(frames.Ready(frames.VERSION, os.getpid(), "main", (("h", "*"),), ())))
        transport.flush()
        while not any(frame[0] == frames.EVENT for frame in transport.take()):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    transport.flush()
    time.sleep(0.05 if how == "says garbage" else 60)


main()

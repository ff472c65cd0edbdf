"""A hostile engine, seen by a worker that is a process: it ends with a clear line, whatever it was told.

In a thread, frame for frame: tests/actions/test_channel_hostile.py.
"""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

from engine.actions import attach, frames
from engine.actions.transport import RINGS, Rings, make_pair
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

GOOD_HELLO: Final[Any] = (frames.HELLO, frames.VERSION, "main", {})
LINE = "outrider: the engine sends what is no frame: "
#: where the engine's ring has its positions and its data
TAIL, DATA = 512, 4096


class PlayedEngine:
    """The engine's end of a channel to a worker process."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        self.end, kind, descriptors = make_pair(1 << 16, kind=RINGS)
        assert isinstance(self.end, Rings)
        self.memory = self.end._memory
        command = [sys.executable, "-m", "engine.cli.serve", "--control-fd", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], cwd=PROJECT, stderr=subprocess.PIPE, text=True
            )
        attach.hand_over(self.control, kind, descriptors)

    def say(self, *said: object) -> None:
        for frame in said:
            assert self.end.put(frame)
        self.end.flush()

    def write(self, at: int, octets: bytes) -> None:
        self.memory[at : at + len(octets)] = octets

    def publish(self, octets: int) -> None:
        """Move the position of our ring, which is untouched otherwise."""
        self.write(TAIL, struct.pack("=Q", octets))

    def ended(self) -> tuple[int, str]:
        """How the worker ended: exit status, standard error."""
        try:
            _, errors = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.control.close()
            self.end.close()
        return self.process.returncode, errors


def garbage(engine: PlayedEngine) -> None:
    engine.write(DATA, random.Random(5).randbytes(1 << 15))
    engine.publish(1 << 14)


def wrong_length(engine: PlayedEngine) -> None:
    engine.write(DATA, struct.pack("=II", 1 << 20, 0))
    engine.publish(64)


def impossible(engine: PlayedEngine) -> None:
    engine.publish(1 << 40)


def halfway(engine: PlayedEngine) -> None:
    """It dies in the middle of a frame: what it had finished counts, the rest is not there."""
    engine.say(GOOD_HELLO)
    (position,) = struct.unpack_from("=Q", engine.memory, TAIL)
    engine.write(DATA + position, struct.pack("=II", 100, position >> 3) + b"\x95\x01")
    engine.control.close()


HOW: dict[Callable[[PlayedEngine], None], tuple[int, str]] = {
    garbage: (69, f"{LINE}the other side has written what is no frame\n"),
    wrong_length: (69, f"{LINE}the other side has written a frame of 1048576 octets where there are 64\n"),
    impossible: (69, f"{LINE}the other side has written an impossible position\n"),
    halfway: (0, ""),
}


@pytest.mark.slow
def test_a_worker_ends_with_a_clear_line() -> None:
    engines = {how: PlayedEngine() for how in HOW}
    for how, engine in engines.items():
        how(engine)
        engine.end.flush()
    assert {how.__name__: engine.ended() for how, engine in engines.items()} == {
        how.__name__: expected for how, expected in HOW.items()
    }

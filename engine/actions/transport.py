"""How frames get from one process to another: rings in shared memory, or a pipe where those are not to be had.

Layer: adapter; no trio, since workers have none.  Spec: design.md "Events and action workers".
A `Transport` is one end.  The engine makes a pair (`make_pair`), keeps one end and hands the descriptors of the other
to the worker, which opens it (`open_end`).  Writing never waits: `put` says whether there was room.  An end that has
nothing to read says so with `sleep`, waits for `fileno()` to be readable, and says `awake`; the other side makes it
readable only if it sleeps.
Invariants: no system call is made for a frame while the other side is awake (rings); memory that is shared can be
neither shrunk nor grown by anybody, so that looking at it cannot kill (SIGBUS); nothing waits for the other side, even
if it plays with flags of descriptors that both have (but for one that makes its eventfd blocking, and fills it, between
a look at the flags and the next system call: no kernel writes an eventfd with a flag of the moment).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import FrameError
from . import _ring
from .frames import ASK, EVENT, VALUES_PLACE

if TYPE_CHECKING:
    from collections.abc import Sequence

#: octets of each ring of a worker; arbitrary, holds ten thousand events of 400 octets
RING_OCTETS: Final = 1 << 22
#: frames read at one time
TAKE: Final = 512
#: octets that a pipe keeps for a side that does not read
_PIPE_OCTETS: Final = 1 << 22
#: times in a row that an end may be woken for nothing: the other side wakes only who sleeps, so it has gone mad
_MAX_IDLE_WAKES: Final = 10_000
#: kinds of a transport, as the hand-over names them
RINGS: Final = 1
PIPE: Final = 2
#: how many descriptors each kind hands over
DESCRIPTORS: Final = {RINGS: 3, PIPE: 1}


class Transport(Protocol):
    """One end."""

    @property
    def max_frame(self) -> int:
        """Octets of the longest frame that can be written."""

    @property
    def writable_fileno(self) -> int | None:
        """The descriptor that becomes writable when there is room again, or None where `fileno` tells that too."""

    @property
    def is_broken(self) -> bool:
        """Whether the other side has written what it cannot have meant; every call raises FrameError from then on."""

    def put(self, frame: object) -> bool:
        """Write a frame; False, and nothing is done, if there is no room.  Raises FrameError."""

    def put_many(self, frames: list[Any], start: int = 0) -> int:
        """Write frames from `start` on, as many as there is room for; returns how many.

        Raises:
            FrameError: the first of them is at fault, or the transport; one further behind ends the call before it.
        """

    def flush(self) -> None:
        """See that what was written will be read."""

    def take(self, limit: int = TAKE) -> list[Any]:
        """Read at most `limit` frames, without waiting.  Raises FrameError; EOFError if the other side is gone."""

    def wait_for_room(self) -> bool:
        """Ask to be told when there is room; False if there may be some already."""

    def stay_awake(self) -> bool:
        """Say that we are going to `take` now and then until we say `sleep`; False if we must wait for `fileno()`."""

    def sleep(self) -> bool:
        """Say that we are going to wait until `fileno()` is readable; False if there is something to read already."""

    def awake(self) -> None:
        """Say that we do not wait any more.  Raises FrameError if the other side does nothing but wake us."""

    def wake_self(self) -> None:
        """Make `fileno()` readable; only where `stay_awake` is true."""

    def fileno(self) -> int:
        """What is readable when the other side has something for us."""

    def close(self) -> None:
        """Let go of everything; what the other side has not read stays readable for it."""


class Rings:
    """An end of a pair of rings.

    Args:
        memory: of both rings; owned from now on.
        wakes_us: eventfd that we wait for; owned.
        wakes_them: eventfd that the other side waits for; owned.
        writes: number of the ring that this end writes, 0 for the engine and 1 for the worker.
    """

    writable_fileno: int | None = None

    def __init__(self, memory: mmap.mmap, wakes_us: int, wakes_them: int, writes: int) -> None:
        self._memory = memory
        self._wakes_us = wakes_us
        self._wakes_them = wakes_them
        self._idle_wakes = 0
        self._is_closed = False
        try:
            self.producer = _ring.Producer(memory, writes)
            self.consumer = _ring.Consumer(memory, 1 - writes)
        except FrameError:
            self._close_descriptors()
            raise
        if writes == 1:
            # what handlers do not look at need not become an object
            self.consumer.set_rows(VALUES_PLACE, EVENT, ASK)
        self.max_frame: int = self.producer.max_frame
        self.put = self.producer.put
        self.put_many = self.producer.put_many
        self.flush = functools.partial(self.producer.flush, wakes_them)
        self.wait_for_room = self.producer.wait_for_room
        self.sleep = self.consumer.sleep

    @property
    def is_broken(self) -> bool:
        return self.producer.problem is not None or self.consumer.problem is not None

    def take(self, limit: int = TAKE) -> list[Any]:
        frames = self.consumer.take(limit)
        if frames:
            self._idle_wakes = 0
            self.consumer.flush(self._wakes_them)
        return frames

    def stay_awake(self) -> bool:
        self.consumer.awake()
        return True

    def awake(self) -> None:
        self.consumer.awake()
        if _ring.drain(self._wakes_us):
            self._idle_wakes += 1
            if self._idle_wakes > _MAX_IDLE_WAKES:
                raise FrameError("the other side does nothing but wake us")

    def wake_self(self) -> None:
        _ring.wake(self._wakes_us)

    def fileno(self) -> int:
        return self._wakes_us

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.producer.close()
        self.consumer.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        os.close(self._wakes_us)
        os.close(self._wakes_them)
        # an end that could not be opened still has its memory held by the error's traceback
        with contextlib.suppress(BufferError):
            self._memory.close()


class Pipe:
    """An end of a pipe: the same frames over a pair of Unix sockets, each behind its length in four octets.

    Args:
        sock: owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._out = bytearray()
        self._in = bytearray()
        self._at_end = False
        self._is_broken = False
        # the one side that has threads writes from any of them
        self._writing = threading.Lock()
        self.max_frame = _ring.MIN_CAPACITY * 512

    @property
    def writable_fileno(self) -> int | None:
        return self._socket.fileno()

    @property
    def is_broken(self) -> bool:
        return self._is_broken

    def put(self, frame: object) -> bool:
        if len(self._out) > _PIPE_OCTETS:
            self.flush()
            if len(self._out) > _PIPE_OCTETS:
                return False
        octets = _ring.pack(frame)
        if len(octets) > self.max_frame:
            raise FrameError(f"a frame of more than {self.max_frame} octets")
        with self._writing:
            self._out += struct.pack("<I", len(octets)) + octets
        return True

    def put_many(self, frames: list[Any], start: int = 0) -> int:
        count = 0
        for frame in frames[start:]:
            try:
                if not self.put(frame):
                    break
            except FrameError:
                if not count:
                    raise
                break
            count += 1
        return count

    def flush(self) -> None:
        with self._writing:
            try:
                while self._out:
                    del self._out[: self._socket.send(self._out)]
            except BlockingIOError:
                return
            except OSError:
                # it is gone, which reading will tell
                self._out.clear()

    def take(self, limit: int = TAKE) -> list[Any]:
        if len(self._in) < _PIPE_OCTETS and not self._at_end:
            try:
                data = self._socket.recv(1 << 18)
                self._in += data
                self._at_end = not data
            except BlockingIOError:
                pass
            except OSError:
                self._at_end = True
        found: list[Any] = []
        place = 0
        while len(found) < limit and len(self._in) - place >= 4:
            (size,) = struct.unpack_from("<I", self._in, place)
            if len(self._in) - place - 4 < size <= self.max_frame:
                break
            try:
                if size > self.max_frame:
                    raise FrameError(f"the other side has written a frame of {size} octets")
                found.append(_ring.unpack(bytes(self._in[place + 4 : place + 4 + size])))
            except FrameError:
                self._is_broken = True
                if found:
                    break
                raise
            place += 4 + size
        del self._in[:place]
        self.flush()
        if self._at_end and not found:
            raise EOFError("the other side has closed the pipe")
        return found

    def wait_for_room(self) -> bool:
        return len(self._out) > _PIPE_OCTETS

    def sleep(self) -> bool:
        self.flush()
        return len(self._in) < 4 or len(self._in) - 4 < struct.unpack_from("<I", self._in)[0] <= self.max_frame

    def stay_awake(self) -> bool:
        return False

    def awake(self) -> None:
        self.flush()

    def wake_self(self) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self.flush()
        self._socket.close()


def make_pair(octets: int = RING_OCTETS, *, kind: int | None = None) -> tuple[Transport, int, list[int]]:
    """Make both ends of a transport.

    Args:
        octets: capacity of each ring, a power of two.
        kind: RINGS or PIPE; default: what this machine has.

    Returns:
        The engine's end, the kind, and the descriptors of the worker's end; the caller closes these when they have
        been handed over.

    Raises:
        OSError: the machine, or this process, has no room for it; nothing is left open.
    """
    if kind is None:
        kind = RINGS if hasattr(os, "memfd_create") and hasattr(os, "eventfd") else PIPE
    if kind == PIPE:
        ours, theirs = socket.socketpair()
        return Pipe(ours), PIPE, [theirs.detach()]
    size = _ring.octets_needed(octets, octets)
    flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
    with contextlib.ExitStack() as undo:

        def kept(fd: int) -> int:
            undo.callback(os.close, fd)
            return fd

        fd = kept(os.memfd_create("outrider-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        engine, worker = kept(os.eventfd(0, flags)), kept(os.eventfd(0, flags))
        descriptors = [fd, kept(os.dup(worker)), kept(os.dup(engine))]
        memory = mmap.mmap(fd, size)
        undo.pop_all()
    _ring.lay_out(memory, octets, octets)
    return Rings(memory, engine, worker, 0), RINGS, descriptors


def open_end(kind: int, descriptors: Sequence[int]) -> Transport:
    """The worker's end, from descriptors that were handed over; they are owned from now on.

    Raises:
        FrameError: they are not what an engine hands over.
    """
    if len(descriptors) != DESCRIPTORS.get(kind):
        for fd in descriptors:
            os.close(fd)
        raise FrameError("the engine handed over something else than a transport")
    if kind == PIPE:
        return Pipe(socket.socket(fileno=descriptors[0]))
    fd, wakes_us, wakes_them = descriptors
    try:
        needed = fcntl.F_SEAL_SHRINK
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & needed:
            raise FrameError("the shared memory could be shrunk under us")
        memory = mmap.mmap(fd, os.fstat(fd).st_size)
    except (OSError, ValueError, FrameError) as error:
        os.close(wakes_us)
        os.close(wakes_them)
        raise FrameError(f"the shared memory cannot be used: {error}") from None
    finally:
        os.close(fd)
    return Rings(memory, wakes_us, wakes_them, 1)

"""Feed both ends of a ring with rubbish, in a process of its own; prints what it did, or dies.

Run by tests/actions/test_ring_fuzz.py for seconds; by hand:  SECONDS=600 python tests/isolated/fuzz_ring.py
KERNEL names another build of the rings, which test_ring_fuzz.py makes with AddressSanitizer.

Whatever the memory has, the consumer must say what the reference says; and while another process writes rubbish into it
at the same time, both ends must give frames or FrameError, and touch nothing outside of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msgpack import ExtType

import fakes.other_kernel  # noqa: F401 - before anything imports the one that is installed
from engine.actions import _ring as kernel
from engine.errors import FrameError
from reference import ring as reference

#: memory may grow by this much after the first rounds, in KiB
GROWTH_KIB: Final = 100_000
CAPACITY: Final = 4096
#: octets of both rings with their header
SIZE: Final = 4096 + 2 * CAPACITY
#: what a hostile neighbour would put in the place of a mark or a length
_MARKS: Final = bytes([0x00, 0x7F, 0x8F, 0x9F, 0xBF, *range(0xC0, 0xE0), 0xFF])


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 3 else 6)
    size = rng.choice((0, 1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 200, 255, 256, 300))
    if kind == 0:
        return rng.choice((None, True, False, 1.5, 0, -1, -33, 200, 70_000, 2**40, 2**64 - 1, -(2**63)))
    if kind <= 3:
        return rng.randbytes(size)
    if kind == 4:
        return "é" * (size // 2)
    if kind == 5:
        return ExtType(rng.randrange(128), rng.randbytes(size % 20))
    if kind == 6:
        return {rng.randrange(50): _value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return tuple(_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 5, 16))))


def _frame(rng: random.Random) -> Any:
    """Often one that the consumer reads as a row."""
    values = tuple(_value(rng) for _ in range(rng.randrange(6)))
    return (4, rng.randrange(1 << 33), 3, b"id", values, None) if rng.random() < 0.6 else _value(rng)


def _spoil(rng: random.Random, memory: Any, places: range) -> None:
    for _ in range(rng.randrange(1, 5)):
        at = rng.choice(places)
        kind = rng.random()
        if kind < 0.4:
            memory[at] = rng.choice(_MARKS)
        elif kind < 0.7:
            struct.pack_into("=I", memory, at & ~3, rng.choice((0, 1, 8, 2040, 2041, 4096, 0x7FFFFFFF, 0xFFFFFFFF)))
        else:
            memory[at] = rng.randrange(256)


def _taken(consumer: Any, rows: bool) -> list[str]:
    """What comes out until there is nothing more, as text; values of rows are looked at."""
    found: list[str] = []
    try:
        while taken := consumer.take(7):
            for one in taken:
                if rows and type(one) is tuple and len(one) > 4 and type(one[4]) is kernel.Row:
                    one = (*one[:4], tuple(one[4]), *one[5:])
                found.append(repr(one))
    except FrameError:
        found.append("error")
    return found


def _round(rng: random.Random, tally: dict[str, int]) -> None:
    """One ring that is written, spoiled and read; the compiled consumer against the reference."""
    shared = bytearray(SIZE)
    kernel.lay_out(shared, CAPACITY, CAPACITY)
    number = rng.randrange(2)
    producer = kernel.Producer(shared, number)
    first = kernel.Consumer(shared, number)
    for _ in range(rng.randrange(30)):
        with contextlib.suppress(FrameError):
            if not producer.put(_frame(rng)):
                first.take(rng.randrange(9))
    data, control = 4096 + CAPACITY * number, 512 * (1 + number)
    tail, head = (struct.unpack_from("=Q", shared, control + place)[0] for place in (0, 128))
    first.close()
    is_spoilt = rng.random() < 0.8
    if is_spoilt:
        near = range(data, data + CAPACITY) if rng.random() < 0.5 else range(data + head % CAPACITY, data + CAPACITY)
        _spoil(rng, shared, near)
        if rng.random() < 0.1:
            struct.pack_into("=Q", shared, control, rng.choice((tail + 8, tail - 8, tail + 4, 1 << 63, 0)) % (1 << 64))
    twin = bytearray(shared)
    rows = rng.random() < 0.5
    fast, slow = kernel.Consumer(shared, number), reference.Consumer(twin, number)
    if rows:
        fast.set_rows(4, 4, 100)
    ours, theirs = _taken(fast, rows), _taken(slow, rows)
    if rows and ours != theirs:
        # a row that is bad is found when it is looked at, behind others of the same batch
        assert ours[-1:] == theirs[-1:] == ["error"], (ours, theirs)
    else:
        assert ours == theirs, (ours, theirs)
    tally["rounds"] += 1
    tally["frames"] += len(ours)
    tally["errors"] += ours[-1:] == ["error"]
    with contextlib.suppress(FrameError):
        # a head from the other side, which may be impossible
        if rng.random() < 0.3:
            struct.pack_into("=Q", shared, control + 128, rng.choice((0, 8, tail, tail + 8, 1 << 63)) % (1 << 64))
        producer.put_many([_frame(rng) for _ in range(5)])


# --- a neighbour that writes at the same time -------------------------------------------------------------------------


@contextlib.contextmanager
def _guarded() -> Iterator[Any]:
    """Shared memory of `SIZE` octets; whoever touches what is behind them dies."""
    mapping = mmap.mmap(-1, SIZE + mmap.PAGESIZE)
    anchor = ctypes.c_char.from_buffer(mapping)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(ctypes.addressof(anchor) + SIZE), mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    del anchor
    view = memoryview(mapping)[:SIZE]
    try:
        yield view
    finally:
        view.release()
        mapping.close()


def _scribble(rng: random.Random, memory: Any, number: int) -> None:
    """For ever: rubbish where the frames lie."""
    data = 4096 + CAPACITY * number
    while True:
        _spoil(rng, memory, range(data, data + CAPACITY))


def _race(rng: random.Random, tally: dict[str, int]) -> None:
    """Write and read while somebody else writes into the same place."""
    number = 1
    with _guarded() as memory:
        kernel.lay_out(memory, CAPACITY, CAPACITY)
        pid = os.fork()
        if not pid:
            _scribble(rng, memory, number)
        try:
            for _ in range(200):
                _race_once(rng, memory, number, tally)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _race_once(rng: random.Random, memory: Any, number: int, tally: dict[str, int]) -> None:
    producer, consumer = kernel.Producer(memory, number), kernel.Consumer(memory, number)
    consumer.set_rows(4, 4, 100)
    held: list[Any] = []
    try:
        for _ in range(20):
            producer.put(_frame(rng))
            if rng.random() < 0.2:
                held += [bytes(frame) for frame in consumer.frames()]
                consumer.release()
            for one in consumer.take(5):
                if type(one) is tuple and len(one) > 4 and type(one[4]) is kernel.Row:
                    held.append(one[4].to_tuple())
            tally["raced"] += 1
    except FrameError:
        tally["raced_errors"] += 1
    finally:
        producer.close()
        consumer.close()
        # the next pair begins with an empty ring
        struct.pack_into("=QQ", memory, 512 * (1 + number), 0, 0)
        struct.pack_into("=Q", memory, 512 * (1 + number) + 128, 0)


def main() -> None:
    rng = random.Random(int(os.environ.get("SEED", "1")))
    end, rounds = time.monotonic() + float(os.environ.get("SECONDS", "5")), int(os.environ.get("ROUNDS", "0"))
    tally = {"rounds": 0, "frames": 0, "errors": 0, "raced": 0, "raced_errors": 0}
    settled = 0
    # who writes into the same place gets its turns from the machine: they may be few
    while time.monotonic() < end or tally["rounds"] < rounds or tally["raced_errors"] < rounds // 5:
        for _ in range(100):
            _round(rng, tally)
        _race(rng, tally)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settled = settled or used
        assert used - settled < GROWTH_KIB, f"memory grew from {settled} to {used} KiB"
    print({"kernel": kernel.__file__, **tally})


if __name__ == "__main__":
    main()

"""What `engine.actions._ring` does, said slowly: two rings in a bytearray, and msgpack by the stock library.

The memory is the same octet for octet, so that either end may be the compiled one.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import msgpack

from engine.errors import FrameError

HEADER = 4096
MIN_CAPACITY = 4096
MAX_CAPACITY = 1 << 30
MAX_DEPTH = 16
MAX_ENTRIES = 4096
WRAP = 0xFFFFFFFF
MAGIC = struct.unpack("<Q", b"OUTRING\x01")[0]
_U64 = struct.Struct("=Q")
_MODULO = 1 << 64


def octets_needed(first: int, second: int) -> int:
    for capacity in (first, second):
        if capacity & (capacity - 1) or not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
            raise ValueError(f"a ring of {capacity} octets: not a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}")
    return HEADER + first + second


def lay_out(memory: bytearray, first: int, second: int) -> None:
    memory[:HEADER] = bytes(HEADER)
    struct.pack_into("=QQQ", memory, 0, MAGIC, first, second)


def padded(size: int) -> int:
    return 8 + -(-size // 8) * 8


class End:
    def __init__(self, memory: bytearray, number: int) -> None:
        self.memory = memory
        _, *capacities = struct.unpack_from("=QQQ", memory, 0)
        self.capacity = capacities[number]
        self.data = HEADER + (capacities[0] if number else 0)
        self.control = 512 * (1 + number)
        self.largest = self.capacity // 2 - 8
        self.problem: str | None = None

    def load(self, offset: int) -> int:
        value: int = _U64.unpack_from(self.memory, self.control + offset)[0]
        return value

    def store(self, offset: int, value: int) -> None:
        _U64.pack_into(self.memory, self.control + offset, value % _MODULO)

    def wake(self, flag: int, eventfd: int) -> None:
        if self.load(flag):
            self.store(flag, 0)
            os.eventfd_write(eventfd, 1)

    def fail(self, problem: str) -> FrameError:
        self.problem = problem
        return FrameError(problem)

    def check(self) -> None:
        if self.problem is not None:
            raise FrameError(self.problem)


TAIL, HEAD, SLEEPS, WAITS = 0, 128, 256, 384


class Producer(End):
    def __init__(self, memory: bytearray, number: int) -> None:
        super().__init__(memory, number)
        self.own = self.load(TAIL)
        self.seen = self.load(HEAD)

    def put(self, frame: object) -> bool:
        self.check()
        self.look()
        octets = pack(frame)
        if len(octets) > self.largest:
            raise FrameError(f"a frame of more than {self.largest} octets")
        size = padded(len(octets))
        place = self.own % self.capacity
        to_end = self.capacity - place
        room = self.capacity - (self.own - self.seen)
        # the octets must fit; the padding behind them always does, since positions are multiples of eight
        if size <= min(room, to_end):
            self.write(place, len(octets), self.own, octets)
            self.own += size
        elif room > to_end and size <= room - to_end:
            self.write(0, len(octets), self.own + to_end, octets)
            self.write(place, WRAP, self.own, b"")
            self.own += to_end + size
        else:
            return False
        self.store(TAIL, self.own)
        return True

    def write(self, place: int, length: int, position: int, octets: bytes) -> None:
        at = self.data + place
        self.memory[at : at + 8] = struct.pack("=II", length, (position >> 3) & 0xFFFFFFFF)
        self.memory[at + 8 : at + 8 + len(octets)] = octets

    def look(self) -> None:
        head = self.load(HEAD)
        if not self.seen <= head <= self.own or head % 8:
            raise self.fail("the other side has taken out more than there was")
        self.seen = head

    def flush(self, eventfd: int) -> None:
        self.wake(SLEEPS, eventfd)

    def wait_for_room(self) -> bool:
        before = self.seen
        self.store(WAITS, 1)
        self.look()
        return self.seen == before


class Consumer(End):
    def __init__(self, memory: bytearray, number: int) -> None:
        super().__init__(memory, number)
        self.own = self.seen = self.load(HEAD)

    def take(self, limit: int = 512) -> list[Any]:
        self.check()
        tail = self.load(TAIL)
        if not max(self.own, self.seen) <= tail <= self.own + self.capacity or tail % 8:
            raise self.fail("the other side has written an impossible position")
        self.seen = tail
        found: list[Any] = []
        try:
            while len(found) < limit and (record := self.record()) is not None:
                octets, after = record
                found.append(unpack(octets))
                self.own = after
        except FrameError as error:
            self.problem = str(error)
            if not found:
                raise
        finally:
            self.store(HEAD, self.own)
        return found

    def record(self) -> tuple[bytes, int] | None:
        position = self.own
        while True:
            left = self.seen - position
            if not left:
                return None
            place = position % self.capacity
            at = self.data + place
            length, check = struct.unpack_from("=II", self.memory, at)
            if check != (position >> 3) & 0xFFFFFFFF:
                raise self.fail("the other side has written what is no frame")
            to_end = self.capacity - place
            if length == WRAP:
                if to_end >= left or place == 0:
                    raise self.fail("the other side has written what is no frame")
                position += to_end
                continue
            size = padded(length)
            if length > self.largest or size > left or size > to_end:
                raise self.fail(f"the other side has written a frame of {length} octets where there are {left}")
            return bytes(self.memory[at + 8 : at + 8 + length]), position + size

    def sleep(self) -> bool:
        self.store(SLEEPS, 1)
        return self.load(TAIL) == self.own

    def awake(self) -> None:
        self.store(SLEEPS, 0)

    def flush(self, eventfd: int) -> None:
        self.wake(WAITS, eventfd)


def depth_of(value: object) -> int:
    """How deep arrays and maps are nested."""
    if isinstance(value, msgpack.ExtType):
        return 0
    if isinstance(value, dict):
        return 1 + max((depth_of(item) for item in value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def pack(value: object) -> bytes:
    if depth_of(value) > MAX_DEPTH:
        raise FrameError(f"nested more than {MAX_DEPTH} deep")
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        raise FrameError(str(error)) from None
    return packed


def unpack(octets: bytes) -> Any:
    try:
        value = msgpack.unpackb(octets, use_list=False, raw=False, strict_map_key=False, ext_hook=_ext)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(str(error) or type(error).__name__) from None
    if depth_of(value) > MAX_DEPTH or not _keys_are_plain(value):
        raise FrameError("not a value of ours")
    return value


def _ext(code: int, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(code, data)


def _keys_are_plain(value: object) -> bool:
    if isinstance(value, dict):
        return len(value) <= MAX_ENTRIES and all(
            type(key) in (str, bytes, int) and _keys_are_plain(item) for key, item in value.items()
        )
    if isinstance(value, tuple) and not isinstance(value, msgpack.ExtType):
        return all(map(_keys_are_plain, value))
    return True

"""The compiled rings against their reference: the same memory, the same results, whoever is at the other end."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import ExtType

from engine.actions import _ring
from engine.errors import FrameError
from reference import ring

CAPACITY = 4096
ENDS = pytest.mark.parametrize("module", [_ring, ring], ids=["compiled", "reference"])

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=300)
    | st.text(max_size=50)
    | st.builds(ExtType, st.integers(0, 127), st.binary(max_size=20))
)
KEYS = st.text(max_size=5) | st.integers(-5, 5) | st.binary(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20).map(tuple) | st.dictionaries(KEYS, inner, max_size=20),
    max_leaves=30,
)
FRAMES = st.lists(VALUES, max_size=6).map(tuple)


def memory(first: int = CAPACITY, second: int = CAPACITY) -> bytearray:
    made = bytearray(_ring.octets_needed(first, second))
    _ring.lay_out(made, first, second)
    return made


# --- msgpack ----------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_a_value_is_packed_as_the_stock_library_packs_it(value: Any) -> None:
    assert _ring.pack(value) == ring.pack(value)
    assert _ring.unpack(_ring.pack(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        *[sign * (2**bits + off) for bits in (5, 7, 8, 15, 16, 31, 32, 62) for off in (-1, 0, 1) for sign in (1, -1)],
        2**63 - 1,
        -(2**63),
        2**64 - 1,
        *[b"x" * size for size in (0, 1, 255, 256, 65535, 65536)],
        *["x" * size for size in (0, 31, 32, 255, 256, 65535, 65536)],
        *[(None,) * size for size in (0, 15, 16, 65535, 65536)],
        *[dict.fromkeys(range(size)) for size in (0, 15, 16, 4096)],
        *[ExtType(5, b"x" * size) for size in (0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 255, 256, 65536)],
        0.0,
        -1.5,
        float("inf"),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]}-{len(value) if hasattr(value, '__len__') else ''}",
)
def test_each_width_is_packed_as_the_stock_library_packs_it(value: Any) -> None:
    assert _ring.pack(value) == ring.pack(value)
    assert _ring.unpack(_ring.pack(value)) == value


def test_what_is_like_a_value_is_packed_as_one() -> None:
    class Octets(bytes):
        pass

    class Name(str):
        __slots__ = ()

    assert _ring.pack([Octets(b"a"), bytearray(b"b"), memoryview(b"c"), Name("d"), True]) == ring.pack(
        [b"a", b"b", b"c", "d", True]
    )
    assert _ring.pack((1, _ring.Packed(_ring.pack((b"x", 2))))) == ring.pack((1, (b"x", 2)))
    octets = b"before" + _ring.pack((b"x", 2))
    ours = _ring.Packed.of_ours(octets, 6)
    assert _ring.pack((1, ours)) == ring.pack((1, (b"x", 2)))
    assert ours.octets == octets[6:]
    for begin in (-1, len(octets)):
        with pytest.raises(ValueError, match="no such place"):
            _ring.Packed.of_ours(octets, begin)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (object(), "object in a frame"),
        ({1.5: 2}, "float as key of a map"),
        ({None: 2}, "NoneType as key of a map"),
        (2**64, "a number of more than 64 bits"),
        (-(2**63) - 1, "a number of more than 64 bits"),
        ("\ud800", "text with a lone surrogate"),
        (dict.fromkeys(range(4097)), "a map of more than 4096 entries"),
    ],
)
def test_what_cannot_be_packed_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(FrameError, match=problem):
        _ring.pack((value,))


def nested(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth - 1):
        value = (value,)
    return value


def test_the_depth_is_bounded() -> None:
    octets = msgpack.packb(nested(_ring.MAX_DEPTH))
    assert _ring.pack(nested(_ring.MAX_DEPTH)) == octets
    assert _ring.unpack(octets) == nested(_ring.MAX_DEPTH)
    with pytest.raises(FrameError, match="nested more than"):
        _ring.pack(nested(_ring.MAX_DEPTH + 1))
    with pytest.raises(FrameError, match="nested more than"):
        _ring.unpack(b"\x91" + octets)
    with pytest.raises(FrameError, match="nested more than"):
        _ring.unpack(b"\x91" * 100_000)


@given(st.binary(max_size=60))
def test_garbage_is_a_value_for_both_or_for_neither(octets: bytes) -> None:
    assert outcome(_ring.unpack, octets) == outcome(ring.unpack, octets)


@given(VALUES, st.data())
def test_a_value_with_an_octet_changed_is_a_value_for_both_or_for_neither(value: Any, data: st.DataObject) -> None:
    octets = bytearray(_ring.pack(value))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(_ring.unpack, bytes(octets)) == outcome(ring.unpack, bytes(octets))


@given(VALUES)
def test_a_value_that_is_cut_off_is_none(value: Any) -> None:
    octets = _ring.pack(value)
    for size in range(len(octets)):
        with pytest.raises(FrameError):
            _ring.unpack(octets[:size])
    with pytest.raises(FrameError, match="octets behind the value"):
        _ring.unpack(octets + b"\0")
    with pytest.raises(FrameError, match="octets behind the value"):
        _ring.Packed(octets + b"\0")


def outcome(unpack: Any, octets: bytes) -> Any:
    try:
        # nan is not equal to itself, and 1 is equal to True
        return repr(unpack(octets))
    except FrameError:
        return "no value"


@pytest.mark.parametrize(
    "octets",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x10\x00", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"],
)
def test_a_length_that_nothing_is_behind_takes_no_memory(octets: bytes) -> None:
    with pytest.raises(FrameError, match="a value is cut off"):
        _ring.unpack(octets + b"\0")


# --- the rings --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5) | FRAMES, max_size=25))
def test_both_write_the_same_memory_and_read_the_same_frames(steps: list[Any]) -> None:
    """A number takes so many frames out; anything else is put in."""
    memories = memory(), memory()
    ours, theirs = _ring.Producer(memories[0], 0), ring.Producer(memories[1], 0)
    reads, reference = _ring.Consumer(memories[0], 0), ring.Consumer(memories[1], 0)
    held: list[Any] = []
    for step in steps:
        if isinstance(step, int):
            taken = reads.take(step)
            assert taken == reference.take(step) == held[: len(taken)]
            assert len(taken) == min(step, len(held))
            del held[: len(taken)]
            continue
        results = [attempt(end.put, step) for end in (ours, theirs)]
        # only one of them can tell at once that a frame is too long for any room
        assert results[0] == results[1] or results == [False, FrameError]
        held += [step] if results[0] is True else []
        assert ours.octets_waiting == theirs.own - theirs.seen or results[0] is FrameError
        assert struct.unpack_from("=Q", memories[0], 512) == struct.unpack_from("=Q", memories[1], 512)
    assert reads.take() == held


def attempt(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except FrameError as error:
        return type(error)


@given(st.lists(st.integers(0, 1900), min_size=1, max_size=40), st.booleans())
def test_the_compiled_end_understands_the_reference_and_the_other_way_round(sizes: list[int], swap: bool) -> None:
    shared = memory()
    writer: Any = (ring if swap else _ring).Producer(shared, 1)
    reader: Any = (_ring if swap else ring).Consumer(shared, 1)
    for number, size in enumerate(sizes):
        frame = (number, b"x" * size)
        while not writer.put(frame):
            assert reader.take(1)
        if number % 3 == 0:
            reader.take(2)
    while reader.take():
        pass
    assert writer.put((1,))
    assert reader.take() == [(1,)]


@ENDS
def test_the_longest_frame_fits_wherever_an_empty_ring_stands(module: Any) -> None:
    shared = memory()
    writer, reader = module.Producer(shared, 0), module.Consumer(shared, 0)
    longest = CAPACITY // 2 - 8 - 3
    for _ in range(CAPACITY // 8):
        assert writer.put(b"")
        assert reader.take() == [b""]
        assert writer.put(b"x" * longest)
        assert [len(frame) for frame in reader.take()] == [longest]
    with pytest.raises(FrameError, match="a frame of more than 2040 octets"):
        writer.put(b"x" * (longest + 1))
    assert writer.put(1)


def test_many_are_put_as_far_as_there_is_room() -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    frames = [(number, b"x" * 100) for number in range(100)]
    put = writer.put_many(frames)
    assert 0 < put < 100
    assert writer.put_many(frames, put) == 0
    assert reader.take(10) == frames[:10]
    more = writer.put_many(frames, put)
    assert more >= 9
    assert reader.take(1000) == frames[10 : put + more]
    assert writer.put_many(frames, 100) == 0
    # what is at fault is told when it is the first
    assert writer.put_many([1, 2, object(), 3]) == 2
    with pytest.raises(FrameError, match="object in a frame"):
        writer.put_many([1, 2, object(), 3], 2)
    assert reader.take() == [1, 2]
    with pytest.raises(ValueError, match="negative"):
        writer.put_many([1], -1)


@ENDS
def test_who_sleeps_is_woken_once(module: Any) -> None:
    shared = memory()
    writer, reader = module.Producer(shared, 0), module.Consumer(shared, 0)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        writer.put(1)
        writer.flush(eventfd)
        assert not _ring.drain(eventfd)
        assert not reader.sleep(), "there is something to read"
        reader.awake()
        reader.take()
        assert reader.sleep()
        writer.put(2)
        for _ in range(2):
            writer.flush(eventfd)
        assert os.eventfd_read(eventfd) == 1
        while writer.put(b"x" * 500):
            pass
        assert writer.wait_for_room()
        assert reader.take(1) == [2]
        for _ in range(2):
            reader.flush(eventfd)
        assert os.eventfd_read(eventfd) == 1
        assert not writer.wait_for_room(), "something was taken out since the last look"
    finally:
        os.close(eventfd)


def test_an_eventfd_is_neither_written_nor_read_where_that_would_wait() -> None:
    eventfd = os.eventfd(0)
    try:
        assert not _ring.drain(eventfd)
        _ring.wake(eventfd)
        assert not _ring.drain(eventfd), "it waits: whoever made it so has filled it, or need not be woken"
        os.set_blocking(eventfd, False)
        os.eventfd_write(eventfd, 2**64 - 2)
        _ring.wake(eventfd)
        assert _ring.drain(eventfd)
        assert not _ring.drain(eventfd)
        _ring.wake(eventfd)
        assert _ring.drain(eventfd)
    finally:
        os.close(eventfd)
    for function in (_ring.wake, _ring.drain):
        with pytest.raises(OSError, match="an eventfd cannot be"):
            function(eventfd)


# --- rows -------------------------------------------------------------------------------------------------------------


def row_of(values: Any) -> Any:
    shared = memory(1 << 16)
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    reader.set_rows(2, 4, 70)
    assert writer.put((4, 1, values, b"behind"))
    ((kind, number, row, behind),) = reader.take()
    assert (kind, number, behind) == (4, 1, b"behind")
    assert reader.octets_waiting == 0
    return row


@given(st.lists(VALUES, max_size=10).map(tuple))
def test_a_row_gives_each_value_when_it_is_asked_for(values: tuple[Any, ...]) -> None:
    row = row_of(values)
    assert isinstance(row, _ring.Row)
    assert len(row) == len(values)
    assert row.to_tuple() == tuple(row) == values
    same: Any = values
    assert row == same
    for place, value in enumerate(values):
        assert row[place] == row[place - len(values)] == value
    for place in (len(values), -len(values) - 1):
        with pytest.raises(IndexError):
            row[place]
    for place in range(len(values) + 1):
        first, rest = row.split(place)
        assert rest == values[place:]
        assert first == row_of(values[:place]).split(place)[0], "the same values, the same octets"
    for place in (-1, len(values) + 1):
        with pytest.raises(IndexError):
            row.split(place)


def test_only_an_array_in_its_place_is_a_row() -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    reader.set_rows(2, 4, 70)
    frames: list[Any] = [(4, 1), (4, 1, b"x"), (5, 1, (1,)), (4, 1, {1: 2}), {4: (1, 2)}, 4, (4,), (), (1,) * 20]
    writer.put_many(frames)
    assert [type(frame[2]) if isinstance(frame, tuple) and len(frame) > 2 else None for frame in reader.take()] == [
        None, bytes, tuple, dict, None, None, None, None, int,
    ]  # fmt: skip
    for place, kind in ((1, -1), (1, 128), (0, 1), (16, 1)):
        with pytest.raises(ValueError, match="no such"):
            reader.set_rows(place, 1, kind)
    writer.put_many([(kind, 1, (1,)) for kind in (0, 5, 6, 69, 70, 127)])
    assert [type(frame[2]) is _ring.Row for frame in reader.take()] == [False] * 4 + [True, False]
    reader.set_rows(2, 0, 127)
    writer.put_many([(kind, 1, (1,)) for kind in (0, 5, 70, 127)])
    assert [type(frame[2]) is _ring.Row for frame in reader.take()] == [True, False, False, True]
    with pytest.raises(TypeError):
        _ring.Row()


@given(st.binary(max_size=40))
def test_a_row_of_garbage_is_an_error_at_once_or_when_it_is_looked_at(octets: bytes) -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    reader.set_rows(2, 4, 70)
    writer.put((4, 1, (b"x" * max(len(octets) - 3, 0),)))
    at = 4096 + 8 + 3
    shared[at : at + len(octets)] = octets
    size = struct.unpack_from("=I", shared, 4096)[0]
    whole = attempt(ring.unpack, bytes(shared[4096 + 8 : 4096 + 8 + size]))
    found = attempt(lambda: [(one[0], one[1], tuple(one[2])) for one in reader.take() if type(one[2]) is _ring.Row])
    if whole is FrameError:
        assert found is FrameError
    elif len(whole) > 2 and type(whole[2]) is tuple:
        assert repr(found) == repr([(4, 1, whole[2])])


# --- views ------------------------------------------------------------------------------------------------------------


def test_frames_are_looked_at_where_they_lie() -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    writer.put_many([(1, b"one"), (2, b"two")])
    first, second = reader.frames()
    assert (len(first), bytes(first), first.unpack()) == (7, _ring.pack((1, b"one")), (1, b"one"))
    assert memoryview(second).readonly
    at = shared.find(b"two")
    shared[at : at + 3] = b"TWO"
    assert second.unpack() == (2, b"TWO"), "no copy was made"


def test_a_view_that_outlives_its_read_is_an_error() -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    writer.put_many([b"one", b"two"])
    frames = reader.frames(1)
    view = memoryview(frames[0])
    part = view[1:]
    for forbidden in (reader.release, reader.close, reader.take, reader.frames):
        with pytest.raises(BufferError):
            forbidden()
    view.release()
    with pytest.raises(BufferError, match="1 views"):
        reader.release()
    assert bytes(part) == b"\x03one"
    part.release()
    reader.release()
    for late in (frames[0].unpack, lambda: memoryview(frames[0])):
        with pytest.raises(BufferError, match="has been released"):
            late()
    assert reader.take() == [b"two"]
    frames = reader.frames()
    reader.close()
    writer.close()


def test_frames_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError):
        _ring.Frame()
    with pytest.raises(BufferError):
        memoryview(_ring.Frame.__new__(_ring.Frame))


def test_the_memory_is_held_as_long_as_an_end_is_open() -> None:
    shared = memory()
    writer = _ring.Producer(shared, 0)
    with pytest.raises(BufferError):
        shared.clear()
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.put(1)
    shared.clear()


# --- hostile neighbours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 1, 4095, 4097, 6144, 1 << 31, -4096])
def test_a_capacity_must_be_possible(capacity: int) -> None:
    for module in (_ring, ring):
        with pytest.raises(ValueError, match="not a power of two"):
            module.octets_needed(capacity, 4096)


def test_memory_must_be_long_enough() -> None:
    with pytest.raises(ValueError, match="are needed"):
        _ring.lay_out(bytearray(4096), 4096, 4096)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda it: it.__setitem__(0, it[0] ^ 1), "not a pair of rings"),
        (lambda it: struct.pack_into("=Q", it, 8, 5000), "impossible sizes"),
        (lambda it: struct.pack_into("=Q", it, 8, 1 << 30), "impossible sizes"),
        (lambda it: struct.pack_into("=Q", it, 16, (1 << 64) - 4096), "impossible sizes"),
        (lambda it: it.__delitem__(slice(4000, None)), "shorter than its header"),
        (lambda it: it.__delitem__(slice(9000, None)), "impossible sizes"),
    ],
)
def test_a_header_that_is_none_is_refused(change: Any, problem: str) -> None:
    shared = memory()
    change(shared)
    for kind in (_ring.Producer, _ring.Consumer):
        with pytest.raises(FrameError, match=problem):
            kind(shared, 0)
    shared.clear()


@pytest.mark.parametrize("tail", [4, 12, 4104, 1 << 40, (1 << 64) - 8])
def test_an_impossible_position_is_the_end(tail: int) -> None:
    for module in (_ring, ring):
        shared = memory()
        reader = module.Consumer(shared, 0)
        struct.pack_into("=Q", shared, 512, tail)
        for _ in range(2):
            with pytest.raises(FrameError, match="impossible position"):
                reader.take()
        shared = memory()
        writer = module.Producer(shared, 0)
        writer.put(1)
        struct.pack_into("=Q", shared, 512 + 128, tail)
        for _ in range(2):
            with pytest.raises(FrameError, match="taken out more"):
                writer.put(1)


def test_a_position_that_goes_back_is_the_end() -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    writer.put(1)
    writer.put(2)
    assert reader.take(1) == [1]
    struct.pack_into("=Q", shared, 512, 8)
    with pytest.raises(FrameError, match="impossible position"):
        reader.take()


def test_what_stood_before_garbage_is_read_and_nothing_after() -> None:
    shared = memory()
    writer, reader = _ring.Producer(shared, 0), _ring.Consumer(shared, 0)
    writer.put_many([1, 2, 3])
    shared[4096 + 16 + 8] = 0xC1
    assert reader.take() == [1]
    for _ in range(2):
        with pytest.raises(FrameError, match="an octet that msgpack does not use"):
            reader.take()
    assert reader.problem is not None


@given(st.data())
def test_any_change_of_the_memory_is_survived(data: st.DataObject) -> None:
    """Whatever is in the memory: both ends give frames or FrameError, and neither crashes."""
    shared = memory()
    ends: list[Any] = [_ring.Producer(shared, 0), _ring.Consumer(shared, 0)]
    for number in range(data.draw(st.integers(0, 40))):
        ends[0].put((number, b"x" * data.draw(st.integers(0, 60))))
        if number % 7 == 0:
            ends[1].take(data.draw(st.integers(0, 3)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(512, 900) | st.integers(4096, 4096 + 1500))
        width = data.draw(st.sampled_from([1, 4, 8]))
        shared[at : at + width] = data.draw(st.binary(min_size=width, max_size=width))
    for _ in range(3):
        first = attempt(ends[1].take)
        if first is FrameError:
            break
    attempt(ends[0].put, (1, 2))
    for end in ends:
        end.close()


@given(st.binary(max_size=200), st.integers(0, 600))
def test_random_records_are_read_as_the_reference_reads_them(octets: bytes, tail: int) -> None:
    shared = memory()
    shared[4096 : 4096 + len(octets)] = octets
    struct.pack_into("=Q", shared, 512, tail & ~7)
    twin = bytearray(shared)
    fast, slow = _ring.Consumer(shared, 0), ring.Consumer(twin, 0)
    assert repr(attempt(fast.take)) == repr(attempt(slow.take))
    assert shared[512 + 128 : 512 + 136] == twin[512 + 128 : 512 + 136]


@given(st.lists(st.tuples(st.integers(0, 70), st.sampled_from(["length", "check", "both"])), min_size=1, max_size=3))
def test_records_with_wrong_words_are_read_as_the_reference_reads_them(changes: list[tuple[int, str]]) -> None:
    shared = memory()
    writer = _ring.Producer(shared, 0)
    for number in range(40):
        writer.put((number, b"y" * number))
    for value, what in changes:
        at = 4096 + 16 * value
        if what != "check":
            struct.pack_into("=I", shared, at, (value * 977) % 5000 if value % 3 else 0xFFFFFFFF)
        if what != "length":
            struct.pack_into("=I", shared, at + 4, (at - 4096) >> 3)
    twin = bytearray(shared)
    fast, slow = _ring.Consumer(shared, 0), ring.Consumer(twin, 0)
    for _ in range(2):
        assert repr(attempt(fast.take)) == repr(attempt(slow.take))
        assert shared[512 + 128 : 512 + 136] == twin[512 + 128 : 512 + 136]

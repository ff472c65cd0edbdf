# cython: language_level=3
"""A pair of single-producer single-consumer rings in shared memory, with msgpack frames written and read in place.

Layer: kernel of engine/actions/transport.py.  Spec: design.md "Events and action workers"; the msgpack specification.
Reference: tests/reference/ring.py, which says what every case means; hypothesis compares memory and results.

Facts.  Two processes map the same sealed memory.  Each of them may be broken or hostile, may die between any two
instructions, and may change any octet of the memory at any time.

What it means.  Nothing read from the memory can be believed, and nothing can be read twice and be expected to be the
same.  Whoever dies must leave what it had finished, and nothing that it had not.

Our solution.  Positions are counts of octets since the beginning; they only grow, so `tail - head` is what lies in the
ring, and a position modulo the capacity (a power of two) is the place.  A frame is one record: a word with its length
and the low bits of its own position as a check, then the msgpack, then padding to eight octets.  A record never wraps:
where it does not fit before the end, a word with the length 0xFFFFFFFF says to go on at the beginning.  The producer
writes the record, then stores `tail` with release order: a producer that dies in the middle has written nothing.  Each
side keeps its own position in private memory and only ever stores it; the other side's is loaded once a call, and must
lie between what is known of it and what is possible.  A length is loaded once and compared with what is left; so is
every length inside the msgpack.  Before one side sleeps it raises a flag and looks again; the other one, having stored
its position, looks at the flag: the two sequentially consistent fences make it impossible that both miss.

Layout, in octets and the order of the machine.  0: "OUTRING" and the version; 8 and 16: the capacities of ring 0, which
the engine writes, and of ring 1, which the worker writes.  Ring r has four words of eight octets: at 512 * (1 + r) its
tail; 128 behind that its head; 256 behind, the flag of a consumer that sleeps; 384 behind, of a producer that waits for
room.  The data of ring 0 begins at 4096, that of ring 1 behind it.  A record: its length (4), its position divided by 8
(4), the msgpack, padding.  Whoever finds a flag raised takes it down and writes 1 to the other side's eventfd.

A frame can also be looked at where it lies: `Consumer.frames` gives `Frame`s, whose buffers are counted.  `release`
refuses (BufferError) as long as one is out, and a `Frame` that outlives its `release` refuses to give one.

What we do not do.  Nothing keeps a hostile other side from changing octets under a `Frame`: whoever needs the same
value twice takes a copy (`unpack` does).

Long because the rings and the msgpack in them share the checks of every octet: a codec of its own could only be called
through Python.

No directive is turned off.  Pointers: the memory is held by a Py_buffer of each object; `_place` is masked by the
capacity, which was checked against the size of the buffer when it was opened, and a record ends before the end of its
ring (`_record`, `_begin`).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from packing cimport Out, _copy, _head, _pack_number, _sized

from msgpack import ExtType

from engine.errors import FrameError

cdef extern from *:
    """
    #define RING_LOAD(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define RING_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define RING_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define RING_SWAP(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)

    #include <errno.h>
    #include <fcntl.h>
    #include <string.h>
    #include <sys/uio.h>
    #include <unistd.h>

    /* Copy the few octets that a value has.  Of a memcpy whose size is known to be small compilers make `rep movs`,
       which takes longer to begin than most values to be copied. */
    static inline void ring_copy(char *to, const char *from, size_t size)
    {
        if (size > 16) {
            for (size_t done = 0; done < size - 16; done += 16) memcpy(to + done, from + done, 16);
            memcpy(to + size - 16, from + size - 16, 16);
        } else if (size >= 8) {
            uint64_t first, last;
            memcpy(&first, from, 8);
            memcpy(&last, from + size - 8, 8);
            memcpy(to, &first, 8);
            memcpy(to + size - 8, &last, 8);
        } else if (size >= 4) {
            uint32_t first, last;
            memcpy(&first, from, 4);
            memcpy(&last, from + size - 4, 4);
            memcpy(to, &first, 4);
            memcpy(to + size - 4, &last, 4);
        } else if (size) {
            to[0] = from[0];
            to[size / 2] = from[size / 2];
            to[size - 1] = from[size - 1];
        }
    }

    /* Make an eventfd readable without ever waiting; 0 or an errno. */
    static int ring_wake(int fd)
    {
        uint64_t one = 1;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0) return errno;
        if (!(flags & O_NONBLOCK) || write(fd, &one, sizeof one) >= 0 || errno == EAGAIN) return 0;
        return errno;
    }

    /* Make an eventfd unreadable without ever waiting; 1 if it was readable, 0 if not, or minus an errno. */
    static int ring_drain(int fd)
    {
    #ifdef RWF_NOWAIT
        uint64_t count;
        struct iovec room = {&count, sizeof count};
        if (preadv2(fd, &room, 1, -1, RWF_NOWAIT) >= 0) return 1;
        return errno == EAGAIN ? 0 : -errno;
    #else
        (void)fd;
        return -ENOSYS;
    #endif
    }
    """
    uint64_t RING_LOAD(uint64_t *place) noexcept nogil
    uint64_t RING_STORE(uint64_t *place, uint64_t value) noexcept nogil
    uint64_t RING_SWAP(uint64_t *place, uint64_t value) noexcept nogil
    void RING_FENCE() noexcept nogil
    void ring_copy(char *to, const char *source, size_t size) noexcept nogil
    int ring_wake(int fd) noexcept nogil
    int ring_drain(int fd) noexcept nogil

cdef extern from "Python.h":
    bint PyBytes_CheckExact(PyObject *value) noexcept
    bint PyLong_CheckExact(object value) noexcept
    bint PyUnicode_CheckExact(object value) noexcept
    bint PyTuple_CheckExact(object value) noexcept
    bint PyList_CheckExact(object value) noexcept
    PyObject *PyTuple_GET_ITEM(object value, Py_ssize_t index) noexcept
    Py_ssize_t PyTuple_GET_SIZE(object value) noexcept
    const char *PyUnicode_AsUTF8AndSize(object value, Py_ssize_t *size) except NULL
    uint64_t PyLong_AsUnsignedLongLong(object value) except? 18446744073709551615U
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    int PyFloat_Pack8(double value, char *place, int little) except -1
    double PyFloat_Unpack8(const char *place, int little) except? -1.0

#: octets before the data of the first ring
HEADER_OCTETS = 4096
#: least capacity of a ring in octets; it is a power of two
MIN_CAPACITY = 4096
#: greatest capacity of a ring: positions in the check word are compared modulo 2**35
MAX_CAPACITY = 1 << 30
#: version of the layout of the memory
LAYOUT_VERSION = 1
#: how deep arrays and maps may be nested in a frame
MAX_DEPTH = 16
#: entries of one map
MAX_ENTRIES = 4096

cdef enum:
    _HEADER = 4096
    _MIN = 4096
    _MAX = 1073741824
    _DEPTH = 16
    _ENTRIES = 4096
    _SPECIAL = 255
    _WORD = 8
    _CONTROL = 512
    _WRAP = 0xFFFFFFFF

# b"OUTRING" and the version
cdef uint64_t _MAGIC = 0x01474E495254554F


# mark -> octets behind it, or _SPECIAL where that is not all there is to it
cdef uint8_t[256] _SIZES


cdef int _fill_sizes() except -1:
    cdef int mark
    for mark in range(256):
        _SIZES[mark] = _SPECIAL
        if mark <= 0x7F or mark >= 0xE0 or mark == 0xC0 or mark == 0xC2 or mark == 0xC3:
            _SIZES[mark] = 0
        elif mark >= 0xA0 and mark <= 0xBF:
            _SIZES[mark] = mark & 0x1F
        elif mark == 0xCA or mark == 0xCB:
            _SIZES[mark] = 4 << (mark - 0xCA)
        elif mark >= 0xCC and mark <= 0xD3:
            _SIZES[mark] = 1 << ((mark - 0xCC) & 3)
        elif mark >= 0xD4 and mark <= 0xD8:
            _SIZES[mark] = 1 + (1 << (mark - 0xD4))
    return 0


_fill_sizes()


cdef struct Control:
    # each pointer is to a line of its own, so that the two sides do not fight over one
    uint64_t *tail
    uint64_t *head
    uint64_t *consumer_sleeps
    uint64_t *producer_waits


cdef struct In:
    const uint8_t *at
    const uint8_t *end


# --- the memory -------------------------------------------------------------------------------------------------------


def octets_needed(Py_ssize_t first, Py_ssize_t second):
    """Octets of memory for two rings of these capacities.  Raises ValueError for an impossible capacity."""
    for capacity in (first, second):
        if not _is_capacity(capacity):
            raise ValueError(f"a ring of {capacity} octets: not a power of two from {_MIN} to {_MAX}")
    return _HEADER + first + second


cdef inline bint _is_capacity(uint64_t capacity) noexcept nogil:
    return _MIN <= capacity <= _MAX and not capacity & (capacity - 1)


def lay_out(memory, Py_ssize_t first, Py_ssize_t second):
    """Write the header of a new pair of empty rings into zeroed memory.  Raises ValueError for impossible sizes."""
    cdef Py_buffer view
    cdef uint64_t *words
    cdef Py_ssize_t needed = octets_needed(first, second)
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if view.len < needed:
            raise ValueError(f"{view.len} octets of memory, {needed} are needed")
        memset(view.buf, 0, _HEADER)
        words = <uint64_t *>view.buf
        words[1] = <uint64_t>first
        words[2] = <uint64_t>second
        RING_STORE(&words[0], _MAGIC)
    finally:
        PyBuffer_Release(&view)


cdef class _End:
    """What both ends of a ring have: the memory, held, and the positions.

    Args:
        memory: a writable buffer with a pair of rings in it, such as an mmap; it is held until `close`.
        number: 0 or 1, which ring of the pair.

    Raises:
        FrameError: the header is not one of ours, or does not fit the memory.
    """

    cdef Py_buffer _view
    cdef bint _is_open
    cdef char *_data
    cdef uint64_t _capacity
    cdef uint64_t _mask
    cdef uint64_t _largest
    cdef Control _control
    # our own position, and the last one seen of the other side
    cdef uint64_t _own
    cdef uint64_t _seen
    cdef readonly object problem

    def __init__(self, memory, int number):
        cdef uint64_t first, second, magic
        cdef uint64_t *words
        cdef char *control
        if self._is_open or self.problem is not None:
            raise ValueError("an end of a ring is opened once")
        if number not in (0, 1):
            raise ValueError(f"there is no ring {number}")
        PyObject_GetBuffer(memory, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._is_open = True
        if self._view.len < _HEADER:
            self.close()
            raise FrameError("the shared memory is shorter than its header")
        words = <uint64_t *>self._view.buf
        magic, first, second = RING_LOAD(&words[0]), RING_LOAD(&words[1]), RING_LOAD(&words[2])
        if magic != _MAGIC:
            self.close()
            raise FrameError("the shared memory is not a pair of rings of this version")
        if not (_is_capacity(first) and _is_capacity(second)) or _HEADER + first + second > <uint64_t>self._view.len:
            self.close()
            raise FrameError("the header of the shared memory has impossible sizes")
        self._capacity = second if number else first
        self._mask = self._capacity - 1
        # an empty ring can take a frame of half its capacity wherever its positions are
        self._largest = self._capacity // 2 - _WORD
        self._data = <char *>self._view.buf + _HEADER + (first if number else 0)
        control = <char *>self._view.buf + _CONTROL * (1 + number)
        self._control.tail = <uint64_t *>control
        self._control.head = <uint64_t *>(control + 128)
        self._control.consumer_sleeps = <uint64_t *>(control + 256)
        self._control.producer_waits = <uint64_t *>(control + 384)

    def __dealloc__(self):
        if self._is_open:
            PyBuffer_Release(&self._view)

    @property
    def capacity(self):
        """Octets of the ring."""
        return self._capacity

    @property
    def max_frame(self):
        """Octets of the longest frame."""
        return self._largest

    def close(self):
        """Let go of the memory."""
        if self._is_open:
            self._is_open = False
            PyBuffer_Release(&self._view)

    cdef int _check(self) except -1:
        if not self._is_open:
            raise ValueError("this end of the ring is closed")
        if self.problem is not None:
            raise FrameError(self.problem)
        return 0

    cdef int _fail(self, object problem) except -1:
        self.problem = problem
        raise FrameError(problem)

    cdef inline bint _sleeper(self, uint64_t *flag) noexcept:
        """Whether the other side has raised a flag, which is taken down; asked after our position was stored."""
        RING_FENCE()
        return RING_LOAD(flag) != 0 and RING_SWAP(flag, 0) != 0


cdef int _wake(int eventfd) except -1:
    cdef int problem
    # another process may run before this one does again, and must not find the other threads of this one stopped
    with nogil:
        problem = ring_wake(eventfd)
    if problem:
        raise OSError(problem, "an eventfd cannot be written")
    return 0


def wake(int eventfd):
    """Make an eventfd readable, without waiting.  Raises OSError: it is no eventfd."""
    _wake(eventfd)


def drain(int eventfd):
    """Make an eventfd unreadable, without waiting, whatever flags it has; returns whether it was readable.

    Raises:
        OSError: the descriptor is no eventfd, or this system cannot do it.
    """
    cdef int found = ring_drain(eventfd)
    if found < 0:
        raise OSError(-found, "an eventfd cannot be read")
    return bool(found)


# --- the producer -----------------------------------------------------------------------------------------------------


cdef class Producer(_End):
    """Writes frames."""

    def __init__(self, memory, int number):
        _End.__init__(self, memory, number)
        # a ring is opened while it is empty, or by the one side that comes after another that has died
        self._own = RING_LOAD(self._control.tail)
        self._seen = RING_LOAD(self._control.head)
        if self._own & (_WORD - 1) or self._seen & (_WORD - 1) or self._own - self._seen > self._capacity:
            self.close()
            raise FrameError("the shared memory has impossible positions")

    def put(self, frame):
        """Write one frame and publish it.  Returns False, having done nothing, if there is no room.

        Raises:
            FrameError: it is too long for any room, nested too deep, or has what msgpack cannot say; or the other side
                has written an impossible position.
        """
        cdef int found
        self._check()
        self._look()
        found = self._write(frame)
        if found:
            RING_STORE(self._control.tail, self._own)
        return bool(found)

    def put_many(self, list frames not None, Py_ssize_t start=0):
        """Write frames from `start` on, as many as there is room for; they are published together.

        Returns:
            How many were written.

        Raises:
            FrameError: as `put`, of the first of them; one that stands further behind ends the call without an error.
        """
        cdef Py_ssize_t index = start, size = len(frames)
        if start < 0:
            raise ValueError("start is negative")
        self._check()
        self._look()
        try:
            while index < size and self._write(frames[index]):
                index += 1
        except FrameError:
            if index == start:
                raise
        finally:
            RING_STORE(self._control.tail, self._own)
        return max(index - start, 0)

    def flush(self, int eventfd):
        """Wake the other side by its eventfd if it sleeps; called after frames were published.

        Never waits: the counter of an eventfd has room for all wakes there can ever be, unless the other side has
        filled it; then it is readable, and nothing need be written.

        Raises:
            OSError: the descriptor is no eventfd.
        """
        self._check()
        if self._sleeper(self._control.consumer_sleeps):
            _wake(eventfd)

    def wait_for_room(self):
        """Ask to be woken when frames are taken out.  Returns False if some were since the last `put`: try again."""
        cdef uint64_t before = self._seen
        self._check()
        RING_STORE(self._control.producer_waits, 1)
        RING_FENCE()
        self._look()
        return self._seen == before

    @property
    def octets_waiting(self):
        """Octets that the other side has not taken out."""
        self._check()
        self._look()
        return self._own - self._seen

    cdef int _look(self) except -1:
        cdef uint64_t head = RING_LOAD(self._control.head)
        if head - self._seen > self._own - self._seen or head & (_WORD - 1):
            self._fail("the other side has taken out more than there was")
        self._seen = head
        return 0

    cdef int _write(self, object frame) except -1:
        """Write one frame at `_own`, and move it on; 0 if there is no room."""
        cdef uint64_t room = self._capacity - (self._own - self._seen)
        cdef uint64_t place = self._own & self._mask
        cdef uint64_t to_end = self._capacity - place
        cdef uint64_t here = min(room, to_end)
        cdef uint64_t position = self._own
        if self._begin(frame, place, here, position):
            return 1
        # what is free goes on at the beginning
        if room <= to_end or not self._begin(frame, 0, room - to_end, position + to_end):
            return 0
        self._stamp(place, _WRAP, position)
        return 1

    cdef int _begin(self, object frame, uint64_t place, uint64_t room, uint64_t position) except -1:
        cdef Out out
        cdef uint64_t size
        cdef uint64_t limit
        if room <= _WORD:
            return 0
        limit = min(room - _WORD, self._largest)
        out.at = self._data + place + _WORD
        out.end = out.at + limit
        if not _pack(&out, frame, 0):
            if limit == self._largest:
                raise FrameError(f"a frame of more than {self._largest} octets")
            return 0
        size = <uint64_t>(out.at - (self._data + place + _WORD))
        self._stamp(place, <uint32_t>size, position)
        self._own = position + _WORD + ((size + _WORD - 1) & ~<uint64_t>(_WORD - 1))
        return 1

    cdef inline void _stamp(self, uint64_t place, uint32_t length, uint64_t position) noexcept:
        cdef uint64_t word = length | ((position >> 3) << 32)
        memcpy(self._data + place, &word, _WORD)


@cython.final
@cython.freelist(64)
cdef class Packed:
    """One msgpack value that is packed already: it is put into a frame as it stands.

    Raises:
        FrameError: it is not exactly one well-formed value.
    """

    cdef bytes _octets
    cdef Py_ssize_t _begin

    def __init__(self, bytes octets not None):
        cdef In source
        source.at = <const uint8_t *>PyBytes_AS_STRING(octets)
        source.end = source.at + PyBytes_GET_SIZE(octets)
        _unpack(&source, 0)
        if source.at != source.end:
            raise FrameError("octets behind the value")
        self._octets, self._begin = octets, 0

    @staticmethod
    def of_ours(bytes octets not None, Py_ssize_t begin):
        """The value that the octets end with, which begins there: one that `pack` has made, so it is not looked at.

        Raises:
            ValueError: it begins behind the end.
        """
        cdef Packed made
        if not 0 <= begin < PyBytes_GET_SIZE(octets):
            raise ValueError("there is no such place")
        made = Packed.__new__(Packed)
        made._octets, made._begin = octets, begin
        return made

    @property
    def octets(self):
        """The msgpack of the value."""
        return self._octets[self._begin:]


def pack(value):
    """The msgpack of one value as bytes, made by the same code that writes frames.  Raises FrameError as `put`."""
    cdef Py_ssize_t size = 512
    cdef bytes room
    cdef Out out
    while size <= _MAX:
        room = PyBytes_FromStringAndSize(NULL, size)
        out.at = PyBytes_AS_STRING(room)
        out.end = out.at + size
        if _pack(&out, value, 0):
            return room[:out.at - PyBytes_AS_STRING(room)]
        size *= 4
    raise FrameError("a value of more than a gibibyte")


def unpack(octets):
    """The value of exactly one msgpack value.  Raises FrameError if it is anything else."""
    cdef Py_buffer view
    cdef In source
    PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
    try:
        source.at = <const uint8_t *>view.buf
        source.end = source.at + view.len
        value = _unpack(&source, 0)
        if source.at != source.end:
            raise FrameError("octets behind the value")
        return value
    finally:
        PyBuffer_Release(&view)


# --- packing: 1 done, 0 no room ---------------------------------------------------------------------------------------


cdef int _pack(Out *out, object value, int depth) except -1:
    cdef Py_ssize_t size
    cdef const char *text
    if PyBytes_CheckExact(<PyObject *>value):
        size = PyBytes_GET_SIZE(value)
        return _sized(out, size, 0, 0, 0xC4, 0xC5) and _copy(out, PyBytes_AS_STRING(value), size)
    if PyLong_CheckExact(value):
        return _pack_int(out, value)
    if PyUnicode_CheckExact(value):
        try:
            text = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            raise FrameError("text with a lone surrogate") from None
        return _sized(out, size, 0xA0, 32, 0xD9, 0xDA) and _copy(out, text, size)
    if value is None:
        return _head(out, 0xC0, 0, 0)
    if value is True or value is False:
        return _head(out, 0xC3 if value else 0xC2, 0, 0)
    if depth >= _DEPTH:
        raise FrameError(f"nested more than {_DEPTH} deep")
    if PyTuple_CheckExact(value):
        return _pack_tuple(out, value, depth)
    if PyList_CheckExact(value):
        return _pack(out, tuple(value), depth)
    return _pack_other(out, value, depth)


cdef int _pack_tuple(Out *out, object value, int depth) except -1:
    cdef Py_ssize_t size = PyTuple_GET_SIZE(value)
    cdef Py_ssize_t index, length
    cdef int overflow
    cdef int64_t number
    cdef PyObject *item
    # here the compiler knows that what is written is not the place itself
    cdef char *at
    cdef char *end = out.end
    if not _sized(out, size, 0x90, 16, 0, 0xDC):
        return 0
    at = out.at
    for index in range(size):
        # a tuple holds its items while we hold it
        item = PyTuple_GET_ITEM(value, index)
        if PyBytes_CheckExact(item) and PyBytes_GET_SIZE(<object>item) <= 0xFF:
            # most values are short octets
            length = PyBytes_GET_SIZE(<object>item)
            if end - at < length + 2:
                return 0
            at[0] = <char>0xC4
            at[1] = <char>length
            ring_copy(at + 2, PyBytes_AS_STRING(<object>item), length)
            at += length + 2
            continue
        if PyLong_CheckExact(<object>item) and at < end:
            # and most numbers are small
            number = PyLong_AsLongLongAndOverflow(<object>item, &overflow)
            if 0 <= number <= 0x7F and not overflow:
                at[0] = <char>number
                at += 1
                continue
        out.at = at
        if not _pack(out, <object>item, depth + 1):
            return 0
        at = out.at
    out.at = at
    return 1


cdef int _pack_other(Out *out, object value, int depth) except -1:
    cdef Py_ssize_t size
    cdef bytes octets
    if isinstance(value, dict):
        size = len(value)
        if size > _ENTRIES:
            raise FrameError(f"a map of more than {_ENTRIES} entries")
        if not _sized(out, size, 0x80, 16, 0, 0xDE):
            return 0
        for key, item in value.items():
            if type(key) not in (str, bytes, int):
                raise FrameError(f"{type(key).__name__} as key of a map")
            if not _pack(out, key, depth + 1) or not _pack(out, item, depth + 1):
                return 0
        return 1
    if isinstance(value, Packed):
        octets, size = (<Packed>value)._octets, (<Packed>value)._begin
        return _copy(out, PyBytes_AS_STRING(octets) + size, PyBytes_GET_SIZE(octets) - size)
    if isinstance(value, ExtType):
        return _pack_ext(out, value.code, value.data)
    if isinstance(value, float):
        if out.end - out.at < 9:
            return 0
        out.at[0] = <char>0xCB
        PyFloat_Pack8(PyFloat_AS_DOUBLE(value), out.at + 1, 0)
        out.at += 9
        return 1
    # a subclass, such as text from outside: as what it is made of
    if isinstance(value, bytes):
        size = PyBytes_GET_SIZE(value)
        return _sized(out, size, 0, 0, 0xC4, 0xC5) and _copy(out, PyBytes_AS_STRING(value), size)
    if isinstance(value, (bytearray, memoryview)):
        return _pack_buffer(out, value)
    if isinstance(value, str):
        return _pack(out, str.__str__(value), depth)
    if isinstance(value, int):
        return _pack_int(out, int.__int__(value))
    if isinstance(value, (tuple, list)):
        return _pack(out, tuple(list(value)), depth)
    raise FrameError(f"{type(value).__name__} in a frame")


cdef int _pack_buffer(Out *out, object value) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    try:
        return _sized(out, view.len, 0, 0, 0xC4, 0xC5) and _copy(out, <const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef int _pack_int(Out *out, object value) except -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    cdef uint64_t big
    if overflow:
        try:
            big = PyLong_AsUnsignedLongLong(value)
        except OverflowError:
            raise FrameError("a number of more than 64 bits") from None
        return _head(out, 0xCF, big, 8)
    return _pack_number(out, number)


cdef int _pack_ext(Out *out, int code, bytes data) except -1:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef int found
    if size in (1, 2, 4, 8, 16):
        found = _head(out, <uint8_t>{1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}[size], 0, 0)
    else:
        found = _sized(out, size, 0, 0, 0xC7, 0xC8)
    return found and _head(out, <uint8_t>code, 0, 0) and _copy(out, PyBytes_AS_STRING(data), size)


# --- the consumer -----------------------------------------------------------------------------------------------------


cdef class Consumer(_End):
    """Reads frames."""

    # counts each `release`, so that a frame knows that its time is over
    cdef uint64_t _generation
    # buffers that are out
    cdef Py_ssize_t _exports
    # where frames that lie there to be looked at end; `_own` if there are none
    cdef uint64_t _next
    # kinds of frames with a row, a bit each, and where they have it
    cdef uint64_t[2] _row_kinds
    cdef int _row_place

    def __init__(self, memory, int number):
        _End.__init__(self, memory, number)
        self._row_kinds[0] = self._row_kinds[1] = 0
        self._own = self._seen = self._next = RING_LOAD(self._control.head)
        if self._own & (_WORD - 1):
            self.close()
            raise FrameError("the shared memory has impossible positions")

    def set_rows(self, int place, *kinds):
        """From now on `take` gives an array as a `Row`, if it is item `place` of a frame that begins with such a kind.

        Raises:
            ValueError: that cannot be: a kind is from 0 to 127, a place from 1 to 15.
        """
        if not 1 <= place <= 15 or not all(0 <= kind <= 127 for kind in kinds):
            raise ValueError("no such kind or place")
        self._row_kinds[0] = self._row_kinds[1] = 0
        for kind in kinds:
            self._row_kinds[<int>kind >> 6] |= <uint64_t>1 << (<int>kind & 63)
        self._row_place = place

    def take(self, Py_ssize_t limit=512):
        """Read and take out at most `limit` frames; returns their values in order.

        Raises:
            FrameError: the other side wrote what is no frame.  What stood before it has been returned; nothing more
                will be.
            BufferError: frames are being looked at.
        """
        cdef list found = []
        cdef In source
        self._check()
        if self._next != self._own:
            raise BufferError("frames of this ring are being looked at")
        self._look()
        try:
            while len(found) < limit and self._record(&source):
                # an array of at most fifteen items is one octet, and a kind is another
                if source.end - source.at > 2 and source.at[0] & 0xF0 == 0x90 and self._has_row(source.at[1]):
                    value = self._with_row(&source)
                else:
                    value = _unpack(&source, 0)
                if source.at != source.end:
                    raise FrameError("octets behind the value of a frame")
                found.append(value)
                self._own = self._next
        except FrameError as error:
            self.problem = str(error)
            if not found:
                raise
        finally:
            self._next = self._own
            RING_STORE(self._control.head, self._own)
        return found

    def frames(self, Py_ssize_t limit=512):
        """At most `limit` frames to be looked at where they lie; they stay until `release`.

        Raises:
            FrameError: as `take`.
            BufferError: earlier ones were not released.
        """
        cdef list found = []
        cdef In source
        cdef Frame frame
        self._check()
        if self._next != self._own:
            raise BufferError("frames of this ring are being looked at")
        self._look()
        while len(found) < limit and self._record(&source):
            frame = Frame.__new__(Frame)
            frame._owner = self
            frame._at = source.at
            frame._size = source.end - source.at
            frame._generation = self._generation
            found.append(frame)
        return found

    def release(self):
        """Take out the frames that were looked at.

        Raises:
            BufferError: a buffer of one of them is still out; nothing was done.
        """
        self._check()
        if self._exports:
            raise BufferError(f"{self._exports} views of frames are still in use")
        self._generation += 1
        self._own = self._next
        RING_STORE(self._control.head, self._own)

    def close(self):
        """Let go of the memory.

        Raises:
            BufferError: a view of a frame is still out; nothing was done.
        """
        if self._exports:
            raise BufferError(f"{self._exports} views of frames are still in use")
        self._generation += 1
        _End.close(self)

    def flush(self, int eventfd):
        """As `Producer.flush`, if the other side waits for room; called after frames were taken out."""
        self._check()
        if self._sleeper(self._control.producer_waits):
            _wake(eventfd)

    def sleep(self):
        """Ask to be woken when there is a frame.  Returns False if there is one already."""
        self._check()
        RING_STORE(self._control.consumer_sleeps, 1)
        RING_FENCE()
        return RING_LOAD(self._control.tail) == self._next

    def awake(self):
        """Say that nobody need wake us: we are at it."""
        self._check()
        RING_STORE(self._control.consumer_sleeps, 0)

    @property
    def octets_waiting(self):
        """Octets that lie in the ring."""
        self._check()
        self._look()
        return self._seen - self._own

    cdef inline bint _has_row(self, uint8_t kind) noexcept:
        return kind <= 0x7F and (self._row_kinds[kind >> 6] >> (kind & 63)) & 1

    cdef object _with_row(self, In *source):
        # the mark is looked at again, and counts: the memory may have changed
        cdef Py_ssize_t size = source.at[0] & 0x0F
        cdef Py_ssize_t index
        cdef tuple found
        source.at += 1
        _need(source, size)
        found = PyTuple_New(size)
        for index in range(size):
            item = _row(source) if index == self._row_place else _unpack(source, 1)
            Py_INCREF(item)
            PyTuple_SET_ITEM(found, index, item)
        return found

    cdef int _look(self) except -1:
        cdef uint64_t tail = RING_LOAD(self._control.tail)
        if tail - self._own > self._capacity or tail - self._own < self._seen - self._own or tail & (_WORD - 1):
            self._fail("the other side has written an impossible position")
        self._seen = tail
        return 0

    cdef int _record(self, In *source) except -1:
        """Find the record at `_next`, and move that on; 0 if there is none."""
        cdef uint64_t word, place, left, length, size
        while True:
            left = self._seen - self._next
            if not left:
                return 0
            place = self._next & self._mask
            memcpy(&word, self._data + place, _WORD)
            if word >> 32 != (self._next >> 3) & 0xFFFFFFFFU:
                self._fail("the other side has written what is no frame")
            length = word & 0xFFFFFFFFU
            if length == _WRAP:
                size = self._capacity - place
                # a whole ring of nothing would be read for ever
                if size >= left or place == 0:
                    self._fail("the other side has written what is no frame")
                self._next += size
                continue
            size = _WORD + ((length + _WORD - 1) & ~<uint64_t>(_WORD - 1))
            if length > self._largest or size > left or size > self._capacity - place:
                self._fail(f"the other side has written a frame of {length} octets where there are {left}")
            source.at = <const uint8_t *>(self._data + place + _WORD)
            source.end = source.at + length
            self._next += size
            return 1


cdef class Frame:
    """One frame, where it lies; a read-only buffer until its consumer releases it."""

    cdef Consumer _owner
    cdef const uint8_t *_at
    cdef Py_ssize_t _size
    cdef uint64_t _generation

    def __init__(self):
        raise TypeError("frames come from Consumer.frames")

    cdef int _check(self) except -1:
        if self._owner is None or self._generation != self._owner._generation:
            raise BufferError("this frame has been released")
        return 0

    def __len__(self):
        return self._size

    def __getbuffer__(self, Py_buffer *view, int flags):
        self._check()
        PyBuffer_FillInfo(view, self, <void *>self._at, self._size, 1, flags)
        self._owner._exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._owner._exports -= 1

    def unpack(self):
        """The value, copied.  Raises FrameError if it is not one, BufferError after the release."""
        cdef In source
        self._check()
        source.at = self._at
        source.end = self._at + self._size
        value = _unpack(&source, 0)
        if source.at != source.end:
            raise FrameError("octets behind the value of a frame")
        return value


@cython.final
@cython.freelist(64)
cdef class Row:
    """The values of an array, each of which is unpacked when it is asked for, and only then.

    It holds a copy, so it may be kept.  Its lengths have been checked; a value that is none all the same (text that is
    not UTF-8, too deep) raises FrameError when it is asked for.
    """

    cdef bytes _octets
    cdef Py_ssize_t _count

    def __init__(self):
        raise TypeError("rows come from Consumer.take")

    def __len__(self):
        return self._count

    def __getitem__(self, Py_ssize_t index):
        cdef In source
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError("no such value")
        source.at = <const uint8_t *>PyBytes_AS_STRING(self._octets)
        source.end = source.at + PyBytes_GET_SIZE(self._octets)
        _skip(&source, index)
        return _unpack(&source, 1)

    def __iter__(self):
        return iter(self.to_tuple())

    def __eq__(self, other):
        return self.to_tuple() == (other.to_tuple() if isinstance(other, Row) else other)

    __hash__ = None

    def __repr__(self):
        return f"<Row {self.to_tuple()!r}>"

    def to_tuple(self):
        """All values."""
        cdef In source
        source.at = <const uint8_t *>PyBytes_AS_STRING(self._octets)
        source.end = source.at + PyBytes_GET_SIZE(self._octets)
        return _items(&source, self._count, 1)

    def split(self, Py_ssize_t place):
        """The octets of the first `place` values, alike only where these are, and a tuple of the others."""
        cdef In source
        cdef const uint8_t *begin
        cdef bytes first
        if not 0 <= place <= self._count:
            raise IndexError("not so many values")
        begin = <const uint8_t *>PyBytes_AS_STRING(self._octets)
        source.at = begin
        source.end = begin + PyBytes_GET_SIZE(self._octets)
        _skip(&source, place)
        first = PyBytes_FromStringAndSize(<const char *>begin, source.at - begin)
        return first, _items(&source, self._count - place, 1)


# --- unpacking --------------------------------------------------------------------------------------------------------


cdef inline int _need(In *source, uint64_t size) except -1:
    if <uint64_t>(source.end - source.at) < size:
        raise FrameError("a value is cut off")
    return 0


cdef inline uint64_t _number(In *source, int width) except? 18446744073709551615U:
    cdef uint64_t value = 0
    cdef int index
    _need(source, width)
    if width == 1:
        value = source.at[0]
    else:
        for index in range(width):
            value = (value << 8) | source.at[index]
    source.at += width
    return value


cdef object _bytes(In *source, uint64_t size):
    _need(source, size)
    found = PyBytes_FromStringAndSize(<const char *>source.at, <Py_ssize_t>size)
    source.at += size
    return found


cdef object _text(In *source, uint64_t size):
    # decoded from a copy, since the memory may change meanwhile
    cdef bytes octets = _bytes(source, size)
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError("text that is not UTF-8") from None


cdef object _array(In *source, uint64_t size, int depth):
    # every item takes an octet at least: nobody can ask for more memory than was sent
    _need(source, size)
    if depth >= _DEPTH:
        raise FrameError(f"nested more than {_DEPTH} deep")
    return _items(source, <Py_ssize_t>size, depth + 1)


cdef tuple _items(In *source, Py_ssize_t count, int depth):
    cdef tuple found = PyTuple_New(count)
    cdef Py_ssize_t index, size
    for index in range(count):
        if source.end - source.at >= 2 and source.at[0] == 0xC4:
            # most values are short octets
            size = source.at[1]
            source.at += 2
            item = _bytes(source, size)
        else:
            item = _unpack(source, depth)
        Py_INCREF(item)
        PyTuple_SET_ITEM(found, index, item)
    return found


cdef object _map(In *source, uint64_t size, int depth):
    cdef dict found = {}
    cdef uint64_t _index
    if size > _ENTRIES:
        # keys can be chosen so that each collides with all others
        raise FrameError(f"a map of more than {_ENTRIES} entries")
    _need(source, 2 * size)
    if depth >= _DEPTH:
        raise FrameError(f"nested more than {_DEPTH} deep")
    for _index in range(size):
        key = _unpack(source, depth + 1)
        if type(key) not in (str, bytes, int):
            raise FrameError(f"{type(key).__name__} as key of a map")
        found[key] = _unpack(source, depth + 1)
    return found


cdef object _ext(In *source, uint64_t size):
    cdef int code
    _need(source, 1)
    code = source.at[0]
    source.at += 1
    if code > 127:
        # the codes of msgpack itself, which we use nowhere
        raise FrameError("an extension type of msgpack's own")
    return ExtType(code, _bytes(source, size))


cdef object _unpack(In *source, int depth):
    cdef uint8_t mark
    cdef uint64_t number
    _need(source, 1)
    mark = source.at[0]
    source.at += 1
    if mark <= 0x7F:
        return mark
    if mark >= 0xE0:
        return <int>mark - 256
    if mark <= 0x8F:
        return _map(source, mark & 0x0F, depth)
    if mark <= 0x9F:
        return _array(source, mark & 0x0F, depth)
    if mark <= 0xBF:
        return _text(source, mark & 0x1F)
    if mark == 0xC4:
        return _bytes(source, _number(source, 1))
    if mark == 0xC5:
        return _bytes(source, _number(source, 2))
    if mark == 0xC0:
        return None
    if mark == 0xC2:
        return False
    if mark == 0xC3:
        return True
    if mark <= 0xCF and mark >= 0xCC:
        return _number(source, 1 << (mark - 0xCC))
    if mark <= 0xD3 and mark >= 0xD0:
        number = _number(source, 1 << (mark - 0xD0))
        return _signed(number, 1 << (mark - 0xD0))
    return _unpack_long(source, mark, depth)


cdef object _row(In *source):
    """An array as a row; anything else as what it is."""
    cdef uint8_t mark
    cdef uint64_t size
    cdef const uint8_t *begin
    cdef Row row
    _need(source, 1)
    mark = source.at[0]
    if not (mark & 0xF0 == 0x90 or mark == 0xDC or mark == 0xDD):
        return _unpack(source, 1)
    source.at += 1
    size = _number(source, 2 if mark == 0xDC else 4) if mark >= 0xDC else mark & 0x0F
    # so the count can be no more than the octets that were sent
    _need(source, size)
    row = Row.__new__(Row)
    begin = source.at
    _skip(source, size)
    row._octets = PyBytes_FromStringAndSize(<const char *>begin, source.at - begin)
    row._count = <Py_ssize_t>size
    # if the memory changed meanwhile the copy may be no row: every use of it is checked again
    return row


cdef int _skip(In *source, uint64_t count) except -1:
    """Go behind `count` values, looking at their lengths only; arrays and maps are so many values more."""
    cdef const uint8_t *at = source.at
    # signed, so that it can be seen that too much was taken off; `at` is never read when nothing is left
    cdef int64_t left = source.end - source.at
    cdef uint8_t mark
    while count:
        count -= 1
        left -= 1
        if left < 0:
            raise FrameError("a value is cut off")
        mark = at[0]
        at += 1
        if _SIZES[mark] != _SPECIAL:
            at += _SIZES[mark]
            left -= _SIZES[mark]
        elif mark == 0xC4 or mark == 0xD9:
            left -= 1
            if left < 0:
                raise FrameError("a value is cut off")
            left -= at[0]
            at += 1 + at[0]
        else:
            source.at = at
            count += _skip_special(source, mark)
            at = source.at
            left = source.end - at
            # every value takes an octet at least
            _need(source, count)
    if left < 0:
        raise FrameError("a value is cut off")
    source.at = at
    return 0


cdef uint64_t _skip_special(In *source, uint8_t mark) except? 18446744073709551615U:
    """Go behind the head of an array or a map, and give the number of its items; or behind a long value."""
    cdef uint64_t size
    if mark >= 0x80 and mark <= 0x9F:
        return (mark & 0x0F) * (2 if mark <= 0x8F else 1)
    if mark == 0xDC or mark == 0xDD:
        return _number(source, 2 if mark == 0xDC else 4)
    if mark == 0xDE or mark == 0xDF:
        return 2 * _number(source, 2 if mark == 0xDE else 4)
    if mark == 0xC5 or mark == 0xDA:
        size = _number(source, 2)
    elif mark == 0xC6 or mark == 0xDB:
        size = _number(source, 4)
    elif mark >= 0xC7 and mark <= 0xC9:
        size = 1 + _number(source, 1 << (mark - 0xC7))
    else:
        raise FrameError("an octet that msgpack does not use")
    _need(source, size)
    source.at += size
    return 0


cdef object _signed(uint64_t number, int width):
    cdef int shift = 64 - 8 * width
    return (<int64_t>(number << shift)) >> shift


cdef object _unpack_long(In *source, uint8_t mark, int depth):
    cdef double real
    if mark == 0xC6:
        return _bytes(source, _number(source, 4))
    if mark >= 0xC7 and mark <= 0xC9:
        return _ext(source, _number(source, 1 << (mark - 0xC7)))
    if mark == 0xCA:
        return _short_float(source)
    if mark == 0xCB:
        _need(source, 8)
        real = PyFloat_Unpack8(<const char *>source.at, 0)
        source.at += 8
        return real
    if mark >= 0xD4 and mark <= 0xD8:
        return _ext(source, 1 << (mark - 0xD4))
    if mark >= 0xD9 and mark <= 0xDB:
        return _text(source, _number(source, 1 << (mark - 0xD9)))
    if mark == 0xDC or mark == 0xDD:
        return _array(source, _number(source, 2 if mark == 0xDC else 4), depth)
    if mark == 0xDE or mark == 0xDF:
        return _map(source, _number(source, 2 if mark == 0xDE else 4), depth)
    raise FrameError("an octet that msgpack does not use")


cdef object _short_float(In *source):
    cdef uint32_t bits = <uint32_t>_number(source, 4)
    cdef float real
    memcpy(&real, &bits, 4)
    return real

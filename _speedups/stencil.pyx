# cython: language_level=3
"""Ready octets with holes: a message for one recipient in one pass, where nothing about its values needs thought; and
the id of that message.

Layer: kernel of engine/compose/stencil.py and ids.py.  References: the composer itself, with which
tests/compose/test_stencil.py compares it, and tests/compose/test_ids.py.  No directive is turned off; values are copied
into objects of exactly the size that was added up for them, from objects that are held.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_CheckExact
from libc.string cimport memcpy

cdef extern from "Python.h":
    bint PyLong_CheckExact(object)
    bint PyUnicode_IS_COMPACT_ASCII(object)
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL

cdef const char *_DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#: odd, so that multiplying by it modulo 2**64 loses nothing; 2**64 divided by the golden ratio
cdef unsigned long long _SPREAD = 0x9E3779B97F4A7C15

#: values that a stencil can take
MAX_VALUES = 64

cdef enum:
    _VALUES = 64
    _CODES = 128
    #: octets from which on a segment is handed out itself, and not copied; a TLS record
    _SHARED = 16384


cdef class Stencil:
    """Octets with holes.

    Args:
        segments: what stands before, between and after the holes; one more than there are holes.
        holes: for each the number of its value.
        allowed: for each value 128 octets, not zero where the value may have the character of that code.
        limits: (octets, numbers of values): the values may have so many octets together.

    Raises:
        ValueError: these do not fit together.
    """

    cdef tuple _segments, _holes, _allowed, _limits

    def __init__(self, tuple segments not None, tuple holes not None, tuple allowed not None, tuple limits not None):
        cdef Py_ssize_t count = len(allowed)
        if len(segments) != len(holes) + 1 or count > _VALUES:
            raise ValueError("segments, holes and values do not fit together")
        for segment in segments:
            if not isinstance(segment, bytes):
                raise TypeError("a segment that is not bytes")
        for table in allowed:
            if PyBytes_GET_SIZE(<bytes?>table) != _CODES:
                raise ValueError("a table of another size")
        for _, numbers in limits:
            for number in <tuple?>numbers:
                if not 0 <= number < count:
                    raise ValueError("a limit for a value that is not there")
        for number in holes:
            if not 0 <= number < count:
                raise ValueError("a hole for a value that is not there")
        self._segments = segments
        self._holes = holes
        self._allowed = allowed
        self._limits = limits

    def fill(self, list values not None):
        """The octets with these values (text or integers) in the holes, in pieces: long segments are shared.

        Returns:
            None where a value is not as it must be: of another type, empty, with a space at an end or a character that
            is not allowed, or too long.
        """
        cdef const char *texts[_VALUES]
        cdef Py_ssize_t sizes[_VALUES]
        cdef Py_ssize_t count = len(self._allowed), index, at, size
        cdef const char *text
        cdef const char *table
        cdef unsigned char octet
        cdef object value
        cdef list held = []
        if len(values) != count:
            raise ValueError("another number of values")
        for index in range(count):
            value = values[index]
            if PyLong_CheckExact(value):
                try:
                    value = str(value)
                except ValueError:  # more digits than Python likes to write
                    return None
                held.append(value)
            elif not PyUnicode_CheckExact(value):
                return None
            if not PyUnicode_IS_COMPACT_ASCII(value):
                return None
            text = PyUnicode_AsUTF8AndSize(value, &size)
            if size == 0 or text[0] == c' ' or text[size - 1] == c' ':
                return None
            table = PyBytes_AS_STRING(<bytes>self._allowed[index])
            for at in range(size):
                octet = <unsigned char>text[at]
                if octet >= _CODES or not table[octet]:
                    return None
            texts[index] = text
            sizes[index] = size
        for limit, numbers in self._limits:
            size = 0
            for number in <tuple>numbers:
                size += sizes[number]
            if size > limit:
                return None
        return self._pieces(texts, sizes)

    def fill_row(self, list names not None, object row not None, str address not None, str message_id not None):
        """As `fill`, with what `row` has under `names`, and the two values that are always the last."""
        cdef list values = [row.get(name) for name in names]
        values.append(address)
        values.append(message_id)
        return self.fill(values)

    cdef tuple _pieces(self, const char **texts, Py_ssize_t *sizes):
        """Long segments as they are, and what stands between them in one piece each."""
        cdef Py_ssize_t holes = len(self._holes), first = 0, size = 0, index
        cdef list found = []
        cdef bytes segment
        for index in range(holes + 1):
            segment = <bytes>self._segments[index]
            if PyBytes_GET_SIZE(segment) < _SHARED:
                size += PyBytes_GET_SIZE(segment)
            else:
                if size:
                    found.append(self._run(first, index, size, texts, sizes))
                found.append(segment)
                first = index
                size = 0
            if index < holes:
                size += sizes[<Py_ssize_t>self._holes[index]]
        if size or not found:
            found.append(self._run(first, holes + 1, size, texts, sizes))
        return tuple(found)

    cdef bytes _run(self, Py_ssize_t first, Py_ssize_t end, Py_ssize_t size, const char **texts, Py_ssize_t *sizes):
        """The segments from `first` to before `end`, but for a long one, each with the value behind it."""
        cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
        cdef char *target = PyBytes_AS_STRING(result)
        cdef char *limit = target + size
        cdef Py_ssize_t holes = len(self._holes), index, number
        cdef bytes segment
        for index in range(first, end):
            segment = <bytes>self._segments[index]
            if PyBytes_GET_SIZE(segment) < _SHARED:
                if PyBytes_GET_SIZE(segment) > limit - target:
                    raise AssertionError("a message of another size than was reckoned")
                memcpy(target, PyBytes_AS_STRING(segment), PyBytes_GET_SIZE(segment))
                target += PyBytes_GET_SIZE(segment)
            if index < holes:
                number = self._holes[index]
                if sizes[number] > limit - target:
                    raise AssertionError("a message of another size than was reckoned")
                memcpy(target, texts[number], sizes[number])
                target += sizes[number]
        if target != limit:
            raise AssertionError("a message of another size than was reckoned")
        return result


def spell_id(str head not None, unsigned long long value, unsigned long long mask, str tail not None):
    """``head-RRRRRRRRRRR-tail``, where R is `value` under the one-to-one mixing that `mask` chooses, in base 62."""
    cdef unsigned long long mixed = (value ^ mask) * _SPREAD
    cdef char digits[11]
    cdef int at
    mixed ^= mixed >> 32
    for at in range(10, -1, -1):
        digits[at] = _DIGITS[mixed % 62]
        mixed //= 62
    return f"{head}-{digits[:11].decode('ascii')}-{tail}"

# cython: language_level=3
"""What msgpack writes, for the kernels that pack: heads, sizes, numbers and octets, into room that has an end.

Part of the kernels `ring` and `flat`.  Every write is behind a comparison with `end`; what was written is 1, no room 0.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef struct Out:
    char *at
    char *end


cdef inline int _head(Out *out, uint8_t mark, uint64_t value, int width) noexcept nogil:
    """A mark and a big-endian number of `width` octets behind it."""
    cdef int index
    if out.end - out.at < 1 + width:
        return 0
    out.at[0] = <char>mark
    for index in range(width):
        out.at[1 + index] = <char>((value >> (8 * (width - 1 - index))) & 0xFF)
    out.at += 1 + width
    return 1


cdef inline int _copy(Out *out, const char *source, Py_ssize_t size) noexcept nogil:
    if out.end - out.at < size:
        return 0
    memcpy(out.at, source, size)
    out.at += size
    return 1


cdef inline int _sized(Out *out, uint64_t size, uint8_t fixed, uint64_t below, uint8_t one, uint8_t two) noexcept nogil:
    """The head of what has a size: `fixed | size` under `below`, else one (if any), two or four octets of it."""
    if size < below:
        return _head(out, <uint8_t>(fixed | size), 0, 0)
    if size <= 0xFF and one:
        return _head(out, one, size, 1)
    if size <= 0xFFFF:
        return _head(out, two, size, 2)
    if size <= 0xFFFFFFFFU:
        return _head(out, <uint8_t>(two + 1), size, 4)
    # no room is as large
    return 0


cdef inline int _pack_number(Out *out, int64_t number) noexcept nogil:
    cdef uint64_t big
    if number >= 0:
        big = <uint64_t>number
        if big < 128:
            return _head(out, <uint8_t>big, 0, 0)
        if big <= 0xFF:
            return _head(out, 0xCC, big, 1)
        if big <= 0xFFFF:
            return _head(out, 0xCD, big, 2)
        if big <= 0xFFFFFFFFU:
            return _head(out, 0xCE, big, 4)
        return _head(out, 0xCF, big, 8)
    if number >= -32:
        return _head(out, <uint8_t>(number & 0xFF), 0, 0)
    if number >= -128:
        return _head(out, 0xD0, <uint64_t>number, 1)
    if number >= -32768:
        return _head(out, 0xD1, <uint64_t>number, 2)
    if number >= -2147483648LL:
        return _head(out, 0xD2, <uint64_t>number, 4)
    return _head(out, 0xD3, <uint64_t>number, 8)

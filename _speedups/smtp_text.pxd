# cython: language_level=3
"""What may stand in a command, and octets put one behind the other.

Part of the kernels `wire` and `flight`.  Spec: RFC 5321 §4.1.2 (paths), §4.1.1 (commands).  Every read is at an index
that the loop around it has compared with the length; the callers of `_put` have reckoned the room for it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy


cdef inline Py_ssize_t _check_path(const char *text, Py_ssize_t size, bint utf8) noexcept nogil:
    """Index of the first octet that may not stand between angle brackets there, or -1."""
    cdef Py_ssize_t index = 0
    cdef unsigned char octet
    cdef bint quoted = False
    while index < size:
        octet = <unsigned char>text[index]
        if octet < 0x20 or octet == 0x7F or (octet > 0x7F and not utf8):
            return index
        if quoted:
            if octet == c'\\':
                index += 1
                if index >= size:
                    return size - 1
                octet = <unsigned char>text[index]
                if octet < 0x20 or octet > 0x7E:
                    return index
            elif octet == c'"':
                quoted = False
        elif octet == c'"':
            quoted = True
        elif octet == c' ' or octet == c'<' or octet == c'>':
            return index
        index += 1
    return size - 1 if quoted else -1


cdef inline char *_put(char *at, const char *text, Py_ssize_t size) noexcept nogil:
    memcpy(at, text, size)
    return at + size


cdef inline char *_put_bytes(char *at, bytes text) noexcept:
    return _put(at, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))

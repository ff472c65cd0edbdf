# cython: language_level=3
"""Records of the in-flight journal, and their way into its file.

Layer: kernel of engine/queue/journal.py, whose head has the form of a record.  Spec: bulk-sending section 5, rule 6.
Reference: msgpack, which reads what is written here; tests/queue/test_journal_records.py compares the octets.
A record is written for each flight of messages twice, with the GIL kept: to give it up and take it back costs more than
the write, which goes into the page cache and is not synced.
Invariants: a payload is never longer than the room that was added up for it from the longest forms of its parts;
numbers are those of 64 bits, and others an error.  No directive is turned off.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from zlib import crc32

cdef extern from "<unistd.h>":
    Py_ssize_t _write "write"(int fd, const void *octets, size_t size)

#: characters of a reply that are kept
MAX_TEXT = 1000

cdef enum:
    _TEXT = 1000
    #: length, its complement and checksum
    _HEADER = 12
    #: most octets that a number, and the head of a text or of an array, take
    _NUMBER = 9
    _HEAD = 5

cdef object _crc32 = crc32


cdef char *_put_big(char *at, uint8_t mark, uint64_t value, int octets) noexcept:
    """A mark, and so many octets of a number, the highest first."""
    cdef int index
    at[0] = <char>mark
    for index in range(octets):
        at[1 + index] = <char>(value >> (8 * (octets - 1 - index)) & 0xFF)
    return at + 1 + octets


cdef char *_put_number(char *at, int64_t value) noexcept:
    """An integer, in its shortest form."""
    if value < 0:
        if value >= -32:
            at[0] = <char>(value & 0xFF)
            return at + 1
        if value >= -0x80:
            return _put_big(at, 0xD0, <uint64_t>value, 1)
        if value >= -0x8000:
            return _put_big(at, 0xD1, <uint64_t>value, 2)
        if value >= -0x80000000LL:
            return _put_big(at, 0xD2, <uint64_t>value, 4)
        return _put_big(at, 0xD3, <uint64_t>value, 8)
    if value < 0x80:
        at[0] = <char>value
        return at + 1
    if value < 0x100:
        return _put_big(at, 0xCC, value, 1)
    if value < 0x10000:
        return _put_big(at, 0xCD, value, 2)
    if value < 0x100000000LL:
        return _put_big(at, 0xCE, value, 4)
    return _put_big(at, 0xCF, value, 8)


cdef char *_put_text(char *at, bytes text) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    if size < 32:
        at[0] = <char>(0xA0 | size)
        at += 1
    elif size < 0x100:
        at = _put_big(at, 0xD9, size, 1)
    elif size < 0x10000:
        at = _put_big(at, 0xDA, size, 2)
    else:
        at = _put_big(at, 0xDB, size, 4)
    memcpy(at, PyBytes_AS_STRING(text), size)
    return at + size


cdef char *_put_array(char *at, Py_ssize_t count) noexcept:
    """The head of an array."""
    if count < 16:
        at[0] = <char>(0x90 | count)
        return at + 1
    if count < 0x10000:
        return _put_big(at, 0xDC, count, 2)
    return _put_big(at, 0xDD, count, 4)


cdef bytes _octets_of(str text):
    """As UTF-8, with a question mark for what has no form there; but for what is too long to be kept."""
    if len(text) > _TEXT:
        text = text[:_TEXT]
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


cdef bytes _frame(const char *payload, Py_ssize_t size):
    """The record of a payload."""
    cdef bytes record = PyBytes_FromStringAndSize(NULL, _HEADER + size)
    cdef char *at = PyBytes_AS_STRING(record)
    cdef uint32_t numbers[3]
    cdef int index, shift
    if size > 0xFFFFFFFF:
        raise OverflowError("a record of too many octets")
    memcpy(at + _HEADER, payload, size)
    numbers[0] = <uint32_t>size
    numbers[1] = ~numbers[0]
    numbers[2] = _crc32(memoryview(record)[_HEADER:])
    for index in range(3):
        for shift in range(4):
            at[4 * index + shift] = <char>(numbers[index] >> (8 * shift) & 0xFF)
    return record


def begin_record(str host not None, list flights not None):
    """The record that says that the last octets of these may be written: (recipient id, epoch) of each."""
    cdef bytes name = host.encode("utf-8", "replace")
    cdef Py_ssize_t count = len(flights), index, room = 2 + _HEAD + PyBytes_GET_SIZE(name) + _HEAD
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, room + count * (1 + 2 * _NUMBER))
    cdef char *start = PyBytes_AS_STRING(payload)
    cdef char *at = start
    cdef tuple flight
    at = _put_array(at, 3)
    at = _put_number(at, 0)
    at = _put_text(at, name)
    at = _put_array(at, count)
    for index in range(count):
        flight = <tuple?>flights[index]
        if len(flight) != 2:
            raise ValueError("a flight is two numbers")
        at = _put_array(at, 2)
        at = _put_number(at, flight[0])
        at = _put_number(at, flight[1])
    return _frame(start, at - start)


def finish_record(list results not None):
    """The record of replies: (recipient id, epoch, kind, text) of each."""
    cdef Py_ssize_t count = len(results), index, room = 2 + _HEAD
    cdef list texts = []
    cdef bytes payload, text
    cdef char *start
    cdef char *at
    cdef tuple result
    for index in range(count):
        result = <tuple?>results[index]
        if len(result) != 4:
            raise ValueError("a result is three numbers and a text")
        text = _octets_of(<str?>result[3])
        texts.append(text)
        room += 1 + 3 * _NUMBER + _HEAD + PyBytes_GET_SIZE(text)
    payload = PyBytes_FromStringAndSize(NULL, room)
    start = at = PyBytes_AS_STRING(payload)
    at = _put_array(at, 2)
    at = _put_number(at, 1)
    at = _put_array(at, count)
    for index in range(count):
        result = <tuple?>results[index]
        at = _put_array(at, 4)
        at = _put_number(at, result[0])
        at = _put_number(at, result[1])
        at = _put_number(at, result[2])
        at = _put_text(at, <bytes>texts[index])
    return _frame(start, at - start)


def note_begun(dict known not None, list flights not None, str host not None):
    """Let `known` say of each of `flights` that it was begun at `host`."""
    cdef tuple begun = (host, None, "")
    for flight in flights:
        known[flight] = begun


def note_finished(dict known not None, list results not None):
    """Let `known` say of each of `results` how it ended, too."""
    cdef tuple result, flight
    for item in results:
        result = <tuple?>item
        flight = (result[0], result[1])
        begun = known.get(flight)
        known[flight] = ("" if begun is None else (<tuple?>begun)[0], result[2], (<str?>result[3])[:_TEXT])


def append(int fd, bytes octets not None):
    """One plain write; returns how many octets the file took."""
    cdef Py_ssize_t written
    while True:
        written = _write(fd, PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
        if written >= 0:
            return written
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()

# cython: language_level=3
"""Octets through one connection of the TLS library: no object, buffer or exception a call.

Layer: kernel of engine/tls/engine.py.  Reference: the methods of pyOpenSSL's Connection; hypothesis compares the two.
pyOpenSSL makes, sets up and judges connections.  Here the same functions of the same library are called that its
methods call, by the addresses that its own bindings give, so there is one library in the process and no ABI to guess:
the bindings declare their types.  A connection and its memory buffers live as long as the object of pyOpenSSL, which is
held here.  Nothing but a success or the wish for more octets is interpreted here; the engine leaves the rest to
pyOpenSSL.  The GIL is kept: what is encrypted at a time takes some tens of microseconds, and to wait for the GIL more.
No directive is turned off.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    PyObject *_new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    char *_octets_of "PyBytes_AS_STRING"(PyObject *) noexcept
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1

cdef enum:
    #: largest plaintext of one record (RFC 8446 §5.1)
    _RECORD = 16384
    #: octets by which a record is longer than its plaintext, at most; there is more than enough room with each cipher
    _GROWTH = 256
    #: octets of plaintext that `read` puts together at most, whatever it is asked for
    _MOST = 1 << 30

#: in the order of `Functions.NAMES`; each with the types that the bindings declare
ctypedef int (*_read_t)(void *, void *, int) noexcept
ctypedef int (*_write_t)(void *, const void *, int) noexcept
ctypedef int (*_error_t)(const void *, int) noexcept
ctypedef long (*_peek_t)(void *, char **) noexcept


cdef class Functions:
    """The functions of the library, by address, in the order of `NAMES`."""

    NAMES = ("SSL_read", "SSL_write", "SSL_get_error", "BIO_read", "BIO_write", "BIO_get_mem_data")

    cdef _read_t ssl_read
    cdef _write_t ssl_write
    cdef _error_t ssl_get_error
    cdef _read_t bio_read
    cdef _write_t bio_write
    cdef _peek_t bio_get_mem_data

    def __init__(self, *addresses):
        cdef uintptr_t values[6]
        if len(addresses) != 6 or not all(addresses):
            raise ValueError("six addresses are needed")
        for index in range(6):
            values[index] = addresses[index]
        self.ssl_read = <_read_t>values[0]
        self.ssl_write = <_write_t>values[1]
        self.ssl_get_error = <_error_t>values[2]
        self.bio_read = <_read_t>values[3]
        self.bio_write = <_write_t>values[4]
        self.bio_get_mem_data = <_peek_t>values[5]


cdef class Records:
    """The octets of one connection.

    `result` and `reason` tell how the last `read` or `write` ended: what the library's function returned, and what
    SSL_get_error made of it; both are 0 where it did all it was asked for.
    """

    cdef object _owner
    cdef Functions _functions
    cdef void *_ssl
    cdef void *_into
    cdef void *_from
    cdef readonly int result
    cdef readonly int reason

    def __init__(self, Functions functions not None, object owner, uintptr_t ssl, uintptr_t into, uintptr_t out_of):
        if not ssl or not into or not out_of:
            raise ValueError("a connection with memory buffers is needed")
        self._functions = functions
        self._owner = owner
        self._ssl = <void *>ssl
        self._into = <void *>into
        self._from = <void *>out_of

    def feed(self, object octets not None):
        """Put ciphertext into the library's buffer; whether all of it went there."""
        cdef Py_buffer view
        cdef bint done = False
        PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
        try:
            if view.len <= _MOST:
                done = view.len == 0 or self._functions.bio_write(self._into, view.buf, <int>view.len) == view.len
        finally:
            PyBuffer_Release(&view)
        return done

    def drain(self):
        """Ciphertext that waits to be sent."""
        cdef char *start = NULL
        cdef long size = self._functions.bio_get_mem_data(self._from, &start)
        if size <= 0 or size > _MOST:
            return b""
        cdef bytes octets = PyBytes_FromStringAndSize(NULL, size)
        cdef int taken = self._functions.bio_read(self._from, PyBytes_AS_STRING(octets), <int>size)
        return octets if taken == size else octets[:max(taken, 0)]

    def read(self, Py_ssize_t limit):
        """Plaintext, until there are `limit` octets or the library gives no more; `reason` says why."""
        cdef char *start = NULL
        # what is to be decrypted is longer than the plaintext, but for a record that the library has begun to hand out
        cdef Py_ssize_t room = self._functions.bio_get_mem_data(self._into, &start) + <Py_ssize_t>_RECORD
        cdef Py_ssize_t size = 0
        cdef int result
        cdef PyObject *found
        self.result = self.reason = 0
        room = min(room, max(limit, <Py_ssize_t>1), <Py_ssize_t>_MOST)
        found = _new_bytes(NULL, room)
        while size < room:
            result = self._functions.ssl_read(self._ssl, _octets_of(found) + size, <int>(room - size))
            if result <= 0:
                self.result = result
                self.reason = self._functions.ssl_get_error(self._ssl, result)
                break
            size += result
        _PyBytes_Resize(&found, size)
        octets = <object>found
        Py_DECREF(octets)
        return octets

    def write(self, *pieces):
        """Encrypt, with no regard to where pieces end, so that all records but the last are full.

        Returns what is to be sent: what waited for that, and the records.  These are not all where there is a `reason`.
        """
        cdef char seam[_RECORD]
        cdef Py_ssize_t held = 0, total = 0, filled = 0, room, done, part
        cdef Py_buffer view
        cdef char *start = NULL
        cdef char *target
        cdef bytes octets
        cdef PyObject *found
        self.result = self.reason = 0
        for piece in pieces:
            total += len(piece)
        if total > _MOST:
            raise ValueError("too much at a time")
        room = self._functions.bio_get_mem_data(self._from, &start) + total + (total // _RECORD + 1) * _GROWTH
        octets = PyBytes_FromStringAndSize(NULL, room)
        target = PyBytes_AS_STRING(octets)
        for piece in pieces:
            PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
            try:
                done = 0
                while done < view.len and not self.reason:
                    part = min(<Py_ssize_t>_RECORD - held, view.len - done)
                    if part == _RECORD:
                        filled += self._encrypt(<const char *>view.buf + done, part, target + filled, room - filled)
                    else:
                        memcpy(seam + held, <const char *>view.buf + done, part)
                        held += part
                        if held == _RECORD:
                            filled += self._encrypt(seam, held, target + filled, room - filled)
                            held = 0
                    done += part
            finally:
                PyBuffer_Release(&view)
        if not self.reason:
            filled += self._encrypt(seam, held, target + filled, room - filled)
        # nobody else knows the object yet: cut it to its size
        found = <PyObject *>octets
        Py_INCREF(octets)
        octets = None
        _PyBytes_Resize(&found, filled)
        octets = <bytes>found
        Py_DECREF(octets)
        more = self.drain()
        return octets + more if more else octets

    cdef Py_ssize_t _encrypt(self, const char *octets, Py_ssize_t size, char *target, Py_ssize_t room) noexcept:
        """Make records, and take them from the library while they are in the processor's cache; returns their size."""
        cdef Py_ssize_t done = 0
        cdef char *start = NULL
        cdef int result
        while done < size:
            result = self._functions.ssl_write(self._ssl, octets + done, <int>(size - done))
            if result <= 0:
                self.result = result
                self.reason = self._functions.ssl_get_error(self._ssl, result)
                return 0
            done += result
        room = min(room, <Py_ssize_t>self._functions.bio_get_mem_data(self._from, &start))
        return max(self._functions.bio_read(self._from, target, <int>room), 0) if room > 0 else 0

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
from libc.stdint cimport uintptr_t

cdef enum:
    #: largest plaintext of one record (RFC 8446 §5.1)
    _RECORD = 16384
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
        cdef char space[_RECORD]
        cdef int wanted = <int>min(<Py_ssize_t>_RECORD, max(limit, <Py_ssize_t>1))
        cdef Py_ssize_t size = 0
        cdef bytes first = b""
        cdef list more = None
        cdef int result
        self.result = self.reason = 0
        while size < limit:
            result = self._functions.ssl_read(self._ssl, space, wanted)
            if result <= 0:
                self.result = result
                self.reason = self._functions.ssl_get_error(self._ssl, result)
                break
            if size == 0:
                first = PyBytes_FromStringAndSize(space, result)
            elif more is None:
                more = [first, PyBytes_FromStringAndSize(space, result)]
            else:
                more.append(PyBytes_FromStringAndSize(space, result))
            size += result
        return first if more is None else b"".join(more)

    def write(self, object octets not None):
        """Encrypt; whether all of it was."""
        cdef Py_buffer view
        cdef Py_ssize_t done = 0
        cdef int result
        self.result = self.reason = 0
        PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
        try:
            if view.len > _MOST:
                raise ValueError("too much at a time")
            while done < view.len:
                result = self._functions.ssl_write(self._ssl, <const char *>view.buf + done, <int>(view.len - done))
                if result <= 0:
                    self.result = result
                    self.reason = self._functions.ssl_get_error(self._ssl, result)
                    return False
                done += result
        finally:
            PyBuffer_Release(&view)
        return True

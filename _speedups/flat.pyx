# cython: language_level=3
"""Events about one recipient, packed in one pass: the octets that the queue keeps and a worker gets, and their key.

Layer: kernel of engine/delivery/stored.py, whose text has the format.  Reference: `Layout.told`, which makes the same
of a `Happening`; tests/delivery/test_stored.py compares them.  No directive is turned off; everything is written into
an object of exactly the size that was added up for it, and each write is compared with its end (packing.pxd).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t
from libc.string cimport memchr

from packing cimport Out, _copy, _head, _pack_number, _sized

cdef extern from *:
    """
    /* The last of these octets that is `wanted`; NULL if none is. */
    static const char *flat_last(const char *text, Py_ssize_t size, char wanted)
    {
        while (size > 0)
            if (text[--size] == wanted) return text + size;
        return NULL;
    }
    """
    const char *flat_last(const char *text, Py_ssize_t size, char wanted) noexcept nogil

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object value, Py_ssize_t *size) except NULL
    int PyFloat_Pack8(double value, char *place, int little) except -1

#: what may be told of a recipient, each by the number of its place here
VALUES = ("local_part", "domain", "message_exim_id", "event_data", "event_defer_errno", "event_time")

cdef enum:
    _LOCAL_PART = 0
    _DOMAIN = 1
    _MESSAGE_ID = 2
    _DATA = 3
    _ERRNO = 4
    _TIME = 5
    _COUNT = 6
    # octets of a key beside those of its texts: three slashes and two numbers of 64 bits
    _KEY_MORE = 43
    # of a whole key that needs no room of its own
    _KEY = 256

cdef struct Text:
    const char *at
    Py_ssize_t size


@cython.final
@cython.no_gc
@cython.freelist(512)
cdef class Told:
    """An event that this process has raised: an `OutboxEvent`, and what is known of it beside what the queue keeps."""

    cdef public str name, key, handler, group, message_id
    cdef public bytes payload
    cdef public object id, stored_at, redelivered, layout
    cdef public Py_ssize_t begin

    def __init__(
        self,
        str name not None,
        str key not None,
        bytes payload not None,
        id=0,
        stored_at=0.0,
        str handler not None="",
        str group not None="",
        redelivered=0,
        layout=None,
        Py_ssize_t begin=0,
        str message_id not None="",
    ):
        self.name, self.key, self.payload = name, key, payload
        self.id, self.stored_at, self.handler, self.group = id, stored_at, handler, group
        self.redelivered, self.layout, self.begin, self.message_id = redelivered, layout, begin, message_id

    def __repr__(self):
        return f"<Told {self.id} {self.key}>"


cdef class Flat:
    """How one event about a recipient is packed.

    Args:
        event: its name.
        before: what stands before the id of the message in a payload; names: between that and the values.
        picks: what is told after what is the same for the contact and the sender: places in `VALUES`.
        handler, group: who it is for.
    """

    cdef readonly str event, handler, group
    cdef bytes _before, _names
    cdef int[32] _picks
    cdef int _size

    def __init__(
        self,
        str event not None,
        bytes before not None,
        bytes names not None,
        tuple picks not None,
        str handler not None,
        str group not None,
    ):
        cdef int index = 0
        if len(picks) > 32:
            raise ValueError("more values than there are")
        for pick in picks:
            if not 0 <= pick < _COUNT:
                raise ValueError(f"there is no value {pick}")
            self._picks[index] = pick
            index += 1
        self._size = index
        self.event, self.handler, self.group = event, handler, group
        self._before, self._names = before, names

    def flat(self, contact, job, str message_id not None, claim, str data not None, errno, now):
        """The event of a recipient.

        Args:
            contact: that has what is the same for it and a sender in `kept`, or gets it by `keep`.
            job: whose message it is; claim: whose recipient.
            data: `$event_data`; errno: `$event_defer_errno`; now: UTC epoch seconds; anything, if they are not told.
        """
        cdef Text[_DATA + 1] texts
        cdef Text address
        cdef const char *at_sign
        cdef object known = contact.kept.get(self)
        cdef bytes first, octets
        cdef str location = claim.address
        sender, created_at = job.sender, job.created_at
        if known is None or known[0] != sender or known[1] != created_at:
            known = self.keep(contact, sender, created_at)
        first = known[2]
        address.at = PyUnicode_AsUTF8AndSize(location, &address.size)
        texts[_MESSAGE_ID].at = PyUnicode_AsUTF8AndSize(message_id, &texts[_MESSAGE_ID].size)
        at_sign = flat_last(address.at, address.size, c"@")
        if at_sign is NULL:
            texts[_LOCAL_PART] = texts[_DOMAIN] = Text(address.at, 0)
        else:
            texts[_LOCAL_PART] = Text(address.at, at_sign - address.at)
            texts[_DOMAIN] = Text(at_sign + 1, address.at + address.size - at_sign - 1)
        told = _of_data(data)
        if isinstance(told, str):
            texts[_DATA].at = PyUnicode_AsUTF8AndSize(told, &texts[_DATA].size)
        else:
            octets = told
            texts[_DATA] = Text(PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
        return self._told(message_id, texts, first, claim.recipient_id, claim.attempts + 1, errno, now)

    cdef Told _told(
        self, str message_id, Text *texts, bytes first, int64_t recipient, int64_t attempt, int64_t errno, double now
    ):
        cdef Py_ssize_t values = PyBytes_GET_SIZE(first)
        cdef Py_ssize_t size
        cdef Text of_id = texts[_MESSAGE_ID]
        cdef bytes payload
        cdef char[9] number
        cdef Out out
        cdef int index, pick
        cdef int fits
        cdef Told told
        out.at, out.end = number, number + 9
        _pack_number(&out, errno)
        cdef Py_ssize_t number_size = out.at - number
        for index in range(self._size):
            pick = self._picks[index]
            if pick == _ERRNO:
                values += number_size
            elif pick == _TIME:
                values += 9
            else:
                values += _head_size(texts[pick].size, 0) + texts[pick].size
        size = PyBytes_GET_SIZE(self._before) + _head_size(of_id.size, 32) + of_id.size + PyBytes_GET_SIZE(self._names)
        size += _head_size(values, 0) + values
        payload = PyBytes_FromStringAndSize(NULL, size)
        out.at = PyBytes_AS_STRING(payload)
        out.end = out.at + size
        fits = (
            _copy(&out, PyBytes_AS_STRING(self._before), PyBytes_GET_SIZE(self._before))
            and _sized(&out, of_id.size, 0xA0, 32, 0xD9, 0xDA)
            and _copy(&out, of_id.at, of_id.size)
            and _copy(&out, PyBytes_AS_STRING(self._names), PyBytes_GET_SIZE(self._names))
            and _sized(&out, values, 0, 0, 0xC4, 0xC5)
            and _copy(&out, PyBytes_AS_STRING(first), PyBytes_GET_SIZE(first))
        )
        for index in range(self._size):
            pick = self._picks[index]
            if pick == _ERRNO:
                fits = fits and _copy(&out, number, number_size)
            elif pick == _TIME:
                fits = fits and _head(&out, 0xCB, 0, 8)
                if fits:
                    PyFloat_Pack8(now, out.at - 8, 0)
            else:
                fits = (
                    fits and _sized(&out, texts[pick].size, 0, 0, 0xC4, 0xC5)
                    and _copy(&out, texts[pick].at, texts[pick].size)
                )
        if not fits or out.at != out.end:
            raise AssertionError("the size of a payload was added up wrongly")
        told = Told.__new__(Told)
        told.name, told.handler, told.group, told.message_id = self.event, self.handler, self.group, message_id
        told.key = _key(of_id, recipient, attempt, self.event)
        told.payload, told.begin, told.layout = payload, size - values, self
        told.id, told.stored_at, told.redelivered = 0, 0.0, 0
        return told


cdef object _of_data(str data):
    """Text that may come from a server, in one line: as it is if it can be octets, else as such."""
    cdef Py_ssize_t size
    cdef const char *at
    try:
        at = PyUnicode_AsUTF8AndSize(data, &size)
    except UnicodeEncodeError:
        return data.replace("\n", "\\n").encode("utf-8", "surrogateescape")
    # a reply of several lines is one line in an event, as in a log
    return data if memchr(at, c"\n", size) is NULL else data.replace("\n", "\\n")


cdef str _key(Text message_id, int64_t recipient, int64_t attempt, str event):
    """message/recipient/attempt/event: the key of an event about a recipient."""
    cdef char[_KEY] room
    cdef Out out
    cdef Text name
    name.at = PyUnicode_AsUTF8AndSize(event, &name.size)
    if message_id.size + name.size + _KEY_MORE > _KEY:
        return f"{message_id.at[:message_id.size].decode()}/{recipient}/{attempt}/{event}"
    out.at, out.end = room, room + _KEY
    _copy(&out, message_id.at, message_id.size)
    _decimal(&out, recipient)
    _decimal(&out, attempt)
    _copy(&out, b"/", 1)
    _copy(&out, name.at, name.size)
    return PyUnicode_DecodeUTF8(room, out.at - room, NULL)


cdef void _decimal(Out *out, int64_t number) noexcept nogil:
    """A slash and a number."""
    cdef char[20] digits
    cdef int at = 20
    cdef bint negative = number < 0
    cdef unsigned long long left = -<unsigned long long>number if negative else <unsigned long long>number
    _copy(out, b"/-", 2 if negative else 1)
    while True:
        at -= 1
        digits[at] = <char>(c"0" + left % 10)
        left //= 10
        if not left:
            break
    _copy(out, digits + at, 20 - at)


cdef inline Py_ssize_t _head_size(Py_ssize_t size, Py_ssize_t below) noexcept nogil:
    """What `_sized` writes."""
    if size < below:
        return 1
    if size <= 0xFF:
        return 2
    return 3 if size <= 0xFFFF else 5

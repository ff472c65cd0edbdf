# cython: language_level=3
"""The scanner of the sink: commands and bodies of a client in, replies and counts out.

Layer: kernel of engine/smtp/server.py.  Spec: RFC 5321 §4.1.1 and §4.5.2, RFC 2920 §3.1 and §3.2, RFC 3030 §2, RFC 1870
§4, RFC 9422. The arguments of commands are read in `sink_arguments`.  Reference: tests/reference/sink_scanner.py, which
says what every case means; the two are compared by hypothesis. No directive is turned off.  Pointers are into `_work`,
a bytes object that this object holds for as long as it scans it; every read is at an index that the loop around it has
compared with `_end`.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy, strlen

cdef extern from "string.h":
    void *memmem(const void *, size_t, const void *, size_t) noexcept

from sink_arguments cimport (
    OFFERED_CHUNKING, OFFERED_PIPELINING, Path, _is_word, _parse_chunk, _parse_number, _parse_path
)

NEED_DATA = 0
COMMAND = 1
CLOSE = 2
DROP = 3

# what `take_messages` gives of a message: nothing, all of it, its header
KEEP_NOTHING = 0
KEEP_WHOLE = 1
KEEP_HEADER = 2

cdef enum:
    _KEEP_WHOLE = 1
    _KEEP_HEADER = 2
    _MAX_HEADER = 65536

cdef enum:
    _NEED_DATA = 0
    _COMMAND = 1
    _CLOSE = 2
    _DROP = 3
    _MAX_LINE = 12288
    _MAX_ERRORS = 50

cdef enum Mode:
    IN_COMMAND
    IN_DATA
    IN_CHUNK

# where the DATA scanner stands: inside a line, after CR, at the start of a line, after a dot there, after dot and CR
cdef enum LineState:
    INSIDE
    AFTER_CR
    AT_START
    AFTER_DOT
    AFTER_DOT_CR

cdef enum:
    MESSAGES
    RECIPIENTS
    OCTETS
    DEFERRED
    FAILED
    DROPPED
    SYNC_ERRORS
    COUNT_KINDS

cdef uint64_t _MAX_CHUNK = <uint64_t>1 << 40


cdef class Scanner:
    """Eats what a client sends, in any split, and returns the replies.  See the reference for the arguments."""

    cdef bytes _work, _prefix, _sender
    cdef bytearray _body
    cdef list _recipients, _kept
    cdef Py_ssize_t _pos, _end
    cdef char *_out
    cdef Py_ssize_t _out_length, _out_capacity
    cdef uint64_t _counts[7]
    cdef uint64_t _rcpt_defer, _rcpt_fail, _end_defer, _end_fail, _drop, _random
    cdef uint64_t _max_size, _max_messages, _max_recipients
    cdef uint64_t _size, _accepted, _message_number, _mail_number, _chunk_size, _chunk_left
    cdef int _errors, _drop_point, _pause, _keep
    cdef Mode _mode
    cdef LineState _line_state
    cdef bint _header_ended, _skipping, _in_transaction, _utf8, _chunks, _failed, _chunk_last
    cdef const char *_chunk_reply
    cdef readonly bytes line
    cdef public bint greeted, raw_lines
    cdef public uint32_t offered
    cdef public bytes refusal

    def __cinit__(
        self,
        uint64_t max_size_octets,
        uint64_t max_messages,
        uint64_t max_recipients,
        tuple thresholds not None,
        seed,
        bytes prefix not None,
        int keep,
    ):
        if not 0 <= keep <= _KEEP_HEADER:
            raise ValueError("nothing, the whole message or its header can be kept")
        self._max_size = max_size_octets
        self._max_messages = max_messages
        self._max_recipients = max_recipients
        self._rcpt_defer, self._rcpt_fail, self._end_defer, self._end_fail, self._drop = thresholds
        self._random = seed % 2**64 or 1
        self._prefix = prefix[:32]
        self._keep = keep
        self.refusal = b""
        self.line = b""
        self._work = b""
        self._kept = []
        self._mode = IN_COMMAND
        self._reset()

    def __dealloc__(self):
        PyMem_Free(self._out)

    @property
    def pause(self):
        """Why `receive` returned: NEED_DATA, COMMAND (`line` is for the caller to answer), CLOSE or DROP."""
        return self._pause

    @property
    def buffered_octets(self):
        """Octets received and not scanned."""
        return self._end - self._pos

    @property
    def in_transaction(self):
        """Whether MAIL was taken and its message has not ended."""
        return self._in_transaction

    def receive(self, bytes data not None):
        """Go on with `data` until more is needed or `pause` says something else; return the replies so far."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size:
            self._work = self._work[self._pos:] + data if self._pos < self._end else data
            self._pos = 0
            self._end = PyBytes_GET_SIZE(self._work)
        self._pause = _NEED_DATA
        while self._pause == _NEED_DATA and self._pos < self._end:
            if self._mode == IN_DATA:
                self._scan_data()
            elif self._mode == IN_CHUNK:
                self._scan_chunk()
            elif not self._scan_line():
                break
        if self._pos >= self._end:
            self.discard()
        replies = PyBytes_FromStringAndSize(self._out, self._out_length)
        self._out_length = 0
        return replies

    def reset(self):
        """Forget the transaction."""
        self._reset()

    def discard(self):
        """Throw away what was received and not scanned; return how much it was."""
        cdef Py_ssize_t size = self._end - self._pos
        self._work = b""
        self._pos = 0
        self._end = 0
        return size

    def on_error(self, bytes text not None):
        """Count an error that the caller found; returns the reply to give, and `pause` may have become CLOSE."""
        self._errors += 1
        if self._errors > _MAX_ERRORS:
            self._pause = _CLOSE
            return b"421 4.7.0 Too many errors\r\n"
        return text

    def take_counts(self):
        """Messages, recipients, octets, deferred, failed, dropped, sync errors since the last call."""
        counts = (
            self._counts[0], self._counts[1], self._counts[2], self._counts[3], self._counts[4], self._counts[5],
            self._counts[6],
        )
        cdef int kind
        for kind in range(COUNT_KINDS):
            self._counts[kind] = 0
        return counts

    def take_messages(self):
        """MAIL argument, RCPT arguments, octets and final reply of the messages taken since the last call, if kept."""
        kept = self._kept
        self._kept = []
        return kept

    # Lines

    cdef int _scan_line(self) except -1:
        """Scan one command; returns whether there was one."""
        cdef const char *text = PyBytes_AS_STRING(self._work) + self._pos
        cdef Py_ssize_t left = self._end - self._pos
        cdef const char *feed = <const char *>memchr(text, c'\n', left)
        cdef Py_ssize_t length
        if feed == NULL:
            if left > _MAX_LINE:
                self._pos = self._end
                self._skipping = True
            return 0
        length = feed - text
        self._pos += length + 1
        if self._skipping or length > _MAX_LINE:
            self._skipping = False
            self._error(b"500 5.5.6 Line too long\r\n")
        elif length == 0 or text[length - 1] != c'\r':
            self._error(b"500 5.5.2 Lines end with CR LF\r\n")
        elif self.raw_lines:
            self._hand_over(text, length - 1)
        else:
            self._command(text, length - 1)
        return 1

    cdef int _hand_over(self, const char *text, Py_ssize_t length) except -1:
        self.line = PyBytes_FromStringAndSize(text, length)
        self._pause = _COMMAND
        return 0

    cdef int _command(self, const char *text, Py_ssize_t length) except -1:
        cdef bint bare = length == 4
        if self._pos < self._end and not self._may_be_followed(text, length):
            self._counts[SYNC_ERRORS] += 1
        if length < 4:
            return self._hand_over(text, length)
        if not bare and text[4] == c' ':
            if _is_word(text, 4, b"MAIL"):
                return self._mail(text + 5, length - 5)
            if _is_word(text, 4, b"RCPT"):
                return self._rcpt(text + 5, length - 5)
            if self.offered & OFFERED_CHUNKING and _is_word(text, 4, b"BDAT"):
                return self._bdat(text + 5, length - 5)
        if bare and _is_word(text, 4, b"DATA"):
            return self._data()
        if bare and _is_word(text, 4, b"RSET"):
            self._reset()
            return self._reply(b"250 2.0.0 Ok\r\n")
        if (bare or text[4] == c' ') and _is_word(text, 4, b"NOOP"):
            return self._reply(b"250 2.0.0 Ok\r\n")
        if bare and _is_word(text, 4, b"QUIT"):
            self._pause = _CLOSE
            return self._reply(b"221 2.0.0 Bye\r\n")
        return self._hand_over(text, length)

    cdef bint _may_be_followed(self, const char *text, Py_ssize_t length) noexcept:
        """Whether a client may send more before it has the reply (RFC 2920 §3.1); the octets of BDAT always follow."""
        if length < 4:
            return False
        if _is_word(text, 4, b"BDAT"):
            return True
        return self.offered & OFFERED_PIPELINING and (
            _is_word(text, 4, b"RCPT") or _is_word(text, 4, b"MAIL") or _is_word(text, 4, b"RSET")
        )

    cdef int _mail(self, const char *text, Py_ssize_t length) except -1:
        cdef Path path
        cdef const char *problem
        cdef uint64_t size = 0
        if not self.greeted:
            return self._error(b"503 5.5.1 Say EHLO first\r\n")
        if self._in_transaction:
            return self._error(b"503 5.5.1 Nested MAIL command\r\n")
        if self.refusal:
            return self._error(PyBytes_AS_STRING(self.refusal))
        if self._max_messages and self._mail_number >= self._max_messages:
            self._pause = _CLOSE
            return self._reply(b"421 4.7.0 Too many messages on this connection\r\n")
        self._mail_number += 1
        problem = _parse_path(text, length, True, self.offered, &path)
        if problem != NULL:
            return self._error(problem)
        if not path.smtputf8 and not path.ascii:
            return self._error(b"553 5.6.7 Address needs SMTPUTF8\r\n")
        if path.size != NULL and not _parse_number(path.size, path.size_length, &size):
            return self._error(b"501 5.5.4 Bad SIZE\r\n")
        if size > self._max_size:
            return self._reply(b"552 5.3.4 Message too big\r\n")
        self._reset()
        self._in_transaction = True
        self._utf8 = path.smtputf8
        if self._keep:
            self._sender = PyBytes_FromStringAndSize(path.whole, path.whole_length)
        if self._drop and self._draw() < self._drop:
            self._drop_point = self._draw() % 6
        if self._drop_point == 0:
            return self._drop_connection()
        return self._reply(b"250 2.1.0 Ok\r\n")

    cdef int _rcpt(self, const char *text, Py_ssize_t length) except -1:
        cdef Path path
        cdef const char *problem
        cdef uint64_t number
        if not self._in_transaction or self._chunks:
            return self._error(b"503 5.5.1 Need MAIL command\r\n")
        problem = _parse_path(text, length, False, self.offered, &path)
        if problem != NULL:
            return self._error(problem)
        if not self._utf8 and not path.ascii:
            return self._error(b"553 5.6.7 Address needs SMTPUTF8\r\n")
        if self._drop_point == 1:
            return self._drop_connection()
        if self._accepted >= self._max_recipients:
            return self._reply(b"452 4.5.3 Too many recipients\r\n")
        if self._rcpt_fail:
            number = self._draw()
            if number < self._rcpt_defer:
                self._counts[DEFERRED] += 1
                return self._reply(b"450 4.2.1 Mailbox busy, try again later\r\n")
            if number < self._rcpt_fail:
                self._counts[FAILED] += 1
                return self._reply(b"550 5.1.1 No such user here\r\n")
        self._accepted += 1
        if self._keep:
            self._recipients.append(PyBytes_FromStringAndSize(path.whole, path.whole_length))
        return self._reply(b"250 2.1.5 Ok\r\n")

    cdef int _data(self) except -1:
        if not self._in_transaction or self._chunks:
            return self._error(b"503 5.5.1 Bad sequence of commands\r\n")
        if self._drop_point == 2:
            return self._drop_connection()
        if not self._accepted:
            return self._reply(b"554 5.5.1 No valid recipients\r\n")
        self._mode = IN_DATA
        self._line_state = AT_START
        return self._reply(b"354 End data with <CR><LF>.<CR><LF>\r\n")

    cdef int _bdat(self, const char *text, Py_ssize_t length) except -1:
        cdef uint64_t size = 0
        cdef bint last = False
        if not _parse_chunk(text, length, &size, &last) or size > _MAX_CHUNK:
            self._pause = _CLOSE
            return self._reply(b"501 5.5.4 Syntax error, closing connection\r\n")
        if self._in_transaction and self._drop_point == 2:
            return self._drop_connection()
        self._chunk_last = last
        self._chunk_size = size
        self._chunk_left = size
        self._chunk_reply = NULL
        if not self._in_transaction or self._failed:
            self._chunk_reply = b"503 5.5.1 Bad sequence of commands\r\n"
        elif not self._accepted:
            self._chunk_reply = b"554 5.5.1 No valid recipients\r\n"
        elif self._size + size > self._max_size:
            self._chunk_reply = b"552 5.3.4 Message too big\r\n"
        self._chunks = self._in_transaction
        self._mode = IN_CHUNK
        if not size:
            return self._end_chunk()
        return 0

    # Bodies

    cdef int _emit(self, const char *text, Py_ssize_t length) except -1:
        """Count octets of the body, and keep what the limit allows."""
        cdef uint64_t room
        cdef Py_ssize_t before
        if self._keep and not self._header_ended and self._size < self._max_size and length > 0:
            room = self._max_size - self._size
            before = PyByteArray_GET_SIZE(self._body)
            if self._keep == _KEEP_HEADER:
                room = min(room, <uint64_t>self._header_part(text, length))
            if <uint64_t>length < room:
                room = <uint64_t>length
            PyByteArray_Resize(self._body, before + <Py_ssize_t>room)
            memcpy(PyByteArray_AS_STRING(self._body) + before, text, <size_t>room)
        self._size += <uint64_t>length
        if self._keep and self._size > self._max_size:
            # It will be refused: hold none of it meanwhile.
            self._body = bytearray()
        return 0

    cdef Py_ssize_t _header_part(self, const char *text, Py_ssize_t length) except -1:
        """How many of the next octets of the body belong to the header, with the empty line that ends it."""
        cdef char seam[6]
        cdef Py_ssize_t before = PyByteArray_GET_SIZE(self._body)
        cdef Py_ssize_t tail = min(before, <Py_ssize_t>3)
        cdef Py_ssize_t lead = min(length, <Py_ssize_t>3)
        cdef Py_ssize_t part = min(length, <Py_ssize_t>_MAX_HEADER - before)
        cdef const char *found
        memcpy(seam, PyByteArray_AS_STRING(self._body) + before - tail, tail)
        memcpy(seam + tail, text, lead)
        found = <const char *>memmem(seam, tail + lead, b"\r\n\r\n", 4)
        if found != NULL:
            part = min(part, <Py_ssize_t>(found - seam) + 4 - tail)
            self._header_ended = True
        else:
            found = <const char *>memmem(text, part, b"\r\n\r\n", 4)
            if found != NULL:
                part = <Py_ssize_t>(found - text) + 4
            self._header_ended = found != NULL or before + part == _MAX_HEADER
        return part

    cdef int _scan_data(self) except -1:
        cdef const char *base = PyBytes_AS_STRING(self._work)
        cdef Py_ssize_t start = self._pos
        cdef Py_ssize_t end = self._end
        cdef Py_ssize_t search
        cdef const char *feed
        while start < end:
            if self._line_state == AFTER_CR:
                if base[start] == c'\n':
                    self._emit(base + start, 1)
                    start += 1
                    self._line_state = AT_START
                else:
                    self._line_state = INSIDE
            elif self._line_state == AT_START:
                if base[start] == c'.':
                    start += 1
                    self._line_state = AFTER_DOT
                else:
                    self._line_state = INSIDE
            elif self._line_state == AFTER_DOT:
                if base[start] == c'\r':
                    start += 1
                    self._line_state = AFTER_DOT_CR
                else:
                    self._line_state = INSIDE
            elif self._line_state == AFTER_DOT_CR:
                if base[start] == c'\n':
                    self._pos = start + 1
                    self._mode = IN_COMMAND
                    return self._end_message(self._size > self._max_size)
                self._emit(b"\r", 1)
                self._line_state = INSIDE
            else:
                search = start
                while True:
                    feed = <const char *>memchr(base + search, c'\n', end - search)
                    if feed == NULL:
                        self._line_state = AFTER_CR if base[end - 1] == c'\r' else INSIDE
                        search = end
                        break
                    search = feed - base + 1
                    if search - 2 >= start and base[search - 2] == c'\r' and (search == end or base[search] == c'.'):
                        self._line_state = AT_START
                        break
                self._emit(base + start, search - start)
                start = search
        self._pos = end
        return 0

    cdef int _scan_chunk(self) except -1:
        cdef Py_ssize_t part = self._end - self._pos
        if <uint64_t>part > self._chunk_left:
            part = <Py_ssize_t>self._chunk_left
        if self._chunk_reply == NULL:
            self._emit(PyBytes_AS_STRING(self._work) + self._pos, part)
        self._pos += part
        self._chunk_left -= <uint64_t>part
        if self._chunk_left == 0:
            return self._end_chunk()
        return 0

    cdef int _end_chunk(self) except -1:
        cdef char text[64]
        self._mode = IN_COMMAND
        if self._chunk_reply != NULL:
            if self._in_transaction and self._chunk_last and self._drop_point >= 3:
                return self._drop_connection()
            self._failed = self._in_transaction
            self._reply(self._chunk_reply)
            if self._chunk_last:
                self._reset()
            return 0
        if self._chunk_last:
            return self._end_message(False)
        snprintf(text, sizeof(text), b"250 2.0.0 %llu octets received\r\n", <unsigned long long>self._chunk_size)
        return self._reply(text)

    cdef int _end_message(self, bint too_big) except -1:
        cdef const char *reply = NULL
        cdef char text[128]
        cdef uint64_t number
        cdef int drop_point = self._drop_point
        if drop_point == 3:
            return self._drop_connection()
        if too_big:
            reply = b"552 5.3.4 Message too big\r\n"
        elif self._end_fail and drop_point != 4:
            number = self._draw()
            if number < self._end_defer:
                self._counts[DEFERRED] += self._accepted
                reply = b"451 4.3.0 Try again later\r\n"
            elif number < self._end_fail:
                self._counts[FAILED] += self._accepted
                reply = b"554 5.6.0 Message refused\r\n"
        if reply == NULL:
            self._message_number += 1
            self._counts[MESSAGES] += 1
            self._counts[RECIPIENTS] += self._accepted
            self._counts[OCTETS] += self._size
            snprintf(
                text, sizeof(text), b"250 2.0.0 Ok: queued as %s-%llu\r\n", PyBytes_AS_STRING(self._prefix),
                <unsigned long long>self._message_number,
            )
            reply = text
            if self._keep:
                self._kept.append((self._sender, tuple(self._recipients), bytes(self._body), <bytes>reply))
        self._reset()
        if drop_point != 4:
            self._reply(reply)
        if drop_point >= 4:
            return self._drop_connection()
        return 0

    # Small things

    cdef int _reset(self) except -1:
        self._in_transaction = False
        self._accepted = 0
        self._size = 0
        self._utf8 = False
        self._chunks = False
        self._failed = False
        self._drop_point = -1
        if self._keep:
            self._sender = b""
            self._recipients = []
            self._body = bytearray()
            self._header_ended = False
        return 0

    cdef int _reply(self, const char *text) except -1:
        cdef Py_ssize_t length = <Py_ssize_t>strlen(text)
        cdef Py_ssize_t capacity
        cdef void *grown
        if self._out_length + length > self._out_capacity:
            capacity = 2 * (self._out_length + length) + 1024
            grown = PyMem_Realloc(self._out, capacity)
            if grown == NULL:
                raise MemoryError
            self._out = <char *>grown
            self._out_capacity = capacity
        memcpy(self._out + self._out_length, text, length)
        self._out_length += length
        return 0

    cdef int _error(self, const char *text) except -1:
        self._errors += 1
        if self._errors > _MAX_ERRORS:
            self._pause = _CLOSE
            return self._reply(b"421 4.7.0 Too many errors\r\n")
        return self._reply(text)

    cdef int _drop_connection(self) except -1:
        self._counts[DROPPED] += 1
        self._reset()
        self._pause = _DROP
        return 0

    cdef uint64_t _draw(self) noexcept:
        """The next of xorshift64*'s numbers, its upper 32 bits (Vigna, 2016)."""
        self._random ^= self._random >> 12
        self._random ^= self._random << 25
        self._random ^= self._random >> 27
        return (self._random * <uint64_t>0x2545F4914F6CDD1D) >> 32

# cython: language_level=3
"""The client's wire: replies out of octets, groups of commands into octets, content checked and dot-stuffed.

Layer: kernel of engine/smtp/client.py.  Spec: RFC 5321 §4.2 (replies), §4.5.2 (transparency), §4.1.1 (commands), RFC
2920 §3.1 (groups).  Reference: tests/reference/wire.py, which says what every case means; hypothesis compares the two.
No directive is turned off.  Pointers are into bytes objects that the function or the parser holds while it scans them;
every read is at an index below the length that the loop around it has compared.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr

from smtp_text cimport _check_path, _put, _put_bytes

from engine.errors import DataError, LocalProtocolError
from engine.smtp.replies import Reply

#: octets of a line with its end; RFC 5321 §4.5.3.1.5 has 512, servers are chatty
MAX_LINE_OCTETS = 4096
#: octets and lines of a reply; arbitrary, a long EHLO reply has 1 KiB and 20 lines
MAX_REPLY_OCTETS = 65536
MAX_REPLY_LINES = 512

cdef enum:
    _LINE = 4096
    _REPLY = 65536
    _LINES = 512

cdef object _new = tuple.__new__


cdef inline bint _is_digit(char octet) noexcept nogil:
    return c'0' <= octet <= c'9'


cdef class ReplyParser:
    """Turns octets in any split into replies.

    `problem` is None until the peer says something that is no reply; from then on nothing is parsed, and `evidence`
    has the line (or its beginning) that is to blame.
    """

    cdef bytes _rest
    cdef list _lines
    cdef Py_ssize_t _octets
    cdef int _code
    cdef readonly object problem
    cdef readonly bytes evidence

    def __init__(self):
        self._rest = b""
        self._lines = []
        self._octets = 0
        self._code = -1
        self.problem = None
        self.evidence = b""

    @property
    def is_clean(self):
        """Whether nothing of a next reply has arrived."""
        return not self._rest and not self._lines and self.problem is None

    @property
    def buffered(self):
        """What has arrived of a next reply, at most its last line; or the evidence of a problem."""
        if self.problem is not None:
            return self.evidence
        return self._rest or (self._lines[-1] if self._lines else b"")

    def receive(self, bytes data not None):
        """Parse; returns the replies that `data` completes, in order."""
        cdef list found = []
        if self.problem is not None:
            return found
        cdef bytes work = self._rest + data if self._rest else data
        cdef const char *text = PyBytes_AS_STRING(work)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(work)
        cdef Py_ssize_t start = 0, end, stop
        cdef const char *at
        cdef int code
        cdef bytes line
        while start < size:
            at = <const char *>memchr(text + start, c'\n', size - start)
            if at == NULL:
                break
            stop = at - text
            if stop + 1 - start > _LINE:
                self._fail("line too long", work, start, stop)
                return found
            end = stop
            while end > start and (text[end - 1] == c' ' or text[end - 1] == c'\t' or text[end - 1] == c'\r'):
                end -= 1
            if memchr(text + start, 0, end - start) != NULL:
                self._fail("NUL", work, start, end)
                return found
            if (
                end - start < 3
                or not (_is_digit(text[start]) and _is_digit(text[start + 1]) and _is_digit(text[start + 2]))
                or (end - start > 3 and text[start + 3] != c' ' and text[start + 3] != c'-')
            ):
                self._fail("bad syntax" if end > start else "empty line", work, start, end)
                return found
            code = (text[start] - c'0') * 100 + (text[start + 1] - c'0') * 10 + (text[start + 2] - c'0')
            line = work[start:end]
            if self._code < 0:
                if end - start == 3 or text[start + 3] == c' ':
                    found.append(_new(Reply, (code, line)))
                    start = stop + 1
                    continue
            elif code != self._code:
                self._fail("different codes in one reply", work, start, end)
                return found
            self._octets += end - start + 1
            if len(self._lines) >= _LINES or self._octets > _REPLY:
                self._fail("reply too long", work, start, end)
                return found
            self._lines.append(line)
            if end - start > 3 and text[start + 3] == c'-':
                self._code = code
            else:
                found.append(_new(Reply, (code, b"\n".join(self._lines))))
                self._lines = []
                self._octets = 0
                self._code = -1
            start = stop + 1
        if size - start >= _LINE:
            self._fail("line too long", work, start, size)
            return found
        self._rest = work[start:] if start else work
        return found

    cdef int _fail(self, object problem, bytes work, Py_ssize_t start, Py_ssize_t end) except -1:
        self.problem = problem
        self.evidence = work[start:min(end, start + 512)]
        self._rest = b""
        self._lines = []
        return 0


cdef bint _is_line(bytes text) noexcept:
    """Whether `text` has no control characters, so that it cannot end a command."""
    cdef Py_ssize_t index
    cdef unsigned char octet
    for index in range(PyBytes_GET_SIZE(text)):
        octet = <unsigned char>PyBytes_AS_STRING(text)[index]
        if octet < 0x20 or octet == 0x7F:
            return False
    return True


def build_group(
    bytes first not None,
    bytes sender not None,
    bytes mail_parameters not None,
    tuple recipients not None,
    tuple rcpt_parameters,
    bytes rcpt_suffix not None,
    bytes last not None,
    bytes content not None,
    bint utf8=False,
):
    """Octets of a group: `first`, MAIL, a RCPT for each of `recipients`, `last`, `content`.

    Args:
        first: whole command lines, or empty.
        sender, recipients: addresses without angle brackets.
        mail_parameters, rcpt_suffix: what follows each address, with its leading space, or empty.
        rcpt_parameters: what follows the address of each recipient, before `rcpt_suffix`; or None.
        last: a whole command line, or empty.
        content: octets that follow, or empty.
        utf8: whether addresses may have octets above 127.

    Raises:
        LocalProtocolError: an address or a parameter could end its command or its path early.
    """
    cdef Py_ssize_t size, index, bad
    cdef Py_ssize_t count = len(recipients)
    cdef bytes address, parameters, block
    cdef char *at
    if rcpt_parameters is not None and len(rcpt_parameters) != count:
        raise LocalProtocolError("parameters for another number of recipients")
    bad = _check_path(PyBytes_AS_STRING(sender), PyBytes_GET_SIZE(sender), utf8)
    if bad >= 0:
        raise LocalProtocolError(f"address {sender!r} cannot be sent: octet {bad}")
    if not _is_line(mail_parameters) or not _is_line(rcpt_suffix):
        raise LocalProtocolError("a parameter has a control character")
    size = (
        PyBytes_GET_SIZE(first) + 14 + PyBytes_GET_SIZE(sender) + PyBytes_GET_SIZE(mail_parameters)
        + count * (12 + PyBytes_GET_SIZE(rcpt_suffix)) + PyBytes_GET_SIZE(last) + PyBytes_GET_SIZE(content)
    )
    for index in range(count):
        address = <bytes?>recipients[index]
        bad = _check_path(PyBytes_AS_STRING(address), PyBytes_GET_SIZE(address), utf8)
        if bad >= 0 or not address:
            raise LocalProtocolError(f"address {address!r} cannot be sent: octet {max(bad, 0)}")
        size += PyBytes_GET_SIZE(address)
        if rcpt_parameters is not None:
            parameters = <bytes?>rcpt_parameters[index]
            if not _is_line(parameters):
                raise LocalProtocolError("a parameter has a control character")
            size += PyBytes_GET_SIZE(parameters)
    block = PyBytes_FromStringAndSize(NULL, size)
    at = PyBytes_AS_STRING(block)
    at = _put_bytes(at, first)
    at = _put(at, b"MAIL FROM:<", 11)
    at = _put_bytes(at, sender)
    at = _put(at, b">", 1)
    at = _put_bytes(at, mail_parameters)
    at = _put(at, b"\r\n", 2)
    for index in range(count):
        at = _put(at, b"RCPT TO:<", 9)
        at = _put_bytes(at, <bytes>recipients[index])
        at = _put(at, b">", 1)
        if rcpt_parameters is not None:
            at = _put_bytes(at, <bytes>rcpt_parameters[index])
        at = _put_bytes(at, rcpt_suffix)
        at = _put(at, b"\r\n", 2)
    at = _put_bytes(at, last)
    at = _put_bytes(at, content)
    if at - PyBytes_AS_STRING(block) != size:
        raise AssertionError("a group of another size than was reckoned")
    return block


def inspect(bytes content not None):
    """Number of lines that begin with a dot.

    Raises:
        DataError: there is a CR or LF that is not part of CRLF, or no CRLF at the end.
    """
    cdef const char *text = PyBytes_AS_STRING(content)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(content)
    cdef Py_ssize_t start = 0, stop
    cdef Py_ssize_t dots = 0
    cdef const char *at
    while start < size:
        at = <const char *>memchr(text + start, c'\n', size - start)
        if at == NULL:
            if memchr(text + start, c'\r', size - start) != NULL:
                raise DataError(f"a bare CR in the last line of a message, octet {start}")
            raise DataError("a message whose last line does not end with CRLF")
        stop = at - text
        if stop == start or text[stop - 1] != c'\r':
            raise DataError(f"a bare LF in a message, octet {stop}")
        if memchr(text + start, c'\r', stop - 1 - start) != NULL:
            raise DataError(f"a bare CR in a message, in the line at octet {start}")
        if text[start] == c'.':
            dots += 1
        start = stop + 1
    return dots


def stuff(bytes content not None, Py_ssize_t dots):
    """`content` with the `dots` dots of `inspect` doubled (RFC 5321 §4.5.2); the object itself where there are none.

    Raises:
        ValueError: there are more or fewer lines with a dot.
    """
    if dots == 0:
        return content
    cdef const char *text = PyBytes_AS_STRING(content)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(content)
    cdef Py_ssize_t start = 0, stop
    cdef const char *found
    if not 0 < dots <= size:
        raise ValueError("another number of dots")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size + dots)
    cdef char *at = PyBytes_AS_STRING(result)
    while start < size:
        if text[start] == c'.':
            if dots == 0:
                raise ValueError("another number of dots")
            dots -= 1
            at = _put(at, b".", 1)
        found = <const char *>memchr(text + start, c'\n', size - start)
        stop = size if found == NULL else found - text + 1
        at = _put(at, text + start, stop - start)
        start = stop
    if dots:
        raise ValueError("another number of dots")
    return result

# cython: language_level=3
"""Transactions in flight as values, and the short way through one that nothing stands in the way of.

Layer: kernel of engine/smtp/client.py, which has the long way: what to do about every reply, in readable Python.  Spec:
RFC 5321 §3.3, RFC 3461 §4 (DSN parameters), RFC 6152, RFC 6531; bulk-sending section 5, rules 1 to 4; events-dane RT-1
to RT-6, 11.4.
Input: addresses and a message, both already valid.  Output: every reply as it came, and an error where none came: the
outcome of a recipient is read from these by table (delivery/outcome.py), never guessed here.

Nearly every transaction of a warm connection is sent in one piece and answered by 2xx throughout.  `Line.glue` and
`Line.take_clean` do for such a one what `Client.begin` and `Client._on_reply` would do, without a call of Python, and
do nothing at all where one thing about it is different.

Invariants: content that is not made of CRLF lines is not held; the dot-stuffed form is made once a `Content`; a short
way has the same effects as the long one, which tests/smtp/test_flight.py sees by going both.
Reference: the client without its short ways, tests/reference/plain_client.py.
No directive is turned off.  What is written goes into an object of exactly the size that was added up for it.
Long because the values and the line read each other's fields without Python, which only one module can.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdio cimport snprintf

from smtp_text cimport _check_path, _put, _put_bytes

from engine.smtp import replies
from engine.smtp._wire import inspect, stuff
from engine.smtp.ladder import Rung
from engine.smtp.replies import Reply
from engine.smtp.state import NEXT, Stage, Style

cdef enum:
    #: octets from which on a piece of content is not copied to stand in one with its envelope; a TLS record
    _LONG = 16384
    #: room for a parameter or a command with a number
    _NUMBERED = 64
    #: octets up to which the text of a reply is all of it; `replies.MAX_TEXT_CHARACTERS` is more
    _PLAIN = 1024

cdef object _Reply = Reply
cdef tuple _NEXT = NEXT
cdef object _GLUED = Style.GLUED
cdef object _AT_RSET = Stage.RSET
cdef object _AT_MAIL = Stage.MAIL
cdef object _AT_DONE = Stage.DONE
cdef object _RUNG_GLUED = Rung.GLUED
cdef object _RUNG_WINDOWED = Rung.WINDOWED
#: numbers of the recipients where there is one
cdef tuple _ONE = (0,)


@cython.final
@cython.no_gc
cdef class Content:
    """The octets of a message, made of CRLF lines; share one among the transactions that send it.

    Args:
        octets: the message; CRLF is added if it does not end with one.

    Attributes:
        pieces: of the octets, in order: as BDAT sends them.
        is_8bit: whether some octet is above 127.

    Raises:
        DataError: it has a CR or LF that is not part of CRLF: such content is never sent (RFC 5321 §2.3.8).
    """

    cdef readonly tuple pieces
    cdef readonly bint is_8bit
    cdef Py_ssize_t _size
    #: lines that begin with a dot, -1 if nobody has counted them
    cdef Py_ssize_t _dots
    cdef bytes _stuffed

    def __init__(self, bytes octets not None):
        if not octets.endswith(b"\r\n"):
            octets += b"\r\n"
        self._dots = inspect(octets)
        self.pieces = (octets,)
        self.is_8bit = not octets.isascii()
        self._size = PyBytes_GET_SIZE(octets)
        self._stuffed = None

    @classmethod
    def of_proved(cls, tuple pieces not None, bint is_8bit):
        """Content of which is proved that it is made of CRLF lines; nothing is copied before somebody asks for that."""
        cdef Content made = Content.__new__(Content)
        cdef Py_ssize_t size = 0
        if not pieces:
            raise ValueError("content without pieces")
        for piece in pieces:
            size += PyBytes_GET_SIZE(<bytes?>piece)
        made.pieces = pieces
        made.is_8bit = is_8bit
        made._size = size
        made._dots = -1
        return made

    def cut(self):
        """The first piece where it is short, so that it may be copied behind an envelope, and the other pieces."""
        cdef bytes first = <bytes>self.pieces[0]
        return (first, self.pieces[1:]) if PyBytes_GET_SIZE(first) < _LONG else (b"", self.pieces)

    def __len__(self):
        """What SIZE counts."""
        return self._size

    @property
    def octets(self):
        """The whole."""
        if len(self.pieces) > 1:
            self.pieces = (b"".join(self.pieces),)
        return self.pieces[0]

    @property
    def stuffed(self):
        """As DATA sends it, without the final dot; made once."""
        if self._stuffed is None:
            octets = self.octets
            if self._dots < 0:
                self._dots = inspect(octets)
            self._stuffed = stuff(octets, self._dots)
        return self._stuffed


@cython.final
@cython.freelist(64)
cdef class Transaction:
    """One message for recipients at one host.

    Attributes:
        sender: address without angle brackets, b"" for the null sender.
        recipients: addresses without angle brackets, at least one.
        content: the message.
        is_8bit: the content has octets above 127: BODY=8BITMIME is asked for.  Must be true if it has any.
        smtputf8: an address or a header needs SMTPUTF8 (RFC 6531).
        requiretls: every host on the way must have TLS that is proved (RFC 8689); the host must offer it.
        ret: ``FULL`` or ``HDRS``; envid: unencoded octets; notify: ``("NEVER",)`` or some of SUCCESS, FAILURE, DELAY;
            orcpt: unencoded original recipient of each recipient as ``rfc822;address``, or None.  Sent only where DSN
            is offered.
        tag: the caller's.
    """

    cdef readonly bytes sender
    cdef readonly object recipients
    cdef readonly Content content
    cdef readonly bint is_8bit
    cdef readonly bint smtputf8
    cdef readonly bint requiretls
    cdef readonly object ret
    cdef readonly object envid
    cdef readonly object notify
    cdef readonly object orcpt
    cdef readonly object tag

    def __init__(
        self,
        bytes sender not None,
        object recipients not None,
        Content content not None,
        bint is_8bit=False,
        bint smtputf8=False,
        bint requiretls=False,
        object ret=None,
        object envid=None,
        object notify=None,
        object orcpt=None,
        object tag=None,
    ):
        self.sender = sender
        self.recipients = recipients
        self.content = content
        self.is_8bit = is_8bit
        self.smtputf8 = smtputf8
        self.requiretls = requiretls
        self.ret = ret
        self.envid = envid
        self.notify = notify
        self.orcpt = orcpt
        self.tag = tag


@cython.final
@cython.freelist(64)
cdef class TransactionResult:
    """Everything that is known of a transaction that has ended.

    Read it in this order: `untouched`, then `mail`, then each of `recipients`, then `data`, then `final`, then `error`.

    Attributes:
        transaction: what was given.
        mail: reply to MAIL.
        recipients: for each recipient the reply to its RCPT; a `DeliveryError` of scope RECIPIENT if that reply timed
            out (RT-3); None if it was not asked: MAIL was refused, a limit of the host left it for a
            further transaction (see `rest`), or the connection was gone (see `error`).
        rest: numbers of the recipients that a limit left out: 452 after another RCPT was answered (RT-4), RCPTMAX,
            RCPTDOMAINMAX.  No fault of theirs: they go in another transaction, on this connection if it is usable.
        data: reply to DATA; None with BDAT.
        final: reply to the end of the content.
        error: what ended it instead of a reply.  Scope HOST, MESSAGE, RECIPIENT as 11.4 says; LOCAL for cancellation.
        in_doubt: the final octet may have left and its reply did not come, and at least one recipient was not refused
            before: the message may have been delivered to those.
        untouched: the host has done nothing with it and it is not to blame (the connection ended under an earlier one,
            the host closed a connection that was idle, a limit of messages was reached): give it to
            another connection at once, without penalty.
        pipelined: MAIL, RCPT and DATA went in one group (`L` in the log); chunked: BDAT was used (`K`).
        number: of the transaction on its connection, from 1.
        mail_parameters: what followed the sender in MAIL, with its leading space.
    """

    cdef readonly Transaction transaction
    cdef public list recipients
    cdef public object mail
    cdef public object data
    cdef public object final
    cdef public object error
    cdef list _rest
    cdef public bint in_doubt
    cdef public bint untouched
    cdef readonly bint pipelined
    cdef readonly bint chunked
    cdef readonly Py_ssize_t number
    cdef public bytes mail_parameters

    def __init__(
        self,
        Transaction transaction not None,
        list recipients not None,
        *,
        bint pipelined=False,
        bint chunked=False,
        Py_ssize_t number=0,
    ):
        self.transaction = transaction
        self.recipients = recipients
        self.pipelined = pipelined
        self.chunked = chunked
        self.number = number
        self.mail_parameters = b""

    @property
    def rest(self):
        if self._rest is None:
            self._rest = []
        return self._rest

    @rest.setter
    def rest(self, list numbers not None):
        self._rest = numbers

    @property
    def confirmation(self):
        """The text of the last reply where all recipients have their message, as nearly all have: every reply was 2xx,
        and none is missing.  None for any other end."""
        cdef bytes raw
        if not _is_yes(self.final) or self.untouched or self._rest:
            return None
        if self.mail is not None and not _is_yes(self.mail):
            return None
        for answer in self.recipients:
            if not _is_yes(answer):
                return None
        raw = <bytes?>(<tuple>self.final)[1]
        if PyBytes_GET_SIZE(raw) <= _PLAIN and raw.isascii():
            return raw.decode("ascii")
        return self.final.text

    @property
    def mail_command(self):
        """As in the log: ``MAIL FROM:<a@example.org> SIZE=1234``."""
        line = b"MAIL FROM:<" + self.transaction.sender + b">" + self.mail_parameters
        return line.decode("utf-8", "backslashreplace")

    @property
    def accepted(self):
        """Numbers of the recipients whose RCPT was accepted."""
        return [index for index, reply in enumerate(self.recipients) if isinstance(reply, Reply) and reply.is_success]

    def mail_error_text(self):
        """The text of 11.5 for `mail`."""
        return _text(self.mail_command, self.mail, self.pipelined)

    def recipient_command(self, Py_ssize_t index):
        """The command in the words of 11.5: ``RCPT TO:<a@example.org>``."""
        return f"RCPT TO:<{self.transaction.recipients[index].decode('utf-8', 'backslashreplace')}>"

    def recipient_error_text(self, Py_ssize_t index):
        """The text of 11.5 for one of `recipients`, be it a reply or an error."""
        answer = self.recipients[index]
        if answer is None or isinstance(answer, Reply):
            return _text(self.recipient_command(index), answer, False)
        return answer.message

    def data_error_text(self):
        """The text of 11.5 for `data`."""
        return _text("DATA", self.data, self.pipelined)

    def final_error_text(self):
        """The text of 11.5 for `final`."""
        return _text(replies.END_OF_DATA, self.final, False)


cdef str _text(str command, object reply, bint pipelined):
    return "" if reply is None else replies.error_text(command, reply, pipelined=pipelined)


cdef inline bint _is_yes(object reply) except -1:
    """Whether it is a reply, and that is 2xx."""
    return type(reply) is _Reply and 200 <= <int>(<tuple>reply)[0] <= 299


@cython.final
@cython.freelist(64)
cdef class Flight:
    """One transaction in the line, and where it stands.

    Attributes:
        result: what will be told of it.
        style: how its commands are sent; transitions: what each answer leads to, `state.NEXT`.
        is_lock_step, is_chunked: of the style.
        asked: numbers of the recipients that are named in this transaction.
        stage: which reply comes next.
        rung: the step of the ladder that this exercises, None if it proves nothing.
        answered, accepted, decided: recipients answered, accepted, and accepted or refused for good.
        begins_again: the server cannot do what it announced: what it refused for that reason is to be sent again in
            another way.
        written: everything it has to send is in the output or gone; final_handed: its last octet was handed over.
        octets: of commands and content, as far as they are in the output or gone.
        group: lock-step: MAIL and RCPT, until they are sent.
        was_windowed: it was begun while others were in flight.
    """

    cdef readonly Transaction transaction
    cdef readonly TransactionResult result
    cdef readonly object style
    cdef readonly object transitions
    cdef readonly bint is_lock_step
    cdef readonly bint is_chunked
    cdef readonly tuple asked
    cdef public object stage
    cdef public object rung
    cdef public Py_ssize_t answered
    cdef public Py_ssize_t accepted
    cdef public Py_ssize_t decided
    cdef public bint begins_again
    cdef public bint written
    cdef public bint final_handed
    cdef public Py_ssize_t octets
    cdef public bytes group
    cdef public bint was_windowed

    def __init__(
        self,
        Transaction transaction not None,
        object style not None,
        tuple asked not None,
        object rung,
        Py_ssize_t number,
    ):
        self._set_up(
            transaction, style, asked, rung, number, [None] * len(transaction.recipients), style.is_lock_step,
            style.is_chunked
        )

    cdef int _set_up(
        self,
        Transaction transaction,
        object style,
        tuple asked,
        object rung,
        Py_ssize_t number,
        list answers,
        bint is_lock_step,
        bint is_chunked,
    ) except -1:
        cdef TransactionResult result = TransactionResult.__new__(TransactionResult)
        result.transaction = transaction
        result.recipients = answers
        result.pipelined = not is_lock_step
        result.chunked = is_chunked
        result.number = number
        result.mail_parameters = b""
        self.transaction = transaction
        self.result = result
        self.style = style
        self.transitions = _NEXT[<Py_ssize_t>style]
        self.is_lock_step = is_lock_step
        self.is_chunked = is_chunked
        self.asked = asked
        self.stage = _AT_MAIL
        self.rung = rung
        self.group = b""
        return 0


cdef class Line:
    """The transactions in flight on a connection, in the order of their commands; see `client.Client`, which adds what
    is to be done about each reply.

    Args:
        capabilities: of the last EHLO.
        memory: of the host.
        window: transactions in flight at most; 0 for one command at a time.
        max_flight_octets: octets in flight when a further transaction is begun, and of content that is glued.

    Attributes:
        closing: the 421 with which the server ended the connection, or None.
        begun: transactions begun.
        reply_count: replies received; a peer that sends octets and never completes one makes no progress.
    """

    cdef readonly object capabilities
    cdef readonly object memory
    cdef public object closing
    cdef public Py_ssize_t begun
    cdef public Py_ssize_t reply_count
    cdef public list _flights
    cdef public Py_ssize_t _flight_octets
    cdef public list _output
    cdef public list _completing
    cdef public list _results
    cdef public bint _needs_rset
    cdef public bint _is_over
    # transactions that ended with a reply to their content
    cdef public Py_ssize_t _finished
    # the replies to the probe so far, None when there is none under way
    cdef public object _probe
    cdef readonly Py_ssize_t _window
    cdef readonly Py_ssize_t _max_flight_octets
    cdef readonly bint _pipelining
    cdef readonly object _mail_max
    cdef readonly object _rcpt_max
    # what of the capabilities the short way asks for each transaction
    cdef bint _glues
    cdef bint _tells_size
    cdef bint _eightbitmime
    cdef bint _dsn
    cdef bint _limits_domains
    cdef object _size_limit

    def __init__(
        self, object capabilities not None, object memory not None, Py_ssize_t window, Py_ssize_t max_flight_octets
    ):
        self.capabilities = capabilities
        self.memory = memory
        self.closing = None
        self._flights = []
        self._output = []
        self._completing = []
        self._results = []
        self._probe = None
        self._window = window
        self._max_flight_octets = max_flight_octets
        self._pipelining = capabilities.pipelining
        self._mail_max = capabilities.mail_max
        self._rcpt_max = capabilities.rcpt_max
        self._glues = capabilities.pipelining and capabilities.chunking and window > 0
        self._tells_size = capabilities.size
        self._eightbitmime = capabilities.eightbitmime
        self._dsn = capabilities.dsn
        self._limits_domains = capabilities.rcpt_domain_max is not None
        self._size_limit = capabilities.size_limit

    @property
    def is_over(self):
        """Whether no further transaction can be begun on this connection, ever."""
        return self._ends()

    @property
    def can_begin(self):
        """Whether `begin` may be called now."""
        return self._may_begin()

    @property
    def in_flight(self):
        """Transactions that have been begun and have no result yet."""
        return len(self._flights)

    @property
    def has_output(self):
        return bool(self._output)

    cdef bint _ends(self) except -1:
        return (
            self._is_over
            or self.closing is not None
            or (self._mail_max is not None and self.begun >= <Py_ssize_t>self._mail_max)
        )

    cdef bint _may_begin(self) except -1:
        cdef Py_ssize_t count = len(self._flights)
        if count == 0:
            return self._probe is None and not self._ends()
        return (
            count < self._window
            and self._flight_octets < self._max_flight_octets
            and (<Flight?>self._flights[count - 1]).written
            and self._finished > 0
            and self.memory.rung is _RUNG_WINDOWED
            and self._pipelining
            and not self._ends()
        )

    def glue(self, Transaction transaction not None):
        """Take a transaction and write it in one piece with its content, if that is how it goes and there is nothing
        to be thought about; returns whether it was taken."""
        cdef object rung = self.memory.rung
        cdef Content content = transaction.content
        cdef Py_ssize_t count, window = len(self._flights)
        cdef object limit
        if not self._glues or (rung is not _RUNG_GLUED and rung is not _RUNG_WINDOWED) or not self._may_begin():
            return False
        if self.memory.swallows is not True or self.memory.refuses_bdat:
            return False
        if content._size > self._max_flight_octets - self._flight_octets:
            return False
        if self._size_limit is not None and content._size > <Py_ssize_t>self._size_limit:
            return False
        if transaction.smtputf8 or transaction.requiretls:
            return False
        if (transaction.is_8bit or content.is_8bit) and not self._eightbitmime:
            return False
        if self._dsn and not (
            transaction.ret is None and not transaction.envid and not transaction.notify and transaction.orcpt is None
        ):
            return False
        if type(transaction.recipients) is not list and type(transaction.recipients) is not tuple:
            return False
        count = len(transaction.recipients)
        if count == 0:
            return False
        if count > 1:
            limit = self.memory.recipient_limit
            if (
                self._limits_domains
                or (limit is not None and count > <Py_ssize_t>limit)
                or (self._rcpt_max is not None and count > <Py_ssize_t>self._rcpt_max)
            ):
                return False
        return self._write(transaction, rung, count, window > 0)

    cdef bint _write(self, Transaction transaction, object rung, Py_ssize_t count, bint is_windowed) except -1:
        """The second half of `glue`; False where an address cannot be sent like that."""
        cdef Content content = transaction.content
        cdef char size[_NUMBERED]
        cdef char bdat[_NUMBERED]
        cdef Py_ssize_t size_length = 0, bdat_length, octets, index
        cdef bint is_8bit = transaction.is_8bit or content.is_8bit
        cdef bint rset = self._needs_rset
        cdef bytes address, group, first = <bytes>content.pieces[0]
        cdef char *at
        cdef Flight flight
        cdef list answers
        if PyBytes_GET_SIZE(first) >= _LONG:
            first = b""
        if is_windowed:
            rset = (<Flight>self._flights[len(self._flights) - 1]).is_chunked
        if _check_path(PyBytes_AS_STRING(transaction.sender), PyBytes_GET_SIZE(transaction.sender), False) >= 0:
            return False
        if self._tells_size:
            size_length = snprintf(size, sizeof(size), b" SIZE=%zd", content._size)
        bdat_length = snprintf(bdat, sizeof(bdat), b"BDAT %zd LAST\r\n", content._size)
        octets = (
            (6 if rset else 0) + 14 + PyBytes_GET_SIZE(transaction.sender) + size_length + (14 if is_8bit else 0)
            + count * 12 + bdat_length + PyBytes_GET_SIZE(first)
        )
        for index in range(count):
            address = <bytes?>transaction.recipients[index]
            if not address or _check_path(PyBytes_AS_STRING(address), PyBytes_GET_SIZE(address), False) >= 0:
                return False
            octets += PyBytes_GET_SIZE(address)
        group = PyBytes_FromStringAndSize(NULL, octets)
        at = PyBytes_AS_STRING(group)
        if rset:
            at = _put(at, b"RSET\r\n", 6)
        at = _put(at, b"MAIL FROM:<", 11)
        at = _put_bytes(at, transaction.sender)
        at = _put(at, b">", 1)
        at = _put(at, size, size_length)
        if is_8bit:
            at = _put(at, b" BODY=8BITMIME", 14)
        at = _put(at, b"\r\n", 2)
        for index in range(count):
            at = _put(at, b"RCPT TO:<", 9)
            at = _put_bytes(at, <bytes>transaction.recipients[index])
            at = _put(at, b">\r\n", 3)
        at = _put(at, bdat, bdat_length)
        at = _put_bytes(at, first)
        if at - PyBytes_AS_STRING(group) != octets:
            raise AssertionError("a group of another size than was reckoned")

        flight = Flight.__new__(Flight)
        answers = [None] if count == 1 else [None] * count
        flight._set_up(
            transaction, _GLUED, _ONE if count == 1 else tuple(range(count)), rung, self.begun + 1, answers, False, True
        )
        if rset:
            flight.stage = _AT_RSET
        flight.result.mail_parameters = size[:size_length] + (b" BODY=8BITMIME" if is_8bit else b"")
        flight.was_windowed = is_windowed
        flight.written = True
        flight.octets = octets + content._size - PyBytes_GET_SIZE(first)
        self._output.append(group)
        if first:
            if len(content.pieces) > 1:
                self._output += content.pieces[1:]
        else:
            self._output += content.pieces
        self._completing.append(flight)
        self._flights.append(flight)
        self._flight_octets += flight.octets
        self.begun += 1
        return True

    def take_clean(self, list found not None, Py_ssize_t at):
        """Take the replies to whole glued transactions from `found`, as long as each of them says yes; the results go
        to the others.

        Returns:
            How many replies there were; 0 if it is not as simple as that.
        """
        cdef Py_ssize_t begin = at, end, first, index, count
        cdef Py_ssize_t size = len(found)
        cdef Flight flight
        cdef TransactionResult result
        cdef bint is_clean
        if self._output or self._probe is not None or self.closing is not None:
            return 0
        while self._flights:
            flight = <Flight?>self._flights[0]
            if flight.style is not _GLUED or (flight.stage is not _AT_MAIL and flight.stage is not _AT_RSET):
                break
            first = at if flight.stage is _AT_MAIL else at + 1
            count = len(flight.asked)
            end = first + 2 + count
            if end > size:
                break
            is_clean = True
            for index in range(at, end):
                if not _is_yes(found[index]):
                    is_clean = False
                    break
            if not is_clean:
                break
            result = flight.result
            result.mail = found[first]
            for index in range(count):
                result.recipients[<Py_ssize_t>flight.asked[index]] = found[first + 1 + index]
            result.final = found[end - 1]
            flight.accepted = flight.decided = flight.answered = count
            flight.stage = _AT_DONE
            self._finished += 1
            del self._flights[0]
            self._flight_octets -= flight.octets
            self._needs_rset = False
            # on the last step there is nothing more to learn
            if flight.rung is not None and flight.rung is self.memory.rung and flight.rung is not _RUNG_WINDOWED:
                self.memory.on_clean()
            self._results.append(result)
            at = end
        self.reply_count += at - begin
        return at - begin

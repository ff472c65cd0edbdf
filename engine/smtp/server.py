"""The server side of SMTP as the sink speaks it: accept, defer, refuse or drop as told, and count.

Layer: sans-I/O.  Spec: RFC 5321, RFC 3207 (STARTTLS), RFC 2920, RFC 3030, RFC 1870, RFC 6531, RFC 3461, RFC 2034, RFC
9422, RFC 4954, RFC 5802. Input: octets of a client, in any split.  Output: replies, and what to do next. Invariants:
memory is bounded by one line, the recipients of one message and, only if messages are kept, one message of the
maximum size; every octet a client sends leads to a reply, to a count, or to the end of the connection.

The compiled scanner `_sink` does everything that happens once a message; what happens once a connection is here.

Probabilities: a recipient is deferred with `defer`, refused with `fail`.  Three quarters of these are answered at
RCPT (450, 550), one quarter at the end of the message (451, 554), so that a message with one recipient meets each
with exactly the chance that was asked for.  With `drop` a transaction closes the connection at one of six points,
each as likely: instead of the reply to MAIL, to the first RCPT, to DATA (or BDAT, before its octets are read), after
the final octet with the message thrown away, after the final octet with the message taken (the client is in doubt; it
is neither deferred nor refused then), after the final reply.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import scramp

from ._sink import CLOSE, COMMAND, DROP, KEEP_HEADER, KEEP_NOTHING, KEEP_WHOLE, Scanner
from .server_auth import MECHANISMS, Authentication, scram_record

if TYPE_CHECKING:
    from collections.abc import Sequence

#: EHLO keywords that the sink knows to offer; STARTTLS, AUTH, SIZE and LIMITS depend on its options too
EXTENSIONS: Final = (
    "PIPELINING",
    "SIZE",
    "8BITMIME",
    "SMTPUTF8",
    "DSN",
    "CHUNKING",
    "ENHANCEDSTATUSCODES",
    "STARTTLS",
    "AUTH",
    "LIMITS",
)
#: octets of a message, when nothing else is said
DEFAULT_MAX_SIZE_OCTETS: Final = 52_428_800
#: recipients of a message; RFC 5321 §4.5.3.1.8 asks for 100 at least
DEFAULT_MAX_RECIPIENTS: Final = 1000
#: share of deferrals and refusals that come at RCPT, the rest at the end of the message
_RCPT_SHARE: Final = 0.75
#: no message is larger, and no count either: what the scanner counts in must hold it
_LARGEST: Final = 1 << 40
#: extension -> bit that tells the scanner that it was offered (`Offered` in _speedups/sink_arguments.pxd)
_OFFERED_BITS: Final = {
    "SIZE": 1,
    "8BITMIME": 2,
    "SMTPUTF8": 4,
    "DSN": 8,
    "CHUNKING": 16,
    "AUTH": 32,
    "PIPELINING": 64,
    "REQUIRETLS": 128,
    "MT-PRIORITY": 256,
    "DELIVERBY": 512,
    "RRVS": 1024,
}
_KEYWORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?: [!-~]+)*\Z")
_PATH: Final = re.compile(rb'<((?:[^<>"\\ ]|"(?:[^"\\]|\\.)*")*)>', re.DOTALL)


class Keep(enum.IntEnum):
    """What is kept of a message that was taken."""

    NOTHING = KEEP_NOTHING
    WHOLE = KEEP_WHOLE
    #: its header and the empty line behind it, 64 KiB at most
    HEADER = KEEP_HEADER


class Action(enum.Enum):
    """What the caller does once it has sent the replies."""

    #: receive more
    RECEIVE = "receive"
    #: do a TLS handshake as a server, then call `on_tls`
    START_TLS = "start-tls"
    #: close in order
    CLOSE = "close"
    #: close without a word
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a sink behaves.

    Attributes:
        host_name: its name in the greeting.
        extensions: which of `EXTENSIONS` (and further keywords, offered as they are) EHLO tells of; what belongs to an
            extension that is not offered (a parameter, BDAT) is refused.
        defer: probability that a recipient is deferred.
        fail: probability that a recipient is refused.
        drop: probability that a transaction drops the connection.
        max_size_octets: largest message taken.
        max_messages: MAIL commands on a connection, None for any number (MAILMAX of RFC 9422); more are answered 421.
        max_recipients: recipients of one message; more are answered 452.
        require_tls: MAIL is refused with 530 without TLS.
        credentials: user and password that AUTH must show before MAIL, or None for no authentication.

    Raises:
        ValueError: a probability is outside 0 to 1, or `defer` and `fail` together exceed 1, or a limit is below 1 or
            above 2**40, or a name, a keyword or the credentials cannot be said in SMTP.
    """

    host_name: str = "sink.invalid"
    extensions: tuple[str, ...] = EXTENSIONS
    defer: float = 0.0
    fail: float = 0.0
    drop: float = 0.0
    max_size_octets: int = DEFAULT_MAX_SIZE_OCTETS
    max_messages: int | None = None
    max_recipients: int = DEFAULT_MAX_RECIPIENTS
    require_tls: bool = False
    credentials: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not all(0.0 <= value <= 1.0 for value in (self.defer, self.fail, self.drop, self.defer + self.fail)):
            raise ValueError("defer, fail, drop and the sum of defer and fail are probabilities between 0 and 1")
        limits = (self.max_size_octets, self.max_recipients, 1 if self.max_messages is None else self.max_messages)
        if not all(1 <= limit <= _LARGEST for limit in limits):
            raise ValueError(f"limits are between 1 and {_LARGEST}")
        if not re.fullmatch(r"[!-~]{1,255}", self.host_name):
            raise ValueError(f"host name {self.host_name!r} is not one word of ASCII")
        for keyword in self.extensions:
            if not _KEYWORD.match(keyword) or len(keyword) > 500:
                raise ValueError(f"{keyword!r} is not an EHLO keyword with parameters")
        if self.credentials is not None:
            if "\0" in "".join(self.credentials):
                raise ValueError("credentials hold no NUL")
            try:
                scram_record(self.credentials[1])
            except (scramp.ScramException, ValueError) as error:
                raise ValueError(f"the password cannot be used with SCRAM: {error}") from None

    @property
    def thresholds(self) -> tuple[int, int, int, int, int]:
        """The probabilities as the scanner wants them."""
        at_rcpt = _RCPT_SHARE * (self.defer + self.fail)
        left = (1 - _RCPT_SHARE) / (1 - at_rcpt)
        return (
            _threshold(_RCPT_SHARE * self.defer),
            _threshold(at_rcpt),
            _threshold(left * self.defer),
            _threshold(left * (self.defer + self.fail)),
            _threshold(self.drop),
        )


@dataclass(slots=True)
class Counts:
    """What a sink has seen.

    Attributes:
        messages: messages taken.
        recipients: recipients of the messages taken.
        octets: octets of the messages taken, without dot-stuffing.
        deferred: recipients deferred, at RCPT or with their message.
        failed: recipients refused, at RCPT or with their message.
        dropped: connections dropped on purpose.
        sync_errors: commands after which a client must wait for the reply, and did not (RFC 2920 §3.1).
    """

    messages: int = 0
    recipients: int = 0
    octets: int = 0
    deferred: int = 0
    failed: int = 0
    dropped: int = 0
    sync_errors: int = 0

    def subtract(self, message: Received) -> None:
        """Take back a message that was counted and then could not be kept."""
        self.messages -= 1
        self.recipients -= len(message.recipients)
        self.octets -= len(message.octets)

    def add(self, counts: tuple[int, ...]) -> None:
        """Add what `SinkProtocol.take_counts` gave."""
        messages, recipients, octets, deferred, failed, dropped, sync_errors = counts
        self.messages += messages
        self.recipients += recipients
        self.octets += octets
        self.deferred += deferred
        self.failed += failed
        self.dropped += dropped
        self.sync_errors += sync_errors


@dataclass(frozen=True, slots=True)
class Received:
    """A message that was taken.

    Attributes:
        sender: address of MAIL, without brackets.
        recipients: addresses of RCPT, without brackets.
        octets: the message with CRLF, dot-unstuffed; its header alone where nothing more is kept.
        mail_parameters: the words after the address of MAIL.
        rcpt_parameters: for each recipient, the words after its address.
        helo: the argument of EHLO or HELO.
        tls: whether it came over TLS.
        user: who had authenticated, or empty.
        reply: the final reply, which nothing else on the connection is equal to.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    octets: bytes
    mail_parameters: tuple[bytes, ...] = ()
    rcpt_parameters: tuple[tuple[bytes, ...], ...] = ()
    helo: bytes = b""
    tls: bool = False
    user: str = ""
    reply: bytes = b""


class SinkProtocol:
    """One connection.

    Args:
        options: how to behave.
        number: of the connection; identifiers in replies begin with it.
        seed: of this connection's random numbers.
        tls_available: whether STARTTLS can be done.
        secure: whether TLS is there already.
        keep: what `take_messages` gives of messages; none of them with `Keep.NOTHING`.
        nonce: for SCRAM, unpredictable and printable; needed only where `options.credentials` are set.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        number: int,
        seed: int,
        tls_available: bool = False,
        secure: bool = False,
        keep: Keep = Keep.NOTHING,
        nonce: str = "",
    ) -> None:
        if options.credentials is not None and not nonce:
            raise ValueError("authentication needs a nonce")
        self._options = options
        self._tls_available = tls_available
        self._secure = secure
        self._nonce = nonce
        self._helo = b""
        self._user = ""
        self._auth: Authentication | None = None
        self.action = Action.RECEIVE
        self._scanner = Scanner(
            options.max_size_octets,
            options.max_messages or 0,
            options.max_recipients,
            options.thresholds,
            seed,
            b"%d" % number,
            keep,
        )
        self._set_refusal()

    @property
    def greeting(self) -> bytes:
        """The first reply."""
        return f"220 {self._options.host_name} ESMTP outrider sink\r\n".encode()

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent; send what this returns, then do as `action` says."""
        scanner = self._scanner
        replies = scanner.receive(data)
        if not scanner.pause:
            return replies
        blob = bytearray(replies)
        while scanner.pause == COMMAND:
            blob += self._command(scanner.line)
            if self.action is not Action.RECEIVE or scanner.pause == CLOSE:
                break
            blob += scanner.receive(b"")
        if scanner.pause == CLOSE:
            self.action = Action.CLOSE
        elif scanner.pause == DROP:
            self.action = Action.DROP
        return bytes(blob)

    def on_tls(self) -> None:
        """The handshake is done: the client starts again with EHLO (RFC 3207 §4.2)."""
        self.action = Action.RECEIVE
        self._secure = True
        self._helo = b""
        self._user = ""
        self._scanner.reset()
        self._scanner.greeted = False
        self._scanner.offered = 0
        self._set_refusal()

    def take_counts(self) -> tuple[int, ...]:
        """What happened since the last call, for `Counts.add`."""
        return self._scanner.take_counts()

    def take_messages(self) -> list[Received]:
        """The messages taken since the last call, if they are kept."""
        return [self._received(*item) for item in self._scanner.take_messages()]

    @staticmethod
    def refuse(replies: bytes, messages: Sequence[Received]) -> bytes:
        """What to send instead of `replies`, which `receive` gave, if `messages` could not be kept after all."""
        for message in messages:
            replies = replies.replace(message.reply, b"452 4.3.1 Insufficient system storage\r\n", 1)
        return replies

    # Commands that happen once a connection

    def _command(self, line: bytes) -> bytes:
        if self._auth is not None:
            return self._auth_step(line)
        verb, _, argument = line.partition(b" ")
        argument = argument.strip(b" ")
        match verb.upper():
            case b"EHLO" | b"HELO":
                return self._hello(argument, extended=verb.upper() == b"EHLO")
            case b"STARTTLS" if self._offers("STARTTLS"):
                return self._starttls(argument)
            case b"AUTH" if self._offers("AUTH"):
                return self._auth_start(argument)
            case b"VRFY":
                return b"252 2.5.0 Send some mail and see\r\n"
            case b"HELP":
                return b"214 2.0.0 RFC 5321\r\n"
            case b"MAIL" | b"RCPT" | b"DATA" | b"RSET" | b"QUIT":
                return self._error(b"501 5.5.4 Syntax error\r\n")
            case b"BDAT" if self._scanner.offered & _OFFERED_BITS["CHUNKING"]:
                return self._error(b"501 5.5.4 Syntax error\r\n")
        return self._error(b"500 5.5.2 Command unknown\r\n")

    def _hello(self, argument: bytes, *, extended: bool) -> bytes:
        if not argument or not all(0x20 < octet < 0x7F for octet in argument):
            return self._error(b"501 5.5.4 Needs a host name\r\n")
        self._helo = argument
        self._scanner.reset()
        self._scanner.greeted = True
        self._scanner.offered = 0
        if not extended:
            return f"250 {self._options.host_name}\r\n".encode()
        lines = [self._options.host_name]
        for keyword in self._options.extensions:
            if self._offers(keyword):
                lines.append(self._keyword_line(keyword))
                self._scanner.offered |= _OFFERED_BITS.get(keyword.partition(" ")[0].upper(), 0)
        return "".join(
            f"250{' ' if index == len(lines) - 1 else '-'}{line}\r\n" for index, line in enumerate(lines)
        ).encode()

    def _offers(self, keyword: str) -> bool:
        if keyword not in self._options.extensions:
            return False
        match keyword:
            case "STARTTLS":
                return self._tls_available and not self._secure
            case "AUTH":
                return self._options.credentials is not None
            case "LIMITS":
                has_limit = self._options.max_messages is not None
                return has_limit or self._options.max_recipients != DEFAULT_MAX_RECIPIENTS
        return True

    def _keyword_line(self, keyword: str) -> str:
        match keyword:
            case "SIZE":
                return f"SIZE {self._options.max_size_octets}"
            case "AUTH":
                return " ".join(("AUTH", *MECHANISMS))
            case "LIMITS":
                mail = "" if self._options.max_messages is None else f" MAILMAX={self._options.max_messages}"
                return f"LIMITS{mail} RCPTMAX={self._options.max_recipients}"
        return keyword

    def _starttls(self, argument: bytes) -> bytes:
        if argument:
            return self._error(b"501 5.5.4 No parameters allowed\r\n")
        self._scanner.reset()
        if self._scanner.discard():
            # RFC 3207 §4.2: what came in clear must not be taken for something that came over TLS.
            self.action = Action.CLOSE
            return b"554 5.5.0 Octets after STARTTLS, closing connection\r\n"
        self.action = Action.START_TLS
        return b"220 2.0.0 Ready to start TLS\r\n"

    def _error(self, reply: bytes) -> bytes:
        return self._scanner.on_error(reply)

    def _set_refusal(self) -> None:
        refusal = b""
        if self._options.require_tls and not self._secure:
            refusal = b"530 5.7.0 Must issue a STARTTLS command first\r\n"
        elif self._options.credentials is not None and not self._user:
            refusal = b"530 5.7.0 Authentication required\r\n"
        self._scanner.refusal = refusal

    def _received(self, mail: bytes, rcpts: tuple[bytes, ...], octets: bytes, reply: bytes) -> Received:
        sender, mail_parameters = _split_path(mail)
        recipients = [_split_path(rcpt) for rcpt in rcpts]
        return Received(
            sender,
            tuple(address for address, _ in recipients),
            octets,
            mail_parameters,
            tuple(parameters for _, parameters in recipients),
            self._helo,
            self._secure,
            self._user,
            reply,
        )

    # AUTH (RFC 4954)

    def _auth_start(self, argument: bytes) -> bytes:
        credentials = self._options.credentials
        if credentials is None or self._user or not self._helo or self._scanner.in_transaction:
            return self._error(b"503 5.5.1 Not now\r\n")
        mechanism, _, initial = argument.partition(b" ")
        name = mechanism.upper()
        if name.decode("latin-1") not in MECHANISMS:
            return self._error(b"504 5.5.4 Mechanism unknown\r\n")
        self._auth = Authentication(name, credentials, self._nonce)
        if initial:
            return self._auth_step(b"" if initial == b"=" else initial)
        self._scanner.raw_lines = True
        return self._auth.prompt

    def _auth_step(self, line: bytes) -> bytes:
        auth = self._auth
        assert auth is not None
        try:
            if line == b"*":
                reply = b"501 5.7.0 Cancelled\r\n"
            else:
                reply = auth.step(base64.b64decode(line, validate=True))
        except (binascii.Error, UnicodeDecodeError):
            reply = b"501 5.5.2 Not BASE64\r\n"
        if reply.startswith(b"334"):
            self._scanner.raw_lines = True
            return reply
        self._scanner.raw_lines = False
        self._auth = None
        if not reply.startswith(b"235"):
            return self._error(reply)
        self._user = auth.user
        self._set_refusal()
        return reply


def _split_path(argument: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Address and parameters of an argument that the scanner has found good."""
    match = _PATH.match(argument)
    assert match is not None
    return match[1], tuple(argument[match.end() :].split())


def _threshold(probability: float) -> int:
    return round(min(max(probability, 0.0), 1.0) * 2**32)

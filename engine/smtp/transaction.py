"""What goes into an SMTP transaction and what comes out of it, as values.

Layer: sans-I/O.  Spec: RFC 5321 §3.3, RFC 3461 §4 (DSN parameters), RFC 6152, RFC 6531; events-dane RT-1 to RT-6, 11.4.
Input: addresses and a message, both already valid.  Output: every reply as it came, and an error where none came: the
outcome of a recipient is read from these by table (delivery/outcome.py), never guessed here.
Invariants: content that is not made of CRLF lines is not held; the dot-stuffed form is made once a `Content`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from . import replies
from ._wire import inspect, stuff
from .replies import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..errors import DeliveryError


#: a piece of content that is not copied to stand in one with its envelope; a TLS record
_LONG_OCTETS: Final = 16384


@dataclass(slots=True, eq=False)
class Transaction:
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

    sender: bytes
    recipients: Sequence[bytes]
    content: Content
    is_8bit: bool = False
    smtputf8: bool = False
    requiretls: bool = False
    ret: str | None = None
    envid: bytes | None = None
    notify: tuple[str, ...] | None = None
    orcpt: Sequence[bytes | None] | None = None
    tag: object = None


@dataclass(slots=True, eq=False)
class TransactionResult:
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

    transaction: Transaction
    recipients: list[Reply | DeliveryError | None]
    mail: Reply | None = None
    rest: list[int] = field(default_factory=list)
    data: Reply | None = None
    final: Reply | None = None
    error: DeliveryError | None = None
    in_doubt: bool = False
    untouched: bool = False
    pipelined: bool = False
    chunked: bool = False
    number: int = 0
    mail_parameters: bytes = b""

    @property
    def mail_command(self) -> str:
        """As in the log: ``MAIL FROM:<a@example.org> SIZE=1234``."""
        line = b"MAIL FROM:<" + self.transaction.sender + b">" + self.mail_parameters
        return line.decode("utf-8", "backslashreplace")

    @property
    def accepted(self) -> list[int]:
        """Numbers of the recipients whose RCPT was accepted."""
        return [index for index, reply in enumerate(self.recipients) if isinstance(reply, Reply) and reply.is_success]

    def mail_error_text(self) -> str:
        """The text of 11.5 for `mail`."""
        return self._text(self.mail_command, self.mail, self.pipelined)

    def recipient_command(self, index: int) -> str:
        """The command in the words of 11.5: ``RCPT TO:<a@example.org>``."""
        return recipient_command(self.transaction.recipients[index])

    def recipient_error_text(self, index: int) -> str:
        """The text of 11.5 for one of `recipients`, be it a reply or an error."""
        answer = self.recipients[index]
        if answer is None or isinstance(answer, Reply):
            return self._text(self.recipient_command(index), answer, False)
        return answer.message

    def data_error_text(self) -> str:
        """The text of 11.5 for `data`."""
        return self._text("DATA", self.data, self.pipelined)

    def final_error_text(self) -> str:
        """The text of 11.5 for `final`."""
        return self._text(replies.END_OF_DATA, self.final, False)

    def _text(self, command: str, reply: Reply | None, pipelined: bool) -> str:
        return "" if reply is None else replies.error_text(command, reply, pipelined=pipelined)


def recipient_command(recipient: bytes) -> str:
    """``RCPT TO:<…>`` for texts."""
    return f"RCPT TO:<{recipient.decode('utf-8', 'backslashreplace')}>"


class Content:
    """The octets of a message, made of CRLF lines; share one among the transactions that send it.

    Args:
        octets: the message; CRLF is added if it does not end with one.

    Attributes:
        pieces: of the octets, in order: as BDAT sends them.
        is_8bit: whether some octet is above 127.

    Raises:
        DataError: it has a CR or LF that is not part of CRLF: such content is never sent (RFC 5321 §2.3.8).
    """

    __slots__ = ("_dots", "_size", "_stuffed", "is_8bit", "pieces")

    def __init__(self, octets: bytes) -> None:
        if not octets.endswith(b"\r\n"):
            octets += b"\r\n"
        self.pieces: tuple[bytes, ...] = (octets,)
        self.is_8bit = not octets.isascii()
        self._size = len(octets)
        self._dots = inspect(octets)
        self._stuffed: bytes | None = None

    @classmethod
    def of_proved(cls, pieces: tuple[bytes, ...], *, is_8bit: bool) -> Self:
        """Content of which is proved that it is made of CRLF lines; nothing is copied before somebody asks for that."""
        made = cls.__new__(cls)
        made.pieces = pieces
        made.is_8bit = is_8bit
        made._size = sum(map(len, pieces))
        made._dots = -1
        made._stuffed = None
        return made

    def cut(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The first piece where it is short, so that it may be copied behind an envelope, and the other pieces."""
        pieces = self.pieces
        return (pieces[0], pieces[1:]) if len(pieces[0]) < _LONG_OCTETS else (b"", pieces)

    def __len__(self) -> int:
        """What SIZE counts."""
        return self._size

    @property
    def octets(self) -> bytes:
        """The whole."""
        if len(self.pieces) > 1:
            self.pieces = (b"".join(self.pieces),)
        return self.pieces[0]

    @property
    def stuffed(self) -> bytes:
        """As DATA sends it, without the final dot; made once."""
        if self._stuffed is None:
            if self._dots < 0:
                self._dots = inspect(self.octets)
            self._stuffed = stuff(self.octets, self._dots)
        return self._stuffed

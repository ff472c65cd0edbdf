"""The composer of a job: one message, or one a recipient, in the form that the server at hand can take.

Layer: sans-I/O.  Spec: issue text "Message"; RFC 5322, RFC 2045 to 2047, RFC 6152 (8BITMIME), RFC 6531/6532 (SMTPUTF8).
Invariants: what is wrong with the source is found by `Composer.for_job` or `Composer.check`, before anything is queued;
content that leaves here has CRLF line ends only, no line over 998 octets, no NUL, and ends with CRLF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True, slots=True)
class Rendered:
    """A message as it goes over the wire, before dot-stuffing.

    Attributes:
        content: lines end with CRLF, so does the whole.
        is_8bit: it holds octets above 127: send BODY=8BITMIME.
        smtputf8: its header is in UTF-8: send SMTPUTF8.
    """

    content: bytes
    is_8bit: bool
    smtputf8: bool


class Composed:
    """One message in its master form; `render` gives what a certain server can take.

    Attributes:
        message_id: the Exim-form id it was composed with.
        needs_smtputf8: an address in its header can only be written under SMTPUTF8.
    """

    message_id: str
    needs_smtputf8: bool

    def render(self, *, eightbit: bool, smtputf8: bool) -> Rendered:
        """The octets for a server that offers 8BITMIME (`eightbit`) and SMTPUTF8 (`smtputf8`), or does not.

        SMTPUTF8 is only used where nothing else is possible.  The result is kept, so asking again costs nothing; the
        message of a job that is not personalised gives the very same object each time.

        Raises:
            DataError: no form that this server takes exists; the message says why.
        """
        raise NotImplementedError


class Composer:
    """Makes the messages of one job.  Not to be used by two threads at once."""

    @classmethod
    def for_job(
        cls,
        source: bytes,
        *,
        is_template: bool,
        personalised: bool,
        sender: str,
        host_name: str,
        created_at: float,
    ) -> Composer:
        """Read the message or the template of a job.

        Args:
            source: an RFC 5322 message with CRLF or LF line ends, or a Jinja2 template of one.
            personalised: one message a recipient, each with an id and, where the source has none, a To of its own.  A
                template is always personalised.
            sender: envelope sender, "" for the null one.
            host_name: domain part of the Message-ID.
            created_at: UTC epoch seconds; the Date of a message that is not personalised and has none.

        Raises:
            DataError: it cannot be sent: no From, a broken header line, a template error, …; with the line, if known.
        """
        raise NotImplementedError

    def check(self, columns: Collection[str]) -> None:
        """See that a template finds its names among the columns of the recipients; cheap enough for every row.

        Raises:
            DataError: naming what is missing and the nearest column.
        """
        raise NotImplementedError

    def compose(self, address: str, merge: Mapping[str, object], message_id: str, now: float) -> Composed:
        """The message for one recipient, or the one message of a job that is not personalised.

        Args:
            address: the recipient, as `Recipient.address`.
            merge: its merge data; a template sees the address as `email` and all of it as `row`, too.
            message_id: see `ids.message_id`; number 0 for a job that is not personalised.
            now: UTC epoch seconds, for the Date of a personalised message that has none.

        Raises:
            DataError: the data of this recipient do not fit the template; fail the recipient with this reason.
        """
        raise NotImplementedError

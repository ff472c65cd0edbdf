"""The catalogue of events: one row each, and nothing about events is written down anywhere else.

Layer: sans-I/O.  Spec: events-dane sections 2 and 4; EV-3, EV-4.
Code reads the table, and `outrider events list` prints it.
Invariants: names are unique; an event whose result is not ignored is raised where its step can still be stopped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Moment(enum.StrEnum):
    """Whether it is raised before its step, which can then be vetoed, or after it."""

    BEFORE = "before"
    AFTER = "after"


class Option(enum.StrEnum):
    """Whose `event_action` is expanded (EV-1)."""

    MAIN = "main"
    TRANSPORT = "transport"
    #: the transport's where one is at work, otherwise that of [main]
    EITHER = "transport or main"


class Granularity(enum.StrEnum):
    """What it is raised once for."""

    MESSAGE = "message"
    MESSAGE_TRY = "message and try"
    RECIPIENT = "recipient"
    REPLY = "reply to RCPT"
    HOST_TRY = "host and try"
    CONNECTION = "connection"
    EHLO = "reply to EHLO"
    CERTIFICATE = "certificate of the chain"
    DECISION = "host that DANE rules out"
    LOOKUP = "lookup in the DNS"
    AUTHENTICATOR = "authenticator"


class Effect(enum.StrEnum):
    """What a result does that is not empty (section 4)."""

    IGNORED = "ignored"
    #: 4.1
    NO_CONNECTION = "the connection is not made (-58)"
    #: 4.2
    CLOSES = "the connection is closed (-27)"
    #: 4.3
    REFUSES_CERTIFICATE = "the certificate is refused (-37)"
    #: 4.4
    REPLACES_LOG_LINE = "the text is logged in place of the usual line"


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event.

    Attributes:
        data: what `$event_data` has, in words; "" where it is always empty.
        defers: `$event_defer_errno` says why; it is 0 elsewhere.
        addressed: it is about one recipient: `$domain` and `$local_part` are those of its address (1.1).
        doc: when it is raised.
    """

    name: str
    moment: Moment
    option: Option
    granularity: Granularity
    data: str
    doc: str
    effect: Effect = Effect.IGNORED
    defers: bool = False
    addressed: bool = False

    @property
    def is_veto(self) -> bool:
        """Whether a result can stop the step."""
        return self.effect in (Effect.NO_CONNECTION, Effect.CLOSES, Effect.REFUSES_CERTIFICATE)

    @property
    def is_stored(self) -> bool:
        """Whether it is written to the queue's outbox with the outcome it tells of, and so never lost."""
        return self.name.startswith("msg:")


_BEFORE, _AFTER = Moment
_MAIN, _TRANSPORT, _EITHER = Option

CATALOGUE: Final = (
    EventRow(
        *("msg:complete", _AFTER, _MAIN, Granularity.MESSAGE, ""),
        "the last recipient of a message is done",
    ),
    EventRow(
        *("msg:delivery", _AFTER, _TRANSPORT, Granularity.RECIPIENT, "the confirmation of the server"),
        "a recipient is delivered",
        addressed=True,
    ),
    EventRow(
        *("msg:host:defer", _AFTER, _TRANSPORT, Granularity.HOST_TRY, "the error"),
        "a host cannot be used for now, whoever the message is for",
        defers=True,
    ),
    EventRow(
        *("msg:defer", _AFTER, _TRANSPORT, Granularity.MESSAGE_TRY, "the error"),
        "the last host of a message has been tried and it has to wait",
        defers=True,
    ),
    EventRow(
        *("msg:fail:delivery", _AFTER, _TRANSPORT, Granularity.RECIPIENT, "the error"),
        "a recipient that a transport was to deliver fails for good",
        addressed=True,
    ),
    EventRow(
        *("msg:fail:internal", _AFTER, _MAIN, Granularity.RECIPIENT, "the reason"),
        "a recipient fails for good before any transport had it",
        addressed=True,
    ),
    EventRow(
        *("msg:rcpt:host:defer", _AFTER, _TRANSPORT, Granularity.REPLY, "the error"),
        "a host puts a recipient off",
        defers=True,
        addressed=True,
    ),
    EventRow(
        *("msg:rcpt:defer", _AFTER, _TRANSPORT, Granularity.REPLY, "the error"),
        "the last host to be tried puts a recipient off",
        defers=True,
        addressed=True,
    ),
    EventRow(
        *("msg:indoubt", _AFTER, _EITHER, Granularity.RECIPIENT, "what broke the connection"),
        "a message was sent to its last octet and no reply came: it may have been delivered",
        addressed=True,
    ),
    EventRow(
        *("tcp:connect", _BEFORE, _TRANSPORT, Granularity.CONNECTION, ""),
        "a connection is about to be made",
        Effect.NO_CONNECTION,
    ),
    EventRow(
        *("tcp:close", _AFTER, _TRANSPORT, Granularity.CONNECTION, ""),
        "a connection that was made is closed",
    ),
    EventRow(
        *("tls:cert", _BEFORE, _TRANSPORT, Granularity.CERTIFICATE, "its depth in the chain, 0 for the server's own"),
        "a certificate is verified, from the root to the server's own",
        Effect.REFUSES_CERTIFICATE,
    ),
    EventRow(
        *("smtp:connect", _AFTER, _TRANSPORT, Granularity.CONNECTION, "the banner"),
        "the server has greeted",
        Effect.CLOSES,
    ),
    EventRow(
        *("smtp:ehlo", _AFTER, _TRANSPORT, Granularity.EHLO, "the reply"),
        "the server has answered EHLO",
    ),
    EventRow(
        *("auth:fail", _AFTER, _TRANSPORT, Granularity.AUTHENTICATOR, "the reply"),
        "the server has refused an authenticator for good",
        Effect.REPLACES_LOG_LINE,
    ),
    EventRow(
        *("dane:fail", _AFTER, _TRANSPORT, Granularity.DECISION, "the reason, by its name in TLSRPT"),
        "DANE does not allow to send to a host",
    ),
    EventRow(
        *("dns:fail", _AFTER, _EITHER, Granularity.LOOKUP, "`result:name:type`, colons of the name doubled"),
        "a lookup has found nothing or failed",
    ),
)

#: name -> row
BY_NAME: Final = {row.name: row for row in CATALOGUE}

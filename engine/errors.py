"""The errors of the engine, by whose fault they are.

Layer: leaf.
An SMTP reply is a value, never an exception, until nobody is left who asked for it.  Scope and permanence of a
delivery error are fields: the queue decides by table, not by the order of `except` clauses.
"""

from __future__ import annotations

import enum


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class ConfigError(EngineError):
    """The configuration cannot be used.  Raised while loading, before anything runs; fix the file.

    Args:
        message: what is wrong, in one sentence.
        file: path of the file, when there is one.
        key: dotted path of the key, such as ``transports.remote_smtp.hosts_max_try``.
        column: zero-based column inside the value of `key`, for errors in an expansion or a list.
        source: the text of the value, shown with a caret under `column`.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        key: str | None = None,
        column: int | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.key = key
        self.column = column
        self.source = source

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        if self.column is not None:
            where += f": column {self.column + 1}"
        text = f"{where}: {self.message}" if where else self.message
        if self.source is not None and self.column is not None:
            start = self.source.rfind("\n", 0, self.column) + 1
            line = self.source[start:].split("\n", 1)[0]
            text += f"\n    {line}\n    {' ' * (self.column - start)}^"
        return text


class DataError(EngineError):
    """Input of the user (a row of recipients, a message, an address) is not usable; nothing was queued for it.

    Args:
        message: what is wrong, in one sentence.
        line: one-based line number in the input, when there is one.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


class ProtocolError(EngineError):
    """The SMTP dialogue broke.  Abstract: see the two subclasses."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """We asked the protocol machine for something illegal in its state: a bug here, never the peer's doing."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol.  Nothing it said after this can be trusted; close the connection.

    Args:
        message: what it did, in words for the log.
        evidence: the octets that show it, at most 512 are kept.
    """

    def __init__(self, message: str, evidence: bytes = b"") -> None:
        super().__init__(message)
        self.evidence = bytes(evidence[:512])


class Scope(enum.Enum):
    """Whom a delivery error is about (RT-1 to RT-3)."""

    #: about this host: connect, banner, EHLO, TLS, AUTH, lost connection (RT-1)
    HOST = "host"
    #: about this message on this host: MAIL, DATA, end of data (RT-2)
    MESSAGE = "message"
    #: about one recipient: RCPT (RT-3)
    RECIPIENT = "recipient"
    #: about this machine: no memory, no file, a bug
    LOCAL = "local"


class DeliveryError(EngineError):
    """An attempt at a host ended without an outcome by reply.

    You get it for connection, TLS and dialogue trouble; you do not get it for an SMTP reply to MAIL, RCPT, DATA or
    end of data, which is a value.

    Args:
        message: Exim's text for the log (section 11.5 of the behaviour specification), without the `H=` part.
        scope: whom it is about.
        permanent: True for a 5xx that fails the addresses if this was the last host (banner, HELO).
        errno: positive OS error number or one of Exim's negative ones (11.6).
        more_errno: 256 for a connect timeout (11.6), or reply digits << 8; the A/M byte is added by the scheduler.
        retry_name: the error name that retry rules match (RT-7), such as ``refused`` or ``timeout_connect``.

    Attributes:
        dane_fail: data of the event `dane:fail` (7.6) where DANE was the reason, else "".
        contact: what events are told of the connection (`events.Contact`), where they are told of it.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: Scope = Scope.HOST,
        permanent: bool = False,
        errno: int = 0,
        more_errno: int = 0,
        retry_name: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.scope = scope
        self.permanent = permanent
        self.errno = errno
        self.more_errno = more_errno
        self.retry_name = retry_name
        self.dane_fail = ""
        self.contact: object | None = None


class EventRefusal(DeliveryError):
    """An event refused a connection (-58 before it was made, -27 after the banner).  The host is put off; the next one
    is tried."""


class TlsPolicyError(DeliveryError):
    """TLS did not prove what the plan demands.  Never answered by sending in clear unless the plan itself says so.

    Attributes:
        certificate: DER of the one that did not prove it, or None where it did not come to that.
    """

    certificate: bytes | None = None


class ExpandError(EngineError):
    """An expansion string cannot be compiled or evaluated.

    Args:
        message: Exim's text, byte for byte what follows ``Failed: `` in ``exim -be``.
        column: zero-based octet offset in the source where it was noticed, if known.
    """

    def __init__(self, message: str, *, column: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.column = column


class ForcedFailure(ExpandError):
    """The expansion asked to fail (`fail`, an ACL that defers).  Many options treat it as "leave unset" (X-9)."""


class LookupDeferral(ExpandError):
    """A lookup in the expansion could not be done now (server down, timeout).  Try later (X-9)."""


class StoreError(EngineError):
    """The queue could not do what was asked; the message says why (disk full, locked, corrupt, not a queue)."""


class LeaseLost(StoreError):
    """The lease of a recipient ran out and another engine took it.  Drop what you know of it; do not settle it."""


class ActionError(EngineError):
    """An event action, or the channel to the worker that should run it, does not work.  The message says why."""


class FrameError(ActionError):
    """The channel to a worker carries what is no frame.  Raised where it is read, whoever wrote it: the other side is
    broken or hostile, nothing it says after this can be trusted, and the channel is of no use any more.  It is also
    raised for a value that cannot be put into a frame; then the channel is as good as before."""


class ActionTimeout(ActionError):
    """A worker did not answer in time, or there was none to ask.  What silence means is the asker's to say."""


class WorkerDied(ActionError):
    """The worker that should have answered is gone.  What it was told to do may have been done."""

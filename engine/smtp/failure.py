"""How a connection ends before its time, and the error that tells of it.

Layer: sans-I/O.  Spec: events-dane 11.1 (RT-1 to RT-3), 11.4, 11.5 (texts), 11.6 (numbers), RT-7 (names).
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import DeliveryError, Scope
from . import replies

if TYPE_CHECKING:
    from .replies import Reply

#: 11.6
ERRNO_CLOSED: Final = -18
ERRNO_MALFORMED: Final = -19
ERRNO_TLS: Final = -37
ERRNO_TLS_REQUIRED: Final = -38
ERRNO_AUTH_REQUIRED: Final = -42
ERRNO_AUTH_PROBLEM: Final = -48

#: number -> name that retry rules match (RT-7); what is not here is matched by `*` only
_RETRY_NAMES: Final = {
    ERRNO_CLOSED: "lost_connection",
    errno.EPIPE: "lost_connection",
    errno.ECONNRESET: "lost_connection",
    errno.ETIMEDOUT: "timeout",
}


class LossKind(enum.Enum):
    """What ended the connection."""

    #: the peer closed it, in order or with a reset
    CLOSED = "closed"
    #: a deadline passed
    TIMEOUT = "timeout"
    #: what we had to say could not be sent
    SEND_FAILED = "send failed"
    #: reading failed for another reason than a reset
    READ_FAILED = "read failed"
    #: the peer said something that is no reply, or that nobody had asked for
    MALFORMED = "malformed"
    #: we were told to stop
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Loss:
    """The end of a connection.

    Attributes:
        errno: the system's, for SEND_FAILED and READ_FAILED.
        text: its words; for MALFORMED what is wrong.
        evidence: the octets, for MALFORMED.
    """

    kind: LossKind
    errno: int = 0
    text: str = ""
    evidence: bytes = b""


CLOSED: Final = Loss(LossKind.CLOSED)
TIMEOUT: Final = Loss(LossKind.TIMEOUT, errno.ETIMEDOUT)
CANCELLED: Final = Loss(LossKind.CANCELLED)


def loss_error(
    loss: Loss,
    command: str,
    peer: str,
    *,
    scope: Scope = Scope.HOST,
    pipelined: bool = False,
    written_octets: int = 0,
    ehlo_reply: Reply | None = None,
) -> DeliveryError:
    """The error for a loss while the reply to `command` was awaited.

    Args:
        peer: ``name [address]``.
        scope: whom a timeout or a loss is about at this point (11.4).
        written_octets: of content, told of in the text of a timeout.
        ehlo_reply: what EHLO was answered with, if HELO came after it.
    """
    match loss.kind:
        case LossKind.CLOSED:
            text = replies.closed_text(command, pipelined=pipelined, ehlo_reply=ehlo_reply)
            return DeliveryError(text, scope=scope, errno=ERRNO_CLOSED, retry_name="lost_connection")
        case LossKind.TIMEOUT:
            text = replies.timeout_text(command, pipelined=pipelined, written_octets=written_octets)
            return DeliveryError(text, scope=scope, errno=errno.ETIMEDOUT, retry_name="timeout")
        case LossKind.SEND_FAILED:
            text = f"smtp send to {peer} failed: {loss.text}"
            return DeliveryError(text, scope=scope, errno=loss.errno, retry_name=_RETRY_NAMES.get(loss.errno, ""))
        case LossKind.READ_FAILED:
            text = f"{peer} {loss.text}"
            return DeliveryError(text, scope=scope, errno=loss.errno, retry_name=_RETRY_NAMES.get(loss.errno, ""))
        case LossKind.MALFORMED:
            text = replies.malformed_text(command, loss.evidence, pipelined=pipelined)
            return DeliveryError(text, scope=Scope.HOST, errno=ERRNO_MALFORMED)
        case LossKind.CANCELLED:
            return DeliveryError(f"stopped while waiting for the reply to {command}", scope=Scope.LOCAL)

"""What becomes of a transaction whose connection ends before its last reply.

Layer: sans-I/O.  Spec: events-dane 11.1 (RT-1 to RT-3, RT-6), 11.4; bulk-sending section 5, rules 5 and 6; RFC 1047.

Three questions, in this order.  Had the host refused everything already?  Then nothing is lost (RT-6).  Can the message
have been delivered?  Only if its last octet may have left and somebody was not refused; then it is in doubt.  Is
anybody to blame?  Only the oldest in flight was waited for: one behind it that is not in doubt has not been sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Scope
from . import replies
from .failure import Loss, LossKind, loss_error
from .state import Stage

if TYPE_CHECKING:
    from ..errors import DeliveryError
    from ._flight import Flight, TransactionResult


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, and what had happened on it.

    Attributes:
        peer: ``name [address]``.
        is_closing: the server had said 421.
        has_finished_some: some transaction had its reply to the content: an end between two messages is no error.
        written_octets: of the last write, what was handed over.
    """

    loss: Loss
    peer: str
    is_closing: bool
    has_finished_some: bool
    written_octets: int


def lose(flight: Flight, ending: Ending, *, was_reached: bool, is_last_written: bool) -> DeliveryError | None:
    """Fill in the result of a transaction that gets no more replies.

    Args:
        was_reached: its reply was the next to come.
        is_last_written: it stood at the end of the last write: if that failed, its last octet did not leave.

    Returns:
        Its error, None if it has none.
    """
    result = flight.result
    loss = ending.loss
    result.rest.sort()
    is_refused = result.mail is not None and not result.mail.is_success
    if is_refused or (flight.answered == len(flight.asked) and not flight.accepted):
        if is_refused and (flight.begins_again or is_connection_limit(result, ending.has_finished_some)):
            result.untouched = True
            result.rest.clear()
        return None
    has_left = flight.final_handed and not (loss.kind is LossKind.SEND_FAILED and is_last_written)
    result.in_doubt = has_left and not ending.is_closing
    if not result.in_doubt and not (was_reached and _is_to_blame(flight, ending)):
        result.untouched = True
        result.rest.clear()
        return None
    result.error = _error(flight, ending, has_left=has_left, was_reached=was_reached)
    if result.error.scope is Scope.RECIPIENT:
        for index in flight.asked[flight.answered :]:
            result.recipients[index] = result.error
    return result.error


def is_connection_limit(result: TransactionResult, has_finished_some: bool) -> bool:
    """Whether a 421 to MAIL tells of a limit of the connection, not of this message (bulk-sending rule 5)."""
    return has_finished_some and result.mail is not None and result.mail.code == 421


def _is_to_blame(flight: Flight, ending: Ending) -> bool:
    """Whether the end says something about the oldest transaction in flight or its host."""
    if flight.stage > Stage.MAIL:
        return True
    if ending.is_closing:
        return False
    # A server may close a connection between two messages.
    is_close = ending.loss.kind in (LossKind.CLOSED, LossKind.SEND_FAILED)
    return not (ending.has_finished_some and is_close)


def _error(flight: Flight, ending: Ending, *, has_left: bool, was_reached: bool) -> DeliveryError:
    """By table 11.4: whom it is about, and what was waited for."""
    result = flight.result
    is_timeout = ending.loss.kind is LossKind.TIMEOUT
    scope = Scope.HOST
    pipelined = result.pipelined
    written_octets = 0
    match flight.stage:
        case Stage.RSET:
            command = "RSET"
        case Stage.MAIL:
            command = result.mail_command
            if is_timeout and was_reached:
                scope = Scope.MESSAGE
        case Stage.RCPT:
            command = result.recipient_command(flight.asked[flight.answered])
            if is_timeout:
                scope = Scope.RECIPIENT
        case Stage.DATA:
            command = "DATA"
        case _ if has_left:
            command = replies.END_OF_DATA
            pipelined = False
            scope = Scope.MESSAGE
            written_octets = len(flight.transaction.content)
        case _:
            command = replies.DATA_BLOCK
            pipelined = False
            written_octets = ending.written_octets
    return loss_error(
        ending.loss, command, ending.peer, scope=scope, pipelined=pipelined, written_octets=written_octets
    )

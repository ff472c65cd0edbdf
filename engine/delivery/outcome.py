"""From the replies of a transaction to what becomes of each recipient: one table.

Layer: orchestration (sans-I/O itself).  Spec: events-dane RT-1 to RT-6, the table of 11.4, errno of 11.6, names of
RT-7.

    MAIL --2xx--> RCPT --2xx--> DATA --3xx--> end of data --2xx--> delivered
      |5xx: all fail   |5xx: it fails   |5xx: all fail  |5xx: all fail
      |else: message   |else: it waits  |else: message  |else: message          (message: deferred, next host, RT-2)

Invariants: every recipient gets exactly one ending; a recipient whose reply was decisive keeps it, whatever happened to
the connection afterwards (RT-6); what may have been delivered is never sent to another host.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import DeliveryError, Scope
from ..queue.rules import Failure

if TYPE_CHECKING:
    from ..smtp import Reply, TransactionResult


#: what a recipient is told whose job has expired (LG-4 has the other way to run out of time)
EXPIRED_TEXT: Final = "the job of this recipient has expired"


class End(enum.Enum):
    """What becomes of a recipient."""

    DELIVERED = "delivered"
    #: for good (5xx)
    FAILED = "failed"
    #: this recipient waits (RT-3)
    RECIPIENT_WAITS = "recipient waits"
    #: the message is put off by this host: the next one, or wait (RT-2)
    MESSAGE_WAITS = "message waits"
    #: the final octet may have left and no reply came: wait, then the same message again
    IN_DOUBT = "in doubt"
    #: the host cannot be used for now (RT-1)
    HOST_ERROR = "host error"
    #: another transaction at once: a limit of the host, or the connection ended before it was its turn
    AGAIN = "again"
    #: we broke it off
    BROKEN_OFF = "broken off"


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of 11.4: what a reply that is neither success nor 5xx means."""

    end: End
    errno: int
    #: name that retry rules know
    failure: str


MAIL: Final = Stage(End.MESSAGE_WAITS, -45, "mail_4xx")
RCPT: Final = Stage(End.RECIPIENT_WAITS, -44, "rcpt_4xx")
DATA: Final = Stage(End.MESSAGE_WAITS, -46, "data_4xx")

#: scope of an error that came instead of a reply -> ending
_OF_SCOPE: Final = {
    Scope.HOST: End.HOST_ERROR,
    Scope.MESSAGE: End.MESSAGE_WAITS,
    Scope.RECIPIENT: End.RECIPIENT_WAITS,
    Scope.LOCAL: End.BROKEN_OFF,
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How one recipient of a transaction ended.

    Attributes:
        text: confirmation of a delivery, else the text of 11.5.
        errno: of 11.6, 0 where there is none.
        failure: what retry rules are searched with.
    """

    end: End
    text: str = ""
    errno: int = 0
    failure: Failure = Failure()  # noqa: RUF009 - an immutable value


_AGAIN: Final = Ending(End.AGAIN)


def endings(result: TransactionResult, *, from_mx: bool | None = None) -> list[Ending]:
    """What becomes of each recipient of a transaction, in order.

    Args:
        from_mx: whether the host came from an MX record, for retry rules.
    """
    count = len(result.recipients)
    if result.untouched:
        return [_AGAIN] * count
    mail = result.mail
    if mail is not None and not mail.is_success:
        return [_refused(MAIL, mail, result.mail_error_text())] * count
    whole = _of_whole(result, from_mx)
    rest = set(result.rest)
    found = []
    for index, answer in enumerate(result.recipients):
        if index in rest:
            found.append(_AGAIN)
        elif answer is None:
            # where the content went out with the envelope, it may be for those too whose reply is missing
            error = result.error
            found.append(_AGAIN if error is None else _of_error(error, from_mx, in_doubt=result.in_doubt))
        elif isinstance(answer, DeliveryError):
            found.append(_of_error(answer, from_mx, in_doubt=result.in_doubt))
        elif answer.is_success:
            found.append(whole)
        else:
            found.append(_refused(RCPT, answer, result.recipient_error_text(index)))
    return found


def _of_whole(result: TransactionResult, from_mx: bool | None) -> Ending:
    """What becomes of the recipients that were accepted."""
    if result.final is not None:
        if result.final.is_success:
            return Ending(End.DELIVERED, result.final.text)
        return _refused(DATA, result.final, result.final_error_text())
    if result.data is not None and not result.data.is_intermediate:
        return _refused(DATA, result.data, result.data_error_text())
    if result.error is not None:
        return _of_error(result.error, from_mx, in_doubt=result.in_doubt)
    return _AGAIN


def _refused(stage: Stage, reply: Reply, text: str) -> Ending:
    if reply.is_permanent:
        return Ending(End.FAILED, text)
    return Ending(stage.end, text, stage.errno, Failure(stage.failure, reply.code))


def _of_error(error: DeliveryError, from_mx: bool | None, *, in_doubt: bool) -> Ending:
    end = End.IN_DOUBT if in_doubt else _OF_SCOPE[error.scope]
    if error.permanent and end in (End.MESSAGE_WAITS, End.RECIPIENT_WAITS):
        end = End.FAILED  # it cannot be sent to this host in any form
    return Ending(end, error.message, error.errno, Failure(error.retry_name, from_mx=from_mx))

"""When a deferred delivery is tried again: what retry rules and retry records say together.

Layer: adapter room, but pure: time and randomness are arguments.  Spec: events-dane section 11, RT-8 to RT-15, 11.2.
The step in force is the first whose cut-off is not before the time since the first failure; when none is, the record
is *expired* and the last step goes on giving intervals.  RT-14 and RT-15 are the caller's: a deferral on an inherited
connection stores no host record, and success deletes the records of `host_key`, `message_key` and `recipient_key`.
Invariant: nothing here raises.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .model import RetryRecord
from .rules import StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .rules import RetryRule, Step

#: seconds; RT-8 and the options retry_interval_max, retry_data_expire
DEFAULT_INTERVAL_MAX_S: Final = 86400.0
DEFAULT_DATA_EXPIRE_S: Final = 7 * 86400.0
#: error number of "retry time not reached" for a remote delivery (11.6)
ERRNO_REMOTE_RETRY: Final = -54
#: what follows the address in the `**` line of one that ran out of time (RT-10)
TIMED_OUT_TEXT: Final = "retry timeout exceeded"


@dataclass(frozen=True, slots=True)
class Postponement:
    """What follows from a deferral.

    Attributes:
        record: the record to store; None when no rule matched.
        timed_out: the time of this key is up (RT-9, RT-10).
        next_try_at: when this key may be tried again; the time of the failure when no rule matched.
    """

    record: RetryRecord | None
    timed_out: bool
    next_try_at: float


def postpone(
    rule: RetryRule | None,
    previous: RetryRecord | None,
    key: str,
    now: float,
    *,
    random: Callable[[], float],
    message_created_at: float | None = None,
    errno: int = 0,
    more_errno: int = 0,
    text: str = "",
    interval_max_s: float = DEFAULT_INTERVAL_MAX_S,
    data_expire_s: float = DEFAULT_DATA_EXPIRE_S,
) -> Postponement:
    """The retry record after a failure of `key` (RT-8 to RT-10).

    Args:
        rule: what `RetryRules.find` gave.
        previous: the record before; a stale one counts as none.
        random: gives floats in [0, 1); asked only for H.
        message_created_at: for message and recipient keys only: the message's age counts when it is older than the
            first failure (RT-9).
    """
    previous = fresh(previous, now, data_expire_s)
    first_failed_at = previous.first_failed_at if previous else now
    elapsed_s = now - first_failed_at
    if message_created_at is not None:
        elapsed_s = max(elapsed_s, now - message_created_at)
    found = rule.step_at(elapsed_s) if rule is not None else None
    if found is None:
        return Postponement(None, True, now)
    step, expired = found
    next_try_at = now + min(_gap_s(step, previous, now, random), interval_max_s)
    record = RetryRecord(key, first_failed_at, now, next_try_at, errno, more_errno, text, expired)
    return Postponement(record, expired, next_try_at)


def _gap_s(step: Step, previous: RetryRecord | None, now: float, random: Callable[[], float]) -> float:
    start = float(step.interval_s)
    if step.kind is StepKind.FIXED or previous is None:
        return start
    # an address tried out of turn must not make the gaps grow
    last_gap = min(previous.next_try_at - previous.last_try_at, now - previous.last_try_at)
    grown = last_gap * step.factor
    if step.kind is StepKind.GEOMETRIC:
        return grown if last_gap >= start else start
    if grown <= start:
        return start
    # the upper half of the way from the start to the geometric gap: a spread over all of it would never grow
    return start + (grown - start) * (0.5 + 0.5 * random())


def fresh(record: RetryRecord | None, now: float, data_expire_s: float = DEFAULT_DATA_EXPIRE_S) -> RetryRecord | None:
    """The record, unless it is so old that it is forgotten (RT-8)."""
    return None if record is None or now - record.last_try_at > data_expire_s else record


class Verdict(enum.Enum):
    """Whether a host may be tried for a message now (RT-11)."""

    USABLE = "usable"
    #: expired, and its retry time has come: it gets one more try
    LAST_TRY = "last try"
    NOT_DUE = "retry time not reached"
    #: expired, and its retry time has not come
    EXPIRED = "expired"


def judge_host(
    record: RetryRecord | None,
    now: float,
    *,
    rule: RetryRule | None,
    message_created_at: float,
    data_expire_s: float = DEFAULT_DATA_EXPIRE_S,
) -> Verdict:
    """What the retry record of a host says about trying it for a message.

    A host that is not due is usable all the same for a message past its ultimate timeout, so that the address can
    fail after a try instead of waiting.

    Args:
        rule: the rule for the failure that the record tells of.
    """
    record = fresh(record, now, data_expire_s)
    if record is None:
        return Verdict.USABLE
    if now >= record.next_try_at:
        return Verdict.LAST_TRY if record.expired else Verdict.USABLE
    if record.expired:
        return Verdict.EXPIRED
    return Verdict.USABLE if is_ultimate_timeout(rule, message_created_at, now) else Verdict.NOT_DUE


def may_try_expired(record: RetryRecord, message_created_at: float) -> bool:
    """With delay_after_cutoff false: an expired host is tried at once by a message that came after its last try."""
    return record.last_try_at <= message_created_at


def is_ultimate_timeout(rule: RetryRule | None, message_created_at: float, now: float) -> bool:
    """Whether the message is older than the last cut-off, or nothing says that it may wait (RT-11)."""
    return rule is None or not rule.steps or now - message_created_at > rule.cutoff_s


@dataclass(frozen=True, slots=True)
class NoHost:
    """An address for which no host could be tried: `failed` for good or deferred with `errno`, with its log text."""

    failed: bool
    text: str
    errno: int


def no_host_left(
    domain: str,
    verdicts: Iterable[Verdict],
    *,
    delay_after_cutoff: bool = True,
    skipped_otherwise: bool = False,
    at_connection_limit: bool = False,
) -> NoHost:
    """What becomes of an address when none of its hosts was tried (RT-11, RT-12).

    Args:
        verdicts: one a host.
        skipped_otherwise: some host was left out for another reason than its retry record.
        at_connection_limit: every host that may be tried has all the connections that it may have.
    """
    if at_connection_limit:
        return NoHost(False, "connection limit reached for all hosts", ERRNO_REMOTE_RETRY)
    judged = list(verdicts)
    if judged and not skipped_otherwise and all(verdict is Verdict.EXPIRED for verdict in judged):
        since = (
            "(and retry time not reached)" if delay_after_cutoff else "and were last tried after this message arrived"
        )
        return NoHost(True, f"all hosts for '{domain}' have been failing for a long time {since}", ERRNO_REMOTE_RETRY)
    return NoHost(False, f"retry time not reached for any host for '{domain}'", ERRNO_REMOTE_RETRY)


def host_key(name: str, address: str, port: int = 25, interface: str = "") -> str:
    """Key of a host error: ``T:<host>:<ip>[:<port unless 25>]``, then ``/<interface>`` if one is configured (11.2)."""
    ip = f"[{address}]" if ":" in address else address
    is_literal = name == address or name.strip("[]") == address
    host = f"[{address}]" if is_literal else name.lower()
    key = f"T:{host}:{ip}"
    if port != 25:
        key += f":{port}"
    return f"{key}/{interface}" if interface else key


def message_key(of_host: str, message_id: str) -> str:
    """Key of a message error: that of the host with the message id (11.2)."""
    return f"{of_host}:{message_id}"


def recipient_key(address: str, sender: str | None = None) -> str:
    """Key of a recipient error; `sender` None when address_retry_include_sender is false (11.2)."""
    return f"R:{address}" if sender is None else f"R:{address}:<{sender}>"


def routing_key(name: str) -> str:
    """Key of a domain that could not be routed, or of a host that could not be looked up (11.2)."""
    return f"R:{name.lower()}"

"""Say in words what a recipient is waiting for.

Layer: adapter room, but pure.  Input: what `Store.explain` gave and the time.  Output: sentences, the decisive one
first.  Invariant: each sentence is printable text on one line, whatever a server replied.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..values import format_interval
from .model import JobState, Status

if TYPE_CHECKING:
    from .model import Explanation, LeaseView, RetryRecord


def reasons(explanation: Explanation, now: float) -> list[str]:
    """Why the recipient is where it is, in sentences.

    Args:
        now: UTC epoch seconds; times are told in the local zone of the process.
    """
    recipient, job = explanation.recipient, explanation.job
    sentences = [_decisive(explanation, now)]
    is_settled = recipient.status in (Status.DELIVERED, Status.FAILED, Status.CANCELLED)
    if not is_settled and recipient.in_doubt:
        sentences.append(
            "it is in doubt: an earlier attempt may have delivered it, so it will be sent with the same Message-ID"
        )
    if recipient.text:
        errno = f" ({recipient.errno})" if recipient.errno else ""
        tried = f" at {moment(recipient.last_attempt_at)}" if recipient.last_attempt_at is not None else ""
        sentences.append(f"last error{tried}{errno}: {one_line(recipient.text)}")
    if not is_settled:
        sentences += [_record(record, now) for record in explanation.retry_records]
        if recipient.status is not Status.HELD and job.is_loading:
            sentences.append(f"job {job.id} is still being loaded")
        if job.expires_at is not None:
            sentences.append(f"job {job.id} {_when('expires', 'expired', job.expires_at, now)}")
    return sentences


def _decisive(explanation: Explanation, now: float) -> str:
    recipient, job = explanation.recipient, explanation.job
    tries = f"after {recipient.attempts} attempt{'' if recipient.attempts == 1 else 's'}"
    match recipient.status:
        case Status.DELIVERED:
            at = f" at {moment(recipient.last_attempt_at)}" if recipient.last_attempt_at is not None else ""
            return f"delivered{at} {tries}"
        case Status.FAILED:
            return f"failed for good {tries}"
        case Status.CANCELLED:
            return f"job {job.id} was cancelled" if job.state is JobState.CANCELLED else "cancelled"
        case Status.HELD:
            return f"job {job.id} is held" if job.state is JobState.HELD else "held"
        case Status.IN_FLIGHT:
            return _leased(explanation.lease, now)
        case _:
            pass
    if job.is_loading:
        return f"waiting until job {job.id} is loaded"
    due_at = max(recipient.next_attempt_at, job.start_at)
    kind = "first attempt" if recipient.attempts == 0 else "next attempt"
    if due_at <= now:
        return f"{kind} is due now: it waits for an engine to take it"
    return f"{kind} at {moment(due_at)} (in {format_interval(max(1, round(due_at - now)))}), {tries}"


def _leased(lease: LeaseView | None, now: float) -> str:
    if lease is None:
        return "an engine has it"
    who = f"engine {lease.owner} (pid {lease.pid}) has it since {moment(lease.since)}"
    if lease.is_alive is False:
        return f"{who}, and is gone: the next engine that starts clears up after it"
    return f"{who}; the lease {_when('ends', 'ended', lease.until, now)}"


def _record(record: RetryRecord, now: float) -> str:
    what = {"T": "host", "R": "address or domain"}.get(record.key[:1], "key")
    state = "has been failing for a long time" if record.expired else "has been failing"
    text = f": {one_line(record.text)}" if record.text else ""
    return (
        f"{what} {one_line(record.key[2:])} {state} since {moment(record.first_failed_at)};"
        f" its retry time {_when('comes', 'came', record.next_try_at, now)}{text}"
    )


def _when(future: str, past: str, at: float, now: float) -> str:
    if at > now:
        return f"{future} at {moment(at)} (in {format_interval(max(1, round(at - now)))})"
    return f"{past} at {moment(at)}"


def moment(at: float) -> str:
    """A time for people: local, to the second; the bare number where the platform has no such date."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f}"


def one_line(text: str) -> str:
    """Text from a server on one line, with what is not printable escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)

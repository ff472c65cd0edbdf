"""What people are told of a recipient: always sentences, always printable, whatever the values are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.queue.model import (
    Explanation,
    Job,
    JobCounts,
    JobState,
    LeaseView,
    RecipientView,
    RetryRecord,
    Status,
)
from engine.queue.reasons import moment, one_line, reasons

NOW = 1_700_000_000.0
JOB = Job(7, "list", "", JobState.ACTIVE, False, False, False, NOW, 0.0, None, None, {}, JobCounts(total=1))
VIEW = RecipientView(7 << 32 | 1, "a@x.org", Status.WAITING, 0, 0.0, False, None, 0, "")


def told(
    view: RecipientView = VIEW, job: Job = JOB, lease: LeaseView | None = None, *records: RetryRecord
) -> list[str]:
    return reasons(Explanation(view, job, lease, records), NOW)


def test_one_that_is_due_waits_for_an_engine() -> None:
    assert told() == ["first attempt is due now: it waits for an engine to take it"]


def test_one_of_a_job_that_starts_later() -> None:
    (sentence,) = told(job=replace(JOB, start_at=NOW + 3600))
    assert sentence == f"first attempt at {moment(NOW + 3600)} (in 1h), after 0 attempts"


def test_one_of_a_job_that_is_being_loaded() -> None:
    assert told(job=replace(JOB, is_loading=True))[0] == "waiting until job 7 is loaded"


@pytest.mark.parametrize(
    ("alive", "until", "words"),
    [
        (True, NOW + 60, "; the lease ends at"),
        (None, NOW - 60, "; the lease ended at"),
        (False, NOW + 60, ", and is gone: the next engine that starts clears up after it"),
    ],
)
def test_one_that_an_engine_has(alive: bool | None, until: float, words: str) -> None:
    lease = LeaseView(3, 4711, NOW - 5, until, alive)
    (sentence,) = told(replace(VIEW, status=Status.IN_FLIGHT), lease=lease)
    assert sentence.startswith(f"engine 3 (pid 4711) has it since {moment(NOW - 5)}{words}")
    assert told(replace(VIEW, status=Status.IN_FLIGHT)) == ["an engine has it"]


def test_settled_ones_say_nothing_of_the_future() -> None:
    record = RetryRecord("T:h:1", NOW, NOW, NOW + 5)
    for status in (Status.DELIVERED, Status.FAILED, Status.CANCELLED):
        view = replace(VIEW, status=status, attempts=2, last_attempt_at=NOW, in_doubt=True)
        assert len(told(view, replace(JOB, expires_at=NOW + 5), None, record)) == 1
    failed = replace(VIEW, status=Status.FAILED, attempts=2, text="550 no", errno=-44)
    assert told(failed) == ["failed for good after 2 attempts", "last error (-44): 550 no"]


def test_retry_records_are_told_by_what_they_are_about() -> None:
    view = replace(VIEW, status=Status.DEFERRED, attempts=1, next_attempt_at=NOW + 60)
    host = RetryRecord("T:mx:192.0.2.1", NOW - 9, NOW, NOW + 60, text="Connection refused")
    expired = RetryRecord("R:x.org", NOW - 9, NOW, NOW - 60, expired=True)
    _, first, second = told(view, JOB, None, host, expired)
    assert first.startswith("host mx:192.0.2.1 has been failing since ")
    assert first.endswith("its retry time comes at " + moment(NOW + 60) + " (in 1m): Connection refused")
    assert second.startswith("address or domain x.org has been failing for a long time since ")
    assert second.endswith("its retry time came at " + moment(NOW - 60))


def test_a_time_that_no_calendar_has_is_a_number() -> None:
    assert moment(1e17) == "100000000000000000"
    assert moment(NOW).startswith("2023-11-1")


@given(st.text())
def test_text_from_a_server_comes_out_on_one_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    shown.encode()


@given(
    st.sampled_from(Status),
    st.sampled_from(JobState),
    st.floats(0, 1e17),
    st.floats(0, 1e17) | st.none(),
    st.text(max_size=20),
    st.booleans(),
)
def test_any_recipient_is_explained(
    status: Status, state: JobState, at: float, last: float | None, text: str, flag: bool
) -> None:
    view = replace(VIEW, status=status, next_attempt_at=at, last_attempt_at=last, text=text, in_doubt=flag, attempts=1)
    job = replace(JOB, state=state, is_loading=flag, expires_at=last)
    record = RetryRecord(text, at, at, at, text=text, expired=flag)
    sentences = told(view, job, LeaseView(1, 1, at, at, flag), record)
    assert sentences
    assert all(sentence.isprintable() for sentence in sentences)

"""Message ids: their form, and that they are the same after a crash and different otherwise."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.compose import message_id

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FORM = re.compile(r"[0-9A-Za-z]{6}-[0-9A-Za-z]{11}-[0-9A-Za-z]{4}\Z")

times = st.floats(0, 4e9)
salts = st.binary(max_size=80)
jobs = st.integers(0, (1 << 31) - 1)
numbers = st.integers(0, (1 << 32) - 1)


@given(times, salts, jobs, numbers)
def test_the_form_is_exims(created_at: float, salt: bytes, job: int, number: int) -> None:
    assert FORM.match(message_id(created_at, salt, job, number))


@given(times, salts, jobs, numbers)
def test_the_same_facts_give_the_same_id(created_at: float, salt: bytes, job: int, number: int) -> None:
    assert message_id(created_at, salt, job, number) == message_id(created_at, bytes(salt), job, number)


def test_it_begins_with_the_second_of_the_job() -> None:
    seconds = 0
    for digit in message_id(1732480000.75, b"salt", 1, 1)[:6]:
        seconds = seconds * 62 + DIGITS.index(digit)
    assert seconds == 1732480000


def test_ids_are_never_drawn_anew() -> None:
    """Fixed, since messages in a queue must keep their ids over a new version."""
    assert message_id(1732480000.25, b"salt", 7, 1) == "1tFJBo-1FVXyZcSOHb-9uPp"


@given(times, salts, jobs, numbers)
def test_the_recipient_is_mixed_as_the_module_says(created_at: float, salt: bytes, job: int, number: int) -> None:
    digest = hashlib.blake2b(
        repr(float(created_at)).encode(), key=hashlib.sha256(salt).digest(), digest_size=16
    ).digest()
    mixed = (((job << 32 | number) ^ int.from_bytes(digest[:8])) * 0x9E3779B97F4A7C15) % (1 << 64)
    mixed ^= mixed >> 32
    value = 0
    for digit in message_id(created_at, salt, job, number)[7:18]:
        value = value * 62 + DIGITS.index(digit)
    assert value == mixed


@given(st.lists(st.tuples(jobs, numbers), unique=True, min_size=2, max_size=50))
def test_two_recipients_of_one_queue_never_share_one(recipients: list[tuple[int, int]]) -> None:
    ids = {message_id(1732480000.0, b"salt", job, number) for job, number in recipients}
    assert len(ids) == len(recipients)


def test_a_whole_job_has_ids_of_its_own() -> None:
    assert len({message_id(1.0, b"salt", 3, number) for number in range(20_000)}) == 20_000


@pytest.mark.parametrize("other", [(2.0, b"salt"), (1.5, b"salt"), (1.0, b"other"), (1.0, b"")])
def test_two_queues_or_jobs_do_not_share_them(other: tuple[float, bytes]) -> None:
    ours = {message_id(1.0, b"salt", 3, number) for number in range(2000)}
    theirs = {message_id(*other, 3, number) for number in range(2000)}
    assert not ours & theirs
    # and not only the part that says the second differs
    assert not {name[7:] for name in ours} & {name[7:] for name in theirs}

"""Retry schedules under a virtual clock, RT-8 to RT-15, and the keys of 11.2."""

from __future__ import annotations

import itertools
import random as random_module
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.config import RetryOptions
from engine.queue.model import RetryRecord
from engine.queue.rules import Failure, RetryRule, RetryRules
from engine.queue.schedule import (
    ERRNO_REMOTE_RETRY,
    Postponement,
    Verdict,
    fresh,
    host_key,
    is_ultimate_timeout,
    judge_host,
    may_try_expired,
    message_key,
    no_host_left,
    postpone,
    recipient_key,
    routing_key,
)

NOW = 1_700_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
KEY = "T:mx.example.org:192.0.2.1"


def rule(text: str) -> RetryRule:
    found = RetryRules.compile([RetryOptions(pattern="*", rule=text)]).find(Failure(), "x")
    assert found is not None
    return found


def never() -> float:
    raise AssertionError("randomness is asked for only by H")


class Clock:
    """A host that fails at each retry time: what the gaps are until the record expires."""

    def __init__(self, text: str, *, random: Callable[[], float] = never, created_at: float | None = None) -> None:
        self.now = NOW
        self.rule = rule(text)
        self.record: RetryRecord | None = None
        self._random = random
        self._created_at = created_at

    def fail(self, *, interval_max_s: float = DAY) -> Postponement:
        result = postpone(
            self.rule,
            self.record,
            KEY,
            self.now,
            random=self._random,
            message_created_at=self._created_at,
            interval_max_s=interval_max_s,
        )
        self.record = result.record
        return result

    def gaps(self, count: int, *, interval_max_s: float = DAY) -> list[float]:
        found: list[float] = []
        for _ in range(count):
            result = self.fail(interval_max_s=interval_max_s)
            found.append(result.next_try_at - self.now)
            self.now = result.next_try_at
        return found


# --- RT-8: F, G, H ----------------------------------------------------------------------------------------------------


def test_fixed_steps_follow_one_another() -> None:
    clock = Clock("F,1h,15m; F,3h,30m")
    assert clock.gaps(8) == [15 * MINUTE] * 5 + [30 * MINUTE] * 3


def test_the_geometric_step_grows_from_its_start() -> None:
    assert Clock("G,16h,1h,1.5").gaps(5) == [HOUR, 1.5 * HOUR, 2.25 * HOUR, 3.375 * HOUR, 5.0625 * HOUR]


def test_the_geometric_step_after_a_fixed_one_begins_at_its_start() -> None:
    # the gap before was 15 minutes, less than the start of an hour
    gaps = Clock("F,30m,15m; G,16h,1h,2").gaps(6)
    assert gaps == [15 * MINUTE] * 3 + [HOUR, 2 * HOUR, 4 * HOUR]


def test_a_try_out_of_turn_does_not_make_the_gap_grow() -> None:
    clock = Clock("G,4d,1h,2")
    clock.gaps(3)
    clock.now = clock.record.last_try_at + 90 * MINUTE if clock.record else 0.0
    assert clock.gaps(1) == [3 * HOUR], "the gap that really was, 1.5 hours, times two"
    clock.now = clock.record.last_try_at + 60 if clock.record else 0.0
    assert clock.gaps(1) == [HOUR], "never less than the start"


def test_the_spread_stands_in_the_upper_half() -> None:
    low, high = Clock("H,4d,1h,2", random=lambda: 0.0), Clock("H,4d,1h,2", random=lambda: 1.0)
    assert low.gaps(3) == [HOUR, 1.5 * HOUR, 2 * HOUR]
    assert high.gaps(3) == [HOUR, 2 * HOUR, 4 * HOUR]


@given(st.integers(0, 2**32), st.floats(1, 5))
def test_the_spread_grows_and_stays_under_the_geometric_gap(seed: int, factor: float) -> None:
    text = f"H,30d,10m,{factor:.3f}"
    gaps = Clock(text, random=random_module.Random(seed).random).gaps(6, interval_max_s=30 * DAY)
    for gap, following in itertools.pairwise(gaps):
        assert 600 <= following <= max(600, gap * round(factor, 3)) + 1e-3


def test_no_interval_is_over_the_greatest() -> None:
    assert Clock("G,30d,1h,10").gaps(4) == [HOUR, 10 * HOUR, DAY, DAY]
    assert Clock("F,30d,2d").gaps(2) == [DAY, DAY]
    assert Clock("F,30d,2d").gaps(2, interval_max_s=HOUR) == [HOUR, HOUR]


def test_a_record_older_than_its_life_is_forgotten() -> None:
    record = RetryRecord(KEY, NOW, NOW, NOW + HOUR)
    assert fresh(record, NOW + 7 * DAY) is record
    assert fresh(record, NOW + 7 * DAY + 1) is None
    assert fresh(None, NOW) is None
    late = postpone(rule("F,1d,1h"), record, KEY, NOW + 8 * DAY, random=never)
    assert late.record is not None
    assert late.record.first_failed_at == NOW + 8 * DAY
    assert not late.timed_out


# --- RT-9, RT-10: cut-offs --------------------------------------------------------------------------------------------


def test_the_cut_off_counts_from_the_first_failure() -> None:
    clock = Clock("F,1h,30m")
    assert [clock.fail().timed_out] == [False]
    first = clock.record
    assert first is not None
    for minutes, timed_out in ((30, False), (60, False), (61, True), (200, True)):
        clock.now = NOW + minutes * MINUTE
        result = clock.fail()
        assert result.timed_out is timed_out, minutes
        assert result.record is not None
        assert result.record.expired is timed_out
        assert result.record.first_failed_at == NOW
        assert result.next_try_at == clock.now + 30 * MINUTE, "the last step goes on giving intervals"


def test_the_age_of_the_message_counts_where_it_is_older() -> None:
    """RT-9: for message and recipient keys; a host key gives no message."""
    old = NOW - 2 * HOUR
    assert Clock("F,1h,30m", created_at=old).fail().timed_out
    assert not Clock("F,1h,30m").fail().timed_out
    clock = Clock("F,1h,30m", created_at=NOW)
    clock.record = RetryRecord(KEY, old, NOW - HOUR, NOW - HOUR)
    assert clock.fail().timed_out, "the record is older than the message"


def test_without_a_rule_the_time_is_up_at_once() -> None:
    """RT-10."""
    for without in (None, rule("")):
        result = postpone(without, None, KEY, NOW, random=never)
        assert result == Postponement(None, True, NOW)


def test_the_record_tells_of_the_failure() -> None:
    result = postpone(rule("F,1h,5m"), None, KEY, NOW, random=never, errno=110, more_errno=321, text="timed out")
    assert result.record == RetryRecord(KEY, NOW, NOW, NOW + 300, 110, 321, "timed out", False)


def test_a_clock_that_went_back_gives_a_time_all_the_same() -> None:
    clock = Clock("G,4d,1h,2")
    clock.gaps(3)
    clock.now = NOW - DAY
    assert clock.gaps(1) == [HOUR]


@given(
    st.sampled_from(["F,1h,5m", "G,2h,10m,1.5", "H,2h,10m,3", "F,1h,5m; H,1d,1h,2"]),
    st.lists(st.floats(0, 3 * DAY), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_a_record_is_always_in_order(text: str, waits: list[float], seed: int) -> None:
    clock = Clock(text, random=random_module.Random(seed).random)
    expired = False
    for wait in waits:
        clock.now += wait
        before = clock.record
        result = clock.fail()
        record = result.record
        assert record is not None
        assert record.first_failed_at <= record.last_try_at == clock.now < record.next_try_at <= clock.now + DAY
        assert record.expired is result.timed_out
        if fresh(before, clock.now) is not None:
            assert result.timed_out >= expired, "what has run out stays so until it succeeds"
        expired = result.timed_out


# --- RT-11: hosts -----------------------------------------------------------------------------------------------------

WAITING = RetryRecord(KEY, NOW - HOUR, NOW, NOW + HOUR)
EXPIRED = replace(WAITING, expired=True)
RULE = rule("F,4d,1h")


def judge(record: RetryRecord | None, now: float, of: RetryRule | None = RULE, created_at: float = NOW) -> Verdict:
    return judge_host(record, now, rule=of, message_created_at=created_at)


def test_a_host_waits_for_its_time() -> None:
    assert judge(None, NOW) is Verdict.USABLE
    assert judge(WAITING, NOW + 1) is Verdict.NOT_DUE
    assert judge(WAITING, NOW + HOUR) is Verdict.USABLE


def test_an_expired_host_gets_one_more_try_when_its_time_comes() -> None:
    assert judge(EXPIRED, NOW + 1) is Verdict.EXPIRED
    assert judge(EXPIRED, NOW + HOUR) is Verdict.LAST_TRY


def test_a_message_past_its_ultimate_timeout_tries_a_host_that_is_not_due() -> None:
    old = NOW - 5 * DAY
    assert judge(WAITING, NOW + 1, created_at=old) is Verdict.USABLE
    assert judge(WAITING, NOW + 1, None) is Verdict.USABLE
    assert judge(EXPIRED, NOW + 1, created_at=old) is Verdict.EXPIRED
    assert is_ultimate_timeout(RULE, NOW, NOW + 4 * DAY + 1)
    assert not is_ultimate_timeout(RULE, NOW, NOW + 4 * DAY)
    assert is_ultimate_timeout(rule(""), NOW, NOW)


def test_a_forgotten_record_holds_up_nothing() -> None:
    assert judge(replace(EXPIRED, next_try_at=NOW + 30 * DAY), NOW + 8 * DAY) is Verdict.USABLE


def test_without_delay_an_expired_host_is_tried_by_a_message_that_came_later() -> None:
    assert may_try_expired(EXPIRED, NOW + 1)
    assert may_try_expired(EXPIRED, NOW)
    assert not may_try_expired(EXPIRED, NOW - 1)


# --- RT-12 ------------------------------------------------------------------------------------------------------------


def test_the_texts_for_an_address_without_a_host() -> None:
    gone = no_host_left("example.org", [Verdict.EXPIRED] * 2)
    assert gone.failed
    assert gone.text == "all hosts for 'example.org' have been failing for a long time (and retry time not reached)"
    at_once = no_host_left("example.org", [Verdict.EXPIRED], delay_after_cutoff=False)
    assert at_once.failed
    assert at_once.text == (
        "all hosts for 'example.org' have been failing for a long time and were last tried after this message arrived"
    )
    waiting = no_host_left("example.org", [Verdict.EXPIRED, Verdict.NOT_DUE])
    assert not waiting.failed
    assert waiting.text == "retry time not reached for any host for 'example.org'"
    assert waiting.errno == ERRNO_REMOTE_RETRY == -54
    skipped = no_host_left("example.org", [Verdict.EXPIRED], skipped_otherwise=True)
    assert not skipped.failed
    full = no_host_left("example.org", [Verdict.EXPIRED], at_connection_limit=True)
    assert (full.failed, full.text) == (False, "connection limit reached for all hosts")
    assert not no_host_left("example.org", []).failed


# --- 11.2: keys -------------------------------------------------------------------------------------------------------


def test_the_keys_of_retry_records() -> None:
    assert host_key("MX.example.org", "192.0.2.1") == "T:mx.example.org:192.0.2.1"
    assert host_key("mx.example.org", "192.0.2.1", 2525) == "T:mx.example.org:192.0.2.1:2525"
    assert host_key("mx.example.org", "2001:db8::1") == "T:mx.example.org:[2001:db8::1]"
    assert host_key("192.0.2.1", "192.0.2.1") == host_key("[192.0.2.1]", "192.0.2.1") == "T:[192.0.2.1]:192.0.2.1"
    assert host_key("2001:db8::1", "2001:db8::1", 26) == "T:[2001:db8::1]:[2001:db8::1]:26"
    assert host_key("m", "192.0.2.1", interface="192.0.2.9") == "T:m:192.0.2.1/192.0.2.9"
    assert message_key("T:m:192.0.2.1", "1abcde-000001-01") == "T:m:192.0.2.1:1abcde-000001-01"
    assert recipient_key("a@x.org") == "R:a@x.org"
    assert recipient_key("a@x.org", "s@y.org") == "R:a@x.org:<s@y.org>"
    assert recipient_key("a@x.org", "") == "R:a@x.org:<>"
    assert routing_key("Example.ORG") == "R:example.org"

"""MTA-STS records, policies, patterns, and what they make of a plan (RFC 8461 §3 to §5, R48, R49)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.policy.mta_sts import (
    MAX_AGE_S,
    MAX_POLICY_OCTETS,
    Mode,
    StsPolicy,
    apply,
    parse_policy,
    pattern_matches,
    record_id,
    texts_of,
)
from engine.policy.plan import CLEAR, Plan, TlsLevel

POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n"
MX = "mail.example.com"


def txt(*strings: str) -> bytes:
    return b"".join(bytes([len(each)]) + each.encode() for each in strings)


# --- the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "v=STSv1; id=20160831085700Z;",
        "v=STSv1;id=20160831085700Z",
        "v=STSv1 ; id=20160831085700Z ; ",
        "v=STSv1; id=20160831085700Z; later=extension;",
        "v=STSv1; other=1; id=20160831085700Z; id=2;",
    ],
)
def test_an_id(text: str) -> None:
    assert record_id([txt(text)]) == "20160831085700Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v=STSv1",
        "v=STSv1;",
        "v=STSv1; id=",
        "v=STSv1; id=has space;",
        "v=STSv1; id=under_score;",
        "v=STSv1; id=" + "1" * 33,
        "id=1; v=STSv1;",
        "v=STSv2; id=1;",
        "V=STSv1; id=1;",
        "v=STSv1; id=1; broken;",
        "v=spf1 -all",
    ],
)
def test_no_id(text: str) -> None:
    assert record_id([txt(text)]) is None


def test_strings_are_put_together_and_others_discarded() -> None:
    assert record_id([txt("v=spf1 -all"), txt("v=ST", "Sv1; id", "=1;")]) == "1"


def test_two_records_are_none() -> None:
    assert record_id([txt("v=STSv1; id=1;"), txt("v=STSv1; id=2;")]) is None
    assert record_id([]) is None


def test_rdata_cut_short_is_left_out() -> None:
    assert texts_of([b"\x05ab", b"\x02ab", b""]) == ["ab", ""]


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_records_never_raise(records: list[bytes]) -> None:
    found = record_id(records)
    assert found is None or 1 <= len(found) <= 32


# --- the policy -------------------------------------------------------------------------------------------------------


def test_a_policy() -> None:
    policy = parse_policy("example.com", POLICY, "7")
    assert policy == StsPolicy("example.com", Mode.ENFORCE, (MX, "*.example.net"), 604800, "7")
    assert parse_policy("example.com", "\n".join(policy.text).encode(), "7") == policy


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_line_endings_blanks_and_unknown_keys(ending: bytes) -> None:
    lines = [b"version:STSv1  ", b"", b"mode:\ttesting", b"new_key: x:y", b"mx:MAIL.Example.COM.", b"max_age: 1"]
    policy = parse_policy("example.com", ending.join(lines))
    assert (policy.mode, policy.mx, policy.max_age_s) == (Mode.TESTING, (MX,), 1)


def test_the_first_of_a_repeated_key_counts() -> None:
    policy = parse_policy("example.com", POLICY + b"mode: none\nmax_age: 1\n")
    assert (policy.mode, policy.max_age_s) == (Mode.ENFORCE, 604800)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "version"),
        (POLICY.replace(b"STSv1", b"STSv2"), "version"),
        (POLICY.replace(b"enforce", b"Enforce"), "mode"),
        (POLICY.replace(b"enforce", b"block"), "mode"),
        (POLICY.replace(b"604800", b"-1"), "max_age"),
        (POLICY.replace(b"604800", b"12345678901"), "max_age"),
        (POLICY.replace(b"604800", b"1d"), "max_age"),
        (POLICY.replace(b"mx:", b"xm:"), "no mail host"),
        (POLICY + b"<html>\n", "line 6"),
        (POLICY + b"\xff\xfe: x\n", "UTF-8"),
        (b"a" * (MAX_POLICY_OCTETS + 1), "octets"),
    ],
)
def test_what_is_no_policy(body: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        parse_policy("example.com", body)


def test_mode_none_needs_no_hosts() -> None:
    assert parse_policy("example.com", b"version: STSv1\nmode: none\nmax_age: 60\n").mode is Mode.NONE


def test_a_long_age_is_cut() -> None:
    assert parse_policy("example.com", POLICY.replace(b"604800", b"9999999999")).max_age_s == MAX_AGE_S


def test_addresses_name_no_host() -> None:
    """R49: they are ignored; a policy that has nothing else matches nobody, and is still in force."""
    policy = parse_policy("e.example", POLICY.replace(b"mail.example.com", b"192.0.2.1").replace(b"*.", b"[::1]."))
    assert policy.mx == ()
    assert policy.mode is Mode.ENFORCE
    assert not policy.names("192.0.2.1")


@given(st.binary(max_size=300))
def test_garbage_is_an_error_and_nothing_else(body: bytes) -> None:
    try:
        parse_policy("example.com", POLICY[: len(body) % len(POLICY)] + body)
    except DataError:
        pass


@given(
    st.sampled_from(list(Mode)),
    st.lists(st.from_regex(r"(\*\.)?[a-z]{1,8}\.[a-z]{2,5}", fullmatch=True), min_size=1, max_size=5, unique=True),
    st.integers(0, MAX_AGE_S),
)
def test_what_is_written_is_read(mode: Mode, mx: list[str], age: int) -> None:
    policy = StsPolicy("example.com", mode, tuple(mx), age)
    for ending in ("\n", "\r\n"):
        assert parse_policy("example.com", ending.join(policy.text).encode()) == policy


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("mail.example.com", "mail.example.com", True),
        ("mail.example.com", "mail.example.org", False),
        ("*.example.com", "mail.example.com", True),
        ("*.example.com", "a.mail.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("mail.*.com", "mail.example.com", False),
    ],
)
def test_patterns(pattern: str, host: str, expected: bool) -> None:
    assert pattern_matches(pattern, host) is expected


# --- what it demands --------------------------------------------------------------------------------------------------

OPPORTUNISTIC = Plan(TlsLevel.OPPORTUNISTIC, sni="other", reference_names=("*",), try_clear=True)
DANE = Plan(TlsLevel.DANE, sni=MX, reference_names=(MX,), tlsa=(b"\x03\x01\x01" + b"x" * 32,))


def policy(mode: Mode = Mode.ENFORCE, *mx: str) -> StsPolicy:
    return StsPolicy("example.com", mode, mx or (MX,), 3600)


@pytest.mark.parametrize("level", [TlsLevel.CLEAR, TlsLevel.OPPORTUNISTIC, TlsLevel.MANDATORY, TlsLevel.VERIFIED])
def test_enforce_demands_a_certificate_for_the_host(level: TlsLevel) -> None:
    """R49: for the name of the host, whatever the patterns and the options say; R21: nothing is relaxed."""
    plan = apply(policy(Mode.ENFORCE, "*.example.com"), MX, Plan(level, "x", ("*",), True, True, ciphers="HIGH")).plan
    assert plan is not None
    assert (plan.level, plan.sni, plan.reference_names) == (TlsLevel.VERIFIED, MX, (MX,))
    assert (plan.try_verify, plan.try_clear, plan.ciphers) == (False, False, "HIGH")


def test_enforce_refuses_a_host_that_is_not_named() -> None:
    verdict = apply(policy(Mode.ENFORCE, "other.example.com"), MX, OPPORTUNISTIC)
    assert (verdict.plan, verdict.mismatch) == (None, True)
    assert verdict.reason == "R49: mail.example.com is not named by the MTA-STS policy of example.com"


@pytest.mark.parametrize("mode", list(Mode))
def test_never_above_dane(mode: Mode) -> None:
    """R48: neither for a host that it names nor for another."""
    for pattern in (MX, "other.example.com"):
        assert apply(policy(mode, pattern), MX, DANE).plan is DANE


def test_testing_demands_nothing_and_looks() -> None:
    verdict = apply(policy(Mode.TESTING), MX, OPPORTUNISTIC)
    assert verdict.plan is not None
    assert (verdict.plan.level, verdict.plan.try_verify, verdict.mismatch) == (TlsLevel.OPPORTUNISTIC, True, False)
    assert apply(policy(Mode.TESTING, "other.example.com"), MX, OPPORTUNISTIC).mismatch
    assert apply(policy(Mode.TESTING), MX, CLEAR).plan is CLEAR


def test_none_changes_nothing() -> None:
    assert apply(policy(Mode.NONE), MX, OPPORTUNISTIC).plan is OPPORTUNISTIC

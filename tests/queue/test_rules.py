"""Retry rules: patterns, error names and steps, RT-7 and RT-8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import RetryOptions, loads
from engine.errors import ConfigError
from engine.queue.rules import ErrorName, Failure, Pattern, RetryRule, RetryRules, Step, StepKind, parse_steps

ANY = Failure()


def rules(*rows: tuple[str, str, str]) -> RetryRules:
    return RetryRules.compile([RetryOptions(pattern=pattern, error=error, rule=rule) for pattern, error, rule in rows])


# --- steps (RT-8) -----------------------------------------------------------------------------------------------------


def test_the_rule_of_the_design_is_read() -> None:
    assert parse_steps("F,2h,15m; G,16h,1h,1.5; F,4d,6h") == (
        Step(StepKind.FIXED, 7200, 900),
        Step(StepKind.GEOMETRIC, 57600, 3600, 1.5),
        Step(StepKind.FIXED, 345600, 21600),
    )


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", ()),
        (" ; ;", ()),
        ("f,1h,5m", (Step(StepKind.FIXED, 3600, 300),)),
        (" H , 1d12h , 90 , 2 ;", (Step(StepKind.SPREAD, 129600, 90, 2.0),)),
        ("G,1w,1m,1", (Step(StepKind.GEOMETRIC, 604800, 60, 1.0),)),
    ],
)
def test_steps_are_read(text: str, steps: tuple[Step, ...]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("X,2h,15m", 0, "begins with F, G or H, not 'X'"),
        ("F,2h,15m; Q,1h,5m", 10, "not 'Q'"),
        ("F,2h", 2, "has the form F,cutoff,interval"),
        ("F,2h,15m,2", 9, "has the form F,cutoff,interval"),
        ("G,2h,15m", 5, "has the form G,cutoff,start,factor"),
        ("H,2h,15m,2,3", 11, "has the form H,cutoff,start,factor"),
        ("F,2x,15m", 2, "'2x' is not a time interval"),
        ("F,2h, 15q", 6, "'15q' is not a time interval"),
        ("F,,15m", 2, "is not a time interval"),
        ("F,0s,15m", 2, "more than nothing"),
        ("F,2h,0", 5, "more than nothing"),
        ("G,2h,15m,fast", 9, "'fast' is not a factor"),
        ("G,2h,15m,-2", 9, "is not a factor"),
        ("G,2h,15m,1e9", 9, "is not a factor"),
        ("G,2h,15m,0.5", 9, "must be 1 or more"),
        ("G,2h,15m,", 9, "is not a factor"),
    ],
)
def test_a_bad_rule_is_an_error_with_its_column(text: str, column: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_steps(text, key="retry[0].rule")
    assert caught.value.column == column
    assert message in caught.value.message
    assert str(caught.value).startswith(f"retry[0].rule: column {column + 1}: ")
    assert str(caught.value).endswith("^")


@given(st.text(alphabet="FGHfgh0123456789smhdw.,; ", max_size=40) | st.text(max_size=20))
def test_any_rule_text_is_steps_or_a_config_error(text: str) -> None:
    try:
        steps = parse_steps(text)
        column: int | None = 0
    except ConfigError as error:
        steps, column = (), error.column
    assert column is not None
    assert 0 <= column <= len(text)
    assert all(step.cutoff_s > 0 and step.interval_s > 0 and step.factor >= 1 for step in steps)


def test_the_step_in_force_is_the_first_that_is_not_over() -> None:
    rule = RetryRule(Pattern.parse("*"), ErrorName.parse("*"), parse_steps("F,2h,15m; F,4h,1h"))
    first, second = rule.steps
    assert rule.step_at(0) == (first, False)
    assert rule.step_at(7200) == (first, False)
    assert rule.step_at(7200.1) == (second, False)
    assert rule.step_at(14400) == (second, False)
    assert rule.step_at(14401) == (second, True)
    assert rule.cutoff_s == 14400


def test_a_rule_without_steps_has_no_step() -> None:
    rule = RetryRule(Pattern.parse("*"), ErrorName.parse("*"), ())
    assert rule.step_at(0) is None
    assert rule.cutoff_s == 0


# --- error names (RT-7) -----------------------------------------------------------------------------------------------

NAMES = [
    "auth_failed",
    "lost_connection",
    "lookup",
    "quota",
    "timeout_DNS",
    "tls_required",
    "refused",
    "refused_MX",
    "refused_A",
    "timeout",
    "timeout_MX",
    "timeout_A",
    "timeout_connect",
    "timeout_connect_MX",
    "timeout_connect_A",
    "data_4xx",
    "mail_4xx",
    "rcpt_4xx",
    "data_421",
    "mail_45x",
    "rcpt_4x2",
    "quota_7d",
    "*",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_error_name_is_known_in_any_case(name: str) -> None:
    assert ErrorName.parse(name) == ErrorName.parse(f" {name.upper()} ") == ErrorName.parse(name.lower())
    assert ErrorName.parse("*").matches(ANY)


BAD_NAMES = "|none|data_5xx|rcpt_4|rcpt_4xxx|rcpt_4yy|helo_4xx|refused_B|lookup_MX|quota_|_mx|quota_7y|timeout_DNS_A"


@pytest.mark.parametrize("name", [*BAD_NAMES.split("|"), "auth_failed_A", "**", "r\u0435fused"])
def test_another_name_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown retry error") as caught:
        ErrorName.parse(name, key="retry[2].error")
    assert str(caught.value).startswith("retry[2].error: ")


def failure(name: str, code: int = 0, mx: bool | None = None, unread: int | None = None) -> Failure:
    return Failure(name, code, mx, unread)


MATCHES = [
    ("auth_failed", failure("auth_failed")),
    ("lost_connection", failure("lost_connection", mx=True)),
    ("lookup", failure("lookup")),
    ("timeout_dns", failure("timeout_DNS")),
    ("tls_required", failure("tls_required", mx=False)),
    ("refused", failure("refused", mx=True)),
    ("refused", failure("refused", mx=False)),
    ("refused", failure("refused")),
    ("refused_mx", failure("refused", mx=True)),
    ("refused_a", failure("refused", mx=False)),
    ("timeout", failure("timeout", mx=True)),
    ("timeout", failure("timeout_connect", mx=True)),
    ("timeout_a", failure("timeout", mx=False)),
    ("timeout_a", failure("timeout_connect", mx=False)),
    ("timeout_connect", failure("timeout_connect")),
    ("timeout_connect_mx", failure("timeout_connect", mx=True)),
    ("rcpt_4xx", failure("rcpt_4xx", 450)),
    ("rcpt_45x", failure("rcpt_4xx", 452)),
    ("rcpt_4x2", failure("rcpt_4xx", 452)),
    ("data_421", failure("data_4xx", 421)),
    ("quota", failure("quota")),
    ("quota", failure("quota", unread=5)),
    ("quota_1d", failure("quota", unread=86400)),
]
NO_MATCHES = [
    ("refused_mx", failure("refused", mx=False)),
    ("refused_mx", failure("refused")),
    ("refused_a", failure("refused", mx=True)),
    ("refused", failure("timeout")),
    ("timeout_connect", failure("timeout")),
    ("timeout_dns", failure("timeout")),
    ("timeout", failure("timeout_dns")),
    ("rcpt_4xx", failure("mail_4xx", 450)),
    ("rcpt_4xx", failure("rcpt_4xx", 550)),
    ("rcpt_4xx", failure("rcpt_4xx")),
    ("rcpt_45x", failure("rcpt_4xx", 442)),
    ("rcpt_4x2", failure("rcpt_4xx", 451)),
    ("quota_1d", failure("quota", unread=86399)),
    ("quota_1d", failure("quota")),
    ("lookup", ANY),
    ("lost_connection", failure("lost_connection_")),
]


@pytest.mark.parametrize(("name", "what"), MATCHES)
def test_an_error_name_matches(name: str, what: Failure) -> None:
    assert ErrorName.parse(name).matches(what)


@pytest.mark.parametrize(("name", "what"), NO_MATCHES)
def test_an_error_name_does_not_match(name: str, what: Failure) -> None:
    assert not ErrorName.parse(name).matches(what)


@given(st.text(max_size=20), st.text(max_size=20), st.integers(-10, 10_000), st.booleans() | st.none())
def test_any_error_text_parses_or_is_a_config_error_and_matches_without_raising(
    text: str, name: str, code: int, mx: bool | None
) -> None:
    try:
        parsed = ErrorName.parse(text)
    except ConfigError:
        parsed = ErrorName.parse("rcpt_4xx")
    assert parsed.matches(Failure(name, code, mx)) in (True, False)


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "subjects"),
    [
        ("*", ["mx.example.org", "user@example.org", "@", ""]),
        ("example.org", ["example.org", "EXAMPLE.org", "user@example.org"]),
        ("Example.ORG", ["example.org", "user@eXample.org"]),
        ("*.example.org", ["mx.example.org", "a.b.example.org", "user@mx.example.org"]),
        ("*ample.org", ["example.org", "user@sample.org"]),
        ("user@example.org", ["user@example.org", "user@EXAMPLE.ORG", "User@example.org"]),
        ("Mike@Example.org", ["mike@example.org"]),
        ("*@example.org", ["anyone@example.org", "example.org"]),
        ("*-bounce@*", ["x-bounce@example.org"]),
        ("user+tag@example.org", ["user+tag@example.org"]),
        (r"^user\d+@example\.(org|com)$", ["user12@example.com", "user1@EXAMPLE.org"]),
        (r"^.*@mx\d+\.", ["mx1.example.org", "user@mx1.example.org"]),
        ("user@[192.0.2.1]", ["user@[192.0.2.1]"]),
        ("[IPv6:::1]", ["[ipv6:::1]", "user@[IPv6:::1]"]),
    ],
)
def test_a_pattern_matches(pattern: str, subjects: list[str]) -> None:
    parsed = Pattern.parse(pattern)
    assert [subject for subject in subjects if not parsed.matches(subject)] == []


@pytest.mark.parametrize(
    ("pattern", "subjects"),
    [
        ("example.org", ["mx.example.org", "example.org.", "notexample.org", "user@sub.example.org"]),
        ("*.example.org", ["example.org", "user@example.org"]),
        ("user@example.org", ["other@example.org", "example.org", "user@example.com"]),
        ("user@*", ["example.org"]),
        (r"^user@", ["auser@example.org", "example.org"]),
        (r"^mx\d+\.", ["mx1.example.org"]),
        (r"^(a+)+$", ["a" * 60 + "b"]),
    ],
)
def test_a_pattern_does_not_match(pattern: str, subjects: list[str]) -> None:
    parsed = Pattern.parse(pattern)
    assert [subject for subject in subjects if parsed.matches(subject)] == []


@pytest.mark.parametrize(
    ("pattern", "column", "message"),
    [
        ("", 0, "cannot be empty"),
        ("  ", 0, "cannot be empty"),
        ("^user(", 0, "bad regular expression"),
        ("+local_domains", 0, "named lists are not possible"),
        ("!example.org", 0, "negated items are not possible"),
        ("lsearch;/etc/retry", 7, "lookups are not possible"),
        ("a.org : b.org", 6, "lists are not possible"),
        ("/etc/patterns", 0, "files are not possible"),
        ("@example.org", 0, "nothing before the @"),
        ("user@", 4, "nothing after the @"),
        ("mx.*.org", 3, "only stand at the start"),
    ],
)
def test_a_bad_pattern_is_an_error_with_its_column(pattern: str, column: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pattern.parse(pattern)
    assert message in caught.value.message
    assert caught.value.column == column


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_pattern_parses_or_is_a_config_error_and_matches_without_raising(text: str, subject: str) -> None:
    try:
        parsed = Pattern.parse(text)
    except ConfigError:
        return
    assert parsed.matches(subject) in (True, False)


# --- the search -------------------------------------------------------------------------------------------------------


def rule_number(found: RetryRule | None, of: RetryRules) -> int | None:
    return None if found is None else of.rules.index(found)


def test_the_first_rule_that_matches_any_subject_wins() -> None:
    """RT-7: host errors match the host name first, then the address's domain, rule by rule."""
    table = rules(
        ("mx.example.net", "*", "F,1h,1m"),
        ("example.org", "refused", "F,2h,2m"),
        ("example.org", "*", "F,3h,3m"),
        ("*", "timeout", "F,4h,4m"),
    )
    refused, lost = Failure("refused"), Failure("lost_connection")
    assert rule_number(table.find(refused, "mx.example.net", "example.org"), table) == 0
    assert rule_number(table.find(refused, "mx.other.net", "example.org"), table) == 1
    assert rule_number(table.find(lost, "mx.other.net", "example.org"), table) == 2
    assert rule_number(table.find(Failure("timeout_connect"), "mx.other.net", "example.com"), table) == 3
    assert table.find(lost, "mx.other.net", "example.com") is None


def test_a_rule_for_an_address_is_never_about_a_host() -> None:
    """RT-7: recipient errors match the whole address."""
    table = rules(("user@example.org", "*", "F,1h,1m"), ("example.org", "*", "F,2h,1m"))
    assert rule_number(table.find(ANY, "user@example.org"), table) == 0
    assert rule_number(table.find(ANY, "other@example.org"), table) == 1
    assert rule_number(table.find(ANY, "mx.example.org", "example.org"), table) == 1


def test_an_error_names_the_table_it_is_in() -> None:
    good = RetryOptions(pattern="*", rule="F,1h,1m")
    for bad in (
        RetryOptions(pattern="+x", rule="F,1h,1m"),
        RetryOptions(pattern="*", error="no", rule="F,1h,1m"),
        RetryOptions(pattern="*", rule="F,1h"),
    ):
        with pytest.raises(ConfigError, match=r"^retry\[1\]\."):
            RetryRules.compile([good, bad])


def test_rules_come_from_the_configuration() -> None:
    config = loads(b'[[retry]]\npattern = "*"\nrule = "F,2h,15m; G,16h,1h,1.5; F,4d,6h"\n')
    found = RetryRules.compile(config.retry).find(ANY, "example.org")
    assert found is not None
    assert found.cutoff_s == 4 * 86400
    assert RetryRules.compile([]).find(ANY, "example.org") is None

"""Domains, addresses and intervals: what is taken, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.values import (
    Rate,
    format_interval,
    literal_address,
    parse_address,
    parse_domain,
    parse_interval,
    parse_rate,
)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
    ],
)
def test_domain_is_brought_into_one_form(text: str, domain: str) -> None:
    assert parse_domain(text) == domain


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "-a.b",
        "a-.b",
        "a" * 64 + ".b",
        "a." * 127 + "com",
        "a b.c",
        "a\n.b",
        "[1.2.3]",
        "[::1]",
        "[1.2.3.4",
    ],
)
def test_domain_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_domain(text)


@pytest.mark.parametrize(
    ("domain", "address"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("a.b", None)]
)
def test_literal_address(domain: str, address: str | None) -> None:
    assert literal_address(domain) == address


@pytest.mark.parametrize(
    ("text", "local_part", "domain", "utf8"),
    [
        ("a.b+c@Example.com", "a.b+c", "example.com", False),
        ("MiXed@example.com", "MiXed", "example.com", False),
        ('"a b"@example.com', '"a b"', "example.com", False),
        (r'"a\"b@c"@example.com', r'"a\"b@c"', "example.com", False),
        ("jörg@bücher.example", "jörg", "xn--bcher-kva.example", True),
        ("x@bücher.example", "x", "xn--bcher-kva.example", False),
        ("x@[192.0.2.7]", "x", "[192.0.2.7]", False),
    ],
)
def test_address(text: str, local_part: str, domain: str, utf8: bool) -> None:
    address = parse_address(text)
    assert (address.local_part, address.domain, address.needs_smtputf8) == (local_part, domain, utf8)


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "@b", "a@", "a b@c.d", ".a@b.c", "a.@b.c", "a..b@c.d", "a\r\nb@c.d", "a\0@b.c", "<a@b.c>", "a@b@c.d",
        '"a@b.c', '"a"b@c.d', "x" * 65 + "@b.c", "a@" + "b." * 126 + "com", "a\x85b@c.d", "a\ud800@b.c", "a,b@c.d",
    ],
)  # fmt: skip
def test_address_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_address(text)


@given(st.text(max_size=300))
def test_any_text_is_an_address_or_a_data_error(text: str) -> None:
    try:
        address = parse_address(text)
    except DataError:
        return
    wire = address.to_bytes()
    assert not set(wire) & {0, 10, 13}
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("30", 30), ("15m", 900), ("1d12h", 129600), ("1w2d3h4m5s", 788645)]
)
def test_interval(text: str, seconds: int) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "5m1h", "-1", "1.5h", " 1h"])
def test_interval_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time interval"):
        parse_interval(text)


@given(st.integers(0, 10**9))
def test_interval_round_trip(seconds: int) -> None:
    assert parse_interval(format_interval(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", Rate(0.01, 100)),
        ("100/1s", Rate(0.01, 100)),
        ("60/m", Rate(1.0, 1)),
        ("7200 / h", Rate(0.5, 2)),
        ("1/10s", Rate(10.0, 1)),
        ("3/2s", Rate(2 / 3, 2)),
        ("1/d", Rate(86400.0, 1)),
    ],
)
def test_rate(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "0/s", "s", "10", "10/", "10/0s", "-1/s", "1.5/s", "10/1h30m", "9999999999/s", "1/s\n"]
)
def test_rate_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate(text)


@given(st.integers(1, 10**9 - 1), st.integers(1, 10**6), st.sampled_from("wdhms"))
def test_a_rate_is_what_it_says(count: int, number: int, unit: str) -> None:
    rate = parse_rate(f"{count}/{number}{unit}")
    period_s = number * {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}[unit]
    assert rate.interval_s * count == pytest.approx(period_s)
    assert rate.burst >= 1
    assert rate.burst - 1 < max(1.0, count / period_s)

"""What EHLO offers, from servers that are right and from servers that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.capabilities import Capabilities, parse_capabilities
from engine.smtp.replies import Reply


def parse(*lines: str) -> Capabilities:
    return parse_capabilities(Reply(250, "\n".join(f"250-{line}" for line in ("mx.example hello", *lines)).encode()))


def test_everything_at_once() -> None:
    found = parse(
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "DSN",
        "CHUNKING",
        "ENHANCEDSTATUSCODES",
        "STARTTLS",
        "REQUIRETLS",
        "AUTH SCRAM-SHA-256 plain LOGIN",
        "LIMITS MAILMAX=20 RCPTMAX=100 RCPTDOMAINMAX=1",
        "HELP",
    )
    assert found.pipelining
    assert found.chunking
    assert found.starttls
    assert found.eightbitmime
    assert found.smtputf8
    assert found.dsn
    assert found.requiretls
    assert found.size
    assert found.enhanced_status_codes
    assert found.auth == ("SCRAM-SHA-256", "PLAIN", "LOGIN")
    assert (found.size_limit, found.mail_max, found.rcpt_max, found.rcpt_domain_max) == (52428800, 20, 100, 1)
    assert found.keywords["HELP"] == ""


def test_the_first_line_is_the_name_of_the_server_and_offers_nothing() -> None:
    assert parse_capabilities(Reply(250, b"250 PIPELINING")).keywords == {}
    assert not parse_capabilities(Reply(250, b"250-PIPELINING\n250 SIZE")).pipelining


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        ("SIZE", None),
        ("SIZE 0", None),
        ("SIZE 1000", 1000),
        ("SIZE x", None),
        ("SIZE -1", None),
        ("SIZE 1e9", None),
        ("SIZE 99999999999999999999999999", None),
        ("size 7", 7),
        ("SIZE 7 8", 7),
    ],
)
def test_size(line: str, limit: int | None) -> None:
    found = parse(line)
    assert found.size
    assert found.size_limit == limit


@pytest.mark.parametrize("line", ["PIPELININGX", "-PIPELINING", " PIPELINING", "PIPELINING=1", "PIPELINING:", ""])
def test_what_is_not_the_keyword_is_not_offered(line: str) -> None:
    assert not parse(line).pipelining


def test_auth_of_the_last_century() -> None:
    assert parse("AUTH=LOGIN PLAIN").auth == ("LOGIN", "PLAIN")
    assert parse("AUTH LOGIN", "AUTH=LOGIN CRAM-MD5").auth == ("LOGIN", "CRAM-MD5")


@pytest.mark.parametrize("limits", ["MAILMAX=0", "MAILMAX", "MAILMAX=", "MAILMAX=x", "XMAILMAX=3", "MAILMAX=-3"])
def test_limits_that_make_no_sense_are_none(limits: str) -> None:
    assert parse(f"LIMITS {limits}").mail_max is None


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"250-AUTH=", b"250-SIZE 5"])), max_size=300))
def test_nothing_a_server_says_raises(lines: list[bytes]) -> None:
    found = parse_capabilities(Reply(250, b"\n".join(lines)))
    assert len(found.keywords) < 200

"""What a connection says of its policies (table 1H, R55), and the report of RFC 8460."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DeliveryError, TlsPolicyError
from engine.policy.hosts import Host
from engine.policy.mta_sts import Mode, StsPolicy
from engine.policy.plan import CLEAR, Plan, TlsLevel
from engine.policy.requirement import Decision, Refusal
from engine.policy.tls_report import (
    Failure,
    PolicyResult,
    PolicyType,
    ResultType,
    Session,
    SessionReport,
    build_report,
    certificate_result,
    report_addresses,
    report_record,
    results,
)
from engine.tls.dane import Verdict
from engine.tls.facts import TlsFacts

NAME, DOMAIN = "mx.example.org", "example.org"
HOST = Host(NAME, "192.0.2.1", from_mx=True, domain=DOMAIN)
RDATA = b"\x03\x01\x01" + bytes(32)
DANE = Decision(Plan(TlsLevel.DANE, sni=NAME, reference_names=(NAME,), tlsa=(RDATA, b"\x02\x01\x01" + bytes(32))))
PLAIN = Decision(Plan(TlsLevel.OPPORTUNISTIC, sni=NAME))
ENFORCED = Decision(Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=(NAME,)))
STS = StsPolicy(DOMAIN, Mode.ENFORCE, ("*.example.org",), 3600)
FACTS = TlsFacts("TLS1.3", "TLS_AES_256_GCM_SHA384", 256, verified=True)
NO_STARTTLS = TlsPolicyError("a TLS session is required, but the server did not offer TLS support", errno=-38)
HANDSHAKE = TlsPolicyError("TLS session: (SSL_connect): error:SSL routines::sslv3 alert handshake failure", errno=-37)
EXPIRED = TlsPolicyError("TLS session: SSL verify error: depth=0 error=certificate has expired cert=/CN=x", errno=-37)


def said(found: Decision | Refusal, **options: object) -> list[tuple[str, str, str]]:
    """(policy type, policy domain, result or "ok") of each."""
    rows = results(Session(domain=DOMAIN, host=HOST, found=found, **options))  # type: ignore[arg-type]
    return [(row.type.value, row.domain, row.failure.result.value if row.failure else "ok") for row in rows]


# --- DANE -------------------------------------------------------------------------------------------------------------


def test_dane_that_matches() -> None:
    (row,) = results(Session(domain=DOMAIN, host=HOST, found=DANE, facts=FACTS))
    zeros = "00" * 32
    assert row == PolicyResult(PolicyType.TLSA, NAME, (f"2 1 1 {zeros}", f"3 1 1 {zeros}"), (NAME,))


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict("no-match"), "validation-failure"),
        (Verdict("name-mismatch"), "certificate-host-mismatch"),
        (Verdict("invalid-chain", error=10), "certificate-expired"),
        (Verdict("invalid-chain", error=20), "validation-failure"),
        (Verdict("unusable"), "tlsa-invalid"),
        (Verdict("match"), "validation-failure"),
        (None, "validation-failure"),
    ],
)
def test_dane_that_fails(verdict: Verdict | None, expected: str) -> None:
    assert said(DANE, error=HANDSHAKE, verdict=verdict) == [("tlsa", NAME, expected)]


@pytest.mark.parametrize(
    "error", [NO_STARTTLS, DeliveryError("SMTP error from remote mail server after STARTTLS: 454 no")]
)
def test_dane_without_starttls(error: DeliveryError) -> None:
    assert said(DANE, error=error) == [("tlsa", NAME, "starttls-not-supported")]


@pytest.mark.parametrize("result", ["dane-required", "dnssec-invalid", "tlsa-invalid"])
def test_dane_that_refuses_before_a_connection(result: str) -> None:
    assert said(Refusal("DANE error: x", dane_fail=result)) == [("tlsa", NAME, result)]


def test_records_of_which_none_is_usable_are_one_of_two_policies() -> None:
    """R55: a DANE failure and an MTA-STS result of the same session are two."""
    found = replace(ENFORCED, log=("DANE error: No usable TLSA records",))
    assert said(found, facts=FACTS, sts=STS) == [("tlsa", NAME, "tlsa-invalid"), ("sts", DOMAIN, "ok")]
    assert said(found, facts=FACTS) == [("tlsa", NAME, "tlsa-invalid")]


def test_sts_has_no_say_under_dane() -> None:
    assert said(DANE, facts=FACTS, sts=STS) == [("tlsa", NAME, "ok")]


# --- MTA-STS ----------------------------------------------------------------------------------------------------------


def test_sts() -> None:
    (row,) = results(Session(domain=DOMAIN, host=HOST, found=ENFORCED, sts=STS, facts=FACTS))
    lines = ("version: STSv1", "mode: enforce", "mx: *.example.org", "max_age: 3600")
    assert row == PolicyResult(PolicyType.STS, DOMAIN, lines, ("*.example.org",))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NO_STARTTLS, "starttls-not-supported"),
        (EXPIRED, "certificate-expired"),
        (HANDSHAKE, "validation-failure"),
    ],
)
def test_sts_that_fails(error: DeliveryError, expected: str) -> None:
    assert said(ENFORCED, sts=STS, error=error) == [("sts", DOMAIN, expected)]


def test_a_host_that_is_not_named() -> None:
    policy = replace(STS, mx=("mx2.example.org",))
    (row,) = results(Session(domain=DOMAIN, host=HOST, found=Refusal("MTA-STS: x"), sts=policy))
    assert row.failure is not None
    assert (row.failure.result.value, row.failure.reason) == ("validation-failure", "mtasts-policy-mx-mismatch")


def test_testing_reports_what_enforce_would_not_let_go() -> None:
    testing = replace(STS, mode=Mode.TESTING)
    bad = replace(FACTS, verified=False, verify_message="SSL verify error: certificate name mismatch: DN=x H=y")
    assert said(PLAIN, sts=testing, facts=bad) == [("sts", DOMAIN, "certificate-host-mismatch")]
    assert said(PLAIN, sts=testing, facts=None) == [("sts", DOMAIN, "starttls-not-supported")]
    assert said(PLAIN, sts=testing, facts=FACTS) == [("sts", DOMAIN, "ok")]


@pytest.mark.parametrize("problem", ["sts-policy-fetch-error", "sts-policy-invalid", "sts-webpki-invalid"])
def test_a_policy_that_could_not_be_had(problem: str) -> None:
    assert said(PLAIN, facts=FACTS, sts_problem=problem) == [("sts", DOMAIN, problem)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('SSL verify error: certificate name mismatch: DN="/CN=x" H="y"', "certificate-host-mismatch"),
        ("SSL verify error: depth=0 error=certificate has expired cert=x", "certificate-expired"),
        ("SSL verify error: depth=0 error=self-signed certificate cert=x", "certificate-not-trusted"),
        ("SSL verify error: depth=1 error=self-signed certificate in certificate chain", "certificate-not-trusted"),
        ("SSL verify error: depth=0 error=unable to get local issuer certificate", "certificate-not-trusted"),
        ("SSL verify error: depth=0 error=unable to verify the first certificate", "certificate-not-trusted"),
        ("SSL verify error: depth=0 error=certificate revoked cert=x", "validation-failure"),
    ],
)
def test_certificates_by_what_the_log_says(text: str, expected: str) -> None:
    assert certificate_result(text).value == expected


# --- no policy --------------------------------------------------------------------------------------------------------


def test_no_policy() -> None:
    assert said(PLAIN, facts=FACTS) == [("no-policy-found", DOMAIN, "ok")]
    assert said(PLAIN, error=HANDSHAKE) == [("no-policy-found", DOMAIN, "validation-failure")]
    assert said(PLAIN) == []
    assert said(Decision(CLEAR)) == []


@pytest.mark.parametrize("found", [DANE, PLAIN, ENFORCED])
def test_a_host_that_cannot_be_reached_is_no_matter_of_tls(found: Decision) -> None:
    assert said(found, sts=STS, error=DeliveryError("Connection refused", errno=111)) == []


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v=TLSRPTv1; rua=mailto:a@b.example", ("mailto:a@b.example",)),
        ("v=TLSRPTv1;rua=mailto:a@b.example,https://b.example/x;", ("mailto:a@b.example", "https://b.example/x")),
        ("v=TLSRPTv1; x=1; rua = mailto:a@b.example ; y", ("mailto:a@b.example",)),
        ("v=TLSRPTv1; rua=ftp://b.example", ()),
        ("v=TLSRPTv1;", ()),
        ("v=TLSRPTv2; rua=mailto:a@b.example", ()),
    ],
)
def test_records(text: str, expected: tuple[str, ...]) -> None:
    octets = bytes([len(text)]) + text.encode()
    assert report_record([octets, b"\x05other"]) == (text if expected else "")
    assert report_record([octets, octets]) == ""
    if expected:
        assert report_addresses(text) == expected


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_records_never_raise(records: list[bytes]) -> None:
    found = report_record(records)
    assert all(uri.lower().startswith(("mailto:", "https:")) for uri in report_addresses(found))


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_has_the_form_of_the_rfc() -> None:
    failed = Failure(ResultType.CERTIFICATE_EXPIRED, NAME, "192.0.2.1", "198.51.100.1", "expired")
    good = PolicyResult(PolicyType.STS, DOMAIN, STS.text, STS.mx)
    bad = replace(good, failure=failed)
    other = PolicyResult(PolicyType.TLSA, NAME, ("3 1 1 00",), (NAME,))
    sessions = [SessionReport(0.0, DOMAIN, "r", policies) for policies in ((good,), (bad,), (bad, other), (good,))]
    day = datetime.date(2026, 11, 23)
    report = build_report(sessions, DOMAIN, day, organization="Example Inc.", contact="postmaster@client.example")
    assert report["organization-name"] == "Example Inc."
    assert report["date-range"] == {
        "start-datetime": "2026-11-23T00:00:00Z",
        "end-datetime": "2026-11-23T23:59:59Z",
    }
    assert report["contact-info"] == "postmaster@client.example"
    assert DOMAIN in report["report-id"]
    first, second = report["policies"]
    assert first == {
        "policy": {
            "policy-type": "sts",
            "policy-string": list(STS.text),
            "policy-domain": DOMAIN,
            "mx-host": ["*.example.org"],
        },
        "summary": {"total-successful-session-count": 2, "total-failure-session-count": 2},
        "failure-details": [
            {
                "result-type": "certificate-expired",
                "sending-mta-ip": "198.51.100.1",
                "receiving-mx-hostname": NAME,
                "receiving-ip": "192.0.2.1",
                "failed-session-count": 2,
                "failure-reason-code": "expired",
            }
        ],
    }
    assert second["policy"]["policy-type"] == "tlsa"
    assert "failure-details" not in second
    assert json.loads(json.dumps(report)) == report


def test_very_many_different_failures_are_counted_and_not_all_told() -> None:
    sessions = [
        SessionReport(
            0.0,
            DOMAIN,
            "r",
            (PolicyResult(PolicyType.NONE, DOMAIN, failure=Failure(ResultType.VALIDATION_FAILURE, str(number))),),
        )
        for number in range(1500)
    ]
    (policy,) = build_report(sessions, DOMAIN, datetime.date(2026, 1, 1), organization="x", contact="y")["policies"]
    assert policy["summary"]["total-failure-session-count"] == 1500
    assert len(policy["failure-details"]) == 1000

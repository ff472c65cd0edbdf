"""REQUIRETLS, TLS-Required: no, and MTA-STS, on top of what options and TLSA records gave (R48 to R51)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.hosts import Host
from engine.policy.mta_sts import Mode, StsPolicy
from engine.policy.plan import ANY_NAME, CLEAR, Plan, TlsLevel
from engine.policy.requirement import Decision, Refusal, TlsChoices
from engine.policy.wishes import Wish, choices_for, decide, wish_in

NAME = "mx.example.org"
CHOICES = TlsChoices()
SECURE = Host(NAME, "192.0.2.1", mx_secure=True, from_mx=True, domain="example.org")
INSECURE = Host(NAME, "192.0.2.1", mx_secure=False, from_mx=True, domain="example.org")
OPPORTUNISTIC = Decision(Plan(TlsLevel.OPPORTUNISTIC, sni="x", reference_names=(ANY_NAME,), try_clear=True), 300)
DANE = Decision(Plan(TlsLevel.DANE, sni=NAME, reference_names=(NAME,), tlsa=(b"\x03\1\1" + bytes(32),)), 300, 8)
HALF_DANE = Decision(Plan(TlsLevel.DANE, sni=NAME, tlsa=(b"\x03\1\1" + bytes(32),), authenticates=False), 300, 8)


def sts(mode: Mode = Mode.ENFORCE, mx: str = NAME) -> StsPolicy:
    return StsPolicy("example.org", mode, (mx,), 3600)


def level(found: Decision | Refusal) -> TlsLevel | None:
    return found.plan.level if isinstance(found, Decision) else None


# --- what a message asks for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"From: a\r\nTLS-Required: No\r\nTo: b\r\n\r\nx", Wish.OPTIONAL),
        (b"tls-required:no\n\nx", Wish.OPTIONAL),
        (b"TLS-Required:\r\n no\r\n\r\nx", Wish.OPTIONAL),
        (b"TLS-Required: No", Wish.OPTIONAL),
        (b"TLS-Required: Yes\r\n\r\n", Wish.USUAL),
        (b"TLS-Required: Nothing\r\n\r\n", Wish.USUAL),
        (b"TLS-Required: No way\r\n\r\n", Wish.USUAL),
        (b"X-TLS-Required: No\r\n\r\n", Wish.USUAL),
        (b"Subject: x\r\n TLS-Required: No\r\n\r\n", Wish.USUAL),
        (b"Subject: x\r\n\r\nTLS-Required: No\r\n", Wish.USUAL),
        (b"", Wish.USUAL),
    ],
)
def test_the_header(message: bytes, expected: Wish) -> None:
    assert wish_in(message) is expected


@given(st.binary(max_size=200))
def test_any_message_asks_for_something(octets: bytes) -> None:
    """Whatever stands below the empty line or in another header is not read."""
    assert wish_in(octets) in (Wish.USUAL, Wish.OPTIONAL)
    assert wish_in(b"Subject: x\r\n\r\n" + octets) is Wish.USUAL
    assert wish_in(b"TLS-Required: No\r\n\r\n" + octets) is Wish.OPTIONAL


# --- TLS-Required: no -------------------------------------------------------------------------------------------------


def test_optional_asks_neither_dane_nor_sts() -> None:
    assert not choices_for(Wish.OPTIONAL, CHOICES).wants_dane
    assert choices_for(Wish.USUAL, CHOICES) is CHOICES
    assert choices_for(Wish.REQUIRE, CHOICES) is CHOICES
    found = decide(OPPORTUNISTIC, INSECURE, CHOICES, wish=Wish.OPTIONAL, sts=sts(mx="other.example.org"))
    assert level(found) is TlsLevel.OPPORTUNISTIC


def test_optional_does_not_lower_what_the_configuration_demands() -> None:
    demanded = TlsChoices(require_dane=True, require_tls=True)
    assert choices_for(Wish.OPTIONAL, demanded).require_dane
    verified = Decision(Plan(TlsLevel.VERIFIED))
    assert level(decide(verified, INSECURE, demanded, wish=Wish.OPTIONAL)) is TlsLevel.VERIFIED


# --- MTA-STS ----------------------------------------------------------------------------------------------------------


def test_enforce() -> None:
    found = decide(OPPORTUNISTIC, INSECURE, CHOICES, sts=sts())
    assert isinstance(found, Decision)
    assert (found.plan.level, found.plan.reference_names, found.ttl_s) == (TlsLevel.VERIFIED, (NAME,), 300)
    assert not found.plan.try_clear
    assert found.steps[-1].rule == "R49"


def test_a_host_that_is_not_named_is_put_off() -> None:
    found = decide(OPPORTUNISTIC, SECURE, CHOICES, sts=sts(mx="other.example.org"))
    assert isinstance(found, Refusal)
    assert found.message == "MTA-STS: mx.example.org is not named by the policy of example.org"
    assert found.errno == -38


@pytest.mark.parametrize("mode", [Mode.TESTING, Mode.NONE])
def test_other_modes_let_mail_go(mode: Mode) -> None:
    for pattern in (NAME, "other.example.org"):
        assert level(decide(OPPORTUNISTIC, SECURE, CHOICES, sts=sts(mode, pattern))) is TlsLevel.OPPORTUNISTIC


@pytest.mark.parametrize("mode", list(Mode))
def test_never_above_dane(mode: Mode) -> None:
    """R48."""
    for pattern in (NAME, "other.example.org"):
        found = decide(DANE, SECURE, CHOICES, sts=sts(mode, pattern))
        assert isinstance(found, Decision)
        assert found.plan is DANE.plan


def test_what_is_not_known_puts_off_whoever_has_no_dane() -> None:
    """R50, R48; RFC 8689 §5: but for those who can do without TLS."""
    found = decide(OPPORTUNISTIC, SECURE, CHOICES, must_wait="MTA-STS: damaged")
    assert isinstance(found, Refusal)
    assert (found.message, found.permanent) == ("MTA-STS: damaged", False)
    assert level(decide(DANE, SECURE, CHOICES, must_wait="MTA-STS: damaged")) is TlsLevel.DANE
    optional = decide(OPPORTUNISTIC, SECURE, CHOICES, wish=Wish.OPTIONAL, must_wait="MTA-STS: damaged")
    assert level(optional) is TlsLevel.OPPORTUNISTIC


def test_enforce_and_hosts_avoid_tls_put_the_host_off() -> None:
    found = decide(Decision(CLEAR), SECURE, TlsChoices(avoid_tls=True), sts=sts())
    assert isinstance(found, Refusal)
    assert level(decide(Decision(CLEAR), SECURE, TlsChoices(avoid_tls=True), sts=sts(Mode.TESTING))) is TlsLevel.CLEAR


# --- REQUIRETLS -------------------------------------------------------------------------------------------------------


def require(found: Decision, host: Host, **options: object) -> Decision | Refusal:
    return decide(found, host, CHOICES, wish=Wish.REQUIRE, **options)  # type: ignore[arg-type]


def test_dane_is_enough() -> None:
    assert level(require(DANE, SECURE)) is TlsLevel.DANE


def test_dane_for_insecure_mx_records_is_not() -> None:
    assert isinstance(require(HALF_DANE, INSECURE), Refusal)
    assert isinstance(require(HALF_DANE, INSECURE, sts=sts()), Refusal)


@pytest.mark.parametrize("host", [SECURE])
def test_signed_mx_records_and_a_certificate(host: Host) -> None:
    found = require(OPPORTUNISTIC, host)
    assert isinstance(found, Decision)
    assert (found.plan.level, found.plan.reference_names, found.plan.sni) == (TlsLevel.VERIFIED, (NAME,), NAME)


def test_a_policy_and_a_certificate() -> None:
    assert level(require(OPPORTUNISTIC, INSECURE, sts=sts())) is TlsLevel.VERIFIED
    assert isinstance(require(OPPORTUNISTIC, INSECURE, sts=sts(Mode.TESTING)), Refusal)
    assert isinstance(require(OPPORTUNISTIC, INSECURE, sts=sts(mx="other.example.org")), Refusal)


def test_unusable_records_do_not_satisfy_it() -> None:
    """R51: mandatory TLS without a check of the certificate is not enough."""
    mandatory = Decision(Plan(TlsLevel.MANDATORY, sni=NAME, reference_names=(NAME,)))
    assert level(require(mandatory, SECURE)) is TlsLevel.VERIFIED


def test_nothing_proves_the_host() -> None:
    found = require(OPPORTUNISTIC, INSECURE)
    assert isinstance(found, Refusal)
    assert found.message == "REQUIRETLS: nothing proves that mx.example.org takes mail for example.org"
    unknown = Host(NAME, "192.0.2.1", mx_secure=None, domain="example.org")
    not_known = require(OPPORTUNISTIC, unknown)
    assert isinstance(not_known, Refusal)
    assert (found.permanent, not_known.permanent) == (True, False)


def test_a_host_that_the_configuration_names() -> None:
    """R14."""
    named = Host(NAME, "192.0.2.1", domain="example.org")
    assert level(require(OPPORTUNISTIC, named, is_by_dns=False)) is TlsLevel.VERIFIED


def test_requiretls_and_hosts_avoid_tls_put_the_host_off() -> None:
    assert isinstance(require(Decision(CLEAR), SECURE), Refusal)

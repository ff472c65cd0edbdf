"""From the facts of a host and TLSA answers to a plan: 7.2 row by row, R4 to R8, R12 to R16, R21, R24, R36, R39."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.answers import Answer, Status
from engine.policy.builder import PlanBuilder
from engine.policy.hosts import Host
from engine.policy.plan import ANY_NAME, Plan, TlsLevel
from engine.policy.requirement import Decision, InsecureMx, Refusal, TlsChoices

HOST = Host(
    "mx.test",
    "192.0.2.1",
    preference=10,
    secure=True,
    mx_secure=True,
    address_secure=True,
    canonical_name="mx.test",
    from_mx=True,
    domain="d.test",
    domain_canonical_name="d.test",
)
EE = b"\x03\x01\x01" + bytes(32)
TA = b"\x02\x00\x01" + bytes(32)
USELESS = b"\x00\x01\x01" + bytes(32)
SECURE_ALIAS = replace(HOST, name="alias.test", canonical_name="mx.test", alias_secure=True)
LEAVING_ALIAS = replace(SECURE_ALIAS, secure=False, address_secure=False)
INSECURE_ALIAS = replace(LEAVING_ALIAS, alias_secure=False)
INSECURE = replace(HOST, secure=False, address_secure=False)
MX_INSECURE = replace(HOST, secure=False, mx_secure=False)
UNKNOWN = replace(HOST, secure=None, mx_secure=None, address_secure=None)
LISTED = replace(
    HOST, mx_secure=None, preference=None, from_mx=False, domain="mx.test", domain_canonical_name="mx.test"
)
LITERAL = replace(UNKNOWN, name="[192.0.2.1]", canonical_name="[192.0.2.1]")

TRY = TlsChoices()
REQUIRE = TlsChoices(require_dane=True)
NEITHER = TlsChoices(try_dane=False)


def answer(
    *records: bytes, base: str = "mx.test", ad: bool = True, status: Status | None = None, ttl: int = 60
) -> Answer:
    status = status or (Status.OK if records else Status.NODATA)
    name = f"_25._tcp.{base}"
    return Answer(name, "TLSA", status, ad=ad, is_ad_trusted=True, rdata=records, canonical_name=name, ttl_s=ttl)


def build(
    host: Host, *answers: Answer, choices: TlsChoices = TRY, port: int = 25
) -> tuple[Decision | Refusal, list[str]]:
    """The result, and the names that were asked for."""
    builder = PlanBuilder(host, port, choices)
    known = {one.name: one for one in answers}
    asked = []
    while builder.result is None:
        query = builder.next_query()
        assert query is not None
        assert query.rdtype == "TLSA"
        assert builder.next_query() is None, "one question at a time"
        asked.append(query.name)
        denied = Answer(query.name, "TLSA", Status.NXDOMAIN, ad=True, is_ad_trusted=True, ttl_s=30)
        builder.on_answer(known.get(query.name, denied))
    return builder.result, asked


def plan(host: Host, *answers: Answer, choices: TlsChoices = TRY) -> Plan:
    found, _ = build(host, *answers, choices=choices)
    assert isinstance(found, Decision), found
    return found.plan


def refusal(host: Host, *answers: Answer, choices: TlsChoices = TRY) -> Refusal:
    found, _ = build(host, *answers, choices=choices)
    assert isinstance(found, Refusal), found
    return found


# --- 7.2 --------------------------------------------------------------------------------------------------------------

FAIL = ("DANE error: tlsa lookup FAIL", -36, "dane-required")
DEFER = "DANE error: tlsa lookup DEFER"


@pytest.mark.parametrize("choices", [TRY, REQUIRE, TlsChoices(try_dane=False, require_dane=True)])
def test_secure_records(choices: TlsChoices) -> None:
    made = plan(HOST, answer(EE), choices=choices)
    assert made == replace(Plan(TlsLevel.DANE, "mx.test", ("mx.test",), tlsa=(EE,)), reasons=made.reasons)


def test_insecure_records() -> None:
    found, _ = build(HOST, answer(EE, ad=False))
    assert isinstance(found, Decision)
    assert found.plan.level is TlsLevel.OPPORTUNISTIC
    assert found.log == ("DANE error: TLSA lookup for mx.test not DNSSEC",)
    refused = refusal(HOST, answer(EE, ad=False), choices=REQUIRE)
    assert (refused.message, refused.errno, refused.dane_fail) == FAIL
    assert refused.log == found.log


@pytest.mark.parametrize("status", [Status.NODATA, Status.NXDOMAIN])
@pytest.mark.parametrize("ad", [True, False])
def test_denial(status: Status, ad: bool) -> None:
    """R5: secure or insecure, it is no error."""
    found, _ = build(HOST, answer(status=status, ad=ad))
    assert isinstance(found, Decision)
    assert (found.plan.level, found.log, found.ttl_s) == (TlsLevel.OPPORTUNISTIC, (), 60)
    refused = refusal(HOST, answer(status=status, ad=ad), choices=REQUIRE)
    assert (refused.message, refused.errno, refused.dane_fail) == FAIL


@pytest.mark.parametrize(("status", "retry_name"), [(Status.SERVFAIL, ""), (Status.TIMEOUT, "timeout_DNS")])
def test_errors_put_the_host_off(status: Status, retry_name: str) -> None:
    """R4, R6"""
    refused = refusal(HOST, answer(status=status, ad=False))
    assert (refused.message, refused.errno, refused.dane_fail) == (DEFER, -36, "dnssec-invalid")
    assert refused.retry_name == retry_name
    assert refused.ttl_s is None, "R6: an error holds for nothing"
    assert refusal(HOST, answer(status=status), choices=REQUIRE).dane_fail == "dane-required"


@pytest.mark.parametrize("host", [INSECURE, INSECURE_ALIAS, UNKNOWN, LITERAL])
def test_a_host_that_is_not_secure_is_not_asked_about(host: Host) -> None:
    """R7, R14, DN-3, last row of 7.2"""
    found, asked = build(host)
    assert isinstance(found, Decision)
    assert (found.plan.level, found.ttl_s, asked) == (TlsLevel.OPPORTUNISTIC, None, [])
    refused = refusal(host, choices=REQUIRE)
    assert (refused.message, refused.errno) == (f"DANE error: {host.name} lookup not DNSSEC", -36)
    assert refused.dane_fail == "dane-required"


def test_without_either_option_nothing_is_asked() -> None:
    found, asked = build(HOST, answer(EE), choices=NEITHER)
    assert isinstance(found, Decision)
    assert (found.plan.level, asked) == (TlsLevel.OPPORTUNISTIC, [])
    found, asked = build(HOST, answer(EE), choices=replace(TRY, request_dnssec=False))
    assert isinstance(found, Decision)
    assert (found.plan.level, asked) == (TlsLevel.OPPORTUNISTIC, [])


# --- base domains -----------------------------------------------------------------------------------------------------

TARGET, ALIAS = "_25._tcp.mx.test", "_25._tcp.alias.test"


@pytest.mark.parametrize(
    ("host", "answers", "expected", "base"),
    [
        (HOST, [answer(EE)], [TARGET], "mx.test"),
        (SECURE_ALIAS, [answer(EE)], [TARGET], "mx.test"),
        (SECURE_ALIAS, [answer(EE, base="alias.test")], [TARGET, ALIAS], "alias.test"),
        (SECURE_ALIAS, [answer(EE, ad=False), answer(EE, base="alias.test")], [TARGET, ALIAS], "alias.test"),
        (LEAVING_ALIAS, [answer(EE, base="alias.test")], [ALIAS], "alias.test"),
    ],
)
def test_base_domains(host: Host, answers: list[Answer], expected: list[str], base: str) -> None:
    """R15 a to c, R39"""
    found, asked = build(host, *answers)
    assert isinstance(found, Decision)
    assert (found.plan.level, found.plan.sni, asked) == (TlsLevel.DANE, base, expected)


def test_an_error_does_not_move_on() -> None:
    """R15"""
    found, asked = build(SECURE_ALIAS, answer(status=Status.SERVFAIL), answer(EE, base="alias.test"))
    assert isinstance(found, Refusal)
    assert asked == [TARGET]
    second, asked = build(SECURE_ALIAS, answer(), answer(status=Status.TIMEOUT, base="alias.test"))
    assert isinstance(second, Refusal)
    assert asked == [TARGET, ALIAS]


def test_the_port_is_the_one_that_is_used() -> None:
    """R16"""
    assert build(HOST, port=2525)[1] == ["_2525._tcp.mx.test"]


def test_the_time_of_a_decision_is_that_of_its_shortest_answer() -> None:
    found, _ = build(SECURE_ALIAS, answer(ttl=20), answer(EE, base="alias.test", ttl=50))
    assert isinstance(found, Decision)
    assert found.ttl_s == 20


# --- insecure MX, host lists ------------------------------------------------------------------------------------------


def test_an_insecure_mx_demands_a_match_that_counts_for_nothing() -> None:
    """R13"""
    made = plan(MX_INSECURE, answer(EE))
    assert (made.level, made.authenticates) == (TlsLevel.DANE, False)
    assert made.key != plan(HOST, answer(EE)).key, "no connection is shared with those that are proved"
    encrypt = plan(MX_INSECURE, answer(EE), choices=replace(TRY, insecure_mx=InsecureMx.ENCRYPT))
    assert (encrypt.level, encrypt.try_clear) == (TlsLevel.MANDATORY, False)
    found, asked = build(MX_INSECURE, answer(EE), choices=replace(TRY, insecure_mx=InsecureMx.MAY))
    assert isinstance(found, Decision)
    assert (found.plan.level, asked) == (TlsLevel.OPPORTUNISTIC, [])
    for policy in InsecureMx:
        refused = refusal(MX_INSECURE, answer(EE), choices=replace(REQUIRE, insecure_mx=policy))
        assert refused.message == "DANE error: mx.test lookup not DNSSEC"


def test_a_host_of_the_configuration_is_as_good_as_a_signed_mx() -> None:
    """R14"""
    assert plan(LISTED, answer(EE)).authenticates
    assert plan(LISTED, answer(EE), choices=REQUIRE).level is TlsLevel.DANE
    assert not plan(LISTED, answer(EE), choices=replace(TRY, trust_host_list=False)).authenticates


# --- what the records are ---------------------------------------------------------------------------------------------


def test_no_usable_record_means_tls_whoever_it_is() -> None:
    """R21"""
    found, _ = build(HOST, answer(USELESS, b"", b"\x03\x01\x01short"))
    assert isinstance(found, Decision)
    assert (found.plan.level, found.plan.try_clear, found.usage_mask) == (TlsLevel.MANDATORY, False, 0)
    assert found.log == ("DANE error: No usable TLSA records",)
    refused = refusal(HOST, answer(USELESS), choices=REQUIRE)
    assert (refused.message, refused.dane_fail) == ("DANE error: tlsa lookup FAIL", "tlsa-invalid")
    stricter = plan(HOST, answer(USELESS), choices=replace(TRY, verify=True))
    assert stricter.level is TlsLevel.VERIFIED, "what the operator wants verified stays so"


def test_the_usages_of_usable_records_are_known() -> None:
    """DN-14"""
    for records, mask in [((EE,), 8), ((TA,), 4), ((TA, EE, USELESS), 12)]:
        found, _ = build(HOST, answer(*records))
        assert isinstance(found, Decision)
        assert found.usage_mask == mask


def test_names_count_under_dane_ta_only() -> None:
    """R36"""
    other = replace(HOST, domain="d.test", domain_canonical_name="e.test")
    cases = [
        (other, (TA,), ("mx.test", "d.test", "e.test"), True),
        (other, (TA, EE), ("mx.test", "d.test", "e.test"), True),
        (other, (EE,), ("mx.test",), False),
        (replace(other, mx_secure=False, secure=False), (TA,), ("mx.test",), False),
        (replace(LISTED, name="alias.test", canonical_name="mx.test"), (TA,), ("mx.test", "alias.test"), False),
        (replace(HOST, domain="mx.test", domain_canonical_name="mx.test"), (TA,), ("mx.test",), False),
    ]
    for host, records, names, depends in cases:
        found, _ = build(host, answer(*records))
        assert isinstance(found, Decision)
        assert (found.plan.reference_names, found.depends_on_domain) == (names, depends)


def test_options_that_dane_puts_aside_and_those_it_does_not() -> None:
    """DN-10"""
    choices = TlsChoices(
        require_tls=True,
        verify=True,
        try_verify=True,
        any_name=True,
        sni="sni.test",
        ciphers="HIGH",
        dane_ciphers="ECDHE+AESGCM",
    )
    made = plan(HOST, answer(EE), choices=choices)
    expected = Plan(TlsLevel.DANE, "mx.test", ("mx.test",), tlsa=(EE,), ciphers="ECDHE+AESGCM")
    assert made.key == expected.key
    assert plan(HOST, answer(EE), choices=replace(choices, dane_ciphers="")).ciphers == "HIGH"
    assert plan(HOST, choices=choices).ciphers == "HIGH"


def test_ciphers_that_cannot_be_expanded_are_a_tls_failure_under_dane_only() -> None:
    choices = TlsChoices(dane_ciphers_error="unknown variable")
    refused = refusal(HOST, answer(EE), choices=choices)
    assert (refused.message, refused.errno, refused.retry_name) == (
        "TLS session: unknown variable",
        -37,
        "tls_required",
    )
    assert plan(HOST, choices=choices).level is TlsLevel.OPPORTUNISTIC


def test_hosts_avoid_tls_makes_dane_fail() -> None:
    """7.5; decided: it never switches DANE off"""
    choices = TlsChoices(avoid_tls=True)
    assert plan(HOST, choices=choices).level is TlsLevel.CLEAR
    for records in ((EE,), (USELESS,)):
        refused = refusal(HOST, answer(*records), choices=choices)
        assert (refused.errno, refused.dane_fail) == (-38, "validation-failure")
        assert refused.message == "a TLS session is required, but an attempt to start TLS failed"


# --- without DANE -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "level", "clear", "verify"),
    [
        (TlsChoices(), TlsLevel.OPPORTUNISTIC, True, False),
        (TlsChoices(try_clear=False), TlsLevel.OPPORTUNISTIC, False, False),
        (TlsChoices(try_verify=True), TlsLevel.OPPORTUNISTIC, True, True),
        (TlsChoices(require_tls=True), TlsLevel.MANDATORY, False, False),
        (TlsChoices(require_tls=True, try_verify=True), TlsLevel.MANDATORY, False, True),
        (TlsChoices(verify=True, try_verify=True), TlsLevel.VERIFIED, False, False),
        (TlsChoices(avoid_tls=True, require_tls=True), TlsLevel.CLEAR, False, False),
    ],
)
def test_levels_without_dane(choices: TlsChoices, level: TlsLevel, clear: bool, verify: bool) -> None:
    """TL-2, TL-6, TL-7, TL-9"""
    made = plan(INSECURE, choices=choices)
    assert (made.level, made.try_clear, made.try_verify) == (level, clear, verify)


def test_names_without_dane() -> None:
    """DN-5, TL-13, tls_sni, tls_verify_cert_hostnames"""
    made = plan(INSECURE_ALIAS, choices=TlsChoices(verify=True))
    assert (made.sni, made.reference_names) == ("alias.test", ("alias.test",))
    made = plan(INSECURE_ALIAS, choices=TlsChoices(verify=True, any_name=True, sni="sni.test"))
    assert (made.sni, made.reference_names) == ("sni.test", (ANY_NAME,))
    assert plan(LITERAL).sni is None
    assert plan(replace(LITERAL, name="192.0.2.1")).sni is None
    assert plan(replace(LITERAL, name="2001:db8::1")).sni is None


def test_dnssec_required_of_the_address() -> None:
    """Section 6, dnssec_require_domains of the transport"""
    choices = TlsChoices(require_dnssec=True, try_dane=False)
    refused = refusal(INSECURE, choices=choices)
    assert (refused.message, refused.errno) == ("lookup of IP address for mx.test was insecure", -32)
    assert plan(HOST, choices=choices).level is TlsLevel.OPPORTUNISTIC
    assert plan(LITERAL, choices=choices).level is TlsLevel.OPPORTUNISTIC


# --- everything -------------------------------------------------------------------------------------------------------

_BOOLEANS = st.booleans()
_SECURITY = st.sampled_from([True, False, None])
_RECORDS = st.lists(st.sampled_from([EE, TA, USELESS, b"", b"\3", EE + b"x", TA[:-1]]), max_size=4)
_HOSTS = st.builds(
    Host,
    st.sampled_from(["mx.test", "[192.0.2.1]", "192.0.2.1"]),
    st.just("192.0.2.1"),
    mx_secure=_SECURITY,
    address_secure=_SECURITY,
    alias_secure=_SECURITY,
    canonical_name=st.sampled_from(["mx.test", "target.test", ""]),
    domain=st.sampled_from(["d.test", "", "[192.0.2.1]"]),
    domain_canonical_name=st.sampled_from(["d.test", "e.test", ""]),
)
_CHOICES = st.builds(
    TlsChoices,
    avoid_tls=_BOOLEANS,
    require_tls=_BOOLEANS,
    verify=_BOOLEANS,
    try_verify=_BOOLEANS,
    any_name=_BOOLEANS,
    try_clear=_BOOLEANS,
    request_dnssec=_BOOLEANS,
    require_dnssec=_BOOLEANS,
    try_dane=_BOOLEANS,
    require_dane=_BOOLEANS,
    insecure_mx=st.sampled_from(InsecureMx),
    trust_host_list=_BOOLEANS,
    dane_ciphers_error=st.sampled_from(["", "", "bad"]),
)


@given(_HOSTS, _CHOICES, st.data(), st.randoms(use_true_random=False))
def test_whatever_comes_nothing_is_weaker_than_it_must_be(
    host: Host, choices: TlsChoices, data: st.DataObject, order: object
) -> None:
    builder = PlanBuilder(host, 25, choices)
    answers = []
    while builder.result is None:
        query = builder.next_query()
        assert query is not None
        builder.on_answer(replace(answer(), name="elsewhere.test"))  # what nobody asked for changes nothing
        assert builder.result is None
        records = data.draw(_RECORDS)
        status = data.draw(st.sampled_from([Status.SERVFAIL, Status.TIMEOUT, Status.NXDOMAIN, Status.OK]))
        status = Status.NODATA if status is Status.OK and not records else status
        taken = Answer(
            query.name,
            "TLSA",
            status,
            ad=data.draw(_BOOLEANS),
            is_ad_trusted=True,
            rdata=tuple(records) if status is Status.OK else (),
            ttl_s=60,
        )
        answers.append(taken)
        builder.on_answer(taken)
    assert len(answers) <= 2
    found = builder.result
    assert found.steps
    if any(one.is_error for one in answers):
        assert isinstance(found, Refusal), "R4"
    has_records = any(one.ad and one.rdata for one in answers)
    if isinstance(found, Refusal):
        assert found.errno < 0
        assert found.message
        return
    made = found.plan
    if has_records and (choices.insecure_mx is not InsecureMx.MAY or host.mx_secure):
        assert made.level >= TlsLevel.MANDATORY
        assert not made.try_clear
    if choices.require_dane:
        assert (made.level, made.authenticates) == (TlsLevel.DANE, True)
    if made.level is TlsLevel.DANE:
        assert has_records
        assert made.reference_names, "R38"
        assert host.address_secure or (host.alias_secure and host.canonical_name != host.name), "R7"
        assert made.authenticates is bool(choices.trust_host_list if host.mx_secure is None else host.mx_secure), "R13"
        assert choices.wants_dane
        assert choices.request_dnssec
        assert not choices.avoid_tls
        assert made.sni in (host.name, host.canonical_name)
        assert made.tlsa == tuple(sorted(set(made.tlsa)))
    if choices.require_tls and not choices.avoid_tls:
        assert made.level >= TlsLevel.MANDATORY


@given(st.permutations([EE, TA, USELESS, EE + b"x"]), st.lists(st.sampled_from([EE, TA]), max_size=3))
def test_the_order_of_records_and_their_repetition_change_nothing(records: list[bytes], more: list[bytes]) -> None:
    """R24"""
    first, _ = build(HOST, answer(EE, TA, USELESS, EE + b"x"))
    second, _ = build(HOST, answer(*records, *more))
    assert isinstance(first, Decision)
    assert isinstance(second, Decision)
    assert first.plan.key == second.plan.key

"""Verdicts about chains, rule by rule: R23 and R25 to R38.  tests/e2e/test_dane_openssl.py compares at random."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import itertools
import json
import random
from collections.abc import Sequence

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import crypto
from OpenSSL._util import lib

from engine.tls import chain as paths
from engine.tls import tlsa
from engine.tls.dane import MAX_CERTIFICATES, Verdict, covers, judge
from fakes.dane_pki import HOST, NOW, Spec, authority, leaf, make, record, root
from fakes.peers import PROJECT

ROOT = root()
INTER = authority("Authority", ROOT)
LEAF = leaf(INTER)
CHAIN = [make(LEAF), make(INTER), make(ROOT)]
OTHER = make(leaf(INTER, ("other.example.org",), "ec-other"))
SELF = leaf(None)
DAY = datetime.timedelta(days=1)


def verdict(
    records: Sequence[bytes],
    chain: Sequence[bytes] = CHAIN,
    names: Sequence[str] = (HOST,),
    now: datetime.datetime = NOW,
) -> Verdict:
    found = judge(records, chain, names, now=now)
    assert lib.ERR_peek_error() == 0, "what OpenSSL left in its queue would end the next TLS connection of this thread"
    assert found.reason
    assert found.reason.isascii()
    assert found.reason.isprintable()
    return found


def status(*arguments: object, **options: object) -> str:
    return verdict(*arguments, **options).status  # type: ignore[arg-type]


def spoiled(rdata: bytes) -> bytes:
    return rdata[:-1] + bytes((rdata[-1] ^ 1,))


def kind(text: str, der: bytes = CHAIN[0]) -> bytes:
    """The record of a kind such as ``311`` for a certificate."""
    return record(der, *map(int, text))


# --- what a verdict is ------------------------------------------------------------------------------------------------


def test_a_verdict_is_frozen() -> None:
    found = verdict([kind("311")])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.status = "no-match"  # type: ignore[misc]
    assert found == Verdict("match", 3, 0, 0, "3 1 1 matches the certificate")
    assert found.is_match


def test_the_record_is_named_by_its_place() -> None:
    records = [b"", kind("311", OTHER), kind("201", CHAIN[1]), kind("201", CHAIN[1])]
    found = verdict(records)
    assert (found.status, found.usage, found.depth, found.record) == ("match", 2, 1, 2)


def test_only_match_is_a_match() -> None:
    for records, names in (([], [HOST]), ([kind("311", OTHER)], [HOST]), ([kind("200", CHAIN[2])], ["x.example"])):
        assert not verdict(records, names=names).is_match


# --- digest agility (R23): the vectors of dane-tls.md -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        ([spoiled(kind("312")), kind("311")], "no-match"),
        ([kind("312"), spoiled(kind("311"))], "match"),
        ([spoiled(kind("312")), kind("301")], "match"),
        ([spoiled(kind("312")), kind("310")], "match"),
        ([kind("312")[:-1], kind("311")], "match"),
        ([spoiled(kind("212", CHAIN[1])), kind("211", CHAIN[1])], "no-match"),
        ([spoiled(kind("312")), kind("211", CHAIN[1])], "match"),
    ],
    ids=["312-311", "312ok", "301", "310", "short312", "212-211", "other usage"],
)
def test_digest_agility(records: list[bytes], wanted: str) -> None:
    for order in itertools.permutations(records):
        assert status(list(order)) == wanted


# --- no usable record (R18 to R21) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [[], [b""], [b"\3"], [kind("311")[:-1], kind("011"), kind("111")]])
def test_without_a_usable_record_nothing_is_decided(records: list[bytes]) -> None:
    assert status(records) == "unusable"
    assert status(records, []) == "unusable"


def test_usages_for_the_public_trust_anchors_are_not_used() -> None:
    """R22: not even when they would match."""
    assert status([kind("011", CHAIN[2]), kind("111")]) == "unusable"
    assert status([kind("111"), kind("311", OTHER)]) == "no-match"


# --- DANE-EE (R25 to R28) ---------------------------------------------------------------------------------------------

_EVERY_EE = [f"3{selector}{matching}" for selector in (0, 1) for matching in (0, 1, 2)]


@pytest.mark.parametrize("what", _EVERY_EE)
@pytest.mark.parametrize(
    "spec",
    [
        LEAF,
        SELF,
        leaf(INTER, dates="expired"),
        leaf(None, dates="future"),
        leaf(INTER, ("other.example.net",)),
        leaf(INTER, None, subject=""),
        leaf(INTER, purposes=("client",)),
        leaf(INTER, label="rsa1024-leaf"),
        leaf(INTER, digest="sha1"),
        ROOT,
    ],
    ids=["good", "self-signed", "expired", "future", "other name", "nameless", "client", "weak", "sha1", "root"],
)
def test_nothing_but_the_octets_counts(what: str, spec: Spec) -> None:
    der = make(spec)
    assert verdict([kind(what, der)], [der], []) == Verdict(
        "match", 3, 0, 0, f"{' '.join(what)} matches the certificate"
    )
    assert status([spoiled(kind(what, der))], [der]) in ("no-match", "unusable")


@pytest.mark.parametrize("what", _EVERY_EE)
def test_only_the_leaf_is_compared(what: str) -> None:
    assert status([kind(what, CHAIN[1])]) == "no-match"
    assert status([kind(what, CHAIN[1])], [CHAIN[1], CHAIN[0]]) == "match"


def test_no_parser_sees_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a certificate was parsed")

    for module, name in ((crypto, "load_certificate"), (crypto, "load_publickey"), (x509, "load_der_x509_certificate")):
        monkeypatch.setattr(module, name, never)
    for what in _EVERY_EE:
        assert status([kind("201", CHAIN[1]), kind("200", CHAIN[2]), kind(what)]) == "match"
    assert status([kind("311", OTHER)]) == "no-match", "nor where it does not match"


@pytest.mark.parametrize(
    "row", json.loads((PROJECT / "tests/vectors/tlsa/odd_certificates.json").read_text()), ids=lambda row: row["what"]
)
def test_odd_certificates_match(row: dict[str, str]) -> None:
    der = base64.b64decode(row["certificate"])
    assert status([b"\3\1\1" + bytes.fromhex(row["public_key_sha256"])], [der]) == "match"
    for what in _EVERY_EE:
        assert status([kind(what, der)], [der]) == "match"


def test_what_no_library_reads_matches_all_the_same() -> None:
    broken = CHAIN[0].replace(b"\x0c" + bytes((len(HOST),)), b"\x1f" + bytes((len(HOST),)), 1)
    assert broken != CHAIN[0]
    assert paths.load_or_none(broken) is None
    assert status([kind("311")], [broken]) == "match"
    assert status([kind("301", broken)], [broken]) == "match"
    assert status([kind("211", CHAIN[1])], [broken, *CHAIN[1:]]) == "invalid-chain"


def test_dane_ee_goes_first_and_dane_ta_follows() -> None:
    """R28: a mismatch of DANE-EE does not hide a trust anchor that matches."""
    anchor, right, wrong = kind("211", CHAIN[1]), kind("311"), kind("311", OTHER)
    for order in ([anchor, right], [right, anchor]):
        assert verdict(order).usage == 3
    for order in ([anchor, wrong], [wrong, anchor]):
        assert verdict(order).usage == 2
    assert status([anchor, wrong], names=["x.example"]) == "name-mismatch"


# --- DANE-TA: which certificate (R30 to R33) --------------------------------------------------------------------------

_EVERY_TA = [f"2{selector}{matching}" for selector in (0, 1) for matching in (0, 1, 2)]


@pytest.mark.parametrize("what", _EVERY_TA)
@pytest.mark.parametrize("depth", [1, 2])
def test_an_issuer_that_was_sent_is_an_anchor(what: str, depth: int) -> None:
    found = verdict([kind(what, CHAIN[depth])])
    assert (found.status, found.usage, found.depth, found.record) == ("match", 2, depth, 0)


@pytest.mark.parametrize("what", _EVERY_TA)
def test_the_leaf_is_never_an_anchor(what: str) -> None:
    assert status([kind(what)]) == "no-match"
    assert status([kind(what)], CHAIN[:1]) == "no-match"
    assert status([kind(what)], [CHAIN[0], CHAIN[0], *CHAIN[1:]]) == "no-match"


@pytest.mark.parametrize("what", _EVERY_TA)
def test_a_self_signed_leaf_is_an_anchor_by_its_bare_key_only(what: str) -> None:
    der = make(SELF)
    assert status([kind(what, der)], [der]) == ("match" if what == "210" else "no-match")
    assert status([kind(what, der)], [der, der]) == ("match" if what == "210" else "no-match")


@pytest.mark.parametrize("what", _EVERY_TA)
def test_what_was_not_sent_must_stand_in_the_record(what: str) -> None:
    """R32."""
    in_full = what.endswith("0")
    assert status([kind(what, CHAIN[2])], CHAIN[:2]) == ("match" if in_full else "no-match")
    assert status([kind(what, CHAIN[1])], CHAIN[:1]) == ("match" if in_full else "no-match")
    # the issuer of the leaf is missing: nothing leads to the root
    assert status([kind(what, CHAIN[2])], CHAIN[:1]) == "no-match"


def test_depth_of_a_bare_key_is_that_of_what_it_signed() -> None:
    assert verdict([kind("210", CHAIN[2])], CHAIN[:2]).depth == 1
    assert verdict([kind("210", CHAIN[1])], CHAIN[:1]).depth == 0
    assert verdict([kind("200", CHAIN[2])], CHAIN[:2]).depth == 2


def test_a_bare_key_must_have_signed_the_topmost_certificate() -> None:
    stranger = make(root("Stranger", "ec-stranger"))
    assert status([kind("210", stranger)]) == "no-match"
    assert status([kind("210", OTHER)], CHAIN[:2]) == "no-match"
    # it signed the leaf, but the chain goes on, to a certificate that has another key
    wrong = make(authority("Authority", ROOT, "ec-wrong", key_ids=False))
    loose = make(leaf(dataclasses.replace(INTER), key_ids=False))
    assert status([kind("210", CHAIN[1])], [loose, wrong]) == "no-match"


@pytest.mark.parametrize("label", ["rsa-root", "p521-root", "ed25519-root", "ed448-root", "ec-root"])
def test_bare_keys_of_every_algorithm(label: str) -> None:
    top = root(label=label)
    under = leaf(top)
    assert status([kind("210", make(top))], [make(under)]) == "match"
    assert status([kind("210", make(top))], [make(leaf(root(label="rsa-stranger")))]) == "no-match"


def test_a_bare_rsa_key_verifies_rsassa_pss() -> None:
    top = root(label="rsa-root")
    assert status([kind("210", make(top))], [make(leaf(top, pss=True))]) == "match"


@pytest.mark.parametrize("what", _EVERY_TA)
def test_order_of_the_issuers_and_extra_certificates_do_not_matter(what: str) -> None:
    """R33."""
    junk = [make(root("Stranger", "ec-stranger")), OTHER]
    for order in itertools.permutations([*CHAIN[1:], *junk]):
        assert status([kind(what, CHAIN[2])], [CHAIN[0], *order]) == "match"


def test_certificates_that_cannot_be_read_are_passed_over() -> None:
    assert status([kind("211", CHAIN[2])], [CHAIN[0], b"", b"junk", CHAIN[1], CHAIN[1][:-1], CHAIN[2]]) == "match"


def test_a_cross_certificate_does_not_defeat_a_root_in_dns() -> None:
    other = root("Other Root", "ec-otherroot")
    cross = make(authority(ROOT.subject, other, ROOT.key))
    for sent in ([CHAIN[1], cross], [cross, CHAIN[1]], [CHAIN[1], cross, make(other)]):
        assert status([kind("200", CHAIN[2])], [CHAIN[0], *sent]) == "match"


def test_a_chain_that_matches_no_record_fails() -> None:
    """R31: there is no other store that could save it."""
    found = verdict([kind("211", make(root("Stranger", "ec-stranger")))])
    assert (found.status, found.usage, found.record) == ("no-match", None, None)
    assert "2 1 1" in found.reason


def test_an_anchor_that_was_sent_but_does_not_belong() -> None:
    stranger = make(root("Stranger", "ec-stranger"))
    found = verdict([kind("211", stranger)], [*CHAIN, stranger])
    assert (found.status, found.usage, found.record, found.error) == ("invalid-chain", 2, 0, 20)


def test_without_a_certificate_nothing_matches() -> None:
    for what in ("311", "211"):
        assert status([kind(what)], []) == "invalid-chain"


def test_a_chain_without_end_is_cut() -> None:
    sent = [CHAIN[0], *[OTHER] * (MAX_CERTIFICATES - 2), CHAIN[1], CHAIN[2]]
    assert status([kind("211", CHAIN[1])], sent) == "match"
    assert status([kind("211", CHAIN[2])], sent) == "no-match"


# --- DANE-TA: what must hold below the anchor (R34, R35) --------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (10, {"dates": "expired"}),
        (9, {"dates": "future"}),
        (26, {"purposes": ("client",)}),
        (66, {"label": "rsa1024-leaf"}),
        (68, {"digest": "sha1"}),
    ],
    ids=lambda value: str(value),
)
def test_faults_of_the_leaf(error: int, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    if error == 66:
        monkeypatch.setattr(paths, "_MIN_RSA_BITS", 2048)  # 1024 bits are what level 1 still allows
    for what, anchor in (("211", INTER), ("200", ROOT)):
        found = verdict([kind(what, make(anchor))], [make(leaf(INTER, **changes)), make(INTER)])  # type: ignore[arg-type]
        assert (found.status, found.usage, found.record, found.error) == ("invalid-chain", 2, 0, error)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (10, {"dates": "expired"}),
        (9, {"dates": "future"}),
        (79, {"ca": False}),
        (79, {"ca": None, "cert_sign": None}),
        (26, {"purposes": ("client",)}),
        (47, {"permitted": ("example.net",)}),
        (48, {"excluded": ("example.org",)}),
        (68, {"digest": "sha1"}),
    ],
    ids=lambda value: str(value),
)
def test_faults_of_an_authority_below_the_anchor(error: int, changes: dict[str, object]) -> None:
    inter = authority("Authority", ROOT, **changes)  # type: ignore[arg-type]
    for what in ("200", "210", "201"):
        sent = [make(leaf(inter)), make(inter)] + ([make(ROOT)] if what == "201" else [])
        found = verdict([kind(what, make(ROOT))], sent)
        assert (found.status, found.error) == ("invalid-chain", error), what


def test_path_length_is_kept() -> None:
    top = root(path_length=0)
    inter = authority("Authority", top)
    found = verdict([kind("200", make(top))], [make(leaf(inter)), make(inter)])
    assert (found.status, found.error) == ("invalid-chain", 25)


def test_a_signature_that_is_wrong_is_found() -> None:
    bent = CHAIN[0][:-1] + bytes((CHAIN[0][-1] ^ 1,))
    found = verdict([kind("211", CHAIN[1])], [bent, *CHAIN[1:]])
    assert (found.status, found.error) == ("invalid-chain", 7)


def test_an_authority_of_the_same_name_with_another_key_is_no_issuer() -> None:
    fake = authority("Authority", ROOT, "ec-fake", key_ids=False)
    assert status([kind("211", make(INTER))], [make(leaf(fake, key_ids=False)), make(INTER)]) == "invalid-chain"


@pytest.mark.parametrize("what", ["200", "211"])
@pytest.mark.parametrize("dates", ["expired", "future"])
def test_dates_of_the_anchor_count(what: str, dates: str) -> None:
    """R35: our choice; versions of OpenSSL differ."""
    top = root(dates=dates)
    assert status([kind(what, make(top))], [make(leaf(top)), make(top)]) == "invalid-chain"
    # a bare key has no dates
    assert status([kind("210", make(top))], [make(leaf(top))]) == "match"


@pytest.mark.parametrize(("days", "wanted"), [(-31, 9), (0, 0), (59, 0), (61, 10)])
def test_time_is_the_one_that_was_given(days: int, wanted: int) -> None:
    assert verdict([kind("211", CHAIN[1])], now=NOW + days * DAY).error == wanted


def test_time_zones_are_understood() -> None:
    edge = NOW + 60 * DAY
    for hours in (-12, 0, 5.5, 14):
        zone = datetime.timezone(datetime.timedelta(hours=hours))
        assert verdict([kind("211", CHAIN[1])], now=(edge - DAY / 24).astimezone(zone)).is_match
        assert not verdict([kind("211", CHAIN[1])], now=(edge + DAY / 24).astimezone(zone)).is_match
    assert verdict([kind("211", CHAIN[1])], now=NOW.replace(tzinfo=None)).is_match, "without zone: UTC"


@pytest.mark.parametrize("now", [datetime.datetime.min, datetime.datetime.max])
def test_the_ends_of_the_calendar_do_no_harm(now: datetime.datetime) -> None:
    for hours in (-14, 0, 14):
        zone = datetime.timezone(datetime.timedelta(hours=hours))
        assert status([kind("211", CHAIN[1])], now=now.replace(tzinfo=zone)) == "invalid-chain"


# --- names (R36 to R38) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names_in_certificate", "name", "wanted"),
    [
        (("mx.example.org",), "mx.example.org", True),
        (("MX.Example.ORG",), "mx.example.org", True),
        (("mx.example.org",), "MX.EXAMPLE.ORG.", True),
        (("other.example.net", "mx.example.org"), "mx.example.org", True),
        (("mx.example.org",), "x.example.org", False),
        (("example.org",), "mx.example.org", False),
        (("mx.example.org",), "example.org", False),
        (("*.example.org",), "mx.example.org", True),
        (("*.example.org",), "a.mx.example.org", False),
        (("*.example.org",), "example.org", False),
        (("*.example.org",), ".example.org", False),
        (("*.example.org",), "mx_1.example.org", False),
        (("*.example.org",), "xn--bcher-kva.example.org", True),
        (("*.org",), "example.org", False),
        (("*",), "localhost", False),
        (("m*.example.org",), "mx.example.org", False),
        (("*x.example.org",), "mx.example.org", False),
        (("mx.*.org",), "mx.example.org", False),
        (("*.*.org",), "mx.example.org", False),
        (("xn--*.example.org",), "xn--bcher-kva.example.org", False),
        (("*.example.org",), "*.example.org", False),
        (("mx.example.org.",), "mx.example.org", False),
        (("mx_1.example.org",), "mx_1.example.org", True),
        (("192.0.2.1",), "192.0.2.1", False),
        (("mx.example.org",), "mx.example.org\0.example.net", False),
        (("mx.example.org",), "", False),
        (("mx.example.org",), "mx.example.org ", False),
        (("mx.example.org",), "mx．example.org", False),
        (("mk.example.org",), "m\u212a.example.org", False),
    ],
)
def test_names(names_in_certificate: tuple[str, ...], name: str, wanted: bool) -> None:
    der = make(leaf(INTER, names_in_certificate))
    assert covers(der, [name]) is wanted
    assert status([kind("211", CHAIN[1])], [der, CHAIN[1]], [name]) == ("match" if wanted else "name-mismatch")


def test_the_common_name_counts_only_without_dns_names() -> None:
    for names, wanted in ((None, True), (("192.0.2.1",), True), (("other.example.org",), False)):
        assert covers(make(leaf(INTER, names, subject=HOST)), [HOST]) is wanted
    assert covers(make(leaf(INTER, None, subject="*.example.org")), [HOST])
    assert not covers(make(leaf(INTER, None, subject="m\u212a.example.org")), ["mk.example.org"])


def test_any_of_the_reference_names_will_do() -> None:
    assert status([kind("211", CHAIN[1])], names=["example.org", "example.net", HOST]) == "match"
    assert status([kind("211", CHAIN[1])], names=["example.org", "example.net"]) == "name-mismatch"


def test_without_a_name_to_look_for_nothing_matches() -> None:
    """R38."""
    for names in ([], [""], ["\0"], ["é.example"]):
        found = verdict([kind("211", CHAIN[1])], names=names)
        assert (found.status, found.usage, found.depth, found.record) == ("name-mismatch", 2, 1, 0)


def test_a_broken_chain_is_told_before_a_wrong_name() -> None:
    der = make(leaf(INTER, dates="expired"))
    assert status([kind("211", CHAIN[1])], [der, CHAIN[1]], ["x.example"]) == "invalid-chain"


# --- whatever comes ---------------------------------------------------------------------------------------------------

octets = st.binary(max_size=60)
some_records = st.one_of(
    octets,
    st.builds(
        lambda der, usage, selector, matching: record(der, usage, selector, matching),
        st.sampled_from([*CHAIN, OTHER, make(SELF)]),
        st.sampled_from([2, 2, 3, 1]),
        st.integers(0, 1),
        st.integers(0, 2),
    ),
)


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    der = bytearray(draw(st.sampled_from([*CHAIN, OTHER, make(SELF)])))
    for _ in range(draw(st.integers(0, 2))):
        der[draw(st.integers(0, len(der) - 1))] = draw(st.integers(0, 255))
    return bytes(der[: draw(st.one_of(st.just(len(der)), st.integers(0, len(der))))])


@given(
    st.lists(some_records, max_size=6),
    st.lists(st.one_of(octets, bent()), max_size=5),
    st.lists(st.one_of(st.text(max_size=20), st.just(HOST)), max_size=3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=250, deadline=None)
def test_nothing_that_comes_raises_and_order_of_records_decides_nothing(
    records: list[bytes], chain: list[bytes], names: list[str], rng: random.Random
) -> None:
    found = verdict(records, chain, names)
    shuffled = list(records)
    rng.shuffle(shuffled)
    again = verdict(shuffled, chain, names)
    assert dataclasses.replace(again, record=None) == dataclasses.replace(found, record=None)
    if found.record is not None:
        assert again.record is not None
        assert records[found.record] == shuffled[again.record]
        assert found.record == records.index(records[found.record])
    if found.is_match:
        assert found.record is not None
        assert found.record in tlsa.usable(records)
        assert found.usage == records[found.record][0]

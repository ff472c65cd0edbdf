"""TLSA records: rdata of any length, usable or not, agility, presentation, and records made from certificates."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tls import tlsa
from fakes.dane_pki import element, leaf, make, record, root

ROOT = make(root())
LEAF = make(leaf(root()))
RSA = make(leaf(root(), label="rsa-leaf"))
DIGEST_256, DIGEST_512 = bytes(32), bytes(64)
USABLE_HEADS = [(usage, selector, matching) for usage in (2, 3) for selector in (0, 1) for matching in (0, 1, 2)]


# --- rdata ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octets", range(3))
def test_rdata_too_short_for_its_fields_is_refused(octets: int) -> None:
    with pytest.raises(ValueError, match=f"of {octets} octets"):
        tlsa.parse(bytes(octets))


def test_fields_are_read_as_they_stand() -> None:
    parsed = tlsa.parse(b"\3\1\1" + DIGEST_256)
    assert (parsed.usage, parsed.selector, parsed.matching, parsed.data) == (3, 1, 1, DIGEST_256)
    assert parsed.kind == "3 1 1"
    assert tlsa.parse(b"\xff\xfe\xfd").data == b""


@given(st.binary(max_size=200))
def test_rdata_comes_back_as_it_was(rdata: bytes) -> None:
    if len(rdata) >= 3:
        assert tlsa.parse(rdata).rdata == rdata
    assert tlsa.from_text(tlsa.to_text(rdata)) == rdata


# --- presentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rdata"),
    [
        ("3 1 1 00ff", b"\3\1\1\0\xff"),
        ("  3\t1 1 0 0 F f ", b"\3\1\1\0\xff"),
        ("DANE-EE SPKI SHA2-256 00ff", b"\3\1\1\0\xff"),
        ("dane-ta cert sha2-512 ab", b"\2\0\2\xab"),
        ("PKIX-TA 0 Full ab", b"\0\0\0\xab"),
        ("PrivCert PrivSel PrivMatch ab", b"\xff\xff\xff\xab"),
        ("3 1 1 ( 00\n ff )", b"\3\1\1\0\xff"),
        ("\\# 5 030101 00ff", b"\3\1\1\0\xff"),
        ("\\# 0", b""),
    ],
)
def test_presentation_is_read(text: str, rdata: bytes) -> None:
    assert tlsa.from_text(text) == rdata


@pytest.mark.parametrize(
    "text",
    [
        *("", "3 1 1", "3 1 1 0", "3 1 1 xy", "256 1 1 00", "-1 1 1 00", "3 SPKI-256 1 00", "1e1 1 1 00", "٣ 1 1 00"),
        *("\\#", "\\# 2 00", "\\# x 00", "\\# -1", "\\# 01 00", "DANE-EE DANE-EE 1 00", "3 1 1 é0", "00003 1 1 00"),
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        tlsa.from_text(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        rdata = tlsa.from_text(text)
    except ValueError:
        return
    assert tlsa.from_text(tlsa.to_text(rdata)) == rdata


@pytest.mark.parametrize(("rdata", "text"), [(b"", "\\# 0"), (b"\3\1\1", "\\# 3 030101"), (b"\3\1\1\xab", "3 1 1 ab")])
def test_what_is_too_short_is_written_in_the_generic_form(rdata: bytes, text: str) -> None:
    assert tlsa.to_text(rdata) == text


# --- usable or not (R18 to R20) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", USABLE_HEADS, ids=str)
@pytest.mark.parametrize("der", [LEAF, RSA], ids=["ec", "rsa"])
def test_every_kind_that_smtp_knows_is_usable(head: tuple[int, int, int], der: bytes) -> None:
    rdata = record(der, *head)
    assert tlsa.why_unusable(rdata) == ""
    assert tlsa.usable([rdata]) == (0,)
    assert tlsa.usage_mask([rdata]) == 1 << head[0]


@pytest.mark.parametrize("usage", [0, 1, *range(4, 256, 17), 255])
def test_other_usages_are_of_no_use(usage: int) -> None:
    assert f"usage {usage}" in tlsa.why_unusable(bytes((usage, 1, 1)) + DIGEST_256)


@pytest.mark.parametrize("value", [2, 3, 127, 255])
def test_other_selectors_are_of_no_use(value: int) -> None:
    assert f"selector {value}" in tlsa.why_unusable(bytes((3, value, 1)) + DIGEST_256)


@pytest.mark.parametrize("value", [3, 4, 127, 255])
def test_other_matching_types_are_of_no_use(value: int) -> None:
    assert f"matching type {value}" in tlsa.why_unusable(bytes((3, 1, value)) + DIGEST_256)


@pytest.mark.parametrize("octets", [0, 1, 31, 33, 64])
def test_sha2_256_has_32_octets(octets: int) -> None:
    assert tlsa.why_unusable(b"\3\1\1" + bytes(octets))


@pytest.mark.parametrize("octets", [0, 32, 63, 65])
def test_sha2_512_has_64_octets(octets: int) -> None:
    assert tlsa.why_unusable(b"\3\1\2" + bytes(octets))


@pytest.mark.parametrize("octets", range(4))
def test_short_rdata_is_of_no_use_and_does_no_harm(octets: int) -> None:
    for head in (b"\3\1\1", b"\3\0\0", b"\2\1\0", b"\0\0\0"):
        assert f"it has {octets} octets" in tlsa.why_unusable(head[:octets]) or octets > 3
        assert tlsa.usable([head[:octets], record(LEAF, 3, 1, 1)]) == (1,)


@pytest.mark.parametrize("usage", [2, 3])
def test_a_certificate_in_full_is_one_and_can_be_read(usage: int) -> None:
    whole = record(LEAF, usage, 0, 0)
    assert tlsa.why_unusable(whole) == ""
    for wrong in (whole + b"\0", whole[:-1], whole + LEAF, whole[:3] + b"\0", bytes((usage, 0, 0)) + b"x" * 500):
        assert "certificate" in tlsa.why_unusable(wrong)
    # a key of an algorithm that nobody has
    strange = whole.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d7f7f"), 1)
    assert strange != whole
    assert "cannot be decoded" in tlsa.why_unusable(strange)


@pytest.mark.parametrize("usage", [2, 3])
def test_a_key_in_full_is_one_and_can_be_read(usage: int) -> None:
    whole = record(LEAF, usage, 1, 0)
    assert tlsa.why_unusable(whole) == ""
    for wrong in (whole + b"\0", whole[:-1], whole[:3] + LEAF, whole[:3] + b"\x30\0", whole[:3] + element(0x30, b"x")):
        assert "key" in tlsa.why_unusable(wrong)
    assert "cannot be decoded" in tlsa.why_unusable(whole[:-40] + bytes(40))


def test_one_record_never_affects_the_others() -> None:
    bad = [b"", b"\3", b"\3\1\1", b"\0\1\1" + DIGEST_256, b"\3\1\2" + DIGEST_256, b"\3\0\0junk", b"\2\1\0" + LEAF]
    good = [record(LEAF, 3, 1, 1), record(ROOT, 2, 0, 1)]
    for position in range(len(bad)):
        records = [*bad[:position], *good, *bad[position:]]
        assert tlsa.usable(records) == (position, position + 1)
    assert tlsa.usage_mask(bad) == 0
    assert tlsa.usage_mask(bad + good) == 12


# --- agility, bounds, order (R23, R24) --------------------------------------------------------------------------------


def kinds(records: list[bytes]) -> set[str]:
    return {tlsa.parse(rdata).kind for rdata in tlsa.well_formed(records)}


@pytest.mark.parametrize(
    ("given_kinds", "in_force"),
    [
        (["3 1 1", "3 1 2"], {"3 1 2"}),
        (["3 1 1", "3 0 2"], {"3 1 1", "3 0 2"}),
        (["3 1 1", "2 1 2"], {"3 1 1", "2 1 2"}),
        (["3 1 0", "3 1 2", "3 1 1"], {"3 1 0", "3 1 2"}),
        (["2 0 0", "2 0 1"], {"2 0 0", "2 0 1"}),
    ],
)
def test_the_strongest_digest_of_a_pair_is_in_force(given_kinds: list[str], in_force: set[str]) -> None:
    records = [record(LEAF, *map(int, kind.split())) for kind in given_kinds]
    for order in itertools.permutations(records):
        assert kinds(list(order)) == in_force
        shadowed = [order[index] for index in tlsa.shadowed(order)]
        assert {tlsa.parse(rdata).kind for rdata in shadowed} == set(given_kinds) - in_force


def test_an_unusable_record_shadows_nothing() -> None:
    short = b"\3\1\2" + bytes(63)
    assert kinds([short, record(LEAF, 3, 1, 1)]) == {"3 1 1"}


def test_equal_records_count_once_and_the_first_is_named() -> None:
    one, other = record(LEAF, 3, 1, 1), record(LEAF, 3, 0, 1)
    assert tlsa.usable([one, other, one, one]) == (0, 1)
    assert list(tlsa.well_formed([other, one, other]).values()) == [0, 1]


def test_a_set_without_end_is_cut_the_same_way_in_any_order() -> None:
    right = record(LEAF, 3, 1, 1)
    records = [bytes((255, 1, 1)) + hashlib.sha256(b"%d" % number).digest() for number in range(300)]
    records += [bytes((2, 1, 1)) + hashlib.sha256(b"%d" % number).digest() for number in range(60)]
    records.append(right)
    rng = random.Random(1)
    seen = set()
    for _ in range(5):
        rng.shuffle(records)
        found = tlsa.well_formed(records)
        assert right in found, "records of no use push out none that is"
        assert len(found) <= tlsa.MAX_RECORDS
        seen.add(frozenset(found))
    assert len(seen) == 1


def test_octets_are_bounded_too() -> None:
    records = [b"\3\0\0" + element(0x30, bytes((number,)) * 20_000) for number in range(10)]
    assert sum(map(len, tlsa.well_formed(records))) <= tlsa.MAX_OCTETS


heads = st.tuples(*[st.sampled_from([0, 1, 2, 3, 255])] * 3).map(bytes)
some_record = st.one_of(
    st.builds(lambda head, data: head + data, heads, st.sampled_from([DIGEST_256, DIGEST_512, LEAF, b"", LEAF[:50]])),
    st.binary(max_size=70),
)


@given(st.lists(some_record, max_size=8), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_decides_nothing(records: list[bytes], rng: random.Random) -> None:
    shuffled = list(records)
    rng.shuffle(shuffled)
    for function in (tlsa.usable, tlsa.shadowed):
        assert {records[index] for index in function(records)} == {shuffled[index] for index in function(shuffled)}
    assert set(tlsa.well_formed(records)) == set(tlsa.well_formed(shuffled))
    assert tlsa.usage_mask(records) == tlsa.usage_mask(shuffled)
    for index in tlsa.usable(records):
        assert tlsa.why_unusable(records[index]) == ""


# --- made from a certificate ------------------------------------------------------------------------------------------


def test_records_are_made_of_what_the_certificate_holds() -> None:
    key = tlsa.make(LEAF, 3, 1, 0).data
    assert key in LEAF
    assert tlsa.make(LEAF, 3, 1, 1).data == hashlib.sha256(key).digest()
    assert tlsa.make(LEAF, 2, 0, 2).data == hashlib.sha512(LEAF).digest()
    assert str(tlsa.make(LEAF, 3, 1, 1)) == f"3 1 1 {hashlib.sha256(key).hexdigest()}"


@pytest.mark.parametrize("fields", [(0, 1, 1), (1, 1, 1), (4, 1, 1), (3, 2, 1), (3, 1, 3), (-1, 0, 0), (3, 1, 256)])
def test_no_record_is_made_that_nobody_would_use(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no TLSA record for SMTP"):
        tlsa.make(LEAF, *fields)


def test_no_record_is_made_of_what_is_no_certificate() -> None:
    for junk in (b"", b"junk", LEAF[:-1], LEAF + b"\0"):
        with pytest.raises(ValueError, match="not a certificate"):
            tlsa.make(junk, 3, 1, 1)

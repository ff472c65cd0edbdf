"""The compiled matcher against its reference, and against what certificates really hold (R25 to R28)."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.tls import _certmatch
from engine.tls.names import load_certificate
from fakes.dane_pki import HOST, element, leaf, make, record, root
from fakes.peers import PROJECT
from reference import certmatch as reference

ODD = json.loads((PROJECT / "tests/vectors/tlsa/odd_certificates.json").read_text())
LEAF = make(leaf(root()))
RSA = make(leaf(root(), label="rsa-leaf"))
CERTIFICATES = [LEAF, RSA, make(root()), make(leaf(None, label="ed448-leaf"))]
CERTIFICATES += [base64.b64decode(row["certificate"]) for row in ODD]


def both(records: list[bytes], certificates: list[bytes]) -> list[tuple[int, int]]:
    found = _certmatch.match(records, certificates)
    assert found == reference.match(records, certificates)
    return found


def length(size: int, octets: int) -> bytes:
    """A length in more octets than it needs."""
    return bytes((0x80 | octets,)) + size.to_bytes(octets, "big")


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("der", [LEAF, RSA], ids=["ec", "rsa"])
def test_the_key_is_the_one_that_a_parser_finds(der: bytes) -> None:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    wanted = load_certificate(der).public_key().public_bytes(serialization.Encoding.DER, info)
    assert _certmatch.public_key(der) == wanted
    assert _certmatch.is_public_key(wanted)


@pytest.mark.parametrize("row", ODD, ids=[row["what"] for row in ODD])
def test_the_key_is_taken_as_it_stands(row: dict[str, Any]) -> None:
    """Explicit curves and RSASSA-PSS parameters would be lost if the key were encoded again (section 0.3)."""
    der = base64.b64decode(row["certificate"])
    key = _certmatch.public_key(der)
    assert key is not None
    assert len(key) == row["public_key_octets"]
    assert hashlib.sha256(key).hexdigest() == row["public_key_sha256"]
    assert both([b"\3\1\1" + bytes.fromhex(row["public_key_sha256"])], [der]) == [(0, 0)]


def test_encoding_a_key_again_would_give_another_digest() -> None:
    der = base64.b64decode(next(row["certificate"] for row in ODD if "explicit" in row["what"]))
    key = _certmatch.public_key(der)
    assert key is not None
    assert len(key) > 300, "the curve is written out"


@pytest.mark.parametrize("octets", range(len(LEAF)))
def test_a_certificate_that_ends_early_has_no_key(octets: int) -> None:
    assert _certmatch.public_key(LEAF[:octets]) is None
    assert reference.public_key(LEAF[:octets]) is None


def test_a_certificate_with_something_behind_it_has_no_key() -> None:
    assert _certmatch.public_key(LEAF + b"\0") is None


@pytest.mark.parametrize("octets", [1, 2, 3, 4, 5, 8, 127])
def test_long_lengths_are_taken_up_to_four_octets(octets: int) -> None:
    """R26: odd encodings count as they are; five octets and more are nobody's."""
    content = LEAF[4:]
    size = len(content)
    if octets == 1:
        content, size = content[:100], 100
    der = b"\x30" + length(size, octets) + content
    assert (_certmatch.public_key(der) is not None) == (2 <= octets <= 4)
    assert _certmatch.public_key(der) == reference.public_key(der)


def test_indefinite_lengths_are_not_followed() -> None:
    assert _certmatch.public_key(b"\x30\x80" + LEAF[4:] + b"\0\0") is None


@pytest.mark.parametrize("claimed", [0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 1 << 16])
def test_a_length_beyond_the_end_is_not_believed(claimed: int) -> None:
    for position in range(60):
        der = LEAF[:position] + b"\x30" + length(claimed, 4) + LEAF[position:]
        assert _certmatch.public_key(der) == reference.public_key(der)


def test_is_public_key_wants_exactly_one() -> None:
    key = _certmatch.public_key(LEAF)
    assert key is not None
    assert _certmatch.is_public_key(key)
    for wrong in (b"", key[:-1], key + b"\0", LEAF, element(0x31, key[2:]), element(0x30, b""), element(0x30, key)):
        assert not _certmatch.is_public_key(wrong)
        assert not reference.is_public_key(wrong)


# --- matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("usage", [0, 1, 2, 3, 255])
def test_every_kind_of_record_finds_its_certificate(usage: int, selector: int, matching: int) -> None:
    records = [record(der, usage, selector, matching) for der in CERTIFICATES]
    assert both(records, CERTIFICATES) == [(number, number) for number in range(len(CERTIFICATES))]


def test_pairs_come_by_certificate_and_then_by_record() -> None:
    records = [record(RSA, 3, 1, 1), record(LEAF, 3, 0, 2), record(RSA, 2, 0, 0), record(LEAF, 3, 0, 2)]
    assert both(records, [LEAF, RSA]) == [(1, 0), (3, 0), (0, 1), (2, 1)]


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_every_octet_counts(selector: int, matching: int) -> None:
    right = record(LEAF, 3, selector, matching)
    for position in range(3, len(right)):
        wrong = right[:position] + bytes((right[position] ^ 0x40,)) + right[position + 1 :]
        assert _certmatch.match((wrong,), (LEAF,)) == []
    for wrong in (right[:-1], right + b"\0", right[:3], right[:2], right[:1], b""):
        assert both([wrong], [LEAF]) == []


@pytest.mark.parametrize("head", [(3, 2, 1), (3, 255, 1), (3, 1, 3), (3, 1, 255), (3, 0, 254)])
def test_unknown_selectors_and_matching_types_match_nothing(head: tuple[int, int, int]) -> None:
    for data in (LEAF, hashlib.sha256(LEAF).digest(), hashlib.sha512(LEAF).digest()):
        assert both([bytes(head) + data], [LEAF]) == []


def test_the_whole_certificate_matches_though_nothing_can_read_it() -> None:
    junk = b"\x30\x03not a certificate"
    assert both([b"\3\0\1" + hashlib.sha256(junk).digest(), b"\3\0\0" + junk], [junk]) == [(0, 0), (1, 0)]
    assert both([b"\3\1\1" + hashlib.sha256(junk).digest()], [junk]) == []


def test_nothing_is_found_in_nothing() -> None:
    assert both([], [LEAF]) == []
    assert both([record(LEAF, 3, 1, 1)], []) == []
    assert both([record(LEAF, 3, 1, 1)], [b""]) == []


def test_each_digest_is_computed_once_for_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}

    def counting(name: str) -> object:
        def new() -> object:
            counts[name] = counts.get(name, 0) + 1
            return hashlib.new(name)

        return new

    monkeypatch.setattr(_certmatch, "_new_sha256", counting("sha256"))
    monkeypatch.setattr(_certmatch, "_new_sha512", counting("sha512"))
    records = [record(RSA, usage, selector, matching) for usage in (2, 3) for selector in (0, 1) for matching in (1, 2)]
    assert len(_certmatch.match(records * 10, (LEAF, RSA))) == 80
    assert counts == {"sha256": 4, "sha512": 4}
    counts.clear()
    _certmatch.match([record(RSA, 3, 1, 1)], (LEAF,))
    assert counts == {"sha256": 1}, "no digest that nobody asks for"


def test_other_types_are_refused() -> None:
    for wrong in ("text", 5, None, bytearray(LEAF)):
        with pytest.raises(TypeError):
            _certmatch.match([b"\3\1\1"], [wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            _certmatch.match([wrong], [LEAF])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            _certmatch.public_key(wrong)  # type: ignore[arg-type]


def test_large_input_lets_other_threads_run() -> None:
    big = element(0x30, b"\0" * 30_000_000)
    alive = threading.Event()
    thread = threading.Thread(target=alive.set)
    records = [b"\3\0\0" + big, b"\3\0\0" + big[:-1] + b"\1"]
    thread.start()
    assert _certmatch.match(records, (big,)) == [(0, 0)]
    thread.join()
    assert alive.is_set()


# --- anything ---------------------------------------------------------------------------------------------------------

pieces = st.binary(max_size=40)
elements = st.recursive(
    st.builds(element, st.sampled_from([0x02, 0x03, 0x06, 0x30, 0xA0]), pieces),
    lambda inner: st.builds(
        lambda tag, parts: element(tag, b"".join(parts)), st.sampled_from([0x30, 0xA0]), st.lists(inner, max_size=9)
    ),
    max_leaves=24,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A certificate with a few octets changed, left out or put in."""
    der = bytearray(draw(st.sampled_from(CERTIFICATES)))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, min(len(der), 400)))
        match draw(st.integers(0, 2)):
            case 0:
                der[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del der[position : position + draw(st.integers(1, 40))]
            case _:
                der[position:position] = draw(st.binary(max_size=5))
    return bytes(der)


anything = st.one_of(damaged(), elements, st.binary(max_size=80), st.sampled_from(CERTIFICATES))


@given(anything)
@example(b"")
@example(b"\x30\x84\xff\xff\xff\xff")
@example(b"\x30\x81")
@settings(max_examples=300, deadline=None)
def test_keys_equal_the_reference(der: bytes) -> None:
    assert _certmatch.public_key(der) == reference.public_key(der)
    assert _certmatch.is_public_key(der) == reference.is_public_key(der)


@st.composite
def records_for(draw: st.DrawFn, certificates: list[bytes]) -> bytes:
    head = bytes(draw(st.sampled_from([0, 1, 2, 3, 255])) for _ in range(3))
    der = draw(st.sampled_from(certificates)) if certificates else b""
    if draw(st.booleans()):
        der = reference.public_key(der) or der
    data = draw(st.sampled_from([der, hashlib.sha256(der).digest(), hashlib.sha512(der).digest(), der[:-1], b""]))
    return (head + data)[: draw(st.sampled_from([0, 2, 3, 4, 1 << 20, 1 << 20]))]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_matching_equals_the_reference(data: st.DataObject) -> None:
    certificates = data.draw(st.lists(anything, max_size=4))
    records = data.draw(st.lists(records_for(certificates), max_size=8))
    both(records, certificates)


def test_the_leaf_of_a_handshake_is_no_parsers_business() -> None:
    """R26: a certificate that `cryptography` refuses still has its key found."""
    # a subject with a broken string inside
    odd = LEAF.replace(HOST.encode(), b"\xff" * len(HOST), 1)
    broken = odd.replace(b"\x0c" + bytes((len(HOST),)), b"\x1f" + bytes((len(HOST),)), 1)
    with pytest.raises(ValueError, match="parsing"):
        x509.load_der_x509_certificate(broken)
    assert both([record(LEAF, 3, 1, 1)], [broken]) == [(0, 0)]

"""Paths: how far they lead, whether they verify, and what of them is too weak."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from cryptography.hazmat.primitives import serialization
from OpenSSL import crypto
from OpenSSL._util import lib

from engine.tls import chain as paths
from fakes.dane_pki import NOW, Spec, authority, element, key, leaf, make, root
from fakes.peers import PROJECT

ROOT = root()
INTER = authority("Authority", ROOT)
LEAF = leaf(INTER)


def loaded(*specs: Spec) -> list[crypto.X509]:
    found = [paths.load_or_none(make(spec)) for spec in specs]
    assert None not in found
    return [certificate for certificate in found if certificate is not None]


def subjects(path: tuple[crypto.X509, ...]) -> list[bytes]:
    return [paths.encoded(certificate) for certificate in path]


def public(label: str) -> bytes:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key(label).public_key().public_bytes(serialization.Encoding.DER, info)


def test_a_path_leads_as_far_as_issuers_are_there() -> None:
    end, inter, top = loaded(LEAF, INTER, ROOT)
    for others, length in (([], 1), ([inter], 2), ([top], 1), ([inter, top], 3), ([top, inter], 3)):
        path = paths.path_from(end, others, NOW)
        assert subjects(path) == [make(spec) for spec in (LEAF, INTER, ROOT)[:length]]
        assert lib.ERR_peek_error() == 0


def test_a_path_of_a_self_signed_certificate_ends_at_once() -> None:
    own, top = loaded(leaf(None), ROOT)
    assert len(paths.path_from(own, [top, own], NOW)) == 1


def test_the_issuer_with_the_right_dates_is_taken_wherever_it_stands() -> None:
    old = authority("Authority", ROOT, dates="expired")
    for order in itertools.permutations(loaded(old, INTER, ROOT)):
        assert subjects(paths.path_from(loaded(LEAF)[0], order, NOW)) == [make(LEAF), make(INTER), make(ROOT)]


def test_a_long_path_ends() -> None:
    specs = [ROOT]
    for number in range(120):
        specs.append(authority(f"Authority {number}", specs[-1], "ec-one"))
    path = paths.path_from(*_split(loaded(*reversed(specs))), NOW)
    assert 90 < len(path) <= 121
    assert paths.verify(path, NOW).error in (0, 22)


def _split(certificates: list[crypto.X509]) -> tuple[crypto.X509, list[crypto.X509]]:
    return certificates[0], certificates[1:]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_path_verifies_from_any_anchor(count: int) -> None:
    assert paths.verify(loaded(LEAF, INTER, ROOT)[:count], NOW) == paths.Outcome()


@pytest.mark.parametrize(
    ("specs", "error", "depth"),
    [
        ((leaf(INTER, dates="expired"), INTER), 10, 0),
        ((leaf(authority("Authority", ROOT, ca=False)), authority("Authority", ROOT, ca=False), ROOT), 79, 1),
        ((LEAF, ROOT), 20, 0),
        ((leaf(INTER, purposes=("client",)), INTER), 26, 0),
    ],
)
def test_a_path_that_does_not_verify_says_why(specs: tuple[Spec, ...], error: int, depth: int) -> None:
    outcome = paths.verify(loaded(*specs), NOW)
    assert (outcome.error, outcome.depth) == (error, depth)
    assert outcome.text
    assert lib.ERR_peek_error() == 0


def test_what_is_no_certificate_is_none() -> None:
    for junk in (b"", b"junk", make(LEAF)[:-1]):
        assert paths.load_or_none(junk) is None
        assert lib.ERR_peek_error() == 0


# --- strength ---------------------------------------------------------------------------------------------------------


def test_weak_digests_count_below_the_anchor() -> None:
    weak = leaf(INTER, digest="sha1")
    assert paths.weakness(loaded(weak, INTER)).error == paths.CA_DIGEST_TOO_WEAK
    assert paths.weakness(loaded(weak)).error == 0
    assert paths.weakness(loaded(weak), is_anchored_by_key=True).error == paths.CA_DIGEST_TOO_WEAK
    assert paths.weakness(loaded(LEAF, authority("Authority", ROOT, digest="sha1"))).error == 0


@pytest.mark.parametrize("label", ["ec-x", "p521-x", "rsa-x", "rsa1024-x", "ed25519-x", "ed448-x"])
def test_keys_of_level_1_are_strong_enough(label: str) -> None:
    assert paths.weakness(loaded(leaf(INTER, label=label), INTER)) == paths.Outcome()


def test_weak_keys_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_MIN_RSA_BITS", 1025)
    inter = authority("Authority", ROOT, "rsa1024-x")
    assert paths.weakness(loaded(leaf(INTER, label="rsa1024-x"), INTER)).error == paths.EE_KEY_TOO_SMALL
    found = paths.weakness(loaded(leaf(inter), inter, ROOT))
    assert (found.error, found.depth) == (paths.CA_KEY_TOO_SMALL, 1)
    monkeypatch.setattr(paths, "_MIN_CURVE_BITS", 257)
    assert paths.weakness(loaded(LEAF, INTER)).error == paths.EE_KEY_TOO_SMALL


def test_rsassa_pss_keys_are_counted_in_bits_of_rsa(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads((PROJECT / "tests/vectors/tlsa/odd_certificates.json").read_text())
    der = next(base64.b64decode(row["certificate"]) for row in rows if "PSS" in row["what"])
    certificate = paths.load_or_none(der)
    assert certificate is not None
    assert paths.weakness([certificate]).error == 0
    monkeypatch.setattr(paths, "_MIN_RSA_BITS", 2049)
    assert paths.weakness([certificate]).error == paths.EE_KEY_TOO_SMALL


# --- bare keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["ec-s", "p521-s", "rsa-s", "ed25519-s", "ed448-s"])
@pytest.mark.parametrize("other", ["ec-o", "rsa-o", "ed25519-o", "ed448-o"])
def test_a_signature_belongs_to_one_key(label: str, other: str) -> None:
    certificate = loaded(leaf(root(label=label)))[0]
    assert paths.is_signed_by(certificate, public(label))
    assert not paths.is_signed_by(certificate, public(other))


def test_signatures_with_pss_and_sha1_are_understood() -> None:
    top = root(label="rsa-s")
    assert paths.is_signed_by(loaded(leaf(top, pss=True))[0], public("rsa-s"))
    assert paths.is_signed_by(loaded(leaf(top, digest="sha1"))[0], public("rsa-s"))
    assert paths.is_signed_by(loaded(leaf(ROOT, digest="sha1"))[0], public(ROOT.key))


def test_a_key_for_rsassa_pss_alone_signs_nothing_else() -> None:
    """The same numbers as a key of that kind: a signature with PKCS #1 padding does not count."""
    plain, rsa_encryption = public("rsa-s"), bytes.fromhex("06092a864886f70d0101010500")
    limited = plain.replace(rsa_encryption, bytes.fromhex("06092a864886f70d01010a3000"), 1)
    assert limited != plain
    assert not paths.is_signed_by(loaded(leaf(root(label="rsa-s")))[0], limited)
    # nor one with other parameters than those of the key
    assert not paths.is_signed_by(loaded(leaf(root(label="rsa-s"), pss=True))[0], limited)
    without = element(0x30, element(0x30, bytes.fromhex("06092a864886f70d01010a")) + plain[4 + 15 :])
    assert paths.is_signed_by(loaded(leaf(root(label="rsa-s"), pss=True))[0], without)
    assert not paths.is_signed_by(loaded(leaf(root(label="rsa-s")))[0], without)


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x30\x00", make(LEAF)])
def test_what_is_no_key_signed_nothing(junk: bytes) -> None:
    assert not paths.is_signed_by(loaded(LEAF)[0], junk)

"""OCSP responses: good, bad, old, foreign, forged (R52, R53, OC-4); `openssl ocsp` makes some of them."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509 import ocsp as x509_ocsp
from cryptography.x509.oid import SignatureAlgorithmOID
from hypothesis import given
from hypothesis import strategies as st

from engine.tls import ocsp
from engine.tls.ocsp import Demand, Staple, Status, check, must_staple, refusal
from engine.tls.selfmade import Identity, make_leaf
from fakes.ocsp_pki import NOW, REVOKED, UNKNOWN, authority, chain, issued, response
from fakes.patience import PATIENCE_S

LEAF = issued()
CHAIN = chain(LEAF, authority())


def status(staple: bytes | None, certificates: tuple[bytes, ...] = CHAIN, *, at: float = 0) -> Status:
    return check(staple, certificates, now=NOW + datetime.timedelta(seconds=at)).status


def test_the_issuer_vouches() -> None:
    assert status(response(LEAF)) is Status.GOOD
    assert status(response(LEAF, by_name=True)) is Status.GOOD
    assert status(response(LEAF, certid_hash=hashes.SHA256())) is Status.GOOD


def test_the_issuer_may_come_from_the_verified_path() -> None:
    assert check(response(LEAF), chain(LEAF), now=NOW).status is Status.UNPROVEN
    assert check(response(LEAF), chain(LEAF), (authority().der,), now=NOW).status is Status.GOOD


def test_a_leaf_with_an_rsa_key_and_a_delegate_with_one() -> None:
    delegate = issued(name="responder", usage="ocsp", is_rsa=True)
    found = response(LEAF, signer=delegate, certificates=[delegate])
    assert status(found) is Status.GOOD


def test_a_delegate_of_the_issuer_vouches() -> None:
    delegate = issued(name="responder", usage="ocsp")
    assert status(response(LEAF, signer=delegate, certificates=[delegate])) is Status.GOOD
    assert status(response(LEAF, signer=delegate, certificates=[delegate], by_name=True)) is Status.GOOD
    # without its certificate nobody knows who that is
    assert status(response(LEAF, signer=delegate)) is Status.UNPROVEN


@pytest.mark.parametrize(
    ("usage", "days", "signs"), [("server", 30, True), ("none", 30, True), ("ocsp", -1, True), ("ocsp", 30, False)]
)
def test_who_is_no_delegate(usage: str, days: int, signs: bool) -> None:
    """R52: OCSPSigning, in date, with a key that may sign."""
    other = issued(name="responder", usage=usage, days=days, signs=signs)
    assert status(response(LEAF, signer=other, certificates=[other])) is Status.UNPROVEN


def test_a_delegate_of_another_authority_is_none() -> None:
    stranger = issued("Another root", name="responder", usage="ocsp")
    found = response(LEAF, signer=stranger, certificates=[stranger])
    assert status(found) is Status.UNPROVEN
    assert status(found, chain(LEAF, authority(), authority("Another root"))) is Status.UNPROVEN


def test_neither_the_leaf_nor_the_chain_vouches_for_itself() -> None:
    """R52: even with the usage of a responder."""
    both = issued(name="both.example.org", usage="both")
    assert status(response(both, signer=both, certificates=[both]), chain(both, authority())) is Status.UNPROVEN
    other = issued(name="responder", usage="ocsp")
    found = response(LEAF, signer=other, certificates=[other])
    assert status(found, chain(LEAF, authority(), other)) is Status.UNPROVEN
    alone = make_leaf(["alone.example.org"], now=NOW)
    own = response(alone, issuer=alone, signer=alone)
    assert status(own, chain(alone)) is Status.UNPROVEN
    assert status(own, chain(alone, alone)) is Status.UNPROVEN
    # where it is trusted itself, the path that was verified is the leaf
    assert check(own, chain(alone), (alone.der,), now=NOW).status is Status.UNPROVEN


def test_an_answer_about_another_certificate_is_none() -> None:
    """The check that Exim leaves out (section 0.6)."""
    other = issued(name="other.example.org")
    found = check(response(other), CHAIN, now=NOW)
    assert found == Staple(Status.UNPROVEN, "the response is about another certificate")


def test_a_certificate_of_another_issuer_with_the_same_number_is_another() -> None:
    """CertID is more than a serial number, and our issuer may well answer for others, too."""
    found = check(response(LEAF, issuer=authority("Another root"), signer=authority()), CHAIN, now=NOW)
    assert found == Staple(Status.UNPROVEN, "the response is about another certificate")


def test_a_namesake_of_the_issuer_signs_for_nobody() -> None:
    """Same name, another key: certificate ids and signatures go by the key."""
    impostor = make_leaf([], now=NOW, common_name="OCSP test root")
    assert status(response(LEAF, signer=impostor, by_name=True)) is Status.UNPROVEN
    assert status(response(LEAF, issuer=impostor, signer=impostor), chain(LEAF, impostor)) is Status.UNPROVEN
    assert status(response(LEAF), chain(LEAF, impostor, authority())) is Status.GOOD


def test_every_octet_of_the_signature_and_of_what_is_signed_counts() -> None:
    whole = response(LEAF)
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] ^= 0x01
        assert status(bytes(broken)) is not Status.GOOD, position


def test_weak_digests_sign_nothing() -> None:
    """A genuine signature made with SHA-1, which `cryptography` makes no more: an old one, its digest exchanged."""
    delegate = issued(name="responder", usage="ocsp", is_rsa=True)
    found = response(LEAF, signer=delegate, certificates=[delegate])
    assert status(found) is Status.GOOD
    # sha256WithRSAEncryption and sha1WithRSAEncryption differ in their last octet
    strong, weak = bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105")
    assert status(found.replace(strong, weak)) is Status.UNPROVEN
    assert not _verifies_with_sha1(delegate)


def _verifies_with_sha1(delegate: Identity) -> bool:
    """Whether a response would do that is really signed with SHA-1."""
    assert isinstance(delegate.key, rsa.RSAPrivateKey)
    octets = b"what is signed"
    signature = delegate.key.sign(octets, padding.PKCS1v15(), hashes.SHA1())

    class Old:
        tbs_response_bytes = octets
        signature_algorithm_oid = SignatureAlgorithmOID.RSA_WITH_SHA1
        signature_hash_algorithm = hashes.SHA1()

    Old.signature = signature  # type: ignore[attr-defined]
    return ocsp._is_signed(Old, delegate.certificate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (-3600 - 299, Status.GOOD),
        (-3600 - 301, Status.OUT_OF_DATE),
        (3600 + 299, Status.GOOD),
        (3600 + 301, Status.OUT_OF_DATE),
    ],
)
def test_dates_have_300_seconds_of_skew(at: float, expected: Status) -> None:
    assert status(response(LEAF), at=at) is expected


def test_a_response_without_an_end_is_out_of_date() -> None:
    assert status(response(LEAF, end_s=None)) is Status.OUT_OF_DATE


def test_revoked_and_unknown() -> None:
    found = check(response(LEAF, status=REVOKED), CHAIN, now=NOW)
    assert (found.status, found.reason) == (Status.REVOKED, "revoked; reason: key_compromise")
    assert status(response(LEAF, status=REVOKED), at=1e6) is Status.REVOKED
    assert status(response(LEAF, status=UNKNOWN)) is Status.UNKNOWN


def test_a_responder_that_has_no_answer() -> None:
    said = x509_ocsp.OCSPResponseBuilder.build_unsuccessful(x509_ocsp.OCSPResponseStatus.TRY_LATER)
    assert status(said.public_bytes(serialization.Encoding.DER)) is Status.UNPROVEN


def test_no_response() -> None:
    assert status(None) is Status.ABSENT
    assert status(b"") is Status.ABSENT
    assert status(response(LEAF), ()) is Status.UNPROVEN


def test_a_response_without_end_is_not_looked_at() -> None:
    assert status(b"\x30" + b"\0" * 100_000) is Status.GARBLED


@given(st.binary(max_size=300))
def test_garbage_is_garbled(octets: bytes) -> None:
    assert status(octets) in (Status.GARBLED, Status.ABSENT)


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_cut_and_continued_responses_never_raise(tail: bytes, cut: int) -> None:
    whole = response(LEAF)
    found = status(whole[: cut % len(whole)] + tail)
    assert found is not Status.GOOD or whole[: cut % len(whole)] + tail == whole


@given(st.binary(max_size=200))
def test_certificates_of_a_peer_never_raise(der: bytes) -> None:
    assert check(response(LEAF), (der, authority().der), now=NOW).status is Status.UNPROVEN
    assert check(response(LEAF), (LEAF.der, der), now=NOW).status is Status.UNPROVEN
    assert must_staple(der) is False


@pytest.mark.parametrize(
    ("what", "demanded", "requested"),
    [
        (Status.ABSENT, "(SSL_connect) Required TLS certificate status not received", ""),
        (Status.REVOKED, "(SSL_connect) Server certificate revoked", ""),
        (Status.OUT_OF_DATE, "(SSL_connect) Server certificate status is out-of-date", ""),
        (Status.UNKNOWN, "(SSL_connect) Server certificate status unknown, in OCSP stapling", ""),
        (Status.UNPROVEN, "(SSL_connect) Server certificate status is not proved", ""),
        (Status.GOOD, "", ""),
    ],
)
def test_what_fails_the_handshake(what: Status, demanded: str, requested: str) -> None:
    """The table of OC-4."""
    assert refusal(Staple(what), Demand.REQUIRE) == demanded
    assert refusal(Staple(what), Demand.REQUEST) == requested


def test_a_garbled_response_fails_whoever_asked() -> None:
    assert refusal(Staple(Status.GARBLED), Demand.REQUEST) != ""
    assert refusal(Staple(Status.GARBLED), Demand.REQUIRE) != ""


def test_must_staple() -> None:
    assert must_staple(issued(name="staple.example.org", must_staple=True).der)
    assert not must_staple(LEAF.der)


@pytest.mark.parametrize(("flag", "signer"), [("V", "root"), ("R", "root"), ("V", "delegate"), ("V", "PSS")])
def test_a_response_that_openssl_makes(tmp_path: Path, flag: str, signer: str) -> None:
    """A second opinion: the responder of OpenSSL, with its index file."""
    leaf, root = issued(name="openssl.example.org"), authority()
    delegate = issued(name="responder", usage="ocsp", is_rsa=True)
    who = root if signer == "root" else delegate
    padding_options = ("-rsigopt", "rsa_padding_mode:pss") if signer == "PSS" else ()
    for name, octets in (
        *(("root.pem", root.chain_pem), ("leaf.pem", leaf.chain_pem)),
        *(("signer.pem", who.chain_pem), ("signer.key", who.key_pem)),
    ):
        (tmp_path / name).write_bytes(octets)
    revoked = NOW.strftime("%y%m%d%H%M%SZ") if flag == "R" else ""
    end = (NOW + datetime.timedelta(days=30)).strftime("%y%m%d%H%M%SZ")
    serial = f"{leaf.certificate.serial_number:X}"
    serial = serial if len(serial) % 2 == 0 else "0" + serial
    (tmp_path / "index").write_text(f"{flag}\t{end}\t{revoked}\t{serial}\tunknown\t/CN=openssl.example.org\n")
    common = ["-issuer", "root.pem", "-cert", "leaf.pem"]
    subprocess.run(
        [*("openssl", "ocsp", "-no_nonce", "-reqout", "request.der"), *common],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    made = subprocess.run(
        [
            *("openssl", "ocsp", "-index", "index", "-CA", "root.pem", "-rsigner", "signer.pem"),
            *("-rkey", "signer.key", *padding_options),
            *("-reqin", "request.der", "-respout", "response.der", "-ndays", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    expected = Status.GOOD if flag == "V" else Status.REVOKED
    # OpenSSL dates it by the clock, which may be far from the time at which this module was imported
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)
    assert check((tmp_path / "response.der").read_bytes(), chain(leaf, root), now=now).status is expected

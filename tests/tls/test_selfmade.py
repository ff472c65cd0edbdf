"""Self-made certificates: engine/tls/selfmade.py."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import DNSName, load_pem_x509_certificate, load_pem_x509_certificates
from cryptography.x509.verification import PolicyBuilder, Store

from engine.tls.selfmade import make_authority, make_leaf, tlsa_record
from fakes.patience import PATIENCE_S
from fakes.peers import require
from fakes.tls_pairs import now


@pytest.mark.parametrize("key_type", ["ec", "rsa"])
def test_a_leaf_verifies_up_to_its_root(key_type: str) -> None:
    root = make_authority("Root", now=now())
    middle = make_authority("Middle", now=now(), issuer=root)
    leaf = make_leaf(["mx.example.org", "*.example.net"], now=now(), issuer=middle, key_type=key_type)
    chain = load_pem_x509_certificates(leaf.chain_pem)
    assert [certificate.public_bytes(serialization.Encoding.DER) for certificate in chain] == list(leaf.chain_der)
    verifier = PolicyBuilder().store(Store([root.certificate])).time(now())
    for name in ("mx.example.org", "a.example.net"):
        verifier.build_server_verifier(DNSName(name)).verify(leaf.certificate, list(chain[1:]))


def test_the_tlsa_record_is_the_digest_of_the_key() -> None:
    leaf = make_leaf(["a.example"], now=now())
    spki = leaf.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert spki in leaf.der
    assert leaf.tlsa_record == f"3 1 1 {hashlib.sha256(spki).hexdigest()}"
    assert serialization.load_pem_private_key(leaf.key_pem, None).public_key() == leaf.key.public_key()


@pytest.mark.parametrize(
    "options",
    [
        ("-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"),
        ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"),
        ("-newkey", "ed25519"),
        ("-newkey", "rsa:2048", "-days", "40000"),
    ],
    ids=["rsa-pss", "explicit curve", "ed25519", "generalized time"],
)
def test_the_tlsa_record_is_of_the_octets_in_the_certificate(tmp_path: Path, options: tuple[str, ...]) -> None:
    # dane-tls.md 0.3: to encode the key again would give other octets for the first two.
    require(shutil.which("openssl"), "needs the openssl command")
    path = tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-subj", "/CN=a.example", "-keyout", str(tmp_path / "key.pem")]
    subprocess.run([*command, "-out", str(path), *options], check=True, capture_output=True, timeout=PATIENCE_S)
    text = subprocess.run(
        ["openssl", "x509", "-in", str(path), "-noout", "-pubkey"], check=True, capture_output=True, timeout=PATIENCE_S
    ).stdout
    spki = base64.b64decode(b"".join(text.splitlines()[1:-1]))
    certificate = load_pem_x509_certificate(path.read_bytes())
    assert spki in certificate.tbs_certificate_bytes
    assert tlsa_record(certificate) == f"3 1 1 {hashlib.sha256(spki).hexdigest()}"


def test_a_negative_life_has_expired() -> None:
    certificate = make_leaf(["a.example"], now=now(), days=-3).certificate
    assert certificate.not_valid_before_utc < certificate.not_valid_after_utc < now()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="neither ec nor rsa"):
        make_leaf(["a"], now=now(), key_type="dsa")
    with pytest.raises(ValueError, match="needs a name"):
        make_leaf([], now=now())

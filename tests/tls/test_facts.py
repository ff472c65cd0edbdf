"""Facts of a handshake: engine/tls/facts.py."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from engine.tls.facts import TlsFacts, distinguished_name
from fakes.tls_pairs import leaf, now


def test_distinguished_name_is_one_safe_line() -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Bücher\nAG"),
            x509.NameAttribute(x509.NameOID.PSEUDONYM, "p"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.example.org"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(leaf().key.public_key())
        .serial_number(1)
        .not_valid_before(now())
        .not_valid_after(now())
        .sign(leaf().key, hashes.SHA256())
    )
    der = leaf().der
    assert distinguished_name(der) == "/CN=mx.example.org"
    der = certificate.public_bytes(Encoding.DER)
    assert distinguished_name(der) == "/C=DE/O=B\\xC3\\xBCcher\\x0AAG/2.5.4.65=p/CN=mx.example.org"


def test_what_cannot_be_parsed_has_no_name() -> None:
    assert distinguished_name(b"nonsense") == ""
    assert TlsFacts("TLS1.3", "X", 1).peer_dn == ""


def test_the_text_of_the_log() -> None:
    facts = TlsFacts("TLS1.2", "ECDHE-RSA-AES128-GCM-SHA256", 128)
    assert facts.log_text == "TLS1.2:ECDHE-RSA-AES128-GCM-SHA256:128"

"""Certificates that somebody made up: what a peer sends is read without an exception and matches nothing by luck."""

from __future__ import annotations

import functools
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from engine.tls.facts import distinguished_name
from engine.tls.names import certificate_matches, certificate_names, name_matches
from fakes.tls_pairs import NAME, leaf, now


@functools.cache
def samples() -> tuple[bytes, ...]:
    """DER of certificates with many kinds of fields."""
    key = leaf().key
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Ünïcode CN"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.example"),
        ]
    )
    names = [
        x509.DNSName("mx.example.org"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.RFC822Name("a@b.example"),
        x509.UniformResourceIdentifier("https://b.example/"),
        x509.DirectoryName(subject),
        x509.RegisteredID(NameOID.COMMON_NAME),
        x509.OtherName(NameOID.COMMON_NAME, b"\x05\x00"),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now())
        .not_valid_after(now())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER), leaf().der


def reads_quietly(der: bytes) -> None:
    text = distinguished_name(der)
    assert text.isascii()
    assert text.isprintable()
    names = certificate_names(der)
    assert isinstance(names, tuple)
    assert certificate_matches(der, ["no.such.name.example"]) is False


def test_the_samples_are_read() -> None:
    first, _ = samples()
    assert certificate_names(first) == ("mx.example.org",)
    assert distinguished_name(first) == "/C=DE/CN=\\xC3\\x9Cn\\xC3\\xAFcode CN/emailAddress=a@b.example"


@given(st.data())
def test_changed_octets(data: st.DataObject) -> None:
    der = bytearray(data.draw(st.sampled_from(samples())))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    reads_quietly(bytes(der))


@given(st.data())
def test_cut_and_doubled_octets(data: st.DataObject) -> None:
    der = data.draw(st.sampled_from(samples()))
    start, end = data.draw(st.integers(0, len(der))), data.draw(st.integers(0, len(der)))
    reads_quietly(der[:start] + der[end:])


@given(st.binary(max_size=200))
def test_no_certificate_at_all(octets: bytes) -> None:
    reads_quietly(octets)


@pytest.mark.parametrize("index", [0, 1])
def test_every_octet_turned_round(index: int) -> None:
    der = samples()[index]
    for position in range(len(der)):
        reads_quietly(der[:position] + bytes([der[position] ^ 0xFF]) + der[position + 1 :])


@given(st.text(max_size=20), st.text(max_size=20))
def test_names_match_only_if_they_are_equal_or_a_wildcard(pattern: str, name: str) -> None:
    if name_matches(pattern, name):
        left, right = pattern.lower().removesuffix("."), name.lower().removesuffix(".")
        assert left == right or (left[:2] == "*." and right.endswith(left[1:]))


@pytest.mark.parametrize("name", [NAME, NAME.upper(), NAME + "."])
def test_the_reference_name_is_the_same_in_any_case(name: str) -> None:
    assert certificate_matches(leaf().der, [name])

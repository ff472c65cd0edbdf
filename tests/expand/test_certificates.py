"""`certextract` and the operators on certificates (C-1 to C-8), held against what was put into the certificate."""

from __future__ import annotations

import base64
import datetime
import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from engine.errors import ExpandError
from engine.expand import Scope, compile_text
from engine.expand.certificates import Certificate
from engine.expand.taint import is_tainted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_SERIAL = 0x0ABCDEF123
_START = datetime.datetime(2024, 11, 1, 12, 34, 5, tzinfo=datetime.UTC)
_END = datetime.datetime(2034, 11, 1, 12, 34, 5, tzinfo=datetime.UTC)


def _name(*pairs: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


@pytest.fixture(scope="module")
def der() -> bytes:
    key: EllipticCurvePrivateKey = ec.generate_private_key(ec.SECP256R1())
    subject = _name(
        (NameOID.COUNTRY_NAME, "DE"),
        (NameOID.ORGANIZATION_NAME, 'Exam, "ple" + Co'),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "one"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "two"),
        (NameOID.COMMON_NAME, "server1.example.com"),
    )
    issuer = _name((NameOID.ORGANIZATION_NAME, "Authority"), (NameOID.COMMON_NAME, "clica CA"))
    names = [
        x509.DNSName("alt.example.com"),
        x509.RFC822Name("postmaster@example.com"),
        x509.DNSName("server1.example.com"),
        x509.UniformResourceIdentifier("https://example.com/a:b"),
        x509.DNSName("bad\0.example.com"),
    ]
    access = [
        x509.AccessDescription(
            AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://ocsp.example.com/")
        ),
        x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier("http://ca.example.com/")
        ),
    ]
    lists = [
        x509.DistributionPoint([x509.UniformResourceIdentifier(f"http://crl{number}.example.com/")], None, None, None)
        for number in (1, 2)
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(_SERIAL)
        .not_valid_before(_START)
        .not_valid_after(_END)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityInformationAccess(access), critical=False)
        .add_extension(x509.CRLDistributionPoints(lists), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _value(text: str, der: bytes | None, zone: datetime.tzinfo = datetime.UTC) -> bytes:
    variables = {} if der is None else {"tls_out_peercert": Certificate(der)}
    return compile_text(text).evaluate(Scope(variables, timezone=zone))


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("version", "2"),
        ("serial_number", "0abcdef123"),
        ("subject", 'CN=server1.example.com,OU=two,OU=one,O=Exam\\, \\"ple\\" \\+ Co,C=DE'),
        ("subject,CN", "server1.example.com"),
        ("subject,OU", "one\ntwo"),
        ("subject,OU,>;", "one;two"),
        ("subject,>;,OU", "one;two"),
        ("subject,O", 'Exam, "ple" + Co'),
        ("issuer", "CN=clica CA,O=Authority"),
        ("issuer,CN", "clica CA"),
        ("notbefore", "Nov  1 12:34:05 2024 +0000"),
        ("notafter", "Nov  1 12:34:05 2034 +0000"),
        ("notafter,int", str(int(_END.timestamp()))),
        ("notafter,raw", "Nov  1 12:34:05 2034 GMT"),
        (
            "subj_altname",
            "URI=https://example.com/a:b\nDNS=server1.example.com\nMAIL=postmaster@example.com\nDNS=alt.example.com",
        ),
        ("subj_altname,dns", "server1.example.com\nalt.example.com"),
        ("subj_altname,mail", "postmaster@example.com"),
        ("subj_altname,uri", "https://example.com/a:b"),
        ("subj_altname,>:,uri", "https:://example.com/a::b"),
        ("subj_altname,>:,dns", "server1.example.com:alt.example.com"),
        ("ocsp_uri", "http://ocsp.example.com/"),
        ("crl_uri", "http://crl1.example.com/\nhttp://crl2.example.com/"),
        ("crl_uri,>;", "http://crl1.example.com/;http://crl2.example.com/"),
        ("sig_algorithm", "ecdsa-with-SHA256"),
        ("2.5.29.19", "30 00"),
        ("2.5.29.15", "none"),
        ("subject,L", "none"),
    ],
)
def test_fields(der: bytes, selector: str, value: str) -> None:
    text = "${certextract{%s}{$tls_out_peercert}{$value}{none}}" % selector  # noqa: UP031 - braces of another language
    assert _value(text, der).decode() == value


def test_the_signature_is_hex_with_colons(der: bytes) -> None:
    signature = x509.load_der_x509_certificate(der).signature.hex(":")
    assert _value("${certextract{signature}{$tls_out_peercert}}", der).decode() == signature


def test_times_are_local(der: bytes) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=-5))
    assert _value("${certextract{notafter}{$tls_out_peercert}}", der, zone) == b"Nov  1 07:34:05 2034 -0500"


def test_fingerprints_are_upper_case_without_colons_and_tainted(der: bytes) -> None:
    for name in ("md5", "sha1", "sha256"):
        value = _value(f"${{{name}:$tls_out_peercert}}", der)
        assert value == hashlib.new(name, der, usedforsecurity=False).hexdigest().upper().encode()
        assert is_tainted(value)
    assert base64.b64decode(_value("${base64:$tls_out_peercert}", der)) == der
    assert is_tainted(_value("${certextract{subject}{$tls_out_peercert}}", der))


def test_without_a_certificate_there_is_the_no_string(der: bytes) -> None:
    assert _value("${certextract{subject}{$tls_out_peercert}{y}{n}}", None) == b"n"
    assert _value("${certextract{subject}{$tls_out_ourcert}{y}{n}}", der) == b"n"
    assert _value("${if def:tls_out_peercert{y}{n}}${if def:tls_out_ourcert{y}{n}}", der) == b"yn"
    assert _value("${sha256:$tls_out_peercert}", None) == b""
    assert _value("$tls_out_peercert", der) == b"<cert>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${certextract{nosuch}{$tls_out_peercert}}", 'bad field selector "nosuch" for certextract'),
        ("${certextract{subject}{$domain}}", '"domain" is not a certificate'),
        ("${certextract{subject}{$nosuch}}", 'no variable named "nosuch"'),
        ("${certextract{subject}{x}}", 'second argument of "certextract" must be a certificate variable'),
        ("${sha2_512:$tls_out_peercert}", None),
    ],
)
def test_what_cannot_be_asked(der: bytes, text: str, message: str | None) -> None:
    if message is None:  # C-8: only the plain names take a certificate; the others see the text of the variable
        assert len(_value(text, der)) == 128
        return
    with pytest.raises(ExpandError) as caught:
        _value(text, der)
    assert caught.value.message == message


@pytest.mark.parametrize("octets", [b"", b"\x30", b"\x30\x03\x02\x01\x00", b"rubbish" * 100])
def test_what_is_no_certificate_is_an_error(octets: bytes) -> None:
    with pytest.raises(ExpandError, match="certificate cannot be read"):
        _value("${certextract{subject}{$tls_out_peercert}}", octets)


def test_damaged_certificates_end_as_values_or_errors(der: bytes) -> None:
    fields = (
        "version",
        "subject",
        "issuer",
        "notbefore",
        "subj_altname",
        "ocsp_uri",
        "crl_uri",
        "2.5.29.17",
        "signature",
    )
    text = "".join(f"${{certextract{{{field}}}{{$tls_out_peercert}}{{$value}}{{}}}}" for field in fields)
    for place in range(0, len(der), 3):
        damaged = bytearray(der)
        damaged[place] ^= 0x55
        try:
            assert isinstance(_value(text, bytes(damaged)), bytes)
        except ExpandError as error:
            assert "certificate cannot be read" in error.message  # noqa: PT017 - either end is right

"""Certificates in every condition, for tests of DANE: made from a description, each description once.

Keys come from a pool, so that a thousand certificates cost a thousand signatures and nothing more.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from cryptography.x509.oid import NameOID

from engine.tls import tlsa

#: when everything happens
NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
HOST = "mx.example.org"
_DAY = datetime.timedelta(days=1)
_DATES = {
    "valid": (NOW - 30 * _DAY, NOW + 60 * _DAY),
    "expired": (NOW - 300 * _DAY, NOW - 2 * _DAY),
    "future": (NOW + 2 * _DAY, NOW + 300 * _DAY),
}
_PURPOSES = {"server": Eku.SERVER_AUTH, "client": Eku.CLIENT_AUTH, "any": Eku.ANY_EXTENDED_KEY_USAGE}

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


@functools.cache
def key(label: str) -> Key:
    """The key of that label; before a hyphen stands its kind: ec, p521, rsa, rsa1024, ed25519, ed448."""
    kind = label.partition("-")[0]
    match kind:
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "rsa":
            return rsa.generate_private_key(65537, 2048)
        case "rsa1024":
            return rsa.generate_private_key(65537, 1024)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "ed448":
            return ed448.Ed448PrivateKey.generate()
        case _:
            return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Spec:
    """One certificate.

    Attributes:
        subject: its common name; "" for an empty subject.
        key, signer: labels of its key and of the key that signs it.
        issuer: common name of the issuer.
        dates: valid, expired or future.
        names: DNS entries or addresses of the alternative name; None for no such extension.
        ca: CA flag; None for no basic constraints.
        path_length, purposes, permitted, excluded: of the extensions of those names.
        cert_sign: key usage has keyCertSign; None for no key usage.
        digest, pss: of the signature.
        serial: tells certificates apart that are equal otherwise.
    """

    subject: str
    key: str
    issuer: str
    signer: str
    dates: str = "valid"
    names: tuple[str, ...] | None = None
    ca: bool | None = None
    path_length: int | None = None
    purposes: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    cert_sign: bool | None = None
    digest: str = "sha256"
    pss: bool = False
    serial: int = 1
    key_ids: bool = True


@functools.cache
def make(spec: Spec) -> bytes:
    """The certificate in DER."""
    own, signer = key(spec.key), key(spec.signer)
    start, end = _DATES[spec.dates]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(spec.subject))
        .issuer_name(_name(spec.issuer))
        .public_key(own.public_key())
        .serial_number(int.from_bytes(hashlib.sha256(repr(spec).encode()).digest()[:8], "big") | 1)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if spec.key_ids:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    if spec.ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(spec.ca, spec.path_length), critical=True)
    if spec.cert_sign is not None:
        builder = builder.add_extension(_key_usage(spec.cert_sign), critical=True)
    if spec.names is not None:
        names = [_general_name(name) for name in spec.names]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not spec.subject)
    if spec.purposes:
        usages = x509.ExtendedKeyUsage([_PURPOSES[name] for name in spec.purposes])
        builder = builder.add_extension(usages, critical=False)
    if spec.permitted or spec.excluded:
        limits = x509.NameConstraints(
            [x509.DNSName(name) for name in spec.permitted] or None,
            [x509.DNSName(name) for name in spec.excluded] or None,
        )
        builder = builder.add_extension(limits, critical=True)
    edwards = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    digest = None if edwards else hashes.SHA512() if spec.digest == "sha512" else hashes.SHA256()
    pss = None
    if spec.pss and isinstance(signer, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    made = builder.sign(signer, digest, rsa_padding=pss)
    if spec.digest == "sha1" and isinstance(signer, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return _with_sha1(made, signer)
    return made.public_bytes(serialization.Encoding.DER)


#: AlgorithmIdentifiers as they stand in certificates
_EC_SHA256, _EC_SHA1 = bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401")
_RSA_SHA256, _RSA_SHA1 = (
    bytes.fromhex("300d06092a864886f70d01010b0500"),
    bytes.fromhex("300d06092a864886f70d0101050500"),
)


def _with_sha1(certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """The same certificate signed with SHA-1, which `cryptography` does not make any more."""
    tbs = certificate.tbs_certificate_bytes
    content = tbs[4:]
    assert tbs[:2] == b"\x30\x82"
    if isinstance(signer, rsa.RSAPrivateKey):
        algorithm, content = _RSA_SHA1, content.replace(_RSA_SHA256, _RSA_SHA1, 1)
        tbs = element(0x30, content)
        signature = signer.sign(tbs, padding.PKCS1v15(), hashes.SHA1())
    else:
        algorithm, content = _EC_SHA1, content.replace(_EC_SHA256, _EC_SHA1, 1)
        tbs = element(0x30, content)
        signature = signer.sign(tbs, ec.ECDSA(hashes.SHA1()))
    return element(0x30, tbs + algorithm + element(0x03, b"\0" + signature))


def element(tag: int, content: bytes) -> bytes:
    """One element in DER."""
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def record(der: bytes, usage: int, selector: int, matching: int) -> bytes:
    """Raw rdata that names a certificate, for any usage."""
    return bytes((usage,)) + tlsa.make(der, 3, selector, matching).rdata[1:]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _link(name: str, issuer: str, label: str, signer: str, **changes: object) -> Spec:
    fields: dict[str, object] = {"ca": True, "cert_sign": True} | changes
    return Spec(subject=name, key=label, issuer=issuer, signer=signer, **fields)  # type: ignore[arg-type]


def root(name: str = "Root", label: str = "ec-root", **changes: object) -> Spec:
    """A self-signed authority."""
    return _link(name, name, label, label, **changes)


def authority(name: str, issuer: Spec, label: str | None = None, **changes: object) -> Spec:
    """An intermediate authority under `issuer`."""
    return _link(name, issuer.subject, label or f"ec-{name}", issuer.key, **changes)


def leaf(issuer: Spec | None, names: Sequence[str] | None = (HOST,), label: str = "ec-leaf", **changes: object) -> Spec:
    """A server's certificate under `issuer`, or self-signed."""
    fields: dict[str, object] = {"subject": HOST, "purposes": ("server",), "ca": False} | changes
    subject = str(fields.pop("subject"))
    return Spec(
        subject=subject,
        key=label,
        issuer=issuer.subject if issuer else subject,
        signer=issuer.key if issuer else label,
        names=None if names is None else tuple(names),
        **fields,  # type: ignore[arg-type]
    )

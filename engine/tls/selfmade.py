"""Self-made certificates: a certification authority and leaves, for the sink, the demo and tests.

Layer: sans-I/O.  Spec: RFC 5280 §4.1 and §4.2. Input: names and a time.  Output: certificates and keys as PEM and
DER.  Keys are made by `cryptography`; nothing here is meant for the public Internet.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from . import tlsa

if TYPE_CHECKING:
    from collections.abc import Sequence

#: how far before `now` validity starts: clocks of peers differ
_BACKDATE = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate, its key, and the chain that leads away from it.

    Attributes:
        certificate: the certificate itself.
        key: its private key.
        issuers: certificates to send after it, its issuer first; not the root.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """What a server sends: this certificate, then its issuers, each in DER."""
        return (self.der, *(issuer.public_bytes(serialization.Encoding.DER) for issuer in self.issuers))

    @property
    def chain_pem(self) -> bytes:
        """What a server sends, as one PEM file."""
        pem = serialization.Encoding.PEM
        return b"".join(certificate.public_bytes(pem) for certificate in (self.certificate, *self.issuers))

    @property
    def tlsa_record(self) -> str:
        """The TLSA record ``3 1 1 <digest>`` that pins this certificate's key."""
        return tlsa_record(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def make_authority(
    common_name: str, *, now: datetime.datetime, issuer: Identity | None = None, days: int = 3650
) -> Identity:
    """Make a certification authority: a root, or an intermediate if `issuer` is given.

    Args:
        common_name: its subject.
        now: aware time of making; validity starts an hour before it.
        issuer: the authority that signs it, None for a root.
        days: how long it is valid after `now`.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(subject, key, issuer, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    return _sign(builder, key, issuer)


def make_leaf(
    names: Sequence[str],
    *,
    now: datetime.datetime,
    issuer: Identity | None = None,
    days: int = 90,
    key_type: str = "ec",
    common_name: str | None = None,
) -> Identity:
    """Make a server certificate.

    Args:
        names: DNS names (wildcards allowed) and IP addresses for the subject alternative name; may be empty.
        now: aware time of making; validity starts an hour before it.
        issuer: the authority that signs it, None for a self-signed certificate.
        days: how long it is valid after `now`; negative for one that has expired.
        key_type: ``ec`` (P-256) or ``rsa`` (2048 bits).
        common_name: the subject; None for the first of `names`.

    Raises:
        ValueError: `key_type` is another word, or there is neither a name nor a common name.
    """
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if key_type == "ec":
        key = ec.generate_private_key(ec.SECP256R1())
    elif key_type == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    else:
        raise ValueError(f"key type {key_type!r} is neither ec nor rsa")
    if not names and common_name is None:
        raise ValueError("a leaf needs a name")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if common_name is None else common_name)])
    builder = (
        _builder(subject, key, issuer, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    if names:
        alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    return _sign(builder, key, issuer)


def tlsa_record(certificate: x509.Certificate) -> str:
    """Text of the TLSA record with usage DANE-EE, selector SPKI and matching type SHA2-256 (RFC 6698 §2.1).

    The digest is that of the octets in the certificate: to encode the key again would change some (RSASSA-PSS, curves
    with explicit parameters).
    """
    der = certificate.public_bytes(serialization.Encoding.DER)
    return str(tlsa.make(der, tlsa.Usage.DANE_EE, tlsa.Selector.SPKI, tlsa.Matching.SHA2_256))


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    issuer: Identity | None,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    signer = issuer.key.public_key() if issuer else key.public_key()
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _sign(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    issuer: Identity | None,
) -> Identity:
    certificate = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    if issuer is None:
        return Identity(certificate, key)
    is_root = issuer.certificate.issuer == issuer.certificate.subject
    return Identity(certificate, key, () if is_root else (issuer.certificate, *issuer.issuers))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

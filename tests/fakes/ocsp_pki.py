"""Authorities, leaves and OCSP responses for the tests of stapling; keys are made once a process."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.tls.selfmade import Identity, make_authority

NAME = "mx.example.org"
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
GOOD = ocsp.OCSPCertStatus.GOOD
REVOKED = ocsp.OCSPCertStatus.REVOKED
UNKNOWN = ocsp.OCSPCertStatus.UNKNOWN


def authority(name: str = "OCSP test root") -> Identity:
    return _authority(name)


@functools.cache
def _authority(name: str) -> Identity:
    return make_authority(name, now=NOW)


@functools.cache
def issued(
    issuer_name: str = "OCSP test root",
    *,
    name: str = NAME,
    usage: str = "server",
    must_staple: bool = False,
    days: int = 30,
    is_rsa: bool = False,
    signs: bool = True,
) -> Identity:
    """A certificate of `authority`, for a server or for a responder."""
    issuer = authority(issuer_name)
    key = rsa.generate_private_key(65537, 2048) if is_rsa else ec.generate_private_key(ec.SECP256R1())
    usages = {
        "server": [ExtendedKeyUsageOID.SERVER_AUTH],
        "ocsp": [ExtendedKeyUsageOID.OCSP_SIGNING],
        "both": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.OCSP_SIGNING],
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=60))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.KeyUsage(signs, False, False, False, False, False, False, False, False),
            critical=True,
        )
    )
    if usage != "none":
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages[usage]), critical=False)
    if must_staple:
        builder = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    return Identity(builder.sign(issuer.key, hashes.SHA256()), key)


def response(
    about: Identity,
    *,
    issuer: Identity | None = None,
    signer: Identity | None = None,
    status: ocsp.OCSPCertStatus = GOOD,
    start_s: float = -3600,
    end_s: float | None = 3600,
    certificates: Sequence[Identity] = (),
    certid_hash: hashes.HashAlgorithm | None = None,
    signature_hash: hashes.HashAlgorithm | None = None,
    by_name: bool = False,
    now: datetime.datetime = NOW,
) -> bytes:
    """A response about a certificate, signed by its issuer unless told otherwise."""
    issuer = issuer or authority()
    signer = signer or issuer
    encoding = ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH
    revoked = status is REVOKED
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=about.certificate,
            issuer=issuer.certificate,
            algorithm=certid_hash or hashes.SHA1(),
            cert_status=status,
            this_update=now + datetime.timedelta(seconds=start_s),
            next_update=None if end_s is None else now + datetime.timedelta(seconds=end_s),
            revocation_time=now - datetime.timedelta(days=1) if revoked else None,
            revocation_reason=x509.ReasonFlags.key_compromise if revoked else None,
        )
        .responder_id(encoding, signer.certificate)
    )
    if certificates:
        builder = builder.certificates([each.certificate for each in certificates])
    made = builder.sign(signer.key, signature_hash or hashes.SHA256())
    return made.public_bytes(Encoding.DER)


def chain(leaf: Identity, *issuers: Identity) -> tuple[bytes, ...]:
    return tuple(each.der for each in (leaf, *issuers))

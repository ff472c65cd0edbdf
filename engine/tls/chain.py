"""Verify a chain to trust anchors that are given, with OpenSSL and without any store of this machine.

Layer: sans-I/O.  Spec: RFC 5280 §6 (path validation), RFC 7671 §5.2; R31, R33 to R35, section 3.5 of the TLS
requirements. Input: certificates and a time.  Output: a `Path` or how far it went.
What OpenSSL does here: signatures, dates of every certificate (of the anchor, too: R35), CA flag, path length, name
constraints, extended key usage, depth.  What it does not do through this interface is done by `weakness`: the
strength of keys and digests at OpenSSL's security level 1, as Postfix demands it.
Invariants: an anchor need not be self-signed; nothing but the anchors is trusted; the order of `others` decides
nothing but which of several valid paths is taken; the thread's queue of OpenSSL errors is left empty, or the next
TLS connection of this thread would stumble over what it holds.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import InvalidVersion
from OpenSSL import crypto
from OpenSSL._util import lib as _lib

from .names import load_certificate

if TYPE_CHECKING:
    from collections.abc import Sequence

#: X509_V_ERR_*: the path ends without an anchor, and the certificate that the error is about is the topmost of it
NO_ANCHOR: Final = frozenset((2, 18, 19, 20, 21))
#: X509_V_ERR_*: made by `weakness` in OpenSSL's terms
EE_KEY_TOO_SMALL: Final = 66
CA_KEY_TOO_SMALL: Final = 67
CA_DIGEST_TOO_WEAK: Final = 68
#: security bits of level 1 are 80
_MIN_RSA_BITS: Final = 1024
_MIN_CURVE_BITS: Final = 160
#: key types that need `_MIN_RSA_BITS`: RSA, DSA and RSASSA-PSS (EVP_PKEY_RSA_PSS, which has no name here)
_FACTORED: Final = frozenset((crypto.TYPE_RSA, crypto.TYPE_DSA, 912))
#: SHA-1 has 63 security bits as OpenSSL counts them
_WEAK_DIGESTS: Final = frozenset(("md5", "sha1"))
#: object identifier 1.2.840.113549.1.1.10 as it stands in a key
_RSASSA_PSS: Final = bytes.fromhex("06092a864886f70d01010a")


@dataclass(frozen=True, slots=True)
class Path:
    """What verification found.

    Attributes:
        certificates: leaf first, the anchor last; empty unless it succeeded.
        error: OpenSSL's number (X509_V_ERR_*), 0 for success.
        depth: of the certificate that the error is about.
        text: OpenSSL's words for it.
        topmost: where the path ended, for errors in `NO_ANCHOR`.
    """

    certificates: tuple[crypto.X509, ...] = ()
    error: int = 0
    depth: int = 0
    text: str = ""
    topmost: crypto.X509 | None = None


def load_or_none(der: bytes) -> crypto.X509 | None:
    """A certificate as OpenSSL reads it, or None."""
    try:
        return crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    except crypto.Error:
        return None


def encoded(certificate: crypto.X509) -> bytes:
    """The certificate in DER."""
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def verify(
    leaf: crypto.X509, others: Sequence[crypto.X509], anchors: Sequence[crypto.X509], now: datetime.datetime
) -> Path:
    """Build a path from `leaf` over `others` to one of `anchors` and verify it for a TLS server.

    Never raises for what the certificates are.

    Args:
        leaf: becomes an anchor only if it is one of `anchors`.
        now: a time without zone is taken for UTC.
    """
    store = crypto.X509Store()
    for anchor in anchors:
        store.add_cert(anchor)
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(_utc(now))
    # There is no public name for this.  Without a purpose, OpenSSL looks neither at extended key usage nor at what
    # makes a certification authority.
    if _lib.X509_STORE_set_purpose(store._store, _lib.X509_PURPOSE_SSL_SERVER) != 1:
        raise RuntimeError("OpenSSL does not know the purpose of TLS servers")
    try:
        return Path(tuple(crypto.X509StoreContext(store, leaf, list(others)).get_verified_chain()))
    except crypto.X509StoreContextError as error:
        number, depth, text = error.errors
        return Path((), number, depth, text, error.certificate if number in NO_ANCHOR else None)
    finally:
        _lib.ERR_clear_error()


def weakness(path: Sequence[crypto.X509], *, is_anchored_by_key: bool = False) -> tuple[int, int]:
    """What of a verified path is weaker than security level 1 allows: error and depth; (0, 0) if nothing is.

    Args:
        is_anchored_by_key: the signature of the last certificate counts as well, for it is not the anchor.
    """
    for depth, certificate in enumerate(path):
        try:
            key = certificate.get_pubkey()
            bits, kind = key.bits(), key.type()
        except crypto.Error:
            bits, kind = 0, crypto.TYPE_RSA
        if bits < (_MIN_RSA_BITS if kind in _FACTORED else _MIN_CURVE_BITS):
            return (CA_KEY_TOO_SMALL if depth else EE_KEY_TOO_SMALL), depth
        if (depth + 1 < len(path) or is_anchored_by_key) and _has_weak_digest(encoded(certificate)):
            return CA_DIGEST_TOO_WEAK, depth
    return 0, 0


def is_signed_by(certificate: crypto.X509, key: bytes) -> bool:
    """Whether the public key `key` (SubjectPublicKeyInfo in DER) made the signature of a certificate."""
    try:
        parsed = load_certificate(encoded(certificate))
        public = load_der_public_key(key)
        parameters = parsed.signature_algorithm_parameters
        digest = parsed.signature_hash_algorithm
        signature, content = parsed.signature, parsed.tbs_certificate_bytes
        if isinstance(public, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS) and digest:
            if _RSASSA_PSS in key[:24] and not isinstance(parameters, padding.PSS):
                return False
            public.verify(signature, content, parameters, digest)
        elif isinstance(public, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            public.verify(signature, content, parameters)
        elif isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) and parameters is None:
            public.verify(signature, content)
        else:
            return False
    except (ValueError, TypeError, InvalidVersion, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _has_weak_digest(der: bytes) -> bool:
    try:
        digest = load_certificate(der).signature_hash_algorithm
    except (ValueError, InvalidVersion, UnsupportedAlgorithm):
        return True
    # without a digest of its own: Ed25519 and Ed448
    return digest is not None and digest.name in _WEAK_DIGESTS


def _utc(now: datetime.datetime) -> datetime.datetime:
    if now.tzinfo is None:
        return now
    try:
        return now.astimezone(datetime.UTC)
    except OverflowError:  # at either end of the calendar; a day does not matter there
        return now.replace(tzinfo=datetime.UTC)

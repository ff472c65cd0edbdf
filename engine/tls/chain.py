"""Verify a chain to trust anchors that are given, with OpenSSL and without any store of this machine.

Layer: sans-I/O.  Spec: RFC 5280 §6 (path validation), RFC 7671 §5.2; R31, R33 to R35, section 3.5 of the TLS
requirements. Input: certificates and a time.  Output: the path that leads up from the leaf; whether one verifies.
What OpenSSL does here: signatures, dates of every certificate (of the anchor, too: R35), CA flag, path length, name
constraints, extended key usage, depth.  What it does not do through this interface is done by `weakness`: the
strength of keys and digests at OpenSSL's security level 1, as Postfix demands it.
Invariants: an anchor need not be self-signed; nothing of this machine is trusted; the thread's queue of OpenSSL errors
is left empty, or the next TLS connection of this thread would stumble over what it holds.
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
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib

from .names import load_certificate

if TYPE_CHECKING:
    from collections.abc import Sequence

#: X509_V_ERR_UNSPECIFIED
_UNSPECIFIED: Final = 1
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
class Outcome:
    """What became of a verification.

    Attributes:
        error: OpenSSL's number (X509_V_ERR_*), 0 for success.
        depth: of the certificate that the error is about.
        text: OpenSSL's words for it.
    """

    error: int = 0
    depth: int = 0
    text: str = ""


def load_or_none(der: bytes) -> crypto.X509 | None:
    """A certificate as OpenSSL reads it, or None."""
    try:
        return crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    except crypto.Error:
        return None


def encoded(certificate: crypto.X509) -> bytes:
    """The certificate in DER."""
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def path_from(leaf: crypto.X509, others: Sequence[crypto.X509], now: datetime.datetime) -> tuple[crypto.X509, ...]:
    """The path that OpenSSL takes from `leaf` upwards over `others` when nothing is trusted, `leaf` first.

    It ends where the issuer is missing or a certificate signed itself.  Of several issuers with the right name and key
    the first one counts whose dates are right, so DANE in OpenSSL goes the same way, for as long as no record matches.
    Signatures are not looked at.
    """
    return _run(leaf, others, (), now)[1]


def verify(path: Sequence[crypto.X509], now: datetime.datetime) -> Outcome:
    """Verify a path for a TLS server, its last certificate being the trust anchor.

    Never raises for what the certificates are.

    Args:
        path: leaf first; may be the leaf alone.
        now: a time without zone is taken for UTC.
    """
    outcome, verified = _run(path[0], path[1:-1], path[-1:], now)
    if not outcome.error and len(verified) != len(path):
        # Does not happen: there is no other way.  Were there one, what it proves would not be what was asked.
        return Outcome(_UNSPECIFIED, 0, "another path was verified")
    return outcome


def _run(
    leaf: crypto.X509, others: Sequence[crypto.X509], anchors: Sequence[crypto.X509], now: datetime.datetime
) -> tuple[Outcome, tuple[crypto.X509, ...]]:
    """Verify; the path is what was built, whether it verified or not."""
    store = crypto.X509Store()
    for anchor in anchors:
        store.add_cert(anchor)
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(_utc(now))
    # What follows has no public name in pyOpenSSL: the purpose (without it, OpenSSL looks neither at extended key usage
    # nor at what makes an authority), and the path of a verification that failed.
    if _lib.X509_STORE_set_purpose(store._store, _lib.X509_PURPOSE_SSL_SERVER) != 1:
        raise RuntimeError("OpenSSL does not know the purpose of TLS servers")
    stack = crypto.X509StoreContext._build_certificate_stack(list(others))
    context = _ffi.gc(_lib.X509_STORE_CTX_new(), _lib.X509_STORE_CTX_free)
    if context == _ffi.NULL or _lib.X509_STORE_CTX_init(context, store._store, leaf._x509, stack) != 1:
        raise MemoryError("OpenSSL could not begin to verify a certificate")
    try:
        outcome = Outcome()
        if _lib.X509_verify_cert(context) != 1:
            error = _lib.X509_STORE_CTX_get_error(context) or _UNSPECIFIED
            text = _ffi.string(_lib.X509_verify_cert_error_string(error)).decode("ascii", "replace")
            outcome = Outcome(error, _lib.X509_STORE_CTX_get_error_depth(context), text)
        return outcome, _chain_of(context)
    finally:
        _lib.ERR_clear_error()


def _chain_of(context: object) -> tuple[crypto.X509, ...]:
    stack = _lib.X509_STORE_CTX_get1_chain(context)
    if stack == _ffi.NULL:
        return ()
    # each object takes over the reference that the stack holds
    size = _lib.sk_X509_num(stack)
    path = tuple(crypto.X509._from_raw_x509_ptr(_lib.sk_X509_value(stack, number)) for number in range(size))
    _lib.sk_X509_free(stack)
    return path


def weakness(path: Sequence[crypto.X509], *, is_anchored_by_key: bool = False) -> Outcome:
    """What of a verified path is weaker than security level 1 allows.

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
            return Outcome(CA_KEY_TOO_SMALL if depth else EE_KEY_TOO_SMALL, depth, f"a key of {bits} bits is too weak")
        if (depth + 1 < len(path) or is_anchored_by_key) and _has_weak_digest(encoded(certificate)):
            return Outcome(CA_DIGEST_TOO_WEAK, depth, "the digest of the signature is too weak")
    return Outcome()


def is_signed_by(certificate: crypto.X509, key: bytes) -> bool:
    """Whether the public key `key` (SubjectPublicKeyInfo in DER) made the signature of a certificate."""
    try:
        parsed = load_certificate(encoded(certificate))
        public = load_der_public_key(key)
        parameters = parsed.signature_algorithm_parameters
        digest = parsed.signature_hash_algorithm
        signature, content = parsed.signature, parsed.tbs_certificate_bytes
        if isinstance(public, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS) and digest:
            if _RSASSA_PSS in key[:24] and not _allows(key, encoded(certificate), content):
                return False
            public.verify(signature, content, parameters, digest)
        elif isinstance(public, ec.EllipticCurvePublicKey) and digest:
            # not `parameters`: there are none for SHA-1, which is for `weakness` to refuse
            public.verify(signature, content, ec.ECDSA(digest))
        elif isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) and parameters is None:
            public.verify(signature, content)
        else:
            return False
    except (ValueError, TypeError, InvalidVersion, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _allows(key: bytes, certificate: bytes, content: bytes) -> bool:
    """Whether a key for RSASSA-PSS alone may have made the signature of a certificate (RFC 4055 §1.2).

    `cryptography` takes such a key for one of plain RSA and drops its parameters.  Those of the signature have to be
    the same octets, or to be PSS at least where the key has none.
    """
    start = certificate.index(content) + len(content)
    used = certificate[start : start + 2 + certificate[start + 1]]
    start = key.index(_RSASSA_PSS) - 2
    allowed = key[start : start + 2 + key[start + 1]]
    return used == allowed or (allowed[2:] == _RSASSA_PSS and used[2:].startswith(_RSASSA_PSS))


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

"""Check a stapled OCSP response: is this certificate good, and who says so?

Layer: sans-I/O.  Spec: RFC 6960 §3.2, §4.2.2 (acceptance, responders), RFC 6066 §8 (stapling), RFC 7633 (must-staple);
dane-tls R52, R53; events-dane section 9 (OC-4).
Input: the octets of the staple, the certificates as the peer sent them, those it was verified by, a time.
Output: a `Staple`; `check` never raises for what a peer sends.
Stricter than RFC 6960: a response without nextUpdate would be good for ever, so it is out of date; SHA-1 and MD5 sign
nothing; of several answers about one certificate the worst counts.
Invariants: only the key of the leaf's issuer, or a certificate for OCSP signing that this key signed, vouches for a
response; the leaf never does, nor does any other certificate of the chain; an answer about another certificate is none.
Whether the issuer itself is to be trusted is decided where the chain is verified, not here.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from ._certmatch import public_key
from .names import load_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: seconds by which our clock and that of the responder may differ (OC-4)
SKEW_S: Final = 300
#: octets of a response that are looked at; real ones have one to four thousand
MAX_OCTETS: Final = 64 * 1024
#: answers and certificates of one response that are looked at; a staple needs one of each
MAX_ANSWERS: Final = 64
MAX_CERTIFICATES: Final = 8
#: digests that may sign
_STRONG: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512, hashes.SHA3_256, hashes.SHA3_384, hashes.SHA3_512)
#: object identifier 1.3.6.1.5.5.7.1.24 as it stands in a certificate: those without it need not be parsed
_TLS_FEATURE: Final = bytes.fromhex("06082b06010505070118")
#: what `cryptography` raises for certificates and responses that it does not like
_PARSE_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Status(enum.Enum):
    """What became of the check."""

    #: no response came with the handshake
    ABSENT = "absent"
    #: it is not a response of OCSP
    GARBLED = "garbled"
    #: the responder had no answer, the answer is about another certificate, or nobody entitled signed it
    UNPROVEN = "unproven"
    #: signed, and outside of thisUpdate and nextUpdate
    OUT_OF_DATE = "out of date"
    #: signed: the responder does not know the certificate
    UNKNOWN = "unknown"
    #: signed: revoked
    REVOKED = "revoked"
    #: signed, in date, good
    GOOD = "good"


class Result(enum.IntEnum):
    """`$tls_out_ocsp`."""

    NOT_REQUESTED = 0
    NO_RESPONSE = 1
    #: a response came, and the certificate that it is about was not verified itself: it proves nothing
    NOT_TRIED = 2
    FAILED = 3
    VERIFIED = 4


class Demand(enum.IntEnum):
    """Whether a response is asked for (hosts_request_ocsp), or must come and be good (hosts_require_ocsp)."""

    NONE = 0
    REQUEST = 1
    REQUIRE = 2


@dataclass(frozen=True, slots=True)
class Staple:
    """The outcome of a check; `reason` is for people."""

    status: Status
    reason: str = ""


_ABSENT: Final = Staple(Status.ABSENT, "no stapled response")


def check(
    staple: bytes | None, chain: Sequence[bytes], verified: Sequence[bytes] = (), *, now: datetime.datetime
) -> Staple:
    """Check the response that came with a handshake.

    Args:
        staple: its octets; None or empty if none came.
        chain: DER certificates as sent, leaf first.
        verified: further certificates among which the issuer of the leaf may be: those of the path that was verified.
        now: an aware time.
    """
    if not staple:
        return _ABSENT
    if not chain:
        return Staple(Status.UNPROVEN, "there is no certificate that it could be about")
    if len(staple) > MAX_OCTETS:
        return Staple(Status.GARBLED, f"a response of {len(staple)} octets")
    try:
        response = ocsp.load_der_ocsp_response(staple)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return Staple(Status.UNPROVEN, f"the responder says {response.response_status.name}")
    except _PARSE_ERRORS as error:
        return Staple(Status.GARBLED, f"not a response of OCSP: {error}")
    try:
        return _check(response, chain[0], (*chain[1:], *verified), now)
    except _PARSE_ERRORS as error:
        return Staple(Status.UNPROVEN, f"the response cannot be read: {error}")


def must_staple(leaf: bytes) -> bool:
    """Whether the certificate says that it always comes with a response (TLS feature 5, RFC 7633)."""
    if _TLS_FEATURE not in leaf:
        return False
    try:
        found = load_certificate(leaf).extensions.get_extension_for_oid(ExtensionOID.TLS_FEATURE)
    except (*_PARSE_ERRORS, x509.ExtensionNotFound):
        return False
    return isinstance(found.value, x509.TLSFeature) and x509.TLSFeatureType.status_request in found.value


def refusal(staple: Staple, demand: Demand) -> str:
    """Why the handshake fails (table of OC-4), or "" if it may go on; the text stands after ``TLS session: ``."""
    if staple.status is Status.GARBLED:
        return "(SSL_connect) Server certificate status response is garbled"
    if demand < Demand.REQUIRE:
        return ""
    return _REFUSALS[staple.status]


_REFUSALS: Final = {
    Status.ABSENT: "(SSL_connect) Required TLS certificate status not received",
    Status.UNPROVEN: "(SSL_connect) Server certificate status is not proved",
    Status.OUT_OF_DATE: "(SSL_connect) Server certificate status is out-of-date",
    Status.UNKNOWN: "(SSL_connect) Server certificate status unknown, in OCSP stapling",
    Status.REVOKED: "(SSL_connect) Server certificate revoked",
    Status.GOOD: "",
}


def log_text(staple: Staple, demand: Demand) -> str:
    """The line for the log that goes with it (table of OC-4), or "" for none."""
    match staple.status:
        case Status.ABSENT:
            return "Required TLS certificate status not received" if demand is Demand.REQUIRE else ""
        case Status.REVOKED:
            return f"Server certificate {staple.reason}"
        case Status.OUT_OF_DATE:
            return f"OCSP dates invalid: {staple.reason}"
        case Status.UNKNOWN:
            return "Server certificate status unknown, in OCSP stapling"
        case Status.GARBLED | Status.UNPROVEN:
            return f"OCSP response not usable: {staple.reason}"
        case Status.GOOD:
            return ""


def _check(response: ocsp.OCSPResponse, leaf_der: bytes, candidates: Sequence[bytes], now: datetime.datetime) -> Staple:
    leaf = load_certificate(leaf_der)
    issuers = [each for each in _loaded(candidates) if each.subject == leaf.issuer and _is_issued_by(leaf, each)]
    # A certificate that signed itself cannot vouch for itself.
    issuers = [issuer for issuer in issuers if _octets(issuer) != leaf_der]
    if not issuers:
        return Staple(Status.UNPROVEN, "the issuer of the certificate is not at hand")
    reason = ""
    for issuer in issuers:
        answers = [answer for answer in _answers(response) if _is_about(answer, leaf, issuer)]
        if not answers:
            reason = reason or "the response is about another certificate"
            continue
        unproven = _why_unproven(response, leaf, issuer, candidates, now)
        if not unproven:
            return _worst([_judge(answer, now) for answer in answers])
        reason = unproven
    return Staple(Status.UNPROVEN, reason)


def _answers(response: ocsp.OCSPResponse) -> Iterator[ocsp.OCSPSingleResponse]:
    for number, answer in enumerate(response.responses):
        if number >= MAX_ANSWERS:
            return
        yield answer


def _loaded(candidates: Sequence[bytes]) -> Iterator[x509.Certificate]:
    for der in dict.fromkeys(candidates):
        try:
            yield load_certificate(der)
        except _PARSE_ERRORS:
            continue


def _is_about(answer: ocsp.OCSPSingleResponse, leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    """RFC 6960 §4.1.1: CertID names the issuer by digests of its name and of its key, and the serial number."""
    try:
        algorithm = answer.hash_algorithm.name
        if answer.serial_number != leaf.serial_number:
            return False
        name = hashlib.new(algorithm, leaf.issuer.public_bytes()).digest()
        key = hashlib.new(algorithm, _key_bits(issuer)).digest()
    except _PARSE_ERRORS:
        return False
    return answer.issuer_name_hash == name and answer.issuer_key_hash == key


def _judge(answer: ocsp.OCSPSingleResponse, now: datetime.datetime) -> Staple:
    # What was revoked stays revoked, whatever the date of the paper that says so.
    if answer.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        reason = answer.revocation_reason
        return Staple(Status.REVOKED, f"revoked; reason: {reason.name if reason is not None else 'none given'}")
    skew = datetime.timedelta(seconds=SKEW_S)
    start, end = answer.this_update_utc, answer.next_update_utc
    if end is None:
        return Staple(Status.OUT_OF_DATE, "the response does not say until when it holds")
    if not start - skew <= now <= end + skew:
        return Staple(Status.OUT_OF_DATE, f"the response holds from {_shown(start)} to {_shown(end)}")
    if answer.certificate_status is ocsp.OCSPCertStatus.UNKNOWN:
        return Staple(Status.UNKNOWN, "the responder does not know the certificate")
    return Staple(Status.GOOD, f"good until {_shown(end)}")


def _worst(found: Sequence[Staple]) -> Staple:
    order = (Status.REVOKED, Status.UNKNOWN, Status.GOOD, Status.OUT_OF_DATE)
    return min(found, key=lambda staple: order.index(staple.status))


# --- who signed it ----------------------------------------------------------------------------------------------------


def _why_unproven(
    response: ocsp.OCSPResponse,
    leaf: x509.Certificate,
    issuer: x509.Certificate,
    chain: Sequence[bytes],
    now: datetime.datetime,
) -> str:
    """Why the signature is worth nothing; "" if the issuer or its delegate made it (RFC 6960 §4.2.2.2)."""
    if any(extension.critical for extension in response.extensions):
        return "the response has a critical extension"
    if _names(response, issuer) and _is_signed(response, issuer):
        return ""
    reason = "the issuer did not sign the response"
    barred = {_octets(leaf), *chain}
    for number, delegate in enumerate(response.certificates):
        if number >= MAX_CERTIFICATES:
            break
        if not _names(response, delegate):
            continue
        reason = _why_no_delegate(delegate, issuer, now)
        if not reason and _octets(delegate) in barred:
            reason = "a certificate of the chain signed the response"
        if not reason and not _is_signed(response, delegate):
            reason = "the signature of the response is wrong"
        if not reason:
            return ""
    return reason


def _names(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    """Whether the response calls `certificate` its responder."""
    key_hash = response.responder_key_hash
    if key_hash is not None:
        return key_hash == hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()
    return response.responder_name == certificate.subject


def _why_no_delegate(delegate: x509.Certificate, issuer: x509.Certificate, now: datetime.datetime) -> str:
    if not _is_issued_by(delegate, issuer):
        return "the responder was not appointed by the issuer"
    try:
        usage = delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "the responder's certificate is not for OCSP signing"
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usage:
        return "the responder's certificate is not for OCSP signing"
    try:
        if not delegate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return "the key of the responder's certificate does not sign"
    except x509.ExtensionNotFound:
        pass
    if not delegate.not_valid_before_utc <= now <= delegate.not_valid_after_utc:
        return "the responder's certificate is out of date"
    return ""


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*_PARSE_ERRORS, InvalidSignature):
        return False
    return True


def _is_signed(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    try:
        return _verifies(response, signer)
    except (*_PARSE_ERRORS, InvalidSignature):
        return False


def _verifies(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, signature, octets = signer.public_key(), response.signature, response.tbs_response_bytes
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, octets)
        return True
    if response.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS:
        # the parameters are not to be had, so the digest is found by trying
        return isinstance(key, rsa.RSAPublicKey) and any(
            _verifies_pss(key, signature, octets, kind) for kind in _STRONG
        )
    digest = response.signature_hash_algorithm
    if digest is None or not isinstance(digest, _STRONG):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, octets, padding.PKCS1v15(), digest)
        return True
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, octets, ec.ECDSA(digest))
        return True
    return False


def _verifies_pss(key: rsa.RSAPublicKey, signature: bytes, octets: bytes, kind: type[hashes.HashAlgorithm]) -> bool:
    digest = kind()
    try:
        key.verify(signature, octets, padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _octets(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _key_bits(certificate: x509.Certificate) -> bytes:
    """The BIT STRING of the public key as sent, without tag, length and count of unused bits (RFC 6960 §4.1.1)."""
    info = public_key(_octets(certificate))
    if info is None:
        raise ValueError("the public key of the issuer cannot be found")
    _, start = _header(info, 0)
    length, algorithm = _header(info, start)
    length, bits = _header(info, algorithm + length)
    return info[bits + 1 : bits + length]


def _header(der: bytes, position: int) -> tuple[int, int]:
    """Length and start of the content of an element; `public_key` has checked that its elements are whole."""
    length = der[position + 1]
    start = position + 2
    if length & 0x80:
        octets = length & 0x7F
        length = int.from_bytes(der[start : start + octets])
        start += octets
    return length, start


def _shown(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S")

"""TLSA records: read from raw rdata, usable or not, as text and back, and made from a certificate.

Layer: sans-I/O.  Spec: RFC 6698 §2 (fields, presentation), RFC 7218 §2 (acronyms), RFC 7671 §4 (usable), §9 (digest
agility), RFC 3597 §5 (octets of unknown form as text); R18 to R24 of the TLS requirements, DN-12, DN-14.
Input: raw rdata as it stood in the answer, of any length.  Output: records, indices of usable ones, texts.
Invariants: one record never changes what is said of another but for digest agility, nor does their order; nothing is
read that is not there; at most `MAX_RECORDS` records and `MAX_OCTETS` octets of an RRset are looked at.
"""

from __future__ import annotations

import binascii
import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from OpenSSL import crypto

from . import _certmatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: records of one RRset that are looked at (R24); arbitrary, the largest sets in the field have about ten
MAX_RECORDS: Final = 100
#: octets of them; what one DNS message holds
MAX_OCTETS: Final = 65_535
#: usage, selector and matching type stand before the data
_HEAD: Final = 3


class Usage(enum.IntEnum):
    """Certificate usages that SMTP knows (RFC 7672 §3.1)."""

    DANE_TA = 2
    DANE_EE = 3


class Selector(enum.IntEnum):
    """What of a certificate is compared (RFC 6698 §2.1.2)."""

    CERT = 0
    SPKI = 1


class Matching(enum.IntEnum):
    """How it is compared (RFC 6698 §2.1.3)."""

    FULL = 0
    SHA2_256 = 1
    SHA2_512 = 2


#: octets of data for matching types that are digests
DIGEST_OCTETS: Final = {Matching.SHA2_256: 32, Matching.SHA2_512: 64}
#: acronyms of RFC 7218 by field, upper case
_ACRONYMS: Final[tuple[dict[str, int], ...]] = (
    {"PKIX-TA": 0, "PKIX-EE": 1, "DANE-TA": 2, "DANE-EE": 3, "PRIVCERT": 255},
    {"CERT": 0, "SPKI": 1, "PRIVSEL": 255},
    {"FULL": 0, "SHA2-256": 1, "SHA2-512": 2, "PRIVMATCH": 255},
)
_FIELDS: Final = ("usage", "selector", "matching type")


@dataclass(frozen=True, slots=True)
class TlsaRecord:
    """The fields of a TLSA record, whatever they hold."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def rdata(self) -> bytes:
        """The octets on the wire."""
        return bytes((self.usage, self.selector, self.matching)) + self.data

    @property
    def kind(self) -> str:
        """The three numbers, ``3 1 1``."""
        return f"{self.usage} {self.selector} {self.matching}"

    def __str__(self) -> str:
        return f"{self.kind} {self.data.hex()}"


def parse(rdata: bytes) -> TlsaRecord:
    """Read raw rdata.

    Raises:
        ValueError: it is too short to have the three fields.
    """
    if len(rdata) < _HEAD:
        raise ValueError(f"TLSA record of {len(rdata)} octets")
    return TlsaRecord(rdata[0], rdata[1], rdata[2], rdata[_HEAD:])


# --- presentation -----------------------------------------------------------------------------------------------------


def to_text(rdata: bytes) -> str:
    """Presentation form, ``3 1 1 <hex>``; octets that are no TLSA record in the generic form of RFC 3597 §5."""
    if len(rdata) <= _HEAD:
        return f"\\# {len(rdata)} {rdata.hex()}".rstrip()
    return str(parse(rdata))


def from_text(text: str) -> bytes:
    """Raw rdata from presentation form: numbers or acronyms, the data in any groups; or the generic form.

    Raises:
        ValueError: it is neither.
    """
    words = text.replace("(", " ").replace(")", " ").split()
    if words[:1] == ["\\#"]:
        return _from_generic(words[1:])
    if len(words) < 4:
        raise ValueError("a TLSA record has usage, selector, matching type and data")
    head = bytes(field_value(number, word) for number, word in enumerate(words[:_HEAD]))
    return head + _octets(words[_HEAD:])


def _from_generic(words: Sequence[str]) -> bytes:
    if not words or not (words[0].isascii() and words[0].isdigit()):
        raise ValueError("\\# is followed by the number of octets")
    octets = _octets(words[1:])
    if str(len(octets)) != words[0]:
        raise ValueError(f"there are {len(octets)} octets, not {words[0]}")
    return octets


def field_value(number: int, word: str) -> int:
    """The value of field `number` (0 usage, 1 selector, 2 matching type), written as a number or an acronym (RFC 7218).

    Raises:
        ValueError: it is neither.
    """
    value = _ACRONYMS[number].get(word.upper())
    if value is None:
        if not (word.isascii() and word.isdigit() and len(word) <= 3 and int(word) < 256):
            raise ValueError(f"{word!r} is no {_FIELDS[number]}")
        value = int(word)
    return value


def _octets(words: Iterable[str]) -> bytes:
    try:
        return binascii.unhexlify("".join(words))
    except ValueError:
        raise ValueError("the data is not hexadecimal") from None


# --- usable or not ----------------------------------------------------------------------------------------------------


def why_unusable(rdata: bytes) -> str:
    """Why a record is of no use (R18, R19), in words; empty if it is usable.

    A certificate or key that stands in the record as a whole is decoded for this.
    """
    return _why_malformed(rdata) or _why_undecodable(rdata)


def usable(records: Sequence[bytes]) -> tuple[int, ...]:
    """Indices of the usable records, in order; of equal records the first (R18, R24)."""
    return tuple(sorted(index for rdata, index in _considered(records) if not why_unusable(rdata)))


def usage_mask(records: Sequence[bytes]) -> int:
    """The usages of usable records as the bit mask of ``$tls_out_tlsa_usage`` (DN-14): 4 DANE-TA, 8 DANE-EE."""
    mask = 0
    for index in usable(records):
        mask |= 1 << records[index][0]
    return mask


def shadowed(records: Sequence[bytes]) -> tuple[int, ...]:
    """Indices of usable records that digest agility sets aside (R23), in order."""
    indices = usable(records)
    in_force = set(_agile((records[index], index) for index in indices).values())
    return tuple(index for index in indices if index not in in_force)


def well_formed(records: Sequence[bytes]) -> dict[bytes, int]:
    """Records that are in force as far as their form tells: raw rdata -> index of the first that has it, sorted.

    Equal for any order of the records.  Certificates and keys in full have the right form but may still not decode:
    see `is_decodable`.  Digest agility (R23) is applied; what does not decode has no part in it, having no digest.
    """
    return _agile([(rdata, index) for rdata, index in _considered(records) if not _why_malformed(rdata)])


def is_decodable(rdata: bytes) -> bool:
    """Whether the certificate or key that a well-formed record holds in full can be decoded; True for digests."""
    return not _why_undecodable(rdata)


def _considered(records: Sequence[bytes]) -> list[tuple[bytes, int]]:
    """The records without repetition, sorted, as far as the bounds allow; highest usages first."""
    first: dict[bytes, int] = {}
    for index, rdata in enumerate(records):
        first.setdefault(rdata, index)
    found: list[tuple[bytes, int]] = []
    octets = 0
    # usages above 3 are of no use: they must not push out what is
    for rdata in sorted(first, key=lambda rdata: (rdata[:1] > b"\3", rdata)):
        octets += len(rdata)
        if octets > MAX_OCTETS or len(found) == MAX_RECORDS:
            break
        found.append((rdata, first[rdata]))
    return found


def _agile(rows: Iterable[tuple[bytes, int]]) -> dict[bytes, int]:
    """Of each usage and selector the strongest digest there is, and whatever is in full (RFC 7671 §9)."""
    found = dict(rows)
    strongest: dict[bytes, int] = {}
    for rdata in found:
        strongest[rdata[:2]] = max(strongest.get(rdata[:2], 0), rdata[2])
    return {
        rdata: index for rdata, index in found.items() if rdata[2] == Matching.FULL or rdata[2] == strongest[rdata[:2]]
    }


def _why_malformed(rdata: bytes) -> str:
    """Why a record is unusable as far as its form tells."""
    if len(rdata) <= _HEAD:
        return f"it has {len(rdata)} octets"
    usage, selector, matching = rdata[:_HEAD]
    if usage not in (Usage.DANE_TA, Usage.DANE_EE):
        return f"certificate usage {usage} is not for SMTP" if usage < 2 else f"certificate usage {usage} is unknown"
    if selector > Selector.SPKI:
        return f"selector {selector} is unknown"
    if matching > Matching.SHA2_512:
        return f"matching type {matching} is unknown"
    data = rdata[_HEAD:]
    if matching != Matching.FULL:
        wanted = DIGEST_OCTETS[Matching(matching)]
        return "" if len(data) == wanted else f"its digest has {len(data)} octets and not {wanted}"
    if selector == Selector.CERT:
        return "" if _certmatch.public_key(data) is not None else "its data is not one certificate"
    return "" if _certmatch.is_public_key(data) else "its data is not one public key"


def _why_undecodable(rdata: bytes) -> str:
    if rdata[2] != Matching.FULL:
        return ""
    data = rdata[_HEAD:]
    try:
        if rdata[1] == Selector.CERT:
            crypto.load_certificate(crypto.FILETYPE_ASN1, data).get_pubkey()
        else:
            crypto.load_publickey(crypto.FILETYPE_ASN1, data)
    except crypto.Error:
        what = "certificate" if rdata[1] == Selector.CERT else "public key"
        return f"its {what} cannot be decoded"
    return ""


# --- made from a certificate ------------------------------------------------------------------------------------------


def make(certificate: bytes, usage: int, selector: int, matching: int) -> TlsaRecord:
    """The record that names a DER certificate.

    Raises:
        ValueError: a field is none that SMTP uses, or the certificate has no key to be found.
    """
    try:
        fields = Usage(usage), Selector(selector), Matching(matching)
    except ValueError:
        raise ValueError(f"{usage} {selector} {matching} is no TLSA record for SMTP") from None
    data = _certmatch.public_key(certificate)
    if data is None:
        raise ValueError("this is not a certificate in DER")
    if fields[1] is Selector.CERT:
        data = certificate
    if fields[2] is Matching.SHA2_256:
        data = hashlib.sha256(data).digest()
    elif fields[2] is Matching.SHA2_512:
        data = hashlib.sha512(data).digest()
    return TlsaRecord(*fields, data)

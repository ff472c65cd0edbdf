"""Build a DNS query and read the response to it from untrusted octets.

Layer: adapter (pure; no socket here).  Spec: RFC 1035 §4 (message), RFC 6891 (EDNS), RFC 3225 (DO), RFC 6840 §5.7 (AD
in a query), RFC 8914 (extended errors), RFC 2308 (negative answers), RFC 2181 §8 (TTL); dane-tls section 0.1, R2, R3.
Input: the octets of one message.  Output: a `Response`, or `NotOurs` / `Garbled`.
The sections are walked here rather than by dnspython, for two reasons: it refuses a whole message for one bad TLSA
record, whose siblings must survive; and it reads a name anew wherever a compression pointer leads to it, so that a
message of 64 KiB with chains of pointers under thousands of records stops everything else for a good part of a second.
Here each name is read once (dns_names), and a message costs time in proportion to its size.
What is asked of each domain is written and read by a kernel (`make_query`, `read_response`), which leaves whatever is
not quite usual to what is here.
Invariants: no length is believed; a record that cannot be read is left out and never hides another; at most
`MAX_RECORDS` records and `MAX_CNAMES` links are kept; nothing else is raised.
"""

from __future__ import annotations

import functools
import ipaddress
import secrets
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dns.flags
import dns.rcode
import dns.rdatatype

from ..policy.answers import Mx
from . import _dnswire
from .dns_names import Garbled, Labels, NameReader, labels_of, mix_case, name_to_text, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

#: records kept of one answer, the best preferences of MX records; arbitrary, four times the largest set in the field
MAX_RECORDS: Final = 256
#: links of one CNAME chain; R3 wants at least ten
MAX_CNAMES: Final = 16
#: of a query: two octets for the id (RFC 1035 §4.1.1), 32 for the case of a name, which has 255 octets at most
_RANDOM_OCTETS: Final = 34
#: octets, the size that fits every path without fragments (DNS flag day 2020)
UDP_PAYLOAD_OCTETS: Final = 1232

_HEADER: Final = struct.Struct("!HHHHHH")
_FIXED: Final = struct.Struct("!HHIH")
_QUESTION: Final = struct.Struct("!HH")
_IN: Final = 1
#: flags of a header as numbers: what dnspython has is an enumeration, which is slow
_QR, _AA, _TC, _RD, _RA, _AD = (
    int(flag) for flag in (dns.flags.QR, dns.flags.AA, dns.flags.TC, dns.flags.RD, dns.flags.RA, dns.flags.AD)
)
_NOERROR: Final = int(dns.rcode.NOERROR)
_FORMERR: Final = int(dns.rcode.FORMERR)
_A: Final = int(dns.rdatatype.A)
_AAAA: Final = int(dns.rdatatype.AAAA)
_MX: Final = int(dns.rdatatype.MX)
#: the types that are asked for at every domain
_TYPES: Final = {name: int(dns.rdatatype.from_text(name)) for name in ("A", "AAAA", "CNAME", "MX", "TLSA", "TXT")}
_OPT: Final = int(dns.rdatatype.OPT)
_SOA: Final = int(dns.rdatatype.SOA)
_CNAME: Final = int(dns.rdatatype.CNAME)
#: at the end of a query: RFC 6891 §6.1.2, with DO (RFC 3225)
_EDNS: Final = b"\0" + _FIXED.pack(_OPT, UDP_PAYLOAD_OCTETS, int(dns.flags.DO), 0)
_EDE_OPTION: Final = 15
#: RFC 8914 §4
_EDE_NAMES: Final = {
    0: "Other Error",
    1: "Unsupported DNSKEY Algorithm",
    2: "Unsupported DS Digest Type",
    3: "Stale Answer",
    4: "Forged Answer",
    5: "DNSSEC Indeterminate",
    6: "DNSSEC Bogus",
    7: "Signature Expired",
    8: "Signature Not Yet Valid",
    9: "DNSKEY Missing",
    10: "RRSIGs Missing",
    11: "No Zone Key Bit Set",
    12: "NSEC Missing",
    13: "Cached Error",
    14: "Not Ready",
    15: "Blocked",
    16: "Censored",
    17: "Filtered",
    18: "Prohibited",
    19: "Stale NXDOMAIN Answer",
    20: "Not Authoritative",
    21: "Not Supported",
    22: "No Reachable Authority",
    23: "Network Error",
    24: "Invalid Data",
}


class NotOurs(Exception):
    """The octets answer another question, or nobody's: keep waiting, they may be forged."""


class Question(NamedTuple):
    """One query as sent: what a response must repeat.

    Attributes:
        id: 16 random bits.
        text: the name as it was given; name: its labels.
        asked: the question section, with the case of letters as it was sent.
        wire: the octets of the query.
    """

    id: int
    text: str
    rdtype: int
    asked: bytes
    wire: bytes

    @property
    def name(self) -> Labels:
        return labels_of(self.text)


class Response(NamedTuple):
    """What a server said.

    Attributes:
        rcode: with the extended bits of EDNS.
        truncated: the TC bit; whatever else is here is incomplete.
        ad: the AD bit.
        is_case_kept: the question came back with its letters in the case they were sent in.
        is_referral: nothing but a hint to ask others: the server neither knows (AA) nor recurses (RA).
        cnames: targets of the CNAME chain, in order.
        mx, addresses, rdata: as in `policy.answers.Answer`.
        ttl_s: the least TTL of the chain and the records.
        negative_ttl_s: RFC 2308 §5, or None without an SOA record.
        extended_error: code and text, or "".
    """

    rcode: int
    truncated: bool
    ad: bool
    is_case_kept: bool = True
    is_referral: bool = False
    cnames: tuple[str, ...] = ()
    mx: tuple[Mx, ...] = ()
    addresses: tuple[str, ...] = ()
    rdata: tuple[bytes, ...] = ()
    ttl_s: int = 0
    negative_ttl_s: int | None = None
    extended_error: str = ""

    @property
    def has_records(self) -> bool:
        return bool(self.mx or self.addresses or self.rdata)


def build_query(name: str, rdtype: str, query_id: int, *, edns: bool = True, case_bits: int = 0) -> Question:
    """A query that asks for the AD bit, by EDNS with DO and by AD itself (R2).

    Args:
        name: absolute, with or without trailing dot (R9).
        edns: False for servers that cannot do EDNS; the AD bit of the query then still asks for AD.
        case_bits: random bits, which letters to send in upper case: a forger has to guess them too.

    Raises:
        ValueError: `name` cannot be a domain name.
    """
    rdtype_number = _number_of(rdtype)
    asked = mix_case(to_wire(labels_of(name)), case_bits) + _QUESTION.pack(rdtype_number, _IN)
    wire = _HEADER.pack(query_id, _RD | _AD, 1, 0, 0, int(edns)) + asked
    return Question(query_id, name, rdtype_number, asked, wire + _EDNS if edns else wire)


def make_query(name: str, rdtype: str, *, edns: bool) -> Question:
    """The same with an id and letters of chance (RFC 5452 §9).  Raises ValueError."""
    random = secrets.token_bytes(_RANDOM_OCTETS)
    query_id = random[0] << 8 | random[1]
    rdtype_number = _number_of(rdtype)
    made = _dnswire.build(name, rdtype_number, random, _EDNS if edns else b"")
    if made is None:
        return build_query(name, rdtype, query_id, edns=edns, case_bits=int.from_bytes(random[2:], "little"))
    wire, asked = made
    return Question(query_id, name, rdtype_number, asked, wire)


def _number_of(rdtype: str) -> int:
    return _TYPES.get(rdtype) or int(dns.rdatatype.from_text(rdtype))


class _Record(NamedTuple):
    owner: Labels
    rdtype: int
    ttl: int
    start: int
    end: int


class _Reader(NameReader):
    """Walks one message; every step checks that it stays inside."""

    def __init__(self, wire: bytes) -> None:
        super().__init__(wire)
        self.position = _HEADER.size

    def name(self) -> Labels:
        name, used = self.pointed_or_none(self.position) or self.name_at(self.position)
        self.position += used
        return name

    def take(self, count: int) -> int:
        """Step over `count` octets and return where they began."""
        start = self.position
        if count > len(self.wire) - start:
            raise Garbled(f"message ends within a record at octet {start}")
        self.position = start + count
        return start

    def record(self) -> tuple[_Record, int]:
        """The next record and its class."""
        owner = self.name()
        rdtype, rdclass, ttl, length = _FIXED.unpack_from(self.wire, self.take(_FIXED.size))
        start = self.take(length)
        # RFC 2181 §8: a TTL with the top bit set is zero
        return _Record(owner, rdtype, 0 if ttl >> 31 and rdtype != _OPT else ttl, start, start + length), rdclass


def read_response(wire: bytes, question: Question) -> Response:
    """As `parse_response`, sooner where the response is a usual one."""
    found = _dnswire.read(wire, question.id, question.asked, question.rdtype, MAX_RECORDS)
    if found is None:
        return parse_response(wire, question)
    rcode, ad, is_referral, records, ttl_s, negative_ttl_s = found
    mx: tuple[Mx, ...] = ()
    rdata: tuple[bytes, ...] = ()
    if records:
        if question.rdtype in _WITH_NAMES:
            return parse_response(wire, question)
        unique: Any = dict.fromkeys(records)
        if question.rdtype == _MX:
            mx = tuple([_mx(*record) for record in unique])
        else:
            rdata = tuple(unique)
    return Response(rcode, False, ad, True, is_referral, (), mx, (), rdata, ttl_s, negative_ttl_s)


#: domains with the same hosts have the same objects
_mx = functools.lru_cache(4096)(Mx)


def parse_response(wire: bytes, question: Question) -> Response:
    """Read the response to `question`.

    Raises:
        NotOurs: another id, another question, or not a response.
        Garbled: it is ours and cannot be read.
    """
    if len(wire) < _HEADER.size:
        raise NotOurs("shorter than a header")
    query_id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(wire)
    if query_id != question.id or not flags & _QR:
        raise NotOurs("another id")
    reader = _Reader(wire)
    rcode = flags & 0xF
    truncated = bool(flags & _TC)
    if questions == 0 and rcode == _FORMERR:
        # a server that could not read our question cannot repeat it
        return Response(rcode, truncated, False)
    if questions != 1:
        raise Garbled(f"{questions} questions")
    is_case_kept = wire.startswith(question.asked, _HEADER.size)
    if is_case_kept:
        reader.position += len(question.asked)
        reader.remember(_HEADER.size, question.name, reader.position - _QUESTION.size)
    else:
        name = reader.name()
        rdtype, rdclass = _QUESTION.unpack_from(wire, reader.take(_QUESTION.size))
        if name != question.name or rdtype != question.rdtype or rdclass != _IN:
            raise NotOurs("another question")
    if flags & 0x7800:
        raise Garbled("not a standard query")
    if truncated:
        return Response(rcode, True, False, is_case_kept)
    owners = _read_answers(reader, answers)
    negative_ttl = _read_authorities(reader, authorities)
    extended_rcode, extended_error = _read_additionals(reader, additionals)
    rcode |= extended_rcode << 4
    has_nothing = rcode == _NOERROR and not owners and negative_ttl is None
    return _assemble(
        reader,
        question,
        owners,
        rcode=rcode,
        ad=bool(flags & _AD),
        is_case_kept=is_case_kept,
        is_referral=has_nothing and not flags & (_AA | _RA),
        negative_ttl_s=negative_ttl,
        extended_error=extended_error,
    )


_Owners = dict[tuple[Labels, int], list[_Record]]


def _read_answers(reader: _Reader, count: int) -> _Owners:
    # The message bounds the count: a record takes 11 octets at least, and `take` raises at the end.
    owners: _Owners = defaultdict(list)
    for _ in range(count):
        record, rdclass = reader.record()
        if rdclass == _IN:
            owners[record.owner, record.rdtype].append(record)
    return owners


def _read_authorities(reader: _Reader, count: int) -> int | None:
    negative_ttl: int | None = None
    for _ in range(count):
        record, rdclass = reader.record()
        if record.rdtype != _SOA or rdclass != _IN:
            continue
        _, used = reader.name_at(record.start)
        _, used_more = reader.name_at(record.start + used)
        numbers = record.start + used + used_more
        if numbers + 20 > record.end:
            raise Garbled("SOA record ends early")
        (minimum,) = struct.unpack_from("!I", reader.wire, numbers + 16)
        negative_ttl = min(record.ttl, 0 if minimum >> 31 else minimum)
    return negative_ttl


def _read_additionals(reader: _Reader, count: int) -> tuple[int, str]:
    """Upper bits of the response code, and the first extended error."""
    extended_rcode, extended_error = 0, ""
    for _ in range(count):
        record, _ = reader.record()
        if record.rdtype == _OPT:
            extended_rcode = record.ttl >> 24
            extended_error = extended_error or next(_extended_errors(reader.wire[record.start : record.end]), "")
    return extended_rcode, extended_error


def _extended_errors(options: bytes) -> Iterator[str]:
    position = 0
    while position + 4 <= len(options):
        code, length = struct.unpack_from("!HH", options, position)
        value = options[position + 4 : position + 4 + length]
        position += 4 + length
        if code == _EDE_OPTION and len(value) >= 2:
            number = int.from_bytes(value[:2], "big")
            text = value[2:258].decode("utf-8", "replace").rstrip("\0")
            printable = "".join(char if char.isprintable() else "?" for char in text)
            yield f"EDE {number} ({_EDE_NAMES.get(number, 'unknown')})" + (f": {printable}" if printable else "")


def _assemble(
    reader: _Reader,
    question: Question,
    owners: _Owners,
    *,
    rcode: int,
    ad: bool,
    is_case_kept: bool,
    is_referral: bool,
    negative_ttl_s: int | None,
    extended_error: str,
) -> Response:
    """Follow the CNAME chain from the question to its records."""
    name = question.name
    seen = {name}
    cnames: list[str] = []
    ttl = 0xFFFFFFFF
    while question.rdtype != _CNAME and (name, question.rdtype) not in owners:
        links = owners.get((name, _CNAME))
        if not links:
            break
        target, _ = reader.name_at(links[0].start)
        if target in seen or len(cnames) >= MAX_CNAMES:
            raise Garbled("CNAME loop" if target in seen else f"more than {MAX_CNAMES} CNAMEs")
        ttl = min(ttl, links[0].ttl)
        seen.add(target)
        cnames.append(name_to_text(target))
        name = target
    records = owners.get((name, question.rdtype), [])
    mx: dict[Mx, None] = {}
    addresses: dict[str, None] = {}
    rdata: dict[bytes, None] = {}
    if question.rdtype == _MX and len(records) > MAX_RECORDS:
        # the preference stands first in the rdata
        records.sort(key=lambda record: reader.wire[record.start : min(record.start + 2, record.end)])
    for record in records[:MAX_RECORDS]:
        ttl = min(ttl, record.ttl)
        try:
            if question.rdtype == _MX:
                mx[_read_mx(reader, record)] = None
            elif question.rdtype in (_A, _AAAA):
                addresses[_read_address(reader, record, question.rdtype)] = None
            else:
                rdata[_read_raw(reader, record)] = None
        except Garbled:
            continue
    if records and not (mx or addresses or rdata):
        raise Garbled("no record can be read")
    if question.rdtype == _CNAME and records:
        cnames.append(name_to_text(reader.name_at(records[0].start)[0]))
    return Response(
        rcode,
        False,
        ad,
        is_case_kept,
        is_referral,
        tuple(cnames),
        tuple(mx),
        tuple(addresses),
        tuple(rdata),
        ttl if ttl != 0xFFFFFFFF else 0,
        negative_ttl_s,
        extended_error,
    )


def _read_mx(reader: _Reader, record: _Record) -> Mx:
    if record.end - record.start < 3:
        raise Garbled("MX record ends early")
    name, used = reader.name_at(record.start + 2)
    if record.start + 2 + used != record.end:
        raise Garbled("MX record has another length than its name")
    return Mx(int.from_bytes(reader.wire[record.start : record.start + 2], "big"), name_to_text(name))


def _read_address(reader: _Reader, record: _Record, rdtype: int) -> str:
    octets = reader.wire[record.start : record.end]
    if len(octets) != (4 if rdtype == _A else 16):
        raise Garbled("address of the wrong size")
    return ".".join(map(str, octets)) if rdtype == _A else str(ipaddress.IPv6Address(octets))


#: offset of the one name in the rdata of types that may be compressed
_NAME_OFFSETS: Final = {int(dns.rdatatype.CNAME): 0, int(dns.rdatatype.PTR): 0, int(dns.rdatatype.SRV): 6}
#: types whose records are not kept as they stand in the message
_WITH_NAMES: Final = frozenset({_A, _AAAA, *_NAME_OFFSETS})


def _read_raw(reader: _Reader, record: _Record) -> bytes:
    offset = _NAME_OFFSETS.get(record.rdtype)
    if offset is None:
        return reader.wire[record.start : record.end]
    name, used = reader.name_at(record.start + offset)
    if record.start + offset + used != record.end:
        raise Garbled("record has another length than its name")
    return reader.wire[record.start : record.start + offset] + to_wire(name)

# cython: language_level=3
"""DNS queries written, and the usual responses to them read.

Layer: kernel of engine/net/dns_message.py.  Reference: `build_query` and `parse_response` there, which hypothesis
compares with what is here.
Two of three responses are MX records of a domain, or the denial of a record that few domains have; those are read here,
and whatever is not quite so is left to the reference: `read` gives None and decides nothing.  So nothing has to be
tolerated here, and whoever sends what is odd pays for it with the slower way.
Every octet that is looked at was compared with the end of the message before; a name is at most 255 octets, and each
part of it stands before the part that points to it, so that there are no loops.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.string cimport memcmp, memcpy

cdef enum:
    _HEADER = 12
    _NAME = 255
    _LABEL = 63
    #: parts that one name is made of, at most
    _PARTS = 127
    #: octets that decide about the case of the letters of a name
    _CASE = 32
    _IN = 1
    _CNAME = 5
    _SOA = 6
    _MX = 15
    _DNAME = 39
    _OPT = 41
    _EDE = 15
    #: flags of a header: QR, AA, TC, RD, RA, AD, the bits of the opcode
    _QR = 0x8000
    _AA = 0x0400
    _TC = 0x0200
    _RD = 0x0100
    _RA = 0x0080
    _AD = 0x0020
    _OPCODE = 0x7800

ctypedef const unsigned char *octets_t

cdef struct _Fixed:
    unsigned int rdtype
    unsigned int rdclass
    unsigned long ttl
    Py_ssize_t start
    Py_ssize_t end


def build(str name not None, unsigned int rdtype, bytes random not None, bytes edns not None):
    """A query for `rdtype` at an absolute name.

    Args:
        random: two octets for the id and 32 for the case of the letters.
        edns: what stands at the end, or nothing.

    Returns:
        The octets of the query and of its question; None for a name that is not letters, digits, ``-`` and ``_``.
    """
    cdef unsigned char out[_HEADER + _NAME + 4]
    cdef Py_ssize_t length, label, at, position
    cdef octets_t text
    cdef octets_t bits
    cdef unsigned char octet
    if not name.isascii() or len(random) != 2 + _CASE or rdtype > 0xFFFF:
        return None
    cdef bytes encoded = name.encode("ascii")
    length = PyBytes_GET_SIZE(encoded)
    text = <octets_t>PyBytes_AS_STRING(encoded)
    bits = <octets_t>PyBytes_AS_STRING(random) + 2
    if length and text[length - 1] == b".":
        length -= 1
    if not 0 < length <= _NAME - 2:
        return None
    # in front of each label stands its length, so that the name begins one octet later, and each dot has become one
    label = 0
    for at in range(length + 1):
        if at == length or text[at] == b".":
            if at == label or at - label > _LABEL:
                return None
            out[_HEADER + label] = <unsigned char>(at - label)
            label = at + 1
            continue
        octet = text[at]
        if b"A" <= octet <= b"Z":
            octet += 32
        if b"a" <= octet <= b"z":
            position = at + 1
            if bits[position >> 3] >> (position & 7) & 1:
                octet -= 32
        elif not (b"0" <= octet <= b"9" or octet == b"-" or octet == b"_"):
            return None
        out[_HEADER + at + 1] = octet
    at = _HEADER + length + 1
    out[at] = 0
    out[at + 1] = rdtype >> 8
    out[at + 2] = rdtype & 0xFF
    out[at + 3] = 0
    out[at + 4] = _IN
    memcpy(out, PyBytes_AS_STRING(random), 2)
    out[2] = _RD >> 8
    out[3] = _AD
    out[4] = 0
    out[5] = 1
    for position in range(6, _HEADER):
        out[position] = 0
    out[11] = 1 if PyBytes_GET_SIZE(edns) else 0
    asked = PyBytes_FromStringAndSize(<char *>out + _HEADER, at + 5 - _HEADER)
    return PyBytes_FromStringAndSize(<char *>out, at + 5) + edns, asked


def read(bytes wire not None, unsigned int query_id, bytes asked not None, unsigned int rdtype, int most):
    """The response to a question, if it is a usual one.

    Args:
        asked: the question as it was sent; most: records that may be in the answer.

    Returns:
        Response code, AD bit, whether it is a referral, the records, the least TTL of them (0 without any), and the
        negative TTL or None; MX records as (preference, exchange), others as their octets.  None for what is not usual,
        or not the response at all.
    """
    cdef octets_t octets = <octets_t>PyBytes_AS_STRING(wire)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(wire)
    cdef Py_ssize_t question = PyBytes_GET_SIZE(asked)
    cdef Py_ssize_t position, after
    cdef unsigned int flags, count, _, rcode
    cdef unsigned long ttl = 0xFFFFFFFFul, minimum
    cdef bint has_owner = False, has_options = False
    cdef _Fixed record
    cdef list records = []
    cdef object negative = None
    if size < _HEADER + question or _two(octets) != query_id:
        return None
    flags = _two(octets + 2)
    if flags & _QR == 0 or flags & (_TC | _OPCODE) or _two(octets + 4) != 1:
        return None
    if memcmp(octets + _HEADER, PyBytes_AS_STRING(asked), question):
        return None
    position = _HEADER + question
    count = _two(octets + 6)
    if count > <unsigned int>most:
        return None
    for _ in range(count):
        # the owner is the name of the question, as a pointer
        if size - position < 2 or octets[position] != 0xC0 or octets[position + 1] != _HEADER:
            return None
        position = _fixed(octets, size, position + 2, &record)
        if position < 0 or record.rdclass != _IN or record.rdtype == _CNAME or record.rdtype == _DNAME:
            return None
        has_owner = True
        if record.rdtype != rdtype:
            continue  # a signature
        if rdtype == _MX:
            if record.end - record.start < 3:
                return None
            exchange = _name(octets, size, record.start + 2, &after)
            if exchange is None or after != record.end:
                return None
            records.append((_two(octets + record.start), exchange))
        else:
            records.append(wire[record.start:record.end])
        ttl = min(ttl, record.ttl)
    count = _two(octets + 8)
    for _ in range(count):
        position = _skip(octets, size, position)
        if position >= 0:
            position = _fixed(octets, size, position, &record)
        if position < 0:
            return None
        if record.rdtype != _SOA or record.rdclass != _IN:
            continue
        after = _skip(octets, size, record.start)
        if after >= 0:
            after = _skip(octets, size, after)
        if after < 0 or after + 20 > record.end:
            return None
        minimum = _four(octets + after + 16)
        negative = min(record.ttl, 0 if minimum >> 31 else minimum)
    rcode = flags & 0xF
    count = _two(octets + 10)
    for _ in range(count):
        position = _skip(octets, size, position)
        if position >= 0:
            position = _fixed(octets, size, position, &record)
        if position < 0:
            return None
        if record.rdtype == _OPT:
            if has_options or _has_error(octets, record.start, record.end):
                return None
            has_options = True
            rcode |= <unsigned int>(record.ttl >> 24) << 4
    is_referral = rcode == 0 and not has_owner and negative is None and not flags & (_AA | _RA)
    return rcode, flags & _AD != 0, is_referral, records, ttl if records else 0, negative


cdef inline unsigned int _two(octets_t octets) noexcept:
    return <unsigned int>octets[0] << 8 | octets[1]


cdef inline unsigned long _four(octets_t octets) noexcept:
    return <unsigned long>_two(octets) << 16 | _two(octets + 2)


cdef Py_ssize_t _fixed(octets_t octets, Py_ssize_t size, Py_ssize_t position, _Fixed *record) noexcept:
    """The part of a record behind its owner; where it ends, or -1 if the message ends before."""
    cdef Py_ssize_t length
    if size - position < 10:
        return -1
    record.rdtype = _two(octets + position)
    record.rdclass = _two(octets + position + 2)
    record.ttl = _four(octets + position + 4)
    if record.ttl >> 31 and record.rdtype != _OPT:
        record.ttl = 0  # RFC 2181 §8
    length = _two(octets + position + 8)
    record.start = position + 10
    if length > size - record.start:
        return -1
    record.end = record.start + length
    return record.end


cdef bint _has_error(octets_t octets, Py_ssize_t position, Py_ssize_t end) noexcept:
    """Whether there is an extended error among the options of EDNS."""
    while end - position >= 4:
        if _two(octets + position) == _EDE:
            return True
        position += 4 + _two(octets + position + 2)
    return False


cdef Py_ssize_t _walk(
    octets_t octets, Py_ssize_t size, Py_ssize_t position, unsigned char *text, Py_ssize_t *used, bint is_plain
) noexcept:
    """Go over a name and write it to `text` (`_NAME` octets), with a dot behind each label; where it ends, or -1.

    Args:
        used: gets how much was written; is_plain: the name is to be letters, digits, ``-`` and ``_``.
    """
    cdef Py_ssize_t end = -1, start = position, limit = size, at
    cdef int _
    cdef unsigned char length, octet
    used[0] = 0
    for _ in range(_PARTS):
        while True:
            if position >= limit:
                return -1
            length = octets[position]
            if length == 0:
                return position + 1 if end < 0 else end
            if length >= 0xC0:
                break
            if length > _LABEL or length >= limit - position or used[0] + length + 1 >= _NAME:
                return -1
            for at in range(position + 1, position + 1 + length):
                octet = octets[at]
                if b"A" <= octet <= b"Z":
                    octet += 32
                if is_plain and not (
                    b"a" <= octet <= b"z" or b"0" <= octet <= b"9" or octet == b"-" or octet == b"_"
                ):
                    return -1
                text[used[0]] = octet
                used[0] += 1
            text[used[0]] = b"."
            used[0] += 1
            position += 1 + length
        if limit - position < 2:
            return -1
        if end < 0:
            end = position + 2
        # RFC 1035 §4.1.4: a pointer is to what stands before, and what it leads to ends before this part begins
        position = <Py_ssize_t>(length & 0x3F) << 8 | octets[position + 1]
        limit = start
        start = position
    return -1


cdef Py_ssize_t _skip(octets_t octets, Py_ssize_t size, Py_ssize_t position) noexcept:
    """Where a name ends, or -1."""
    cdef unsigned char text[_NAME]
    cdef Py_ssize_t used
    return _walk(octets, size, position, text, &used, False)


cdef object _name(octets_t octets, Py_ssize_t size, Py_ssize_t position, Py_ssize_t *end):
    """A name as text without the last dot, and where it ends; None for one that would have to be escaped."""
    cdef unsigned char text[_NAME]
    cdef Py_ssize_t used
    end[0] = _walk(octets, size, position, text, &used, True)
    if end[0] < 0:
        return None
    return PyUnicode_DecodeASCII(<char *>text, used - 1 if used else 0, NULL)

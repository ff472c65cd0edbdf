# cython: language_level=3
"""TLSA records against certificates: the key found by a bounded walk, the digest by hashlib, the compare in C.

Layer: kernel of engine/tls/dane.py and tlsa.py.  Spec: RFC 6698 §2.1 (selectors, matching types), RFC 5280 §4.1
(Certificate); R19, R25 to R28 of the TLS requirements. Reference: tests/reference/certmatch.py; hypothesis compares the
two. A digest of the public key is taken of the octets as they were sent: to encode a key again would change some
(RSASSA-PSS, curves with explicit parameters), and what no parser reads can still be matched.
hashlib lets go of the GIL for what is longer than 2047 octets; so does the compare here from `_LARGE` octets on.
No directive is turned off.  Pointers are into bytes objects that the function holds; `_element` says of each element
where it ends, never beyond the end it was given, and nothing is read that it has not said.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

import hashlib

#: a new digest is a copy of an empty one: that is quicker than to have OpenSSL look up the algorithm each time
_new_sha256 = hashlib.sha256().copy
_new_sha512 = hashlib.sha512().copy

cdef enum:
    #: identifier octets (X.690 §8.1.2)
    _SEQUENCE = 0x30
    _INTEGER = 0x02
    _BIT_STRING = 0x03
    _OBJECT = 0x06
    _VERSION = 0xA0
    #: usage, selector and matching type stand before the data of a record
    _HEAD = 3
    #: octets from which to let others run while two byte strings are compared
    _LARGE = 65536


cdef struct _Span:
    #: where the content starts and where the element ends
    Py_ssize_t content
    Py_ssize_t end


cdef inline bint _element(
    const unsigned char *der, Py_ssize_t position, Py_ssize_t limit, unsigned char tag, _Span *found
) noexcept nogil:
    """Find the element with the identifier `tag` at `position`; False unless it lies below `limit` as a whole.

    Lengths are definite and have at most four octets, which a certificate never needs more of.  They need not be as
    short as DER wants: the octets count as they are.
    """
    cdef Py_ssize_t length, start
    cdef int octets
    if limit - position < 2 or der[position] != tag:
        return False
    length = der[position + 1]
    start = position + 2
    if length & 0x80:
        octets = <int>(length & 0x7F)
        if octets == 0 or octets > 4 or limit - start < octets:
            return False
        length = 0
        while octets:
            length = (length << 8) | der[start]
            start += 1
            octets -= 1
    if length > limit - start:
        return False
    found.content = start
    found.end = start + length
    return True


cdef bint _find_key(const unsigned char *der, Py_ssize_t size, _Span *key) noexcept nogil:
    """Find the SubjectPublicKeyInfo of a certificate; `key.content` is then where the element itself starts."""
    cdef _Span outer, tbs, field
    cdef Py_ssize_t position
    cdef int _skipped
    if not _element(der, 0, size, _SEQUENCE, &outer) or outer.end != size:
        return False
    if not _element(der, outer.content, outer.end, _SEQUENCE, &tbs):
        return False
    position = tbs.content
    if _element(der, position, tbs.end, _VERSION, &field):
        position = field.end
    if not _element(der, position, tbs.end, _INTEGER, &field):
        return False
    # signature, issuer, validity, subject
    for _skipped in range(4):
        if not _element(der, field.end, tbs.end, _SEQUENCE, &field):
            return False
    position = field.end
    if not _element(der, position, tbs.end, _SEQUENCE, &field):
        return False
    key.content = position
    key.end = field.end
    return True


cdef bint _same(const char *left, const char *right, Py_ssize_t size) noexcept nogil:
    """Compare in a time that depends on `size` alone."""
    cdef Py_ssize_t position
    cdef unsigned char difference = 0
    for position in range(size):
        difference |= <unsigned char>(left[position] ^ right[position])
    return difference == 0


cdef inline bint _equals(const char *wanted, Py_ssize_t size, const char *given, Py_ssize_t given_size):
    # R27: lengths first; they are no secret.
    if size != given_size:
        return False
    if size < _LARGE:
        return _same(wanted, given, size)
    with nogil:
        return _same(wanted, given, size)


cdef inline bytes _slice(const char *der, _Span key):
    return PyBytes_FromStringAndSize(der + key.content, key.end - key.content)


cdef inline bytes _digest(object new, bytes octets):
    cdef object digest = new()
    digest.update(octets)
    return digest.digest()


def public_key(bytes certificate not None):
    """The SubjectPublicKeyInfo of a DER certificate, the octets as they are; None if it is not to be found."""
    cdef _Span key
    cdef const char *der = PyBytes_AS_STRING(certificate)
    if not _find_key(<const unsigned char *>der, PyBytes_GET_SIZE(certificate), &key):
        return None
    return _slice(der, key)


def is_public_key(bytes der not None):
    """Whether `der` is one SubjectPublicKeyInfo with nothing after it: an algorithm, then a bit string."""
    cdef const unsigned char *octets = <const unsigned char *>PyBytes_AS_STRING(der)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(der)
    cdef _Span outer, algorithm, field
    return (
        _element(octets, 0, size, _SEQUENCE, &outer)
        and outer.end == size
        and _element(octets, outer.content, outer.end, _SEQUENCE, &algorithm)
        and _element(octets, algorithm.content, algorithm.end, _OBJECT, &field)
        and _element(octets, algorithm.end, outer.end, _BIT_STRING, &field)
        and field.end == outer.end
    )


def match(records not None, certificates not None):
    """Which records match which certificates, whatever their usage says.

    A record with a selector or matching type that is not known, or with a digest of another length, matches nothing.
    Each digest is computed once for a certificate, and only if some record asks for it.

    Args:
        records: raw TLSA rdata (bytes) of any length.
        certificates: DER (bytes), well formed or not.

    Returns:
        Pairs (index of the record, index of the certificate), ordered by certificate, then by record.
    """
    cdef tuple rows = tuple(records)
    cdef tuple chain = tuple(certificates)
    cdef list found = []
    cdef Py_ssize_t number, index
    cdef bytes record, certificate, digest, whole_256, whole_512, key_256, key_512
    cdef const char *der
    cdef const char *data
    cdef Py_ssize_t der_size, data_size
    cdef unsigned char selector, matching
    cdef bint has_walked, has_key
    cdef _Span key
    for number in range(len(chain)):
        certificate = <bytes?>chain[number]
        der = PyBytes_AS_STRING(certificate)
        der_size = PyBytes_GET_SIZE(certificate)
        whole_256 = whole_512 = key_256 = key_512 = None
        has_walked = has_key = False
        for index in range(len(rows)):
            record = <bytes?>rows[index]
            data = PyBytes_AS_STRING(record)
            data_size = PyBytes_GET_SIZE(record) - _HEAD
            if data_size <= 0:
                continue
            selector = <unsigned char>data[1]
            matching = <unsigned char>data[2]
            data += _HEAD
            if selector > 1 or matching > 2:
                continue
            if (matching == 1 and data_size != 32) or (matching == 2 and data_size != 64):
                continue
            if selector == 1:
                if not has_walked:
                    has_walked = True
                    has_key = _find_key(<const unsigned char *>der, der_size, &key)
                if not has_key:
                    continue
            if matching == 0:
                if selector == 0:
                    if _equals(data, data_size, der, der_size):
                        found.append((index, number))
                elif _equals(data, data_size, der + key.content, key.end - key.content):
                    found.append((index, number))
                continue
            if selector == 0:
                if matching == 1:
                    if whole_256 is None:
                        whole_256 = _digest(_new_sha256, certificate)
                    digest = whole_256
                else:
                    if whole_512 is None:
                        whole_512 = _digest(_new_sha512, certificate)
                    digest = whole_512
            elif matching == 1:
                if key_256 is None:
                    key_256 = _digest(_new_sha256, _slice(der, key))
                digest = key_256
            else:
                if key_512 is None:
                    key_512 = _digest(_new_sha512, _slice(der, key))
                digest = key_512
            if _equals(data, data_size, PyBytes_AS_STRING(digest), PyBytes_GET_SIZE(digest)):
                found.append((index, number))
    return found

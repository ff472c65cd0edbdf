"""What `engine.tls._certmatch` does, said slowly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SEQUENCE, INTEGER, BIT_STRING, OBJECT, VERSION = 0x30, 0x02, 0x03, 0x06, 0xA0


def element(der: bytes) -> tuple[int, bytes, bytes, bytes]:
    """Tag, whole element, its content, and what comes after it.

    Raises:
        ValueError: there is none.
    """
    if len(der) < 2:
        raise ValueError("no room for an element")
    tag, first = der[0], der[1]
    head = 2
    length = first
    if first >= 0x80:
        octets = first - 0x80
        if not 1 <= octets <= 4 or len(der) < 2 + octets:
            raise ValueError("length")
        length = int.from_bytes(der[2 : 2 + octets], "big")
        head += octets
    if len(der) < head + length:
        raise ValueError("ends early")
    return tag, der[: head + length], der[head : head + length], der[head + length :]


def only(der: bytes, tag: int) -> tuple[bytes, bytes, bytes]:
    """Whole, content and rest of the element, which must have the tag."""
    found, whole, content, rest = element(der)
    if found != tag:
        raise ValueError("another tag")
    return whole, content, rest


def public_key(certificate: bytes) -> bytes | None:
    try:
        _, outer, after = only(certificate, SEQUENCE)
        if after:
            return None
        _, fields, _ = only(outer, SEQUENCE)
        try:
            _, _, fields = only(fields, VERSION)
        except ValueError:
            pass
        _, _, fields = only(fields, INTEGER)
        for _ in ("signature", "issuer", "validity", "subject"):
            _, _, fields = only(fields, SEQUENCE)
        return only(fields, SEQUENCE)[0]
    except ValueError:
        return None


def is_public_key(der: bytes) -> bool:
    try:
        _, outer, after = only(der, SEQUENCE)
        _, algorithm, bits = only(outer, SEQUENCE)
        only(algorithm, OBJECT)
        _, _, end = only(bits, BIT_STRING)
    except ValueError:
        return False
    return not after and not end


def matches(record: bytes, certificate: bytes) -> bool:
    if len(record) < 4:
        return False
    selector, matching, data = record[1], record[2], record[3:]
    if selector == 0:
        selected: bytes | None = certificate
    elif selector == 1:
        selected = public_key(certificate)
    else:
        return False
    if selected is None:
        return False
    if matching == 0:
        return data == selected
    if matching == 1:
        return data == hashlib.sha256(selected).digest()
    return matching == 2 and data == hashlib.sha512(selected).digest()


def match(records: Iterable[bytes], certificates: Iterable[bytes]) -> list[tuple[int, int]]:
    rows = list(records)
    return [
        (index, number)
        for number, certificate in enumerate(certificates)
        for index, record in enumerate(rows)
        if matches(record, certificate)
    ]

"""Make constant databases: the format as its author describes it, https://cr.yp.to/cdb/cdb.txt, in the shortest way."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def _hash(key: bytes) -> int:
    value = 5381
    for octet in key:
        value = ((value * 33) % 2**32) ^ octet
    return value


def make_cdb(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The octets of a database with these records, in order."""
    body = bytearray()
    tables: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, data in records:
        number = _hash(key)
        tables[number % 256].append((number, 2048 + len(body)))
        body += struct.pack("<II", len(key), len(data)) + key + data
    header = bytearray()
    for table in tables:
        slots = [(0, 0)] * (2 * len(table))
        for number, place in table:
            at = (number // 256) % len(slots)
            while slots[at][1]:
                at = (at + 1) % len(slots)
            slots[at] = number, place
        header += struct.pack("<II", 2048 + len(body), len(slots))
        body += b"".join(struct.pack("<II", *slot) for slot in slots)
    return bytes(header + body)

"""cdb: a constant database file of D. J. Bernstein's format.

Layer: adapter.  Spec: expansion 5.2; the format is described at https://cr.yp.to/cdb/cdb.txt.
Input: a file of 256 pointers to hash tables, the records, the tables; every number is 32 bits, little-endian.
Invariants: no offset or length from the file is used before it is held against the size of the file; a search visits
each slot of a table at most once; the file stays mapped only while it is searched.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Final

from .driver import Deferral, Failure, bounded
from .files import open_regular

if TYPE_CHECKING:
    from engine.expand.searches import Search

_HEADER_OCTETS: Final = 2048
_PAIR: Final = struct.Struct("<II")


def cdb_hash(key: bytes) -> int:
    """The hash function of the format."""
    value = 5381
    for octet in key:
        value = ((value << 5) + value & 0xFFFFFFFF) ^ octet
    return value


def find_in_cdb(data: mmap.mmap | bytes, key: bytes) -> bytes | None:
    """The data of the first record with `key`, or None.

    Raises:
        ValueError: a number in the file points outside of it.
    """
    size = len(data)
    wanted = cdb_hash(key)
    table, slots = _PAIR.unpack_from(data, (wanted & 255) * 8)
    if not slots:
        return None
    if table < _HEADER_OCTETS or table + slots * 8 > size:
        raise ValueError("a hash table lies outside the file")
    start = (wanted >> 8) % slots
    for step in range(slots):
        value, record = _PAIR.unpack_from(data, table + (start + step) % slots * 8)
        if record == 0:
            return None
        if value != wanted:
            continue
        if record < _HEADER_OCTETS or record + 8 > size:
            raise ValueError("a record lies outside the file")
        key_octets, data_octets = _PAIR.unpack_from(data, record)
        end = record + 8 + key_octets + data_octets
        if end > size:
            raise ValueError("a record lies outside the file")
        if key_octets == len(key) and data[record + 8 : record + 8 + key_octets] == key:
            return bounded(data[end - data_octets : end])
    return None


class Cdb:
    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        shown = path.decode("utf-8", "surrogateescape")
        with open_regular(path, "cdb lookup", "cdb") as file:
            if os.fstat(file.fileno()).st_size < _HEADER_OCTETS:
                # Exim appends the text of an errno that nobody set
                raise Failure(f"failed to open {shown} too short for cdb lookup: Success")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    return find_in_cdb(data, key)
                except ValueError:
                    raise Deferral(f"cdb: corrupt cdb file {shown} (too short)") from None

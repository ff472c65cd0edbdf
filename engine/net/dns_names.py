"""Names in a DNS message: read from untrusted octets, written in plain, shown as text.

Layer: adapter (pure; no socket here).  Spec: RFC 1035 §2.3.4 (sizes), §3.1 (labels), §4.1.4 (compression).
A name is a tuple of labels in lower case without the root's empty one, so that names compare as DNS compares them.
Invariants: no length and no pointer is believed; reading all names of a message takes time in proportion to its size,
whatever its pointers do; nothing but `Garbled` is raised.
"""

from __future__ import annotations

import re
from typing import Final

import dns.name

#: labels of a name in lower case, without the empty one of the root
Labels = tuple[bytes, ...]

#: RFC 1035 §2.3.4: 255 octets with the lengths, which is 127 labels at most
_MAX_NAME_OCTETS: Final = 255
_MAX_LABELS: Final = 127
_PLAIN_LABEL: Final = re.compile(rb"[a-z0-9_-]+")


class Garbled(Exception):
    """The response to our question cannot be read: ask over TCP, or another server."""


def to_wire(labels: Labels) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in (*labels, b""))


def mix_case(name: bytes, case_bits: int) -> bytes:
    """`name` with a letter in upper case wherever its bit is set; lengths are below 64, which is no letter."""
    if not case_bits:
        return name
    mixed = bytearray(name)
    for at, octet in enumerate(name):
        if 0x61 <= octet <= 0x7A and case_bits >> at & 1:
            mixed[at] = octet - 32
    return bytes(mixed)


def name_to_text(labels: Labels) -> str:
    """Without trailing dot, escaped as in a zone file where it has to be; "" for the root."""
    if all(map(_PLAIN_LABEL.fullmatch, labels)):
        return b".".join(labels).decode("ascii")
    return dns.name.Name((*labels, b"")).to_text(omit_final_dot=True)


class NameReader:
    """Reads the names of one message."""

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self._names: dict[int, tuple[Labels, int]] = {}

    def name_at(self, position: int) -> tuple[Labels, int]:
        """The name at `position`, and how many octets it takes there.

        Whatever a pointer leads to is remembered by where it stands, so that following it again costs nothing.
        """
        labels, end, pointer = self._labels(position)
        parts = [(position, labels, end)]
        name: Labels = ()
        while pointer is not None:
            start = parts[-1][0]
            if len(parts) > _MAX_LABELS:
                raise Garbled(f"bad compression at octet {position}")
            known = self._names.get(pointer)
            if known is None:
                labels, part_end, following = self._labels(pointer)
                parts.append((pointer, labels, part_end))
            else:
                name, part_end = known
                following = None
            if part_end > start:
                # RFC 1035 §4.1.4: a pointer is to "a prior occurance", which ends before what it belongs to; so there
                # are no loops
                raise Garbled(f"bad compression at octet {position}")
            pointer = following
        for start, labels, part_end in reversed(parts):
            name = (*labels, *name)
            if sum(map(len, name)) + len(name) >= _MAX_NAME_OCTETS:
                raise Garbled(f"name at octet {position} is too long")
            self._names[start] = name, part_end
        return name, end - position

    def _labels(self, position: int) -> tuple[list[bytes], int, int | None]:
        """The labels that stand at `position`, where they end, and where the pointer behind them leads."""
        wire = self.wire
        labels: list[bytes] = []
        while len(labels) <= _MAX_LABELS and position < len(wire):
            size = wire[position]
            position += 1
            if size == 0:
                return labels, position, None
            if size >= 0xC0:
                if position == len(wire):
                    break
                return labels, position + 1, (size & 0x3F) << 8 | wire[position]
            if size > 63 or size > len(wire) - position:
                break
            labels.append(wire[position : position + size].lower())
            position += size
        raise Garbled(f"bad name before octet {position}")

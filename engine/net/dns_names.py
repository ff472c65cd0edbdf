"""Names in a DNS message: read from untrusted octets, written in plain, shown as text.

Layer: adapter (pure; no socket here).  Spec: RFC 1035 §2.3.4 (sizes), §3.1 (labels), §4.1.4 (compression).
A name is a tuple of labels in lower case without the root's empty one, so that names compare as DNS compares them.
Invariants: no length and no pointer is believed; reading all names of a message takes time in proportion to its size,
whatever its pointers do; nothing but `Garbled` is raised.
"""

from __future__ import annotations

import re
from typing import Final

import dns.exception
import dns.name

#: labels of a name in lower case, without the empty one of the root
Labels = tuple[bytes, ...]

#: RFC 1035 §2.3.4: 255 octets with the lengths, which is 127 labels at most
_MAX_NAME_OCTETS: Final = 255
_MAX_LABELS: Final = 127
_MAX_LABEL_OCTETS: Final = 63
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?", re.ASCII)
_PLAIN_LABEL: Final = re.compile(rb"[a-z0-9_-]+")


class Garbled(Exception):
    """The response to our question cannot be read: ask over TCP, or another server."""


def labels_of(name: str) -> Labels:
    """The labels of an absolute name as text, with or without trailing dot, escaped as in a zone file.

    Raises:
        ValueError: it cannot be a domain name.
    """
    if len(name) <= _MAX_NAME_OCTETS and _PLAIN_NAME.fullmatch(name):
        labels = tuple(name.lower().removesuffix(".").encode("ascii").split(b"."))
        if len(name) < _MAX_NAME_OCTETS - 1 and len(max(labels, key=len)) <= _MAX_LABEL_OCTETS:
            return labels
    if not name.isascii():
        raise ValueError(f"{name!r} is not ASCII")
    try:
        absolute = dns.name.from_text(name, origin=dns.name.root)
    except dns.exception.DNSException as error:
        raise ValueError(f"{name!r} is not a domain name: {error}") from None
    return tuple(label.lower() for label in absolute.labels[:-1])


def to_wire(labels: Labels) -> bytes:
    return b"".join([b"%c%b" % (len(label), label) for label in labels]) + b"\0"


#: octet of random bits -> the bit of upper and lower case, for eight letters
_CASE_OF_BITS: Final = tuple(bytes(0x20 if bits >> at & 1 else 0 for at in range(8)) for bits in range(256))
#: letter in lower case -> that bit; every other octet -> none
_CASE_OF_LETTER: Final = bytes(0x20 if 0x61 <= octet <= 0x7A else 0 for octet in range(256))


def mix_case(name: bytes, case_bits: int) -> bytes:
    """`name` with a letter in upper case wherever its bit is set; lengths are below 64, which is no letter."""
    size = len(name)
    bits = (case_bits & (1 << size) - 1).to_bytes(-(-size // 8), "little")
    wanted = b"".join([_CASE_OF_BITS[octet] for octet in bits])[:size]
    changed = int.from_bytes(wanted) & int.from_bytes(name.translate(_CASE_OF_LETTER))
    return (int.from_bytes(name) ^ changed).to_bytes(size)


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

    def remember(self, position: int, name: Labels, end: int) -> None:
        """`name` stands at `position` and ends at `end`: its octets were compared."""
        self._names[position] = name, end

    def pointed_or_none(self, position: int) -> tuple[Labels, int] | None:
        """As `name_at`, where the name is the root, or nothing but a pointer to one that is known; else None."""
        head = self.wire[position : position + 2]
        if head[:1] == b"\0":
            return (), 1
        if len(head) < 2 or head[0] < 0xC0:
            return None
        known = self._names.get((head[0] & 0x3F) << 8 | head[1])
        return (known[0], 2) if known is not None and known[1] <= position else None

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

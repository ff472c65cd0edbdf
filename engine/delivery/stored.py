"""What the outbox keeps of an event: whose it is, what its values are called, and the values, packed once for all.

Layer: orchestration (values only).  Spec: design.md "Events and action workers".
A payload is the msgpack array ``[version, transport, message id, names, headers, values]``: names is one text with a
space between two, headers is an array of header lines, values the octets of an array with a value for each name, which
goes into the frame for a worker as it stands.  Text is octets there, and a certificate is its own type (frames.py).
Invariants: `unpack` gives None for whatever is not of this version and whole, so that no worker gets a frame that is
none.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..actions import _ring
from ..actions.frames import arrived_untrusted, travelling
from ..errors import FrameError
from ..events.fields import FIELDS, HOST_FIELDS, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..events import Happening
    from ..events.catalogue import EventRow

_VERSION: Final = 2
#: lists of names that are remembered; there are as many as events, and some for their strings
_MAX_NAMES: Final = 500


@dataclass(slots=True, eq=False)
class Stored:
    """A payload.

    Attributes:
        transport: whose event it is, "" for [main].
        names: of the values; values: packed.
        headers: of the message, as `Scope.headers`.
    """

    transport: str
    message_id: str
    names: tuple[str, ...]
    headers: tuple[bytes, ...]
    values: bytes

    def variables(self) -> dict[str, Any]:
        """Name -> value.  Raises FrameError."""
        return dict(zip(self.names, map(arrived_untrusted, _ring.unpack(self.values)), strict=True))


def pack_values(values: Iterable[object]) -> bytes:
    """Values of variables as they travel: text as octets, certificates as such."""
    return _ring.pack(
        tuple(
            [
                value.encode("utf-8", "surrogateescape") if isinstance(value, str) else travelling(value)
                for value in values
            ]
        )
    )


def pack_fields(row: EventRow, it: Happening) -> bytes:
    """The values of the fields of an event (events/fields.py), packed; those of the contact once for all its events."""
    count = HOST_FIELDS[row.name]
    if it.certificate is None:
        contact = it.contact
        state = contact.state()
        if contact.kept[0] != state:
            contact.kept = state, {}
        kept = contact.kept[1]
        host = kept.get(count)
        if host is None:
            host = kept[count] = _members(values_of(row, it, 0, count))
    else:
        host = _members(values_of(row, it, 0, count))
    return _head(len(FIELDS[row.name])) + host + _members(values_of(row, it, count))


def _head(count: int) -> bytes:
    """What an array of so many members begins with in msgpack."""
    return b"%c" % (0x90 | count) if count < 16 else b"\xdc" + count.to_bytes(2)


def _members(values: tuple[object, ...]) -> bytes:
    return pack_values(values)[len(_head(len(values))) :]


@functools.lru_cache(maxsize=_MAX_NAMES)
def _joined(names: tuple[str, ...]) -> str:
    return " ".join(names)


def pack(
    transport: str, message_id: str, names: Iterable[str], values: bytes, headers: tuple[bytes, ...] = ()
) -> bytes:
    """The payload of an event; `values` are packed by `pack_values` or `pack_fields`."""
    return _ring.pack((_VERSION, transport, message_id, _joined(tuple(names)), headers, values))


def unpack(payload: bytes, *, is_ours: bool = False) -> Stored | None:
    """What `pack` made; None for what is none of ours.

    Args:
        is_ours: this process has just packed it, so nothing in it needs to be looked at.
    """
    try:
        version, transport, message_id, text, headers, values = _ring.unpack(payload)
        if version != _VERSION or not isinstance(values, bytes):
            return None
        names = _split(text)
        if not is_ours and len(_ring.unpack(values)) != len(names):
            return None
    except (FrameError, TypeError, ValueError, AttributeError):
        return None
    return Stored(str(transport), str(message_id), names, tuple(headers), values)


@functools.lru_cache(maxsize=_MAX_NAMES)
def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())

"""What the outbox keeps of an event: whose it is, what its values are called, and the values, packed once for all.

Layer: orchestration (values only).  Spec: design.md "Events and action workers".
A payload is the msgpack array ``[version, transport, message id, names, headers, values]``: names is one text with a
space between two, headers is an array of header lines, values the octets of an array with a value for each name, which
goes into the frame for a worker as it stands.  Text is octets there, and a certificate is its own type (frames.py).
Invariants: what a `Layout` packs is what `pack_values` makes of the same values; `unpack` gives None for whatever is
not of this version and whole, so that no worker gets a frame that is none.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..actions import _ring
from ..actions.frames import arrived_untrusted, state_frame, state_untrusted, travelling
from ..errors import FrameError
from ..events import Happening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..events import Contact
    from ..queue.model import Job

_VERSION: Final = 2
#: how often an event was handed on again; told only of those that were, as one value more
REDELIVERED: Final = "event_redelivered"
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


def add_value(values: bytes, value: int) -> bytes:
    """Packed values, and one more at their end.  Raises FrameError."""
    found: tuple[Any, ...] = _ring.unpack(values)
    return _ring.pack((*found, value))


#: what is told of a recipient and nobody else, in the order of the values that `Layout.flat` takes
_FLAT: Final = {
    name: number
    for number, name in enumerate(
        ("local_part", "domain", "message_exim_id", "event_data", "event_defer_errno", "event_time")
    )
} | {"message_id": 2}


class Layout:
    """How one event of a transport is packed, settled once; what is the same for a connection is packed once, too.

    Args:
        transport: whose event it is, "" for [main].
        names: of the values; makers: what makes each of a `Happening`.
        kept: how many of them, the first ones, tell of nothing but the contact and the sender.
        wants_headers: the header of the message goes with it.

    Attributes:
        is_flat: the others are all among those that `flat` takes; wants: their names.
    """

    def __init__(
        self,
        transport: str,
        names: tuple[str, ...],
        makers: Sequence[Callable[[Happening], object]],
        kept: int,
        *,
        wants_headers: bool = False,
    ) -> None:
        self._first, self._rest = makers[:kept], makers[kept:]
        self._head = _head(len(makers))
        self._rest_head_octets = len(_head(len(self._rest)))
        self._wants_headers = wants_headers
        self._before = b"\x96" + _ring.pack(_VERSION) + _ring.pack(transport)
        self._names = _ring.pack(" ".join(names))
        self._names_alone = self._names + _ring.pack(())
        self.is_flat = not wants_headers and all(name in _FLAT for name in names[kept:])
        self._pick = _picker([_FLAT[name] for name in names[kept:]] if self.is_flat else [])
        self.wants = frozenset(names[kept:])

    def payload(self, it: Happening) -> bytes:
        """The payload of an event for the outbox."""
        values = _ring.pack(self.values(it))
        headers = it.headers() if self._wants_headers else ()
        return b"".join((self._before, _ring.pack(it.message_id), self._names, _ring.pack(headers), values))

    def flat(self, contact: Contact, job: Job, values: FlatValues) -> bytes:
        """As `payload`, for one that `is_flat` and a contact that is about its own certificate.

        Args:
            job: whose message it is.
            values: local part, domain and id of the message, `$event_data`, `$event_defer_errno`, UTC epoch seconds;
                text as octets, and anything for the last three where nobody `wants` them.
        """
        known = contact.kept.get(self)
        if known is None or known[0] != job.sender or known[1] != job.created_at:
            it = Happening(contact, sender=job.sender, created_at=job.created_at)
            known = contact.kept[self] = job.sender, job.created_at, self._head + _members(self._first, it)
        first = known[2]
        rest = _ring.pack(self._pick(values))[self._rest_head_octets :]
        message_id = values[2]
        octets = len(first) + len(rest)
        if octets < _TABLE and len(message_id) < len(_TEXT):
            return b"".join(
                (self._before, _TEXT[len(message_id)], message_id, self._names_alone, _OCTETS[octets], first, rest)
            )
        return b"".join((self._before, _ring.pack(message_id.decode()), self._names_alone, _ring.pack(first + rest)))

    def values(self, it: Happening) -> bytes:
        """The values of an event alone, as an array."""
        contact = it.contact
        if it.certificate is not None:
            first = self._head + _members(self._first, it)
        else:
            known = contact.kept.get(self)
            if known is None or known[0] != it.sender or known[1] != it.created_at:
                first = self._head + _members(self._first, it)
                known = contact.kept[self] = it.sender, it.created_at, first
            first = known[2]
        return first + _members(self._rest, it)


#: local part, domain, id of the message, data, error number, UTC epoch seconds
FlatValues = tuple[bytes, bytes, bytes, bytes, int, float]
#: what msgpack writes in front of so many octets, and of a text of so many
_TABLE: Final = 1024
_OCTETS: Final = [_ring.pack(bytes(octets))[: -octets or None] for octets in range(_TABLE)]
_TEXT: Final = [bytes((0xA0 | octets,)) for octets in range(32)]


def _picker(numbers: list[int]) -> Callable[[FlatValues], tuple[object, ...]]:
    """Takes the values of these numbers."""
    if len(numbers) < 2:
        return lambda values: tuple([values[number] for number in numbers])
    return operator.itemgetter(*numbers)


def _head(count: int) -> bytes:
    """What an array of so many members begins with in msgpack."""
    return b"%c" % (0x90 | count) if count < 16 else b"\xdc" + count.to_bytes(2)


def _members(makers: Sequence[Callable[[Happening], object]], it: Happening) -> bytes:
    return pack_values([make(it) for make in makers])[len(_head(len(makers))) :]


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
        stored = Stored(str(transport), str(message_id), names, tuple(headers), values)
        if not is_ours:
            # what a thread or a worker could not read would end it, and the next one
            if not isinstance(_ring.unpack(values), tuple):
                return None
            stored.variables()
            state_untrusted(state_frame(stored.headers))
    except (FrameError, TypeError, ValueError, AttributeError):
        return None
    return stored


@functools.lru_cache(maxsize=_MAX_NAMES)
def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())

"""What the outbox keeps of an event: whose it is, what its values are called, and the values, packed once for all.

Layer: orchestration (values only).  Spec: design.md "Events and action workers".
A payload is the msgpack array ``[version, transport, message id, names, headers, values]``: names are octets, a number
of `_NAMES` each; headers is an array of header lines; values are the octets of an array with a value for each name, and
go into the frame for a worker as they stand.  Text is octets there, and a certificate is its own type (frames.py).
What version 2 has stored can still be read: there names are one text with a space between two.
Invariants: what a `Layout` packs is what `pack_values` makes of the same values; `unpack` gives None for whatever is
not of this version and whole, so that no worker gets a frame that is none.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..actions import _ring
from ..actions.frames import arrived_untrusted, state_frame, state_untrusted, travelling
from ..errors import FrameError
from ..events import Happening
from ..queue.model import OutboxEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..events import Contact
    from ..queue.model import Job

_VERSION: Final = 3
#: the version before, whose names are text
_VERSION_2: Final = 2
#: how often an event was handed on again; told only of those that were, as one value more
REDELIVERED: Final = "event_redelivered"
#: lists of names that are remembered; there are as many as events, and some for their strings
_MAX_NAMES: Final = 500
#: what the numbers of names are for; the queue of an older program has them, so this is only ever added to
_NAMES: Final = (
    *("event_name", "event_data", "event_defer_errno", "event_time", "event_cert_source", "event_redelivered"),
    *("router_name", "transport_name", "local_part", "domain"),
    *("sender_address", "sender_address_local_part", "sender_address_domain", "return_path"),
    *("message_exim_id", "message_id", "message_size", "message_age", "received_time"),
    *("host", "host_address", "host_port", "lookup_dnssec_authenticated", "sending_ip_address", "sending_port"),
    *("tls_out_dane", "tls_out_tlsa_usage", "tls_out_certificate_verified", "tls_out_peercert", "tls_out_ourcert"),
    *("tls_out_peerdn", "tls_out_cipher", "tls_out_cipher_std", "tls_out_ver", "tls_out_bits", "tls_out_sni"),
    *("tls_out_ocsp", "tls_out_resumption", "sender_host_authenticated"),
)
_NUMBERS: Final = {name: number for number, name in enumerate(_NAMES)}


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


@dataclass(slots=True)
class Told(OutboxEvent):
    """An event that this process has raised, with what is known of it beside what the queue keeps.

    Attributes:
        layout: what its values are; None if it has to be looked for in the payload.
        begin: where they begin in the payload.
        message_id: whose event it is, "" for none.
    """

    layout: Layout | None = field(default=None, compare=False)
    begin: int = field(default=0, compare=False)
    message_id: str = field(default="", compare=False)


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


def join_audience(places: Iterable[str]) -> str:
    """Who is to get an event, as `OutboxEvent.group` of one for all that want it."""
    return "\n".join(places)


def split_audience(text: str) -> list[str]:
    """What was joined."""
    return text.split("\n") if text else []


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
        handler, group: who the events are for, as those of `OutboxEvent`.
    """

    def __init__(
        self,
        transport: str,
        names: tuple[str, ...],
        makers: Sequence[Callable[[Happening], object]],
        kept: int,
        *,
        handler: str = "",
        group: str = "",
        wants_headers: bool = False,
    ) -> None:
        self.transport = transport
        self.names = names
        self.handler = handler
        self.group = group
        self._first, self._rest = makers[:kept], makers[kept:]
        self._head = _head(len(makers))
        self._rest_head_octets = len(_head(len(self._rest)))
        self._wants_headers = wants_headers
        self._before = b"\x96" + _ring.pack(_VERSION) + _ring.pack(transport)
        self._names = _ring.pack(bytes([_NUMBERS[name] for name in names]))
        self._names_alone = self._names + _ring.pack(())
        self.is_flat = not wants_headers and all(name in _FLAT for name in names[kept:])
        self._pick = _picker([_FLAT[name] for name in names[kept:]] if self.is_flat else [])
        self.wants = frozenset(names[kept:])

    def told(self, event: str, key: str, it: Happening) -> Told:
        """An event for the outbox."""
        values = self.values(it)
        if self._wants_headers:
            headers = _ring.pack(it.headers())
            payload = b"".join((self._before, _ring.pack(it.message_id), self._names, headers, _ring.pack(values)))
            return Told(event, key, payload, 0, 0.0, self.handler, self.group)
        payload = b"".join((self._before, _ring.pack(it.message_id), self._names_alone, _ring.pack(values)))
        begin = len(payload) - len(values)
        return Told(event, key, payload, 0, 0.0, self.handler, self.group, 0, self, begin, it.message_id)

    def flat(self, event: str, key: str, contact: Contact, job: Job, message_id: str, values: FlatValues) -> Told:
        """As `told`, for one that `is_flat` and a contact that is about its own certificate.

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
        id_octets = values[2]
        octets = len(first) + len(rest)
        if octets < _TABLE and len(id_octets) < len(_TEXT):
            payload = b"".join(
                (self._before, _TEXT[len(id_octets)], id_octets, self._names_alone, _OCTETS[octets], first, rest)
            )
        else:
            payload = b"".join((self._before, _ring.pack(message_id), self._names_alone, _ring.pack(first + rest)))
        begin = len(payload) - octets
        return Told(event, key, payload, 0, 0.0, self.handler, self.group, 0, self, begin, message_id)

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
        version, transport, message_id, names, headers, values = _ring.unpack(payload)
        if not isinstance(values, bytes):
            return None
        if version == _VERSION and isinstance(names, bytes):
            names = _named(names)
        elif version == _VERSION_2 and isinstance(names, str):
            names = _split(names)
        else:
            return None
        stored = Stored(str(transport), str(message_id), names, tuple(headers), values)
        if not is_ours:
            # what a thread or a worker could not read would end it, and the next one
            if not isinstance(_ring.unpack(values), tuple):
                return None
            stored.variables()
            state_untrusted(state_frame(stored.headers))
    except (FrameError, TypeError, ValueError, IndexError):
        return None
    return stored


@functools.lru_cache(maxsize=_MAX_NAMES)
def _named(numbers: bytes) -> tuple[str, ...]:
    return tuple([_NAMES[number] for number in numbers])


@functools.lru_cache(maxsize=_MAX_NAMES)
def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())

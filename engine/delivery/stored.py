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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..actions import _ring
from ..actions.frames import arrived_untrusted, state_frame, state_untrusted, travelling
from ..errors import FrameError
from ..events import Happening
from ._flat import VALUES, Flat, Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..events import Contact

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


#: what is told of a recipient and nobody else -> where the kernel has it
_PICKS: Final = {name: place for place, name in enumerate(VALUES)} | {"message_id": VALUES.index("message_exim_id")}


class Layout(Flat):
    """How one event of a transport is packed, settled once; what is the same for a connection is packed once, too.

    Args:
        event: its name.
        transport: whose event it is, "" for [main].
        names: of the values; makers: what makes each of a `Happening`.
        kept: how many of them, the first ones, tell of nothing but the contact and the sender.
        handler, group: who the events are for, as those of `OutboxEvent`.
        wants_headers: the header of the message goes with it.

    Attributes:
        is_flat: the others are all among `VALUES`, so that `flat` can pack them; wants: their names.
    """

    def __init__(
        self,
        event: str,
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
        self.wants = frozenset(names[kept:])
        self.is_flat = not wants_headers and self.wants <= _PICKS.keys()
        self._first, self._rest = makers[:kept], makers[kept:]
        self._head = _head(len(makers))
        self._wants_headers = wants_headers
        self._before = b"\x96" + _ring.pack(_VERSION) + _ring.pack(transport)
        self._names = _ring.pack(bytes([_NUMBERS[name] for name in names]))
        self._names_alone = self._names + _ring.pack(())
        picks = tuple([_PICKS[name] for name in names[kept:]]) if self.is_flat else ()
        super().__init__(event, self._before, self._names_alone, picks, handler, group)

    def told(self, key: str, it: Happening) -> Told:
        """An event for the outbox."""
        values = self.values(it)
        if self._wants_headers:
            headers = _ring.pack(it.headers())
            payload = b"".join((self._before, _ring.pack(it.message_id), self._names, headers, _ring.pack(values)))
            return Told(self.event, key, payload, 0, 0.0, self.handler, self.group)
        payload = b"".join((self._before, _ring.pack(it.message_id), self._names_alone, _ring.pack(values)))
        begin = len(payload) - len(values)
        return Told(self.event, key, payload, 0, 0.0, self.handler, self.group, 0, self, begin, it.message_id)

    def keep(self, contact: Contact, sender: str, created_at: float) -> tuple[str, float, bytes]:
        """Pack what is the same for a contact and a sender, and the head of all values; kept with the contact."""
        it = Happening(contact, sender=sender, created_at=created_at)
        known = contact.kept[self] = sender, created_at, self._head + _members(self._first, it)
        return known

    def values(self, it: Happening) -> bytes:
        """The values of an event alone, as an array."""
        contact = it.contact
        if it.certificate is not None:
            first = self._head + _members(self._first, it)
        else:
            known = contact.kept.get(self)
            if known is None or known[0] != it.sender or known[1] != it.created_at:
                known = self.keep(contact, it.sender, it.created_at)
            first = known[2]
        return first + _members(self._rest, it)


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

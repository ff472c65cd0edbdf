"""What the outbox keeps of an event."""

from __future__ import annotations

import datetime

import pytest

from engine.actions import _ring
from engine.delivery.stored import pack, pack_fields, pack_values, unpack
from engine.events import CATALOGUE, Contact, Happening
from engine.events.catalogue import EventRow
from engine.events.fields import FIELDS, HOST_FIELDS, values_of
from engine.tls.facts import TlsFacts
from engine.tls.selfmade import make_leaf

DER = make_leaf(["mx.example"], now=datetime.datetime.now(datetime.UTC)).chain_der[0]


def contact() -> Contact:
    return Contact("r", "t", "mx.example", "192.0.2.1", 25, True)


def happening(where: Contact, **options: object) -> Happening:
    it = Happening(where, "250 ok", 256, "ada@d.example", "news@s.example", "1vXXXX-00000000001-0001", 5.5, 6.5)
    for name, value in options.items():
        setattr(it, name, value)
    return it


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.name)
def test_what_is_packed_once_a_contact_is_what_would_be_packed_each_time(row: EventRow) -> None:
    """Whatever becomes known of the contact in between, and for events about another certificate."""
    where = contact()
    steps: list[dict[str, object]] = [
        {},
        {"local_address": "[192.0.2.9]:4711"},
        {"tls": TlsFacts("TLS1.3", "TLS_AES_256_GCM_SHA384", 256, (DER,), sni="mx.example")},
        {"usage_mask": 8},
        {"refused_certificate": DER},
        {"tls": None},
    ]
    for step in steps:
        for name, value in step.items():
            setattr(where, name, value)
        for certificate in (None, None, DER):
            it = happening(where, certificate=certificate)
            expected = pack_values(values_of(row, it))
            assert pack_fields(row, it) == expected


def test_the_fields_of_the_contact_come_first() -> None:
    for row in CATALOGUE:
        assert FIELDS[row.name][HOST_FIELDS[row.name]] == "event_time"


def test_a_payload_comes_back() -> None:
    row = next(row for row in CATALOGUE if row.name == "msg:delivery")
    it = happening(contact())
    stored = unpack(pack("t", it.message_id, FIELDS[row.name], pack_fields(row, it), (b"A: b\n",)))
    assert stored is not None
    assert (stored.transport, stored.message_id, stored.headers) == ("t", it.message_id, (b"A: b\n",))
    assert stored.names == FIELDS[row.name]
    assert stored.variables()["event_data"] == b"250 ok"
    assert unpack(_ring.pack((2, "t", "", "a b", (), pack_values(("one",))))) is None

"""What the outbox keeps of an event."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import ExtType

from engine.actions import _ring
from engine.delivery.stored import _NAMES, Layout, Stored, pack_values, unpack
from engine.events import CATALOGUE, Contact, Happening
from engine.events.catalogue import EventRow
from engine.events.fields import FIELDS, MAKERS
from engine.events.happening import CONTACT_VARIABLES, VARIABLES
from engine.queue.model import Job, JobCounts, JobState
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


def layout(names: tuple[str, ...], *, wants_headers: bool = False) -> Layout:
    kept = next((number for number, name in enumerate(names) if name not in CONTACT_VARIABLES), len(names))
    return Layout("t", names, [MAKERS[name] for name in names], kept, wants_headers=wants_headers)


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.name)
def test_what_is_packed_once_a_contact_is_what_would_be_packed_each_time(row: EventRow) -> None:
    """Whatever becomes known of the contact in between, for other senders, and for events about another certificate."""
    where, mine = contact(), layout(FIELDS[row.name])
    steps: list[dict[str, object]] = [
        {},
        {"local_address": "[192.0.2.9]:4711"},
        {"tls": TlsFacts("TLS1.3", "TLS_AES_256_GCM_SHA384", 256, (DER,), sni="mx.example")},
        {"usage_mask": 8},
        {"refused_certificate": DER},
        {"tls": None},
    ]
    for step in steps:
        where.learn(**step)
        for options in ({}, {}, {"sender": ""}, {"created_at": 7.25}, {"certificate": DER}, {}):
            it = happening(where, **options)
            assert mine.values(it) == pack_values([MAKERS[name](it) for name in FIELDS[row.name]])


@pytest.mark.parametrize("names", [FIELDS["msg:delivery"], ("domain",), ("host",), (), ("message_id", "event_data")])
@given(data=st.text(max_size=400), errno=st.integers(-100, 2**40), now=st.floats(0, 1e11), many=st.booleans())
def test_an_event_of_a_recipient_is_packed_flat_as_it_would_be_from_a_happening(
    names: tuple[str, ...], data: str, errno: int, now: float, many: bool
) -> None:
    mine = layout(names)
    assert mine.is_flat
    assert ("event_data" in names) == ("event_data" in mine.wants)
    where = contact()
    told = data.encode("utf-8", "surrogateescape") if data.isprintable() else b"\x80" * (70_000 if many else 3)
    it = happening(where, data=told, errno=errno, now=now)
    counts = JobCounts()
    job = Job(7, "", it.sender, JobState.ACTIVE, False, False, True, it.created_at, 0.0, None, None, {}, counts)
    values = (b"ada", b"d.example", it.message_id.encode(), told, errno, now)
    flat = mine.flat("msg:delivery", "key", where, job, it.message_id, values)
    slow = mine.told("msg:delivery", "key", it)
    found, expected = unpack(flat.payload), unpack(slow.payload)
    assert found is not None
    assert expected is not None
    for one in (flat, slow):
        assert (one.layout, one.message_id) == (mine, it.message_id)
        assert one.payload[one.begin :] == expected.values
    for name in Stored.__slots__:
        assert getattr(found, name) == getattr(expected, name)


def test_what_cannot_be_packed_flat_says_so() -> None:
    assert not layout(("domain", "message_size")).is_flat
    assert not layout(("domain",), wants_headers=True).is_flat


def test_what_tells_of_the_contact_and_the_sender_comes_first() -> None:
    for row in CATALOGUE:
        names = FIELDS[row.name]
        assert all(name in CONTACT_VARIABLES for name in names[: names.index("event_time")])
        assert not {"sender_address", "host", "received_time"} & set(names[names.index("event_time") :])


def test_a_payload_comes_back() -> None:
    it = happening(contact(), content=b"A: b\r\n\r\n")
    names = FIELDS["msg:delivery"]
    told = layout(names, wants_headers=True).told("msg:delivery", "key", it)
    # with headers it has to be looked into
    assert told.layout is None
    stored = unpack(told.payload)
    assert stored is not None
    assert (stored.transport, stored.message_id, stored.headers) == ("t", it.message_id, (b"A: b\n",))
    assert stored.names == names
    assert stored.variables()["event_data"] == b"250 ok"


@pytest.mark.parametrize(("version", "one", "two"), [(3, b"\1", b"\1\2"), (2, "a", "a b")])
def test_what_no_worker_could_read_is_none(version: int, one: object, two: object) -> None:
    assert unpack(_ring.pack((version, "t", "", one, (), pack_values(("one",))))) is not None
    assert unpack(_ring.pack((version, "t", "", two, (), pack_values(("one",))))) is None
    for value in ((ExtType(99, b""),), ((1,),), ({1: 2},), 1, {b"a": b"b"}):
        assert unpack(_ring.pack((version, "t", "", one, (), _ring.pack(value)))) is None
    assert unpack(_ring.pack((version, "t", "", one, (7,), pack_values(("one",))))) is None
    wrong: tuple[object, ...] = (7, None, (), {}, ("a",), b"\xff", "a" if version == 3 else b"\1")
    for names in wrong:
        assert unpack(_ring.pack((version, "t", "", names, (), pack_values(("one",))))) is None
    assert unpack(_ring.pack((4, "t", "", one, (), pack_values(("one",))))) is None


def test_what_the_version_before_has_stored_can_be_read() -> None:
    stored = unpack(_ring.pack((2, "t", "1vX", "host event_data", (b"A: b\n",), pack_values(("mx", b"250 ok")))))
    assert stored is not None
    assert (stored.transport, stored.message_id, stored.headers) == ("t", "1vX", (b"A: b\n",))
    assert stored.variables() == {"host": b"mx", "event_data": b"250 ok"}


def test_every_name_has_a_number_that_it_keeps() -> None:
    """A queue outlives the program: what stands here may be added to, and never be changed."""
    assert {*VARIABLES, "event_name"} | {name for names in FIELDS.values() for name in names} <= set(_NAMES)
    assert len(_NAMES) == len(set(_NAMES)) < 256
    assert " ".join(_NAMES[:38]) == (
        "event_name event_data event_defer_errno event_time event_cert_source event_redelivered router_name"
        " transport_name local_part domain sender_address sender_address_local_part sender_address_domain return_path"
        " message_exim_id message_id message_size message_age received_time host host_address host_port"
        " lookup_dnssec_authenticated sending_ip_address sending_port tls_out_dane tls_out_tlsa_usage"
        " tls_out_certificate_verified tls_out_peercert tls_out_ourcert tls_out_peerdn tls_out_cipher"
        " tls_out_cipher_std tls_out_ver tls_out_bits tls_out_sni tls_out_ocsp tls_out_resumption"
    )

"""What the outbox keeps of an event."""

from __future__ import annotations

import dataclasses
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import ExtType

from engine.actions import _ring
from engine.delivery._flat import Flat, Told
from engine.delivery.events import _one_line
from engine.delivery.stored import _NAMES, Layout, pack_values, unpack
from engine.events import CATALOGUE, Contact, Happening
from engine.events.catalogue import EventRow
from engine.events.fields import FIELDS, MAKERS
from engine.events.happening import CONTACT_VARIABLES, VARIABLES
from engine.queue.model import Claim, Job, JobCounts, JobState, OutboxEvent
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
    return Layout("msg:delivery", "t", names, [MAKERS[name] for name in names], kept, wants_headers=wants_headers)


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


FLAT = (FIELDS["msg:delivery"], FIELDS["msg:rcpt:defer"], ("domain",), ("host",), (), ("message_id", "event_data"))


@pytest.mark.parametrize("names", FLAT)
@given(
    data=st.text(max_size=400)
    | st.sampled_from(["x" * 255, "x" * 256, "é" * 128, "x" * 70_000, "a\nb\\\n", "\udc80\n"]),
    errno=st.integers(-(2**63), 2**63 - 1),
    now=st.floats(0, 1e11),
    address=st.text(max_size=300).map(lambda text: text.replace("@", "")) | st.just("ada@d.example"),
    message_id=st.sampled_from(["1vXXXX-00000000001-0001", "", "x" * 31, "x" * 32, "x" * 300, "ü"]),
    recipient=st.integers(0, 2**63 - 1),
    attempts=st.integers(0, 2**31),
)
def test_an_event_of_a_recipient_is_packed_flat_as_it_would_be_from_a_happening(
    names: tuple[str, ...],
    data: str,
    errno: int,
    now: float,
    address: str,
    message_id: str,
    recipient: int,
    attempts: int,
) -> None:
    mine = layout(names)
    assert mine.is_flat
    assert ("event_data" in names) == ("event_data" in mine.wants)
    where = contact()
    job = Job(7, "", "news@s.example", JobState.ACTIVE, False, False, True, 5.5, 0.0, None, None, {}, JobCounts())
    it = happening(where, data=_one_line(data), errno=errno, now=now, address=address, message_id=message_id)
    claim = Claim(recipient, 1, address, attempts, False, 0.0)
    flat = mine.flat(where, job, message_id, claim, data, errno, now)
    slow = mine.told(f"{message_id}/{recipient}/{attempts + 1}/msg:delivery", it)
    for name in ("name", "key", "payload", "id", "handler", "group", "redelivered", "layout", "begin", "message_id"):
        assert getattr(flat, name) == getattr(slow, name), name
    found = unpack(flat.payload)
    assert found is not None
    assert (found.names, found.message_id, found.transport) == (names, message_id, "t")
    assert flat.payload[flat.begin :] == found.values == mine.values(it)


def test_what_is_kept_of_another_sender_is_packed_anew() -> None:
    mine, where = layout(FIELDS["msg:delivery"]), contact()
    claim = Claim(1, 1, "ada@d.example", 0, False, 0.0)
    for sender, created_at in (("a@s.example", 5.0), ("b@s.example", 5.0), ("b@s.example", 6.0), ("b@s.example", 6.0)):
        job = Job(7, "", sender, JobState.ACTIVE, False, False, True, created_at, 0.0, None, None, {}, JobCounts())
        stored = unpack(mine.flat(where, job, "m", claim, "", 0, 0.0).payload)
        assert stored is not None
        values = stored.variables()
        assert (values["sender_address"], values["received_time"]) == (sender.encode(), int(created_at))
    where.learn(host="other.example")
    stored = unpack(mine.flat(where, job, "m", claim, "", 0, 0.0).payload)
    assert stored is not None
    assert stored.variables()["host"] == b"other.example"


def test_what_is_no_place_of_a_value_is_refused() -> None:
    for picks in ((6,), (-1,), (0,) * 33):
        with pytest.raises(ValueError, match="value"):
            Flat("msg:delivery", b"", b"", picks, "", "")


def test_what_a_thread_finds_in_an_event_of_ours_is_what_the_queue_gives() -> None:
    """The kernel's event has the attributes of those that are read, with the same defaults."""
    ours, read = Told("msg:delivery", "k", b"p"), OutboxEvent("msg:delivery", "k", b"p")
    for each in dataclasses.fields(read):
        assert getattr(ours, each.name) == getattr(read, each.name)
        setattr(ours, each.name, getattr(read, each.name))
    with pytest.raises(TypeError):
        ours.payload = "p"  # type: ignore[assignment]


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
    told = layout(names, wants_headers=True).told("key", it)
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

"""DNS messages: what is asked, and whatever octets come back: whole, cut, changed, or made to be costly."""

from __future__ import annotations

import struct

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.net.dns_message import (
    NotOurs,
    Response,
    build_query,
    parse_response,
)
from engine.net.dns_names import Garbled, NameReader, labels_of, mix_case, name_to_text, to_wire
from engine.policy.answers import Mx

QUESTION = build_query("www.example.test", "MX", 0x1234)


def response(*records: tuple[str, str, str], rcode: int = 0) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(QUESTION.wire))
    for owner, rdtype, text in records:
        message.answer.append(dns.rrset.from_text(owner, 300, "IN", rdtype, text))
    message.set_rcode(rcode)  # type: ignore[arg-type]
    return message.to_wire()


GOOD = response(
    ("www.example.test.", "CNAME", "a.test."), ("a.test.", "MX", "10 b.test."), ("a.test.", "MX", "20 c.test.")
)


def read(wire: bytes) -> Response | None:
    try:
        return parse_response(wire, QUESTION)
    except (NotOurs, Garbled):
        return None


def test_every_cut_of_a_response_is_refused() -> None:
    assert read(GOOD) is not None
    for end in range(len(GOOD)):
        assert read(GOOD[:end]) is None


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
def test_changed_octets_never_raise_anything_else(at: int, octets: bytes) -> None:
    read(GOOD[:at] + octets + GOOD[at + len(octets) :])


@given(st.binary(max_size=600))
def test_garbage_behind_a_right_header_never_raises_anything_else(octets: bytes) -> None:
    read(octets)
    read(GOOD[: 12 + 22] + octets)
    read(struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 65535, 65535, 65535) + GOOD[12:34] + octets)


def test_compression_pointers_that_loop_are_refused() -> None:
    head = GOOD[:6] + struct.pack("!HHH", 1, 0, 0) + GOOD[12:34]
    loop = head + struct.pack("!H", 0xC000 | len(head)) + struct.pack("!HHIH", 15, 1, 300, 0)
    assert read(loop) is None
    forward = head + struct.pack("!H", 0xC000 | (len(head) + 40)) + struct.pack("!HHIH", 15, 1, 300, 0) + bytes(60)
    assert read(forward) is None


def test_a_name_that_does_not_end_with_its_record_is_refused() -> None:
    record = b"\xc0\x0c" + struct.pack("!HHIH", 15, 1, 300, 4) + b"\x00\x0a\x01b\x00\x00"
    assert read(GOOD[:6] + struct.pack("!HHH", 1, 0, 0) + GOOD[12:34] + record) is None


def test_records_of_other_owners_and_classes_are_no_answer() -> None:
    wire = response(("other.test.", "MX", "10 b.test."))
    found = read(wire)
    assert found is not None
    assert not found.has_records
    chaos = bytearray(response(("www.example.test.", "MX", "10 b.test.")))
    at = chaos.index(b"\x00\x0f\x00\x01\x00\x00\x01\x2c")
    chaos[at + 3] = 3
    found = read(bytes(chaos))
    assert found is not None
    assert not found.has_records


def test_a_ttl_with_the_top_bit_is_zero() -> None:
    """RFC 2181 §8"""
    wire = response(("www.example.test.", "MX", "10 b.test.")).replace(b"\x00\x00\x01\x2c", b"\xff\xff\xff\xff")
    found = read(wire)
    assert found is not None
    assert (found.ttl_s, found.has_records) == (0, True)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_a_query_is_what_dnspython_reads() -> None:
    question = build_query("_25._tcp.MX.example.test.", "TLSA", 7)
    query = dns.message.from_wire(question.wire)
    assert (query.id, query.flags) == (7, dns.flags.RD | dns.flags.AD)
    assert query.question[0].to_text() == "_25._tcp.mx.example.test. IN TLSA"
    assert (query.edns, query.ednsflags, query.payload) == (0, dns.flags.DO, 1232)
    plain = dns.message.from_wire(build_query("example.test", "MX", 7, edns=False).wire)
    assert (plain.edns, plain.flags & dns.flags.AD) == (-1, dns.flags.AD)


def test_letters_are_sent_in_the_case_the_bits_say() -> None:
    mixed = build_query("ab-1.test", "A", 7, case_bits=0b100100)
    assert mixed.asked[:11] == b"\x04aB-1\x04test\x00"[:11]
    assert mixed.wire[12:].startswith(mixed.asked)
    assert build_query("ab-1.test", "A", 7, case_bits=2**256 - 1).asked.startswith(b"\x04AB-1\x04TEST\x00")
    assert mixed.name == (b"ab-1", b"test")


def test_the_case_of_the_question_is_told_and_matters_to_nothing_else() -> None:
    question = build_query("www.example.test", "MX", 0x1234, case_bits=2**255 - 1)
    response = dns.message.make_response(dns.message.from_wire(question.wire))
    response.answer.append(dns.rrset.from_text("www.example.test.", 300, "IN", "MX", "10 B.test."))
    kept = parse_response(response.to_wire(), question)
    assert (kept.is_case_kept, kept.mx) == (True, (Mx(10, "b.test"),))
    folded = parse_response(response.to_wire().replace(question.asked, question.asked.lower()), question)
    assert (folded.is_case_kept, folded.mx) == (False, kept.mx)


# --- names ------------------------------------------------------------------------------------------------------------

_PIECE = st.one_of(
    st.binary(min_size=1, max_size=5).map(lambda label: bytes([len(label)]) + label),
    st.just(b"\x3f" + b"L" * 63),
    st.just(b"\0"),
    st.integers(0, 80).map(lambda at: struct.pack("!H", 0xC000 | at)),
    st.binary(max_size=2),
)


@given(st.lists(_PIECE, max_size=14).map(b"".join), st.lists(st.integers(0, 80), min_size=1, max_size=6))
def test_names_are_read_as_dnspython_reads_them(octets: bytes, places: list[int]) -> None:
    """From several places of one message, since what a pointer leads to is remembered."""
    wire = bytes(12) + octets
    reader = NameReader(wire)
    for at in places:
        try:
            name, used = dns.name.from_wire(wire, at)
        except (dns.exception.DNSException, IndexError):
            with pytest.raises(Garbled):
                reader.name_at(at)
        else:
            assert reader.name_at(at) == (tuple(label.lower() for label in name.labels[:-1]), used)


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_name_as_text_is_that_name(labels: list[bytes]) -> None:
    lower = tuple(label.lower() for label in labels)
    assert dns.name.from_text(name_to_text(lower)).labels[:-1] == lower
    assert name_to_text(()) == ""


def costly_message(links: int, records: int) -> bytes:
    """A chain of pointers in the rdata of one record, and records whose owners are its far end."""
    head = struct.pack("!HHHHHH", 0x1234, 0x8180, 1, records + 1, 0, 0) + QUESTION.asked
    start = len(head) + 12
    chain = b"".join(struct.pack("!H", 0xC000 | (start + 2 * max(number - 1, 0))) for number in range(links))
    first = b"\xc0\x0c" + struct.pack("!HHIH", 16, 1, 300, len(chain) + 1) + b"\0" + chain[1:] + b"\0"
    last = 0xC000 | (start + 2 * (links - 1))
    return head + first + (struct.pack("!H", last) + struct.pack("!HHIH", 15, 1, 300, 0)) * records


@pytest.mark.parametrize("links", [1, 100, 120, 8000])
def test_a_message_made_to_be_costly_is_read_once(links: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place in it is looked at once, though 4,000 records have the far end of a chain as their owner."""
    reads = 0
    read_labels = NameReader._labels

    def counting(reader: NameReader, position: int) -> tuple[list[bytes], int, int | None]:
        nonlocal reads
        reads += 1
        return read_labels(reader, position)

    monkeypatch.setattr(NameReader, "_labels", counting)
    wire = costly_message(links, 4000)
    read(wire)
    assert reads < len(wire)


def test_a_long_chain_of_pointers_is_refused() -> None:
    octets = bytes(12) + b"\0" + b"".join(struct.pack("!H", 0xC000 | at) for at in (12, *range(13, 13 + 2 * 200, 2)))
    reader = NameReader(octets)
    assert reader.name_at(13 + 2 * 100) == ((), 2)
    with pytest.raises(Garbled, match="bad compression"):
        NameReader(octets).name_at(13 + 2 * 190)


# --- against dnspython ------------------------------------------------------------------------------------------------


def with_record(section: str, record: bytes) -> bytes:
    """A response of one record."""
    counts = {"answer": (1, 0, 0), "authority": (0, 1, 0)}[section]
    return GOOD[:6] + struct.pack("!HHH", *counts) + QUESTION.asked + record


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (GOOD[:4] + b"\0\2" + GOOD[6:], "2 questions"),
        (GOOD[:4] + b"\0\0" + GOOD[6:], "0 questions"),
        (GOOD[:2] + bytes([GOOD[2] | 0x28]) + GOOD[3:], "not a standard query"),
        (with_record("authority", b"\0" + struct.pack("!HHIH", 6, 1, 9, 4) + bytes(4)), "SOA record ends early"),
        (with_record("answer", b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 9, 2) + b"\xc0\x0c"), "CNAME loop"),
    ],
)
def test_what_is_wrong_with_a_response_is_said(wire: bytes, message: str) -> None:
    with pytest.raises(Garbled, match=message):
        parse_response(wire, QUESTION)


@pytest.mark.parametrize(
    ("flags", "rcode", "has_soa", "has_answer", "is_referral"),
    [
        (0, 0, False, False, True),
        (dns.flags.RA, 0, False, False, False),
        (dns.flags.AA, 0, False, False, False),
        (0, 0, True, False, False),
        (0, 0, False, True, False),
        (0, 3, False, False, False),
    ],
)
def test_what_is_a_referral(flags: int, rcode: int, has_soa: bool, has_answer: bool, is_referral: bool) -> None:
    message = dns.message.make_response(dns.message.from_wire(QUESTION.wire))
    message.flags |= flags
    message.set_rcode(dns.rcode.Rcode(rcode))
    message.authority.append(dns.rrset.from_text("test.", 9, "IN", "NS", "ns.test."))
    if has_soa:
        message.authority.append(dns.rrset.from_text("test.", 9, "IN", "SOA", "ns.test. root.test. 1 2 3 4 5"))
    if has_answer:
        message.answer.append(dns.rrset.from_text("www.example.test.", 9, "IN", "MX", "1 a.test."))
    assert parse_response(message.to_wire(), QUESTION).is_referral is is_referral


def test_a_server_that_cannot_read_the_question_need_not_repeat_it() -> None:
    answer = parse_response(struct.pack("!HHHHHH", 0x1234, 0x8181, 0, 0, 0, 0), QUESTION)
    assert (answer.rcode, answer.has_records) == (1, False)


def test_the_soa_is_found_among_other_authorities_and_its_minimum_bounded_by_its_ttl() -> None:
    """RFC 2308 §5"""
    message = dns.message.make_response(dns.message.from_wire(QUESTION.wire))
    message.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.test."))
    message.authority.append(dns.rrset.from_text("test.", 77, "IN", "SOA", "ns.test. root.test. 1 2 3 4 900"))
    assert parse_response(message.to_wire(), QUESTION).negative_ttl_s == 77


def test_names_within_records_are_given_without_compression_and_in_lower_case() -> None:
    question = build_query("www.example.test", "SRV", 0x1234)
    message = dns.message.make_response(dns.message.from_wire(question.wire))
    message.answer.append(dns.rrset.from_text("www.example.test.", 9, "IN", "SRV", "1 2 25 MX.example.test."))
    assert parse_response(message.to_wire(), question).rdata == (b"\0\1\0\2\0\x19\x02mx\x07example\x04test\0",)
    wire = bytearray(message.to_wire())
    wire[-1:] = b"\1x\0"
    at = wire.index(struct.pack("!HHI", 33, 1, 9)) + 8
    wire[at : at + 2] = struct.pack("!H", struct.unpack_from("!H", wire, at)[0] + 5)
    with pytest.raises(Garbled):
        parse_response(bytes(wire) + bytes(3), question)


def test_a_name_that_is_too_long_only_with_its_tail_is_refused() -> None:
    tail = (b"\x3f" + b"a" * 63) * 3 + b"\0"
    wire = bytes(12) + tail + b"\x3c" + b"b" * 60 + b"\xc0\x0c" + b"\x3e" + b"b" * 62 + b"\xc0\x0c"
    reader = NameReader(wire)
    assert len(reader.name_at(12 + len(tail))[0]) == 4
    with pytest.raises(Garbled, match="too long"):
        reader.name_at(12 + len(tail) + 63)


_LABEL = st.text("abcXYZ019-_", min_size=1, max_size=20)
_NAME = st.lists(_LABEL, min_size=1, max_size=5).map(".".join)


@given(st.lists(st.tuples(st.integers(0, 65535), _NAME), min_size=1, max_size=20))
def test_agrees_with_dnspython(records: list[tuple[int, str]]) -> None:
    wire = response(*[("www.example.test.", "MX", f"{preference} {name}.") for preference, name in records])
    theirs = dns.message.from_wire(wire).find_rrset(
        dns.message.ANSWER, dns.name.from_text("www.example.test."), dns.rdataclass.IN, dns.rdatatype.MX
    )
    expected = {(record.preference, record.exchange.to_text(omit_final_dot=True).lower()) for record in theirs}
    ours = read(wire)
    assert ours is not None
    assert {(mx.preference, mx.exchange) for mx in ours.mx} == expected


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=4))
def test_agrees_with_dnspython_on_changed_messages_that_both_can_read(changes: list[tuple[int, bytes]]) -> None:
    wire = GOOD
    for at, octets in changes:
        at = 34 + at % (len(GOOD) - 34)
        wire = wire[:at] + octets + wire[at + len(octets) :]
    ours = read(wire)
    try:
        theirs = dns.message.from_wire(wire, ignore_trailing=True)
    except dns.exception.DNSException:
        return
    if ours is None or not isinstance(theirs, dns.message.QueryMessage):
        return
    try:
        chain = theirs.resolve_chaining()
    except dns.exception.DNSException:
        return
    expected = {
        (record.preference, record.exchange.to_text(omit_final_dot=True).lower()) for record in chain.answer or ()
    }
    assert ours.rcode == theirs.rcode()
    assert {(mx.preference, mx.exchange or ".") for mx in ours.mx} == expected


@given(
    st.one_of(
        st.text(alphabet='aZ9-_.\\"@ \n\t\x7f\u00e4', max_size=80),
        st.lists(st.text(alphabet="aB1-", min_size=1, max_size=70), min_size=1, max_size=8).map(".".join),
    )
)
def test_the_labels_of_a_name_are_those_of_dnspython(name: str) -> None:
    try:
        expected = dns.name.from_text(name, origin=dns.name.root) if name.isascii() else None
    except dns.exception.DNSException:
        expected = None
    if expected is None:
        with pytest.raises(ValueError, match="is not"):
            labels_of(name)
    else:
        assert labels_of(name) == tuple(label.lower() for label in expected.labels[:-1])
        wire = expected.to_wire()
        assert wire is not None
        assert to_wire(labels_of(name)) == wire.lower()


@given(st.binary(max_size=255), st.integers(0, 2**256 - 1))
def test_each_letter_has_its_bit(name: bytes, bits: int) -> None:
    expected = bytes(octet - 32 if 0x61 <= octet <= 0x7A and bits >> at & 1 else octet for at, octet in enumerate(name))
    assert mix_case(name, bits) == expected

"""The kernel of DNS messages: it writes and reads what the Python beside it does, or leaves it alone."""

from __future__ import annotations

import re
from collections.abc import Callable

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from engine.net import _dnswire
from engine.net.dns_message import (
    _EDNS,
    NotOurs,
    Question,
    Response,
    build_query,
    make_query,
    parse_response,
    read_response,
)
from engine.net.dns_names import Garbled, labels_of, to_wire


def outcome(read: Callable[[bytes, Question], Response], wire: bytes, question: Question) -> object:
    try:
        return read(wire, question)
    except (NotOurs, Garbled) as error:
        return type(error)


@given(
    st.text("aZk09-_.", max_size=60) | st.text(max_size=20),
    st.binary(min_size=34, max_size=34),
    st.booleans(),
)
def test_the_kernel_writes_the_same_query(name: str, random: bytes, edns: bool) -> None:
    made = _dnswire.build(name, 15, random, _EDNS if edns else b"")
    try:
        case_bits = int.from_bytes(random[2:], "little")
        expected = build_query(name, "MX", int.from_bytes(random[:2]), edns=edns, case_bits=case_bits)
    except ValueError:
        assert made is None
    else:
        assert made is None or made == (expected.wire, expected.asked)
        if made is None:
            assert not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", name), "it is a plain name"


LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])


def test_the_kernel_writes_the_longest_name_and_none_that_is_longer() -> None:
    assert make_query(LONGEST, "MX", edns=True).asked[:-4].lower() == to_wire(labels_of(LONGEST))
    for name in (LONGEST + "b", "a" * 64, "", ".", "a..b", ".a"):
        assert _dnswire.build(name, 15, bytes(34), b"") is None
    assert _dnswire.build("a.test", 15, bytes(33), b"") is None


RECORDS = st.sampled_from(
    [
        ("www.example.test.", "MX", "10 mx.example.test."),
        ("www.example.test.", "MX", "20 Other.Example.test."),
        ("www.example.test.", "MX", "0 ."),
        ("www.example.test.", "MX", r"5 od\.d.test."),
        ("www.example.test.", "RRSIG", "MX 8 3 300 20300101000000 20200101000000 1 example.test. AAAA"),
        ("www.example.test.", "TXT", '"v=STSv1; id=1"'),
        ("www.example.test.", "CNAME", "a.test."),
        ("a.test.", "MX", "10 b.test."),
    ]
)
AUTHORITIES = st.sampled_from(
    [
        ("example.test.", "SOA", "ns.example.test. root.example.test. 1 3600 600 86400 60"),
        ("example.test.", "NS", "ns.example.test."),
        (".", "SOA", "a.root. b.root. 1 1 1 1 4294967295"),
    ]
)


@given(
    st.lists(RECORDS, max_size=4),
    st.lists(AUTHORITIES, max_size=2),
    st.sampled_from(["MX", "TXT", "A", "CNAME", "TLSA"]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 3, 2, 16]),
    st.none() | st.lists(st.sampled_from([(15, b"\0\6"), (10, b"x")]), max_size=2),
    st.tuples(st.integers(0, 400), st.binary(max_size=4)) | st.none(),
)
def test_the_kernel_reads_what_the_reference_reads(
    records: list[tuple[str, str, str]],
    authorities: list[tuple[str, str, str]],
    rdtype: str,
    ttl: int,
    flags: int,
    rcode: int,
    options: list[tuple[int, bytes]] | None,
    damage: tuple[int, bytes] | None,
) -> None:
    question = make_query("www.example.test", rdtype, edns=True)
    message = dns.message.Message(id=question.id)
    message.flags = dns.flags.Flag(flags & 0x07B0 | 0x8000)
    message.question = dns.message.from_wire(question.wire).question
    for section, found in ((message.answer, records), (message.authority, authorities)):
        for owner, kind, text in found:
            section.append(dns.rrset.from_text(owner, ttl & 0x7FFFFFFF, "IN", kind, text))
    if options is not None:
        message.use_edns(
            0,
            payload=1232,
            options=[dns.edns.GenericOption(dns.edns.OptionType.make(code), data) for code, data in options],
        )
    message.set_rcode(rcode if options is not None or rcode < 16 else 0)  # type: ignore[arg-type]  # a number will do
    wire = message.to_wire(max_size=65535)
    # the question as it was sent, with its letters
    wire = wire[:12] + question.asked + wire[12 + len(question.asked) :]
    if damage is not None:
        at, octets = damage
        at %= len(wire)
        wire = wire[:at] + octets + wire[at + len(octets) :]
    assert outcome(read_response, wire, question) == outcome(parse_response, wire, question)


def test_the_usual_responses_are_read_by_the_kernel() -> None:
    """Or nothing that compares the two would show anything."""
    soa = ("example.test.", "SOA", "ns.example.test. root.example.test. 1 3600 600 86400 60")
    for rdtype, record in (("MX", ("www.example.test.", "MX", "10 mx.example.test.")), ("TXT", None)):
        question = make_query("www.example.test", rdtype, edns=True)
        message = dns.message.make_response(dns.message.from_wire(question.wire), recursion_available=True)
        section = message.answer if record is not None else message.authority
        owner, kind, text = record or soa
        section.append(dns.rrset.from_text(owner, 300, "IN", kind, text))
        found = _dnswire.read(message.to_wire(), question.id, question.asked, question.rdtype, 256)
        assert found == (
            0,
            False,
            False,
            [(10, "mx.example.test")] if record else [],
            300 if record else 0,
            None if record else 60,
        )


@given(st.binary(max_size=300))
def test_the_kernel_takes_any_octets(octets: bytes) -> None:
    question = make_query("www.example.test", "MX", edns=True)
    wire = question.wire[:2] + octets[:10].ljust(10, b"\0") + question.asked + octets[10:]
    assert outcome(read_response, wire, question) == outcome(parse_response, wire, question)

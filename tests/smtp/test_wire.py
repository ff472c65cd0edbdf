"""The compiled wire against its reference: replies in any split, groups of commands, content."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError, LocalProtocolError
from engine.smtp import _wire
from reference import wire

PARSERS = pytest.mark.parametrize("module", [_wire, wire], ids=["compiled", "reference"])

LINES = [
    b"220 mx.example ESMTP\r\n",
    b"250-first\r\n",
    b"250 last\r\n",
    b"250\r\n",
    b"250-\r\n",
    b"250 \r\n",
    b"250 \t \r\n",
    b"250 bare line feed\n",
    b"250-bare\n",
    b"550-5.1.1 a\r\n550-b\r\n550 5.1.1 c\r\n",
    b"999 what is this\r\n",
    b"000 nor this\r\n",
    b"421 4.3.2 shutting down\r\n",
    b"\r\n",
    b"\n",
    b"  \r\n",
    b"25\r\n",
    b"2\r\n",
    b"25x no\r\n",
    b"250_no\r\n",
    b"250\tno\r\n",
    b" 250 no\r\n",
    b"+OK POP3\r\n",
    b"250 \x00\r\n",
    b"250-\x00\r\n",
    b"\x00\r\n",
    b"250 a\rb\r\n",
    b"250 \xc3\xa9 \xff\r\n",
    b"251 other code\r\n",
    b"250-" + b"x" * 4090 + b"\r\n",
    b"250 " + b"x" * 4091 + b"\r\n",
    b"250 " + b"x" * 4090 + b"\n",
    b"x" * 4096,
    b"250 cut off",
    b"25",
]


def parse(module: Any, pieces: list[bytes]) -> tuple[Any, ...]:
    parser = module.ReplyParser()
    found = [reply for piece in pieces for reply in parser.receive(piece)]
    return found, parser.problem, parser.evidence, parser.is_clean, parser.buffered


@st.composite
def octets_in_pieces(draw: st.DrawFn) -> list[bytes]:
    words = st.one_of(st.sampled_from(LINES), st.binary(max_size=8), st.text("250- \r\n", max_size=9).map(str.encode))
    octets = b"".join(draw(st.lists(words, max_size=8)))
    cuts = draw(st.lists(st.integers(0, len(octets)), max_size=6).map(sorted))
    return [octets[start:end] for start, end in itertools.pairwise([0, *cuts, len(octets)])]


@settings(max_examples=300)
@given(octets_in_pieces())
def test_replies_equal_the_reference(pieces: list[bytes]) -> None:
    assert parse(_wire, pieces) == parse(wire, pieces)


@PARSERS
@pytest.mark.parametrize(
    ("octets", "replies"),
    [
        (b"250 ok\r\n", [(250, b"250 ok")]),
        (b"250\r\n", [(250, b"250")]),
        (b"250-a\r\n250-b\r\n250 c\r\n", [(250, b"250-a\n250-b\n250 c")]),
        (b"250-\r\n250\r\n", [(250, b"250-\n250")]),
        (b"250 ok\n354 go\n", [(250, b"250 ok"), (354, b"354 go")]),
        (b"250 trailing \t\r\n", [(250, b"250 trailing")]),
        (b"799 unknown\r\n", [(799, b"799 unknown")]),
        (b"250 a\rb\r\n", [(250, b"250 a\rb")]),
    ],
)
@pytest.mark.parametrize("trailing", [b"", b"2", b"250-x\r\n", b"\x16\x03"])
def test_a_reply_whole_and_byte_by_byte_with_trailing_octets(
    module: Any, octets: bytes, replies: list[tuple[int, bytes]], trailing: bytes
) -> None:
    for pieces in ([octets + trailing], [bytes([octet]) for octet in octets + trailing], [octets, trailing]):
        found, problem, _, is_clean, buffered = parse(module, pieces)
        assert found == replies
        assert problem is None
        assert is_clean == (not trailing)
        assert buffered == (trailing.strip() if trailing.startswith(b"250") else trailing)


@PARSERS
@pytest.mark.parametrize(
    ("octets", "problem", "evidence"),
    [
        (b"\r\n", "empty line", b""),
        (b"hello\r\n", "bad syntax", b"hello"),
        (b"25\r\n", "bad syntax", b"25"),
        (b"250x\r\n", "bad syntax", b"250x"),
        (b"250 a\x00b\r\n", "NUL", b"250 a\x00b"),
        (b"250-a\r\n550 b\r\n", "different codes in one reply", b"550 b"),
        (b"250-a\r\n\r\n", "empty line", b""),
        (b"2" * 5000, "line too long", b"2" * 512),
        (b"250 " + b"x" * 4091 + b"\r\n", "line too long", (b"250 " + b"x" * 508)),
        (b"250-x\r\n" * 513, "reply too long", b"250-x"),
        ((b"250-" + b"y" * 4000 + b"\r\n") * 17, "reply too long", (b"250-" + b"y" * 508)),
    ],
)
def test_what_is_no_reply_ends_it_with_evidence(module: Any, octets: bytes, problem: str, evidence: bytes) -> None:
    whole = b"220 before\r\n" + octets + b"250 after\r\n"
    results = [parse(module, pieces) for pieces in ([whole], [bytes([octet]) for octet in whole])]
    for found, *rest in results:
        assert found == [(220, b"220 before")]
        assert rest == [problem, evidence, False, evidence]


@PARSERS
def test_the_largest_that_is_taken(module: Any) -> None:
    longest = b"250 " + b"x" * (4096 - 6) + b"\r\n"
    most = b"250-x\r\n" * 511 + b"250 x\r\n"
    found, problem, *_ = parse(module, [longest + most])
    assert problem is None
    assert [len(reply.raw) for reply in found] == [4094, 512 * 6 - 1]


def test_a_line_without_end_keeps_no_more_than_a_line() -> None:
    parser = _wire.ReplyParser()
    for _ in range(1000):
        assert parser.receive(b"2" * 1000) == []
    assert parser.problem == "line too long"
    assert len(parser.evidence) == 512


# Groups

ADDRESSES = st.one_of(
    st.sampled_from(
        [b"a@b", b"", b'"a b"@c', b'"a\\"b"@c', b"a b@c", b"a>b@c", b'"a', b"a\r\n@c", b"\xc3\xa9@c", b'"\\']
    ),
    st.binary(max_size=6),
    st.text('a"\\ <>@\x01\x7fé', max_size=6).map(str.encode),
)
PARAMETERS = st.sampled_from([b"", b" SIZE=3", b" ENVID=+0A", b" \r\nRSET", b" \x00", b" \x7f"])


def attempt(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except (LocalProtocolError, DataError) as error:
        return type(error)


@settings(max_examples=300)
@given(
    first=st.sampled_from([b"", b"RSET\r\n"]),
    sender=ADDRESSES,
    mail_parameters=PARAMETERS,
    recipients=st.lists(ADDRESSES, min_size=1, max_size=4).map(tuple),
    rcpt_parameters=st.one_of(st.none(), st.lists(PARAMETERS, max_size=4).map(tuple)),
    rcpt_suffix=PARAMETERS,
    last=st.sampled_from([b"", b"DATA\r\n", b"BDAT 4 LAST\r\n"]),
    content=st.sampled_from([b"", b"x\0\r\n"]),
    utf8=st.booleans(),
)
def test_groups_equal_the_reference(**arguments: Any) -> None:
    values = tuple(arguments.values())
    assert attempt(_wire.build_group, *values) == attempt(wire.build_group, *values)


@pytest.mark.parametrize("address", [b"a@b\r\nRCPT TO:<evil@x", b"a@b> X", b"a b@c", b'"a', b"a\n@b", b'"\\\r"@c'])
def test_no_address_ends_its_command(address: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        _wire.build_group(b"", address, b"", (b"c@d",), None, b"", b"", b"")
    with pytest.raises(LocalProtocolError):
        _wire.build_group(b"", b"", b"", (b"c@d", address), None, b"", b"", b"")


def test_a_recipient_is_not_empty_and_is_bytes() -> None:
    with pytest.raises(LocalProtocolError):
        _wire.build_group(b"", b"", b"", (b"",), None, b"", b"", b"")
    with pytest.raises(TypeError):
        _wire.build_group(b"", b"", b"", ("c@d",), None, b"", b"", b"")  # type: ignore[arg-type]


# Content

CONTENTS = st.one_of(
    st.lists(st.sampled_from([b"", b".", b"..", b"a", b".a", b"a.", b"\xff"]), max_size=6).map(
        lambda lines: b"".join(line + b"\r\n" for line in lines)
    ),
    st.text("\r\n.x", max_size=9).map(str.encode),
)


@settings(max_examples=500)
@given(CONTENTS)
def test_content_equals_the_reference(content: bytes) -> None:
    dots = attempt(_wire.inspect, content)
    assert dots == attempt(wire.inspect, content)
    if isinstance(dots, int):
        assert _wire.stuff(content, dots) == wire.stuff(content)


def test_content_without_dots_is_the_same_object() -> None:
    content = b"a\r\nb.\r\n"
    assert _wire.stuff(content, _wire.inspect(content)) is content


@settings(max_examples=100)
@given(CONTENTS, st.integers(-3, 9))
def test_a_wrong_number_of_dots_is_noticed(content: bytes, dots: int) -> None:
    right = sum(line.startswith(b".") for line in content.split(b"\n"))
    try:
        stuffed = _wire.stuff(content, dots)
    except ValueError:
        assert dots != right
    else:
        assert dots in (0, right)
        assert len(stuffed) == len(content) + dots


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\nb\r\n", "bare LF in a message, octet 1"),
        (b"\n", "bare LF in a message, octet 0"),
        (b"ab\rc\r\n", "bare CR in a message, in the line at octet 0"),
        (b"a\r\n\r\r\n", "bare CR in a message, in the line at octet 3"),
        (b"a\r\nb\r", "bare CR in the last line"),
        (b"a\r\nb", "does not end with CRLF"),
        (b"a\r\n.\n\r\n", "bare LF"),
    ],
)
def test_a_line_end_that_is_none_is_named(content: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        _wire.inspect(content)

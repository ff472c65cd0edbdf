"""Header sections: where they end, what their fields are, and how those are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.compose.headers import Field, Kind, encode_field, kind_of, parse_field, split_header, write_field
from engine.compose.parameters import parse_parameters
from engine.errors import DataError


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_header_ends_at_the_first_empty_line(end: bytes) -> None:
    source = end.join([b"A: 1", b"B: 2", b" folded", b"\t ", b"", b"body", b"", b"more"])
    lines, body = split_header(source)
    assert lines == [(1, b"A: 1"), (2, b"B: 2\r\n folded")]
    assert body == end.join([b"body", b"", b"more"])


@given(st.binary(max_size=100))
def test_any_octets_are_cut_somewhere(source: bytes) -> None:
    lines, body = split_header(source)
    assert source.endswith(body)
    assert all(line and b"\n" not in line.replace(b"\r\n", b"") for _, line in lines)
    numbers = [number for number, _ in lines]
    assert numbers == sorted(set(numbers))


@given(st.one_of(st.binary(max_size=30), st.binary(max_size=20).map(lambda tail: b"Name:" + tail)))
def test_any_line_is_a_field_or_an_error(line: bytes) -> None:
    try:
        field = parse_field(7, line)
    except DataError:
        return
    assert field.line == 7
    assert field.name.isascii()
    assert line.startswith(field.name.encode())


def test_kinds() -> None:
    assert kind_of("to") is Kind.ADDRESSES
    assert kind_of("list-unsubscribe") is Kind.STRUCTURED
    assert kind_of("content-type") is Kind.PARAMETERS
    assert kind_of("subject") is kind_of("x-any") is Kind.TEXT


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("Subject", "", "Subject:\r\n"),
        ("Subject", "x", "Subject: x\r\n"),
        ("Keywords", "ü, b", "Keywords: =?utf-8?b?w7w=?=, b\r\n"),
        ("List-Id", "Liste für alle <l.example>", "List-Id: =?utf-8?q?Liste_f=C3=BCr_alle?= <l.example>\r\n"),
        (
            "Content-Disposition",
            'attachment; filename="ü"',
            "Content-Disposition: attachment; filename*=utf-8''%C3%BC\r\n",
        ),
    ],
)
def test_encode_field(name: str, value: str, written: str) -> None:
    assert encode_field(name, value) == (written, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("List-Unsubscribe", "<https://x/ü>"), ("To", '"ü'), ("Content-Type", "text/plain; ü=x"), ("To", "ü@")],
)
def test_a_field_that_has_no_form(name: str, value: str) -> None:
    with pytest.raises(DataError, match=f"header field {name}"):
        encode_field(name, value)


def test_a_field_is_written_as_it_stood_if_it_can_be() -> None:
    for raw in (b" x", b"x", b"", b"\tx\r\n  y", b" " + b"w" * 990):
        assert write_field(Field("X-A", raw, 3)) == (f"X-A:{raw.decode()}\r\n", False)
    with pytest.raises(DataError) as caught:
        write_field(Field("Received", b" " + b"w" * 1000, 3))
    assert caught.value.line == 3


@pytest.mark.parametrize(
    ("text", "value", "items"),
    [
        ("text/plain", "text/plain", ()),
        ("Text/HTML; Charset=UTF-8", "text/html", (("charset", "UTF-8"),)),
        (
            'text/plain; charset="utf-8" (c); format = flowed ;',
            "text/plain",
            (("charset", "utf-8"), ("format", "flowed")),
        ),
        ('a/b; boundary="=_a;b\\"c"', "a/b", (("boundary", '=_a;b"c'),)),
        ("attachment; filename=my file (1).pdf", "attachment", (("filename", "my file .pdf"),)),
        ("a/b;; x=1", "a/b", (("x", "1"),)),
        ("a/b; x==?utf-8?q?y?=", "a/b", (("x", "=?utf-8?q?y?="),)),
        ("", "", ()),
    ],
)
def test_parameters(text: str, value: str, items: tuple[tuple[str, str], ...]) -> None:
    parsed = parse_parameters(text)
    assert (parsed.value, parsed.items) == (value, items)
    again = parse_parameters(str(parsed))
    assert (again.value, again.items) == (value, items)


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\n\0"), max_size=30))
def test_a_parameter_keeps_any_value(value: str) -> None:
    text = str(parse_parameters("a/b").with_item("x", value.strip(" \t")))
    assert parse_parameters(text).item("x") == value.strip(" \t")


@pytest.mark.parametrize("text", ["a/b; x", 'a/b; x="y', "a/b; =y", "a/b; x y=z"])
def test_what_are_no_parameters(text: str) -> None:
    with pytest.raises(DataError):
        parse_parameters(text)

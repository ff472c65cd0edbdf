"""Line ends, line lengths and transfer encodings, with Python's decoders as a second opinion."""

from __future__ import annotations

import base64
import quopri

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.compose import transfer

bodies = st.one_of(
    st.binary(max_size=400),
    st.lists(
        st.sampled_from(
            [b"\r\n", b"\n", b"\r", b"w" * 75, b"w" * 77, b" ", b"\t", b"=", b".", b"\xc3\xbc", b"\0", b"=41", b"=\r\n"]
        ),
        max_size=20,
    ).map(b"".join),
)
lines = bodies.map(transfer.to_crlf)


@given(bodies)
def test_every_line_end_is_crlf(data: bytes) -> None:
    fixed = transfer.to_crlf(data)
    assert fixed.count(b"\r\n") == fixed.count(b"\r") == fixed.count(b"\n")
    assert fixed == data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert transfer.has_bare_cr(data) == (b"\r" in data.replace(b"\r\n", b""))


@given(st.lists(st.integers(990, 1005), max_size=4), st.booleans())
@example([998], False)
@example([999], False)
@example([0, 998, 0, 998], True)
@example([], False)
def test_lines_that_are_too_long(lengths: list[int], ends: bool) -> None:
    data = b"\r\n".join([b"w" * length for length in lengths]) + (b"\r\n" if ends else b"")
    assert transfer.has_long_line(data) == any(length > 998 for length in lengths)


@given(lines)
def test_quoted_printable(text: bytes) -> None:
    encoded = transfer.encode_quoted_printable(text)
    assert quopri.decodestring(encoded) == text
    assert transfer.decode(encoded, "quoted-printable") == text
    assert encoded.isascii()
    assert all(len(line) <= 76 and not line.endswith((b" ", b"\t")) for line in encoded.split(b"\r\n"))


@given(bodies)
def test_base64(data: bytes) -> None:
    encoded = transfer.encode_base64(data)
    assert base64.b64decode(encoded) == data
    assert transfer.decode(encoded, "base64") == data
    assert all(len(line) <= 76 for line in encoded.split(b"\r\n"))


@given(lines, st.booleans())
def test_the_shorter_encoding(data: bytes, is_text: bool) -> None:
    name, encoded = transfer.encode(data, is_text=is_text)
    assert name == "base64" or is_text
    assert transfer.decode(encoded, name) == data
    assert transfer.is_wire_ready(encoded, eightbit=False)


@given(lines)
@example(b"=41" * 400)
@example(b"a=\r\n" * 3 + b"=C3=BC" * 30)
def test_a_repair_of_quoted_printable_changes_nothing_of_what_it_says(body: bytes) -> None:
    repaired = transfer.repair_quoted_printable(body)
    assert transfer.is_wire_ready(repaired, eightbit=False)
    if body.isascii() and b"\0" not in body and not any(line.rstrip() != line for line in body.split(b"\r\n")):
        assert quopri.decodestring(repaired) == quopri.decodestring(body)


@given(st.binary(max_size=300), st.sampled_from([b"\r\n", b"\n", b" ", b"\xff", b"\0", b"-"]))
def test_a_repair_of_base64_changes_nothing_of_what_it_says(data: bytes, dirt: bytes) -> None:
    body = dirt.join(base64.b64encode(data)[at : at + 7] for at in range(0, 400, 7))
    repaired = transfer.repair_base64(body)
    assert transfer.is_wire_ready(repaired, eightbit=False)
    assert base64.b64decode(repaired) == data


@given(st.binary(max_size=60))
def test_broken_base64_gives_what_can_be_read(body: bytes) -> None:
    transfer.decode(body, "base64")
    assert transfer.decode(base64.b64encode(body) + b"=", "base64") == body


@pytest.mark.parametrize(
    ("data", "eightbit", "ready"),
    [
        (b"a", False, True),
        (b"\xff", False, False),
        (b"\xff", True, True),
        (b"\0", True, False),
        (b"w" * 999, True, False),
    ],
)
def test_what_may_go_over_the_wire(data: bytes, eightbit: bool, ready: bool) -> None:
    assert transfer.is_wire_ready(data, eightbit=eightbit) == ready

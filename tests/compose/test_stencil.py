"""The short way to a message gives what the long way gives, or leaves it to the long way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.compose import Composer, Rendered
from engine.compose._stencil import MAX_VALUES, Stencil
from engine.compose.stencil import _has_lines
from engine.errors import DataError

PLAIN = (
    "From: News <news@sender.example>\nTo: {{ name }} <{{ email }}>\nSubject: Number {{ number }}\n\n"
    "Dear {{ name }},\n{{ number }}{{ city }}\nfor {{ email }}\n"
)
HTML = (
    "From: News <news@sender.example>\nSubject: x\nList-Unsubscribe: <https://s.example/{{ number }}/{{ city }}>\n"
    "MIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n\n<p>Dear {{ name }}, Grüße aus {{ city }}</p>\n"
)
MULTIPART = (
    'From: "{{ city }} News" <news@sender.example>\nTo: {{ email }}\nSubject: x\nX-Number: {{ number }} = {{ city }}\n'
    "MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b1\n\n--b1\nContent-Type: text/plain\n\n"
    "{{ name }}\n{{ city }}--b1\n--b1\nContent-Type: text/html\n\n<b>{{ name }}</b>\n--b1--\n"
)
LONG = (
    "From: News <news@sender.example>\nSubject: a subject that a value of some length makes fold {{ city }}\n"
    f"\n{'x' * 960} {{{{ name }}}}\n{{{{ number }}}}\n"
)
#: further ones that have to go the long way, always
OTHERS = {
    "condition": "From: a@s.example\nSubject: x\n\n{% if city %}{{ city }}{% endif %}\n",
    "row": "From: a@s.example\nSubject: x\n\n{{ row.city }}\n",
    "filter": "From: a@s.example\nSubject: {{ city | upper }}\n\n{{ name }}\n",
    "address of a column": "From: a@s.example\nReply-To: <{{ city }}>\nSubject: x\n\n{{ name }}\n",
    "text around the address": "From: a@s.example\nReply-To: <x-{{ email }}>\nSubject: x\n\n{{ name }}\n",
    "8-bit header": "From: a@s.example\nSubject: Grüße {{ city }}\n\n{{ name }}\n",
    "a line that may become a delimiter": MULTIPART.replace("{{ city }}--b1", "-{{ city }}"),
}

#: what a hostile or careless list may hold, and what is usual
TEXT = st.one_of(
    st.text(st.characters(codec="ascii"), max_size=12),
    st.text("aA1 -=?_.<>\"'&,;:@\\()", max_size=12),
    st.text(max_size=6),
    st.sampled_from(["", " ", "Ada Lovelace", "O'Brien", "=?utf-8?q?x?=", "--b1", "a" * 40, "b" * 1200, "x\r\nBcc: y"]),
)
VALUE = st.one_of(TEXT, st.integers(-(1 << 63), 1 << 63), st.none(), st.booleans(), st.floats(allow_nan=False))
MERGE = st.fixed_dictionaries({"name": VALUE, "number": VALUE, "city": VALUE})
ADDRESS = st.sampled_from(
    ["ada@d.example", "o'brien+x@mail.d.example", '"a b"@d.example', "zoë@d.example", "a=?b@d.example", "x@[192.0.2.1]"]
)
ID = "1vXXXX-00000000001-0001"
USUAL: dict[str, Any] = {"name": "Ada Lovelace", "number": 7, "city": "Oslo"}


def composer(text: str, *, is_template: bool = True) -> Composer:
    return Composer.for_job(
        text.encode(),
        is_template=is_template,
        personalised=True,
        sender="news@sender.example",
        host_name="sender.example",
        created_at=0.0,
    )


def long_way(made: Composer, address: str, merge: dict[str, Any], *, eightbit: bool) -> Rendered | str:
    try:
        return made.compose(address, merge, ID, 5.0).render(eightbit=eightbit, smtputf8=False)
    except DataError as error:
        return error.message


def either_way(made: Composer, address: str, merge: dict[str, Any], *, eightbit: bool) -> Rendered | str:
    try:
        return made.render(address, merge, ID, 5.0, eightbit=eightbit, smtputf8=False)
    except DataError as error:
        return error.message


def same(found: Rendered | str) -> object:
    """What is to be the same on either way."""
    return (found.content, found.is_8bit, found.smtputf8) if isinstance(found, Rendered) else found


def stencil_of(made: Composer, *, eightbit: bool = True) -> Stencil | None:
    either_way(made, "ada@d.example", USUAL, eightbit=eightbit)
    return made._stencils[eightbit][2]


TEMPLATES = {"plain": PLAIN, "html": HTML, "multipart": MULTIPART, "long": LONG, **OTHERS}
COMPOSERS = {name: composer(text) for name, text in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@given(merge=MERGE, address=ADDRESS, eightbit=st.booleans())
@example(merge=USUAL, address="ada@d.example", eightbit=True)
@example(merge={**USUAL, "city": "-b1"}, address="ada@d.example", eightbit=True)
@example(merge={**USUAL, "city": "x" * 37, "number": 1}, address="ada@d.example", eightbit=True)
@example(merge={**USUAL, "name": "=41"}, address="ada@d.example", eightbit=False)
@example(merge={**USUAL, "name": "x" * 38}, address="ada@d.example", eightbit=True)
@settings(max_examples=60, deadline=None)
def test_gives_what_the_long_way_gives(name: str, merge: dict[str, Any], address: str, eightbit: bool) -> None:
    made = COMPOSERS[name]
    found = either_way(made, address, merge, eightbit=eightbit)
    assert same(found) == same(long_way(made, address, merge, eightbit=eightbit))


@pytest.mark.parametrize("name", ["plain", "html", "multipart", "long"])
def test_usual_values_go_the_short_way(name: str) -> None:
    stencil = stencil_of(COMPOSERS[name])
    assert stencil is not None
    found = stencil.fill([USUAL[column] for column in COMPOSERS[name]._names] + ["ada@d.example", ID])
    expected = long_way(COMPOSERS[name], "ada@d.example", USUAL, eightbit=True)
    assert isinstance(expected, Rendered)
    assert found is not None
    assert b"".join(found) == expected.content


def test_8bit_text_has_no_short_way_to_a_server_without_8bitmime() -> None:
    """There it is encoded as a whole."""
    assert stencil_of(COMPOSERS["html"], eightbit=False) is None


@pytest.mark.parametrize("name", OTHERS)
def test_what_needs_thought_has_no_short_way(name: str) -> None:
    assert stencil_of(COMPOSERS[name]) is None


def test_a_message_that_is_no_template_has_one() -> None:
    made = composer("From: a@s.example\nSubject: x\n\nbody\n", is_template=False)
    assert stencil_of(made) is not None
    found, expected = (way(made, "bob@d.example", {}, eightbit=True) for way in (either_way, long_way))
    assert same(found) == same(expected)


def test_the_date_is_that_of_each_call() -> None:
    made = COMPOSERS["plain"]
    for now in (5.0, 86405.5, 5.9):
        found = made.render("ada@d.example", USUAL, ID, now, eightbit=True, smtputf8=False)
        expected = made.compose("ada@d.example", USUAL, ID, now).render(eightbit=True, smtputf8=False)
        assert same(found) == same(expected)


# the kernel

LETTERS = bytes(chr(code).isalpha() for code in range(128))
ANY = bytes(128 * [1])


@given(
    segments=st.lists(st.binary(max_size=5), min_size=1, max_size=5),
    values=st.lists(
        st.one_of(st.text("ab1 ", max_size=4), st.integers(), st.none(), st.just("é")), min_size=2, max_size=2
    ),
    limit=st.integers(0, 8),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_fill(segments: list[bytes], values: list[Any], limit: int, data: st.DataObject) -> None:
    holes = tuple(data.draw(st.integers(0, 1)) for _ in segments[1:])
    stencil = Stencil(tuple(segments), holes, (LETTERS, ANY), ((limit, (0, 1, 1)),))
    texts = [str(value) if isinstance(value, int) else value or "" for value in values]
    is_right = (
        all(text and text.isascii() and text == text.strip(" ") for text in texts)
        and texts[0].isalpha()
        and len(texts[0]) + 2 * len(texts[1]) <= limit
    )
    expected = segments[0] + b"".join(
        texts[hole].encode() + after for hole, after in zip(holes, segments[1:], strict=True)
    )
    assert stencil.fill(values) == ((expected,) if is_right else None)


@given(
    lengths=st.lists(st.sampled_from([0, 1, 16383, 16384, 20000]), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_long_segments_are_shared(lengths: list[int], data: st.DataObject) -> None:
    segments = tuple(bytes([97 + number]) * length for number, length in enumerate(lengths))
    holes = tuple(data.draw(st.integers(0, 1)) for _ in segments[1:])
    found = Stencil(segments, holes, (ANY, ANY), ()).fill(["one", 2])
    assert found is not None
    values = [(b"one", b"2")[hole] for hole in holes]
    assert b"".join(found) == segments[0] + b"".join(map(bytes.__add__, values, segments[1:]))
    long = [segment for segment in segments if len(segment) >= 16384]
    assert [id(piece) for piece in found if any(piece is each for each in long)] == list(map(id, long))
    assert len(found) <= 2 * len(long) + 1


def test_a_sample_with_other_line_ends_has_no_stencil() -> None:
    for line_end in (b"\n", b"\r", b"\n\r\n", b"\r\r\n"):
        assert not _has_lines(b"a\r\nb" + line_end + b"c\r\n")
        assert not _has_lines(b"a\r\nb" + line_end.removesuffix(b"\r\n"))
    assert _has_lines(b"a\r\n\r\nb\r\n")


def test_what_does_not_fit_together_is_refused() -> None:
    for segments, holes, allowed, limits in [
        ((b"", b""), (), (ANY,), ()),
        ((b"", b""), (1,), (ANY,), ()),
        ((b"", b""), (-1,), (ANY,), ()),
        ((b"", b""), (0,), (b"",), ()),
        ((b"", b""), (0,), (ANY,), ((1, (1,)),)),
        ((b"", b""), (0,), (ANY,) * (MAX_VALUES + 1), ()),
    ]:
        with pytest.raises(ValueError, match=r"table|value|fit together"):
            Stencil(segments, holes, allowed, limits)
    with pytest.raises(TypeError):
        Stencil(("x",), (), (), ())  # type: ignore[arg-type]
    stencil = Stencil((b"", b""), (0,), (ANY,), ())
    with pytest.raises(ValueError, match="number of values"):
        stencil.fill([])
    assert stencil.fill([10**5000]) is None
    assert stencil.fill([True]) is None

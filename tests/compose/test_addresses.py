"""Structured fields: their tokens, their addresses, and their form in ASCII."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.compose.addresses import encode_structured, escape_comment, mailboxes, quote, tokens, unquote
from engine.errors import DataError
from fakes.mail import parsed

PIECES = st.sampled_from([*'"\\()<>,;:@.[] \ta', "ü", '"q"', "(c)", "x@y", "=?utf-8?q?x?="])
fields = st.lists(PIECES, max_size=14).map("".join)


@given(st.one_of(fields, st.text(max_size=20)))
def test_tokens_make_up_the_text(text: str) -> None:
    try:
        found = tokens(text)
    except DataError:
        return
    assert "".join(token.text for token in found) == text
    assert all(token.text for token in found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('a "b c" <d@e>', ["a", " ", '"b c"', " ", "<", "d", "@", "e", ">"]),
        ("(a (b) \\) c)d", ["(a (b) \\) c)", "d"]),
        ('"a\\"b"', ['"a\\"b"']),
        ("x@[1.2.3.4]", ["x", "@", "[1.2.3.4]"]),
    ],
)
def test_the_tokens_are(text: str, found: list[str]) -> None:
    assert [token.text for token in tokens(text)] == found


@pytest.mark.parametrize("text", ['"a', "(a", "(a (b)", "[a", "a)", "]", '"a\\"', '\\"', "([)"])
def test_what_is_not_closed(text: str) -> None:
    if text in ('\\"',):
        assert len(tokens(text[:1])) == 1
    elif text == "([)":
        assert len(tokens(text)) == 1
    else:
        with pytest.raises(DataError):
            tokens(text)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")))
def test_quoting(text: str) -> None:
    (token,) = tokens(quote(text))
    assert unquote(token) == text
    (comment,) = tokens(f"({escape_comment(text)})")
    assert comment.kind == "comment"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a@b", ["a@b"]),
        ("<a@b>", ["a@b"]),
        ("A B <a@B>, c@d (x)", ["a@b", "c@d"]),
        ('"A, B" <a@b>,, "x y"@z,', ["a@b", '"x y"@z']),
        ("group: a@b, c <d@e>; f@g", ["a@b", "d@e", "f@g"]),
        ("undisclosed-recipients:;", []),
        ("", []),
        ("a (x) @ (y) b", ["a@b"]),
        ("ü@bücher.example", ["ü@xn--bcher-kva.example"]),
        ("<a@b> (comment)", ["a@b"]),
    ],
)
def test_mailboxes(value: str, found: list[str]) -> None:
    assert mailboxes(value) == found


@pytest.mark.parametrize(
    "value",
    ["a", "a@", "@b", "a b@c d", "<a@b", "a@b>", "<a@b> c", "<a@b> <c@d>", "<>", "a@b c@d", "A <b>", "a@b <c@d"],
)
def test_what_are_no_mailboxes(value: str) -> None:
    with pytest.raises(DataError):
        mailboxes(value)


@given(fields, st.booleans())
def test_any_field_has_a_form_or_a_reason(value: str, is_addresses: bool) -> None:
    try:
        encoded, needs_utf8 = encode_structured(value, is_addresses=is_addresses)
    except DataError:
        return
    if value.isascii():
        assert (encoded, needs_utf8) == (value, False)
    assert encoded.isascii() or needs_utf8


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30)


@given(st.lists(st.tuples(names, st.sampled_from(["a@b.example", "c@bücher.example"])), min_size=1, max_size=3))
def test_display_names_say_what_they_said(boxes: list[tuple[str, str]]) -> None:
    value = ", ".join(f"{quote(name)} <{address}>" for name, address in boxes)
    encoded, needs_utf8 = encode_structured(value, is_addresses=True)
    assert not needs_utf8
    found = parsed(f"To: {encoded}\n\n".encode())["To"].addresses
    assert [address.addr_spec for address in found] == [
        address.replace("bücher", "xn--bcher-kva") for _, address in boxes
    ]
    for address, (name, _) in zip(found, boxes, strict=True):
        # Python's parser folds white space in names
        assert address.display_name.split() == name.split() or not name.isascii()

"""Encoded-words and folding, with Python's own decoder as a second opinion."""

from __future__ import annotations

from email.header import decode_header, make_header
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.compose.words import MARK, encode_text, encode_words, fold, is_encoded_word
from engine.errors import DataError

texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0" + MARK), min_size=1, max_size=200)


def decoded(text: str) -> str:
    return str(make_header(decode_header(text)))


@given(texts, st.integers(0, 120))
@example("ü" * 200, 0)
@example("\U0001f600" * 100, 40)
@example("a" * 200 + "ü", 49)
def test_encoded_words_say_the_text(text: str, taken: int) -> None:
    words = encode_words(text, taken).split(" ")
    assert all(len(word) <= 75 and is_encoded_word(word) for word in words)
    assert taken >= 50 or taken + len(words[0]) <= 76
    # each holds whole characters: it can be read by itself
    assert "".join(decoded(word) for word in words) == text


@given(texts)
def test_the_mark_is_not_written(text: str) -> None:
    assert encode_words(text[:5] + MARK + text[5:]) == encode_words(text)


def seen(text: str) -> str:
    """What a reader shows, white space folded."""
    return " ".join(text.split())


@given(
    st.lists(
        st.one_of(st.sampled_from(["plain", "=?utf-8?q?x?=", "ü", "w" * 1200, "=?", "a=?b"]), texts),
        min_size=1,
        max_size=6,
    )
)
@example(["=?utf-8?q?x?=", "ü"])
@example(["ü", "=?utf-8?q?x?=", "ü"])
@example(["ü", "plain", "ü"])
def test_unstructured_text(words: list[str]) -> None:
    text = " ".join(words)
    encoded = encode_text(text)
    assert encoded.isascii()
    assert max(len(word) for word in encoded.split()) <= 900 if encoded.split() else True
    encoded_neighbours = any(a == b == "=?utf-8?q?x?=" for a, b in pairwise(words))
    if not encoded_neighbours and all(word in ("plain", "=?utf-8?q?x?=", "ü", "w" * 1200) for word in words):
        assert seen(decoded(encoded)) == seen(text.replace("=?utf-8?q?x?=", "x"))


def test_ascii_stays_as_it_is() -> None:
    for text in ("", "plain", "=?utf-8?q?x?= and =? more", "  a  b  "):
        assert encode_text(text) == text


@pytest.mark.parametrize(
    ("word", "is_one"),
    [
        ("=?utf-8?q?x?=", True),
        ("=?UTF-8*de?B?eA==?=", True),
        ("=?utf-8?q??=", True),
        ("=?utf-8?x?y?=", False),
        ("=?utf-8?q?a b?=", False),
        ("=?utf-8?q?a?b?=", False),
        ("x=?utf-8?q?x?=", False),
        ("=?utf-8?q?x?=x", False),
        ("=?", False),
    ],
)
def test_what_an_encoded_word_is(word: str, is_one: bool) -> None:
    assert is_encoded_word(word) == is_one


@given(st.sampled_from(["X", "Subject", "X-" + "n" * 70]), st.text("ab \tü,", max_size=300))
def test_folding_changes_only_white_space(name: str, value: str) -> None:
    value = value.strip(" \t")
    field = fold(name, value)
    assert field.endswith("\r\n")
    lines = field[:-2].split("\r\n")
    assert all(line.strip() for line in lines)
    assert all(line[:1] in (" ", "\t") for line in lines[1:])
    assert "".join(lines) == (f"{name}: {value}" if value else f"{name}:")
    for line in lines[1:]:
        assert len(line.encode()) <= 78 or " " not in line.strip(" \t").replace("\t", " ")


def test_a_piece_without_white_space_may_be_as_long_as_a_line() -> None:
    assert fold("X", "w" * 995) == "X: " + "w" * 995 + "\r\n"
    assert fold("X", "w" * 997) == "X:\r\n " + "w" * 997 + "\r\n"
    for value in ("w" * 998, "ü" * 499):
        with pytest.raises(DataError, match="X cannot be folded"):
            fold("X", value)

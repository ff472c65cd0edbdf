"""Structured header text: its tokens, its addresses, and how it is written in ASCII.

Layer: sans-I/O.  Spec: RFC 5322 §3.2 (tokens), §3.4 (addresses), RFC 2047 §5 (where encoded-words may stand), RFC 6531
§3.3 and RFC 6532 §3.2 (UTF-8 in addresses), RFC 5891 (A-labels).
Invariants: text in ASCII is never changed; only a local part that is not ASCII asks for SMTPUTF8, everything else has
an ASCII form.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ..errors import DataError
from ..values import parse_address, parse_domain
from .words import MARK, encode_words, is_encoded_word

SPACE: Final = "space"
QUOTED: Final = "quoted"
COMMENT: Final = "comment"
LITERAL: Final = "literal"
SPECIAL: Final = "special"
WORD: Final = "word"

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
      | (?P<quoted>"(?:[^"\\]|\\.)*+")
      | (?P<comment>\()
      | (?P<literal>\[[^\[\]\\]*+\])
      | (?P<special>[<>,:;@.])
      | (?P<word>[^ \t"()<>\[\],:;@.]+)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_STEP = re.compile(r"\\.|[()]", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
#: characters that stand in a quoted-string or comment only behind a backslash, RFC 5322 §3.2.2 and §3.2.4
_QUOTE_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\"})
_COMMENT_ESCAPES = str.maketrans({"(": "\\(", ")": "\\)", "\\": "\\\\"})


class Token(NamedTuple):
    kind: str
    text: str


def tokens(text: str) -> list[Token]:
    """The lexical tokens of a structured field (RFC 5322 §3.2); joined they give `text` again.

    Raises:
        DataError: a quoted string, a comment or a bracket is not closed.
    """
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise DataError(f"{text[at]!r} at character {at + 1} is not closed or out of place")
        end = match.end()
        kind = match.lastgroup or WORD
        if kind == COMMENT:
            end = _comment_end(text, at)
        found.append(Token(kind, text[at:end]))
        at = end
    return found


def _comment_end(text: str, start: int) -> int:
    depth = 0
    for step in _COMMENT_STEP.finditer(text, start):
        if step[0] == "(":
            depth += 1
        elif step[0] == ")":
            depth -= 1
            if depth == 0:
                return step.end()
    raise DataError(f"the comment at character {start + 1} is not closed")


def quote(text: str) -> str:
    """The text as a quoted-string."""
    return f'"{text.translate(_QUOTE_ESCAPES)}"'


def escape_quoted(text: str) -> str:
    """The text as it stands inside a quoted-string."""
    return text.translate(_QUOTE_ESCAPES)


def escape_comment(text: str) -> str:
    """The text as it stands inside a comment."""
    return text.translate(_COMMENT_ESCAPES)


def unquote(token: Token) -> str:
    """What a token says, without its quotes."""
    return _ESCAPED.sub(r"\1", token.text[1:-1]) if token.kind == QUOTED else token.text


def mailboxes(value: str) -> list[str]:
    """The addresses of a field such as From, each checked; members of groups as well.

    Raises:
        DataError: it is not a list of addresses.
    """
    found: list[str] = []
    run: list[Token] = []
    has_angle = False
    for token in [*tokens(value), Token(SPECIAL, ",")]:
        if token.text == "<" and token.kind == SPECIAL:
            if has_angle:
                raise DataError("it has two addresses without a comma between them")
            run, has_angle = [], True
        elif token.kind == SPECIAL and token.text in ",;:>":
            spec = _spec_of(run)
            if token.text == ">" and not has_angle:
                raise DataError("it has a > without a <")
            if token.text == ">" or (token.text in ",;" and spec and not has_angle):
                found.append(str(parse_address(spec)))
            elif has_angle and (spec or token.text == ":"):
                raise DataError(f"{spec!r} is out of place")
            if token.text != ">":
                has_angle = False
            run = []
        else:
            run.append(token)
    if has_angle:
        raise DataError("it has a < without a >")
    return found


def for_header(text: str) -> str:
    """An address from outside, as it may stand in a header field.

    Raises:
        DataError: it is no address, or could be read as an encoded-word, which some readers decode even here.
    """
    address = str(parse_address(text))
    if "=?" in address:
        raise DataError(f"address {text!r} reads as an encoded-word (RFC 2047)")
    return address


def _spec_of(run: list[Token]) -> str:
    """An addr-spec without the white space and the comments that may stand around its words, not between two."""
    spec = ""
    is_apart = ends_word = False
    for token in run:
        if token.kind in (SPACE, COMMENT):
            is_apart = True
            continue
        is_word = token.kind != SPECIAL
        spec += f" {token.text}" if is_apart and ends_word and is_word else token.text
        is_apart, ends_word = False, is_word
    return spec


def encode_structured(value: str, *, is_addresses: bool) -> tuple[str, bool]:
    """Write a structured field in ASCII, if that is possible.

    Args:
        value: in one line; `MARK` asks that the word around it becomes an encoded-word.

    Returns:
        The text, and whether it is in UTF-8 because an address has no other form.

    Raises:
        DataError: it cannot be read, or has no form at all.
    """
    if value.isascii():
        return value, False
    found = tokens(value)
    text, needs_utf8 = _encode(found, is_addresses, utf8=False)
    if needs_utf8:
        text, _ = _encode(found, is_addresses, utf8=True)
    return text, needs_utf8


def _encode(found: list[Token], is_addresses: bool, *, utf8: bool) -> tuple[str, bool]:
    output: list[str] = []
    run: list[Token] = []
    in_angle = needs_utf8 = False
    for token in [*found, Token(SPECIAL, "")]:
        ends = token.kind == SPECIAL and (token.text in "<>" or (token.text in ",;:" and not in_angle))
        if not ends:
            run.append(token)
            continue
        is_address = in_angle or (token.text not in ("<", ":") and any(part.text == "@" for part in run))
        if is_address and not is_addresses and not all(part.text.isascii() for part in run):
            raise DataError(f"{''.join(part.text for part in run)!r} is not ASCII and has no ASCII form")
        if is_address and is_addresses:
            text, needs = _encode_address(run, utf8=utf8)
            needs_utf8 |= needs
        else:
            text = _encode_phrase(run, utf8=utf8)
        output += [text, token.text]
        run = []
        in_angle = token.text == "<"
    return "".join(output), needs_utf8


def _encode_address(run: list[Token], *, utf8: bool) -> tuple[str, bool]:
    """One addr-spec with the white space and the comments around it."""
    texts = [_encode_comment(token.text, utf8=utf8) if token.kind == COMMENT else token.text for token in run]
    if all(text.isascii() for text in texts):
        return "".join(texts), False
    at = max((place for place, token in enumerate(run) if token.text == "@"), default=-1)
    local = [place for place in range(at) if run[place].kind not in (SPACE, COMMENT)]
    domain = [place for place in range(at + 1, len(run)) if run[place].kind not in (SPACE, COMMENT)]
    if not local or not domain:
        raise DataError(f"{''.join(token.text for token in run)!r} is not an address")
    if not all(texts[place].isascii() for place in domain):
        name = parse_domain("".join([texts[place] for place in domain]))
        for place in domain:
            texts[place] = ""
        texts[domain[0]] = name
    needs_utf8 = not all(texts[place].isascii() for place in local)
    return "".join(texts).replace(MARK, ""), needs_utf8


def _encode_comment(text: str, *, utf8: bool) -> str:
    if text.isascii() or (utf8 and MARK not in text):
        return text
    return "(" + encode_words(_ESCAPED.sub(r"\1", text[1:-1])) + ")"


def _encode_phrase(run: list[Token], *, utf8: bool) -> str:
    """A display name or another list of words; the words between two encoded-words of the author are taken together."""
    if all(token.text.isascii() or (utf8 and MARK not in token.text) for token in run):
        return "".join([token.text for token in run])
    output: list[str] = []
    words: list[Token] = []
    after_encoded = False
    for token in [*run, Token(COMMENT, "")]:
        is_comment = token.kind == COMMENT
        if is_comment or is_encoded_word(token.text):
            output.append(_encode_run(words, after_encoded and bool(words), not is_comment, utf8=utf8))
            output.append(_encode_comment(token.text, utf8=utf8) if is_comment else token.text)
            words = []
            after_encoded = not is_comment
        else:
            words.append(token)
    return "".join(output)


def _encode_run(words: list[Token], after_encoded: bool, before_encoded: bool, *, utf8: bool) -> str:
    """Words that are no encoded-words; a reader drops white space between two of those, so theirs is encoded too."""
    if all(token.text.isascii() or (utf8 and MARK not in token.text) for token in words):
        return "".join([token.text for token in words])
    start, end = 0, len(words)
    while words[start].kind == SPACE:
        start += 1
    while words[end - 1].kind == SPACE:
        end -= 1
    lead = "".join([token.text for token in words[:start]])
    trail = "".join([token.text for token in words[end:]])
    text = "".join([unquote(token) for token in words[start:end]])
    if after_encoded and lead:
        text, lead = lead + text, " "
    if before_encoded and trail:
        text, trail = text + trail, " "
    return lead + encode_words(text) + trail

"""Header text that is not ASCII: encoded-words, and where a header line may be folded.

Layer: sans-I/O.  Spec: RFC 2047 (encoded-words), RFC 5322 §2.2.3 (folding), §2.1.1 (78 and 998).
Invariants: an encoded-word has at most 75 characters, never splits a character, and uses only what is allowed in a
phrase (RFC 2047 §5 (3)), the strictest place; a folded line is never over 998 octets nor made of white space alone.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

from ..errors import DataError
from .transfer import MAX_LINE_OCTETS

#: characters of a line that is folded, where it can be, RFC 5322 §2.1.1
PREFERRED_LINE: Final = 78
#: stands in merge data between ``=`` and ``?`` so that the word is encoded, and around data in structured fields; a
#: noncharacter, set aside by Unicode for use inside a program
MARK: Final = "\ufdd0"

_OPENING, _CLOSING = "=?utf-8?", "?="
# 75 characters (RFC 2047 §2) without =?utf-8?q? and ?=
_ROOM = 75 - len(_OPENING) - 2 - len(_CLOSING)
_Q_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_Q = tuple("_" if code == 32 else chr(code) if code in _Q_PLAIN else f"={code:02X}" for code in range(256))
_ENCODED_WORD = re.compile(r"=\?[!-~]+\?[BbQq]\?[!->@-~]*\?=\Z")
_SPACES = re.compile(r"([ \t]+)")
_FOLDABLE = re.compile(r"[ \t]*[^ \t]+")
#: a word longer than this is encoded, since encoded-words can be folded
LONG_WORD: Final = 900


def is_encoded_word(word: str) -> bool:
    return word.startswith("=?") and _ENCODED_WORD.match(word) is not None


def encode_words(text: str, taken: int = 0) -> str:
    """The text as encoded-words with a space between each two (which a reader drops).

    Args:
        taken: characters of the line before the first word, which is made shorter by as many, if there is room at all.
    """
    octets = text.replace(MARK, "").encode()
    quoted = "".join([_Q[code] for code in octets])
    # RFC 2047 §2: a line with an encoded-word has at most 76 characters
    room = min(_ROOM, _ROOM + 1 - taken) if taken < 50 else _ROOM
    if len(quoted) <= room and len(quoted) <= (len(octets) + 2) // 3 * 4:
        return f"{_OPENING}q?{quoted}{_CLOSING}"
    use_q = 3 * len(quoted) <= 4 * len(octets)
    words: list[str] = []
    start = at = 0
    while at < len(octets):
        # the room of a word, then back to where a character begins
        at = start + (_q_span(octets, start, room) if use_q else room // 4 * 3)
        room = _ROOM
        while at < len(octets) and octets[at] & 0xC0 == 0x80:
            at -= 1
        chunk = octets[start:at]
        if use_q:
            words.append(f"{_OPENING}q?{''.join([_Q[code] for code in chunk])}{_CLOSING}")
        else:
            words.append(f"{_OPENING}b?{binascii.b2a_base64(chunk, newline=False).decode()}{_CLOSING}")
        start = at
    return " ".join(words)


def _q_span(octets: bytes, start: int, room: int) -> int:
    at = start
    while at < len(octets):
        room -= len(_Q[octets[at]])
        if room < 0:
            break
        at += 1
    return at - start


def encode_text(text: str, taken: int = 0) -> str:
    """Unstructured header text in ASCII: the words that need it become encoded-words, the rest stays as it is.

    White space between two encoded-words is dropped by a reader, so it is encoded with the word before or after it.

    Args:
        taken: characters of the line before it.
    """
    if text.isascii() and len(text) <= LONG_WORD:
        return text
    tokens = _SPACES.split(text)
    output: list[str] = []
    run: list[str] = []
    for at in range(0, len(tokens), 2):
        word = tokens[at]
        space = tokens[at - 1] if at else ""
        if not word.isascii() or len(word) > LONG_WORD:
            if run:
                run += [space, word]
            elif output and is_encoded_word(output[-1]):
                output.append(" ")
                run = [space, word]
            else:
                output.append(space)
                run = [word]
            continue
        if run:
            if is_encoded_word(word):
                run.append(space)
                space = " "
            output.append(encode_words("".join(run), 0 if any(output) else taken))
            run = []
        output += [space, word]
    if run:
        output.append(encode_words("".join(run), 0 if any(output) else taken))
    return "".join(output)


def fold(name: str, value: str) -> str:
    """A header field with its CRLF, folded at white space to `PREFERRED_LINE` where that is possible.

    Args:
        value: in one line.

    Raises:
        DataError: a piece without white space is over 998 octets.
    """
    if len(name) + len(value) <= PREFERRED_LINE - 2 and value.isascii():
        return f"{name}: {value}\r\n" if value else f"{name}:\r\n"
    lines: list[str] = []
    line, size = f"{name}:", len(name) + 1
    for match in _FOLDABLE.finditer(" " + value):
        piece = match[0]
        octets = len(piece) if piece.isascii() else len(piece.encode())
        # after the name a piece stays on the same line while it can: some readers dislike an empty first line
        limit = PREFERRED_LINE if lines or size > len(name) + 1 else MAX_LINE_OCTETS
        if size + octets > limit:
            lines.append(line)
            line, size = "", 0
            if octets > MAX_LINE_OCTETS:
                raise DataError(f"header field {name} cannot be folded into lines of {MAX_LINE_OCTETS} octets")
        line += piece
        size += octets
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"

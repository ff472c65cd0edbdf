"""Fields of the form ``value; name=value``: Content-Type, Content-Disposition.

Layer: sans-I/O.  Spec: RFC 2045 §5.1 (syntax), RFC 2046 §5.1.1 (boundary), RFC 2231 §4 (parameters that are not ASCII).
Invariants: what is written here is ASCII; a value that is no token is quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote as percent_encode

from ..errors import DataError
from .addresses import COMMENT, SPACE, WORD, Token, quote, tokens, unquote
from .words import MARK

_TOKEN = re.compile(r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]+\Z")
# attribute-char of RFC 2231 §7: a token without * ' %
_ATTRIBUTE_CHARS: Final = "!#$&+-.^_`{|}~"
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`{|}~0-9a-z-]+/[!#$%&'*+.^_`{|}~0-9a-z-]+\Z")


@dataclass(frozen=True, slots=True)
class Parameters:
    """A field with parameters.

    Attributes:
        value: what stands before the first semicolon, in lower case, without comments.
        items: the parameters in their order, names in lower case, values without quotes.
    """

    value: str
    items: tuple[tuple[str, str], ...]

    def item(self, name: str) -> str | None:
        """The value of the first parameter of that name."""
        return next((value for key, value in self.items if key == name), None)

    def with_item(self, name: str, value: str) -> Parameters:
        """The same with one parameter set."""
        kept = [(key, old) for key, old in self.items if key != name]
        return Parameters(self.value, (*kept, (name, value)))

    def __str__(self) -> str:
        return "; ".join([self.value, *[_format(name, value) for name, value in self.items]])


def parse_parameters(text: str) -> Parameters:
    """Read a field with parameters; white space inside a value that should have been quoted is kept.

    Raises:
        DataError: it is not of that form.
    """
    segments: list[list[Token]] = [[]]
    for token in tokens(text):
        if token.text == ";":
            segments.append([])
        elif token.kind != COMMENT:
            segments[-1].append(token)
    value = "".join([unquote(token) for token in segments[0]]).strip(" \t")
    items: list[tuple[str, str]] = []
    for segment in segments[1:]:
        if all(token.kind == SPACE for token in segment):
            continue  # an empty parameter, such as after a semicolon at the end, is harmless
        items.append(_parse_item(segment))
    return Parameters(value.lower(), tuple(items))


def _parse_item(segment: list[Token]) -> tuple[str, str]:
    name = ""
    for place, token in enumerate(segment):
        if token.kind != WORD or "=" not in token.text:
            name += token.text
            continue
        before, _, value = token.text.partition("=")
        name = (name + before).strip(" \t").lower()
        if not _TOKEN.match(name):
            break
        value += "".join([unquote(part) for part in segment[place + 1 :]])
        return name, value.strip(" \t").replace(MARK, "")
    raise DataError(f"{''.join([token.text for token in segment]).strip()!r} is not of the form name=value")


def is_media_type(value: str) -> bool:
    """Whether a value is ``type/subtype``."""
    return _MEDIA_TYPE.match(value) is not None


def encode_parameters(text: str) -> str:
    """Write a field with parameters in ASCII."""
    if text.isascii():
        return text
    return str(parse_parameters(text))


def _format(name: str, value: str) -> str:
    if not value.isascii():
        return f"{name}*=utf-8''{percent_encode(value, safe=_ATTRIBUTE_CHARS)}"
    return f"{name}={value}" if _TOKEN.match(value) else f"{name}={quote(value)}"

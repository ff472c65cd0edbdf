"""Take JSON apart as far as the expansion language does: arrays into elements, objects into members.

Layer: sans-I/O.  Spec: expansion.md 2 (`extract json`), 4 (`forany_json`); RFC 8259 §2.
Values are never checked, only found: what stands between two commas is an element.  Brackets and commas inside strings
are text.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import ExpandError

_SPACE: Final = b" \t\n\r\v\f"
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*', re.DOTALL)
_MARK: Final = re.compile(rb'[][{},"]')


def _unwrap(text: bytes, brackets: bytes, what: str) -> bytes:
    """What stands between the brackets around `text`; what follows them is not looked at.

    Raises:
        ExpandError: one of them is missing; `what` completes the message.
    """
    inner = text.lstrip(_SPACE)
    if not inner.startswith(brackets[:1]):
        raise ExpandError(f"missing '{brackets[:1].decode()}' wrapping {what}")
    depth = 0
    at = 0
    while match := _MARK.search(inner, at):
        octet = match[0]
        at = match.end()
        if octet == b'"':
            string = _STRING.match(inner, match.start())
            at = string.end() + 1 if string else at
        elif octet == brackets[:1]:
            depth += 1
        elif octet == brackets[1:]:
            depth -= 1
            if not depth:
                return inner[1 : match.start()]
    raise ExpandError(f"missing '{brackets[1:].decode()}' wrapping {what}")


def _elements(text: bytes) -> list[bytes]:
    """What stands between the commas that are not inside strings, arrays or objects, without leading white space."""
    out = []
    start = at = depth = 0
    while match := _MARK.search(text, at):
        octet = match[0]
        at = match.end()
        if octet == b'"':
            string = _STRING.match(text, match.start())
            at = string.end() + 1 if string else at
        elif octet in b"[{":
            depth += 1
        elif octet in b"]}":
            depth -= 1
        elif not depth:
            out.append(text[start : match.start()].lstrip(_SPACE))
            start = at
    rest = text[start:].lstrip(_SPACE)
    if rest:
        out.append(rest)
    return out


def _dequote(text: bytes, what: str) -> bytes:
    """A JSON string without its quotes; its escapes stay."""
    inner = text.lstrip(_SPACE)
    match = _STRING.match(inner)
    if match is None or inner[match.end() : match.end() + 1] != b'"':
        raise ExpandError(f"missing '\"' wrapping string {what}")
    return match[0][1:]


def array(text: bytes, *, strings: bool) -> list[bytes]:
    """The elements of an array, strings without their quotes when asked for.

    Raises:
        ExpandError: it is none.
    """
    found = _elements(_unwrap(text, b"[]", "array for extract json"))
    if strings:
        return [_dequote(element, "result for extract jsons") for element in found]
    return [element.rstrip(_SPACE) for element in found]


def extract(key: bytes, text: bytes, *, strings: bool) -> bytes | None:
    """The member of an object, or the element of an array when `key` is a number.

    Raises:
        ExpandError: with Exim's text.
    """
    key = key.strip(_SPACE)
    if not key:
        raise ExpandError('first argument of "extract" must not be empty')
    kind = "jsons" if strings else "json"
    if re.fullmatch(rb"-?[0-9]*", key):
        number = int(key[:12]) if key != b"-" else 0
        if number <= 0:
            raise ExpandError('first argument of "extract" must be greater than zero')
        elements = _elements(_unwrap(text, b"[]", f"array for extract {kind}"))
        found = elements[number - 1].rstrip(_SPACE) if number <= len(elements) else None
    else:
        found = _member(_elements(_unwrap(text, b"{}", f"object for extract {kind}")), key)
    if found is None:
        return None
    return _dequote(found, f"result for extract {kind}") if strings else found


def _member(members: list[bytes], key: bytes) -> bytes | None:
    for member in members:
        name = _dequote(member, "key for extract json")
        if name == key:
            rest = member[len(name) + 2 :].lstrip(_SPACE)
            if not rest.startswith(b":"):
                raise ExpandError("missing object value-separator for extract json")
            return rest[1:].lstrip(_SPACE)
    return None

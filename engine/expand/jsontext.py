"""Take JSON apart as far as the expansion language does: arrays into elements, objects into members.

Layer: sans-I/O.  Spec: expansion.md 2 (`extract json`), 4 (`forany_json`); RFC 8259 §2.
Values are never checked, only found: what stands between two commas is an element.
"""

from __future__ import annotations

from typing import Final

from ..errors import ExpandError
from .regexes import text as as_text

_SPACE: Final = b" \t\n\r\v\f"


def _unwrap(text: bytes, brackets: bytes) -> bytes | None:
    """What stands between the brackets around `text`, or None when they do not fit."""
    inner = text.lstrip(_SPACE)
    if not inner.startswith(brackets[:1]):
        return None
    depth = 0
    quoted = False
    at = 0
    while at < len(inner):
        octet = inner[at]
        if quoted:
            if octet == 0x5C:
                at += 1
            elif octet == 0x22:
                quoted = False
        elif octet == 0x22:
            quoted = True
        elif octet == brackets[0]:
            depth += 1
        elif octet == brackets[1]:
            depth -= 1
            if not depth:
                return inner[1:at]
        at += 1
    return None


def _elements(text: bytes) -> list[bytes]:
    """What stands between the commas that are not inside strings, arrays or objects."""
    out = []
    at = start = depth = 0
    quoted = False
    while at < len(text):
        octet = text[at]
        if quoted:
            if octet == 0x5C:
                at += 1
            elif octet == 0x22:
                quoted = False
        elif octet == 0x22:
            quoted = True
        elif octet in b"[{":
            depth += 1
        elif octet in b"]}":
            depth -= 1
        elif octet == 0x2C and depth <= 0:
            out.append(text[start:at].strip(_SPACE))
            start = at + 1
        at += 1
    rest = text[start:].strip(_SPACE)
    if rest:
        out.append(rest)
    return out


def dequote(text: bytes) -> bytes:
    """A JSON string without its quotes.

    Raises:
        ExpandError: it has none.
    """
    if len(text) < 2 or not text.startswith(b'"') or not text.endswith(b'"'):
        raise ExpandError(f"missing quote in JSON string '{as_text(text)}'")
    return text[1:-1]


def array(text: bytes, *, strings: bool) -> list[bytes]:
    """The elements of an array, strings without their quotes when asked for.

    Raises:
        ExpandError: it is none.
    """
    inner = _unwrap(text, b"[]")
    if inner is None:
        raise ExpandError("missing '[' wrapping JSON array")
    found = _elements(inner)
    return [dequote(element) for element in found] if strings else found


def extract(key: bytes, text: bytes, *, strings: bool) -> bytes | None:
    """The member of an object, or the element of an array when `key` is a number.

    Raises:
        ExpandError: with Exim's text.
    """
    key = key.strip(_SPACE)
    if not key:
        raise ExpandError('first argument of "extract" must not be empty')
    kind = "jsons" if strings else "json"
    if key.lstrip(b"-").isdigit() and key.count(b"-") <= key.startswith(b"-"):
        number = int(key[:12])
        if number <= 0:
            raise ExpandError('first argument of "extract" must be greater than zero')
        inner = _unwrap(text, b"[]")
        if inner is None:
            raise ExpandError(f"missing '[' wrapping array for extract {kind}")
        elements = _elements(inner)
        found = elements[number - 1] if number <= len(elements) else None
    else:
        inner = _unwrap(text, b"{}")
        if inner is None:
            raise ExpandError(f"missing '{{' wrapping object for extract {kind}")
        found = None
        for member in _elements(inner):
            name, value = _member(member)
            if name == key:
                found = value
                break
    if found is None:
        return None
    return dequote(found) if strings and found.startswith(b'"') else found


def _member(text: bytes) -> tuple[bytes | None, bytes]:
    if not text.startswith(b'"'):
        return None, b""
    at = 1
    while at < len(text) and text[at] != 0x22:
        at += 2 if text[at] == 0x5C else 1
    rest = text[at + 1 :].lstrip(_SPACE)
    if not rest.startswith(b":"):
        return None, b""
    return text[1:at], rest[1:].strip(_SPACE)

"""The operators ``${op:text}``: one table.

Layer: sans-I/O.  Spec: expansion.md 3.
Each row tells the compiler what it must know (does the result carry the taint of the text, is it the same each time)
and the evaluator what to call.  Rows with a number are done in C by engine.expand._evaluate; their function here is
what the tests hold it against.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import ExpandError
from . import _evaluate, charsets, mailtext, network, numbers, pieces, quoting
from ._evaluate import split_list
from .regexes import text as as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .scope import Scope


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table.

    Attributes:
        name: without arguments.
        function: text -> result.
        with_name: text, full name -> result, for operators with `_args`.
        with_scope: text, full name, scope -> result.
        takes_arguments: whether ``name_args`` is allowed.
        cleans: the result is not tainted even when the text was (X-24).
        constant: the same text gives the same result each time.
        code: number of the C implementation, or 0.
    """

    name: str
    function: Callable[[bytes], bytes] | None = None
    with_name: Callable[[bytes, str], bytes] | None = None
    with_scope: Callable[[bytes, str, Scope], bytes] | None = None
    takes_arguments: bool = False
    cleans: bool = False
    constant: bool = True
    code: int = 0

    def apply(self, text: bytes, full: str, scope: Scope | None) -> bytes:
        """The result for `text`; `full` is the name as written."""
        if self.function is not None:
            return self.function(text)
        if self.with_name is not None:
            return self.with_name(text, full)
        assert self.with_scope is not None
        assert scope is not None
        return self.with_scope(text, full, scope)


_UPPER: Final = bytes(octet - 32 if 97 <= octet <= 122 else octet for octet in range(256))
_LOWER: Final = bytes(octet + 32 if 65 <= octet <= 90 else octet for octet in range(256))


def lower(text: bytes) -> bytes:
    return text.translate(_LOWER)


def upper(text: bytes) -> bytes:
    return text.translate(_UPPER)


_NAMED_ESCAPES: Final = {10: b"\\n", 13: b"\\r", 8: b"\\b", 11: b"\\v", 12: b"\\f"}


def _escape_table() -> list[bytes]:
    return [
        b"%c" % octet if 32 <= octet <= 126 or octet == 9 else _NAMED_ESCAPES.get(octet, b"\\%03o" % octet)
        for octet in range(256)
    ]


_ESCAPE: Final = _escape_table()
_PRINTS: Final = re.compile(rb"[\t -~]*\Z")
_PRINTS_WITHOUT_SPACE: Final = re.compile(rb"[!-~]*\Z")


def escape(text: bytes) -> bytes:
    """What does not print as escapes; a tab and a backslash stay."""
    return text if _PRINTS.match(text) else b"".join([_ESCAPE[octet] for octet in text])


def escape_8bit(text: bytes) -> bytes:
    return b"".join([b"\\%03o" % octet if octet >= 127 or octet == 92 else b"%c" % octet for octet in text])


def hex_quote(text: bytes) -> bytes:
    if _PRINTS_WITHOUT_SPACE.match(text):
        return text
    return b"".join([b"%c" % octet if 0x21 <= octet <= 0x7E else b"\\x%02x" % octet for octet in text])


def hex_to_base64(text: bytes) -> bytes:
    if text and not re.fullmatch(rb"[0-9A-Fa-f]+", text):
        raise ExpandError(f'"{as_text(text)}" is not a hex string')
    if len(text) % 2:
        raise ExpandError(f'"{as_text(text)}" contains an odd number of characters')
    return base64.b64encode(bytes.fromhex(text.decode("ascii")))


_BASE64: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z")


def base64_decode(text: bytes) -> bytes:
    compact = bytes(octet for octet in text if octet not in b" \t\r\n\v\f")
    if not _BASE64.match(compact):
        raise ExpandError(f'string "{as_text(text)}" is not well-formed for "base64d" operator')
    return base64.b64decode(compact).partition(b"\0")[0]


_REGEX_QUOTED: Final = [b"%c" % octet if (b"%c" % octet).isalnum() else b"\\%c" % octet for octet in range(256)]


def _regex_quote(text: bytes) -> bytes:
    return b"".join([_REGEX_QUOTED[octet] for octet in text])


_MAX_UNSIGNED: Final = (1 << 64) - 1


def _base62(text: bytes) -> bytes:
    return _to_base(text, "base62", numbers.BASE62, 6)


def _base32(text: bytes) -> bytes:
    return _to_base(text, "base32", numbers.BASE32, 0)


def _to_base(text: bytes, name: str, digits: bytes, width: int) -> bytes:
    match = re.fullmatch(rb"[ \t\n\r\v\f]*([+-]?[0-9]+)|", text)
    if not match:
        raise ExpandError(f'argument for {name} operator is "{as_text(text)}", which is not a decimal number')
    number = int((match[1] or b"0")[:40])
    # as C's strtoul: a minus wraps around, what is too large becomes the largest
    number = number & _MAX_UNSIGNED if -_MAX_UNSIGNED <= number <= _MAX_UNSIGNED else _MAX_UNSIGNED
    # six characters hold no more than 62**6; what is above falls off, as it always did
    return numbers.to_base(number, digits, width)[-width:]


def _base62d(text: bytes) -> bytes:
    return _from_base(text, "base62d", numbers.BASE62, "62")


def _base32d(text: bytes) -> bytes:
    return _from_base(text, "base32d", numbers.BASE32, "32")


def _from_base(text: bytes, name: str, digits: bytes, base: str) -> bytes:
    number = numbers.from_base(text, digits)
    if number is None:
        raise ExpandError(f'argument for {name} operator is "{as_text(text)}", which is not a base {base} number')
    return b"%d" % numbers.wrap(number)


def _digest(algorithm: str, *, upper_case: bool = True) -> Callable[[bytes], bytes]:
    make = getattr(hashlib, algorithm)

    def digest(text: bytes) -> bytes:
        value: str = make(text, usedforsecurity=False).hexdigest()
        return (value.upper() if upper_case else value).encode("ascii")

    return digest


def _sized_digest(family: str, sizes: str) -> Callable[[bytes, str], bytes]:
    names = {"": f"{family}256", **{size: f"{family}{size}" for size in sizes.split()}}

    def digest(text: bytes, full: str) -> bytes:
        algorithm = names.get(full.partition("_")[2])
        if algorithm is None:
            raise ExpandError(f"unrecognised {'sha3' if family == 'sha3_' else 'sha2'} variant")
        return hashlib.new(algorithm, text).hexdigest().upper().encode()

    return digest


def _pieces(name: str) -> Callable[[bytes, str], bytes]:
    return lambda text, full: pieces.operator(name, full, text)


_TIME: Final = re.compile(rb"(?:[0-9]+[wdhms])+\Z")
_TIME_PART: Final = re.compile(rb"([0-9]+)([wdhms])")
_UNITS: Final = {b"w": 604800, b"d": 86400, b"h": 3600, b"m": 60, b"s": 1}


def _time_eval(text: bytes) -> bytes:
    if len(text) > 60 or not _TIME.match(text):
        raise ExpandError(f'string "{as_text(text)}" is not an Exim time interval in "time_eval" operator')
    return b"%d" % sum(int(count) * _UNITS[unit] for count, unit in _TIME_PART.findall(text))


_DIGITS: Final = re.compile(rb"[0-9]*\Z")


def time_interval(text: bytes) -> bytes:
    if not _DIGITS.match(text):
        raise ExpandError(f'string "{as_text(text)}" is not a positive number in "time_interval" operator')
    seconds = min(int(text[:40] or b"0"), (1 << 64) - 1)
    out = b""
    for letter, size in _UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            out += b"%d%s" % (count, letter)
    return out or b"0s"


def _mask(text: bytes, full: str) -> bytes:
    return network.mask(text, full == "mask_n")


def _headerwrap(text: bytes, full: str) -> bytes:
    values = full.split("_")[1:]
    if len(values) > 2 or not all(value.isdigit() and len(value) < 8 for value in values):
        raise ExpandError(f'non-digit after underscore in "{full}"')
    columns = int(values[0]) if values else 80
    return mailtext.header_wrap(text, columns, int(values[1]) if len(values) > 1 else 998)


def _randint(text: bytes, full: str, scope: Scope) -> bytes:
    if not text:
        raise ExpandError('integer expected but "" found')
    most = numbers.integer(text, non_negative=True)
    if scope.random is None:
        raise ExpandError("no random numbers here")
    return b"%d" % (scope.random(most) if most > 1 else 0)


def _quote(text: bytes, full: str) -> bytes:
    """`quote`, and `quote_TYPE` of a lookup type."""
    if full == "quote":
        return mailtext.quote(text)
    lookup, _, option = full.removeprefix("quote_").partition("_")
    return quoting.quote_for(lookup, text, option.encode() if option else None)


def _strlen(text: bytes) -> bytes:
    return b"%d" % len(text)


def _listcount(text: bytes) -> bytes:
    return b"%d" % len(split_list(text))


def _eval(text: bytes) -> bytes:
    return b"%d" % numbers.evaluate(text, decimal=False)


def _eval10(text: bytes) -> bytes:
    return b"%d" % numbers.evaluate(text, decimal=True)


#: numbers of what engine.expand._evaluate does itself
HOT: Final = {"lc": 1, "uc": 2, "strlen": 3, "domain": 4, "local_part": 5, "eval": 6, "eval10": 7}


def _rows() -> list[Operator]:
    simple: dict[str, Callable[[bytes], bytes]] = {
        "address": mailtext.address,
        "addresses": mailtext.addresses,
        "base32": _base32,
        "base32d": _base32d,
        "base62": _base62,
        "base62d": _base62d,
        "base64": base64.b64encode,
        "base64d": base64_decode,
        "domain": mailtext.domain,
        "escape": escape,
        "escape8bit": escape_8bit,
        "eval": _eval,
        "eval10": _eval10,
        "from_utf8": charsets.from_utf8,
        "hex2b64": hex_to_base64,
        "hexquote": hex_quote,
        "ipv6denorm": network.denormal,
        "ipv6norm": network.normal,
        "lc": lower,
        "listcount": _listcount,
        "local_part": mailtext.local_part,
        "md5": _digest("md5", upper_case=False),
        "quote_local_part": mailtext.quote_local_part,
        "reverse_ip": network.reverse,
        "rfc2047": charsets.encode_2047,
        "rfc2047d": charsets.decode_2047,
        "rxquote": _regex_quote,
        "sha1": _digest("sha1"),
        "sha256": _digest("sha256"),
        "str2b64": base64.b64encode,
        "strlen": _strlen,
        "time_eval": _time_eval,
        "time_interval": time_interval,
        "uc": upper,
        "utf8_domain_from_alabel": charsets.domain_from_alabel,
        "utf8_domain_to_alabel": charsets.domain_to_alabel,
        "utf8_localpart_from_alabel": charsets.local_part_from_alabel,
        "utf8_localpart_to_alabel": charsets.local_part_to_alabel,
        "utf8clean": charsets.utf8_clean,
        "xtextd": charsets.xtext_decode,
    }
    cleaning = {"strlen", "listcount", "eval", "eval10", "time_eval", "time_interval", "base62d", "base32d"}
    named: dict[str, Callable[[bytes, str], bytes]] = {
        "h": _pieces("h"),
        "hash": _pieces("hash"),
        "headerwrap": _headerwrap,
        "l": _pieces("l"),
        "length": _pieces("length"),
        "mask": _mask,
        "nh": _pieces("nh"),
        "nhash": _pieces("nhash"),
        "quote": _quote,
        "s": _pieces("s"),
        "sha2": _sized_digest("sha", "256 384 512"),
        "sha3": _sized_digest("sha3_", "224 256 384 512"),
        "substr": _pieces("substr"),
    }
    hashes = {"h", "hash", "nh", "nhash"}
    return [
        *(
            Operator(name, function, cleans=name in cleaning, code=HOT.get(name, 0))
            for name, function in simple.items()
        ),
        *(
            Operator(name, with_name=function, takes_arguments=True, cleans=name in hashes)
            for name, function in named.items()
        ),
        Operator("randint", with_scope=_randint, cleans=True, constant=False),
        # done by the compiler: a second expansion, and the text of a named list
        Operator("expand", constant=False),
        Operator("listnamed", takes_arguments=True),
    ]


#: every operator by name
OPERATORS: Final[Mapping[str, Operator]] = {operator.name: operator for operator in _rows()}


def find(name: str) -> Operator | None:
    """The operator that ``${name:`` means, with or without `_args`; None when there is none."""
    found = OPERATORS.get(name)
    if found is None and "_" in name:
        found = OPERATORS.get(name.partition("_")[0])
        if found is not None and not found.takes_arguments:
            return None
    return found


#: functions in C that do what `function` in the table does; the tests hold the two against each other
FAST: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "base64": functools.partial(binascii.b2a_base64, newline=False),
    "listcount": _evaluate.count_items,
    "str2b64": functools.partial(binascii.b2a_base64, newline=False),
    "time_interval": _evaluate.time_interval,
}
#: operators that change one octet at a time -> what goes around a text that was changed
BY_OCTET: Final[Mapping[str, bytes]] = {
    "escape": b"",
    "escape8bit": b"",
    "hexquote": b"",
    "quote": b'"',
    "rxquote": b"",
}
#: operators that change nothing in a text none of whose octets they change alone
BY_TEXT: Final = frozenset(["quote_local_part", "rfc2047"])

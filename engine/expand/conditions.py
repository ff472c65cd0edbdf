"""What the conditions of `${if` decide.

Layer: sans-I/O.  Spec: expansion.md 4, 4.1; X-20.
Functions of octets; those that need the scope take it first.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any, Final

from ..errors import ExpandError
from . import network, numbers, patterns
from ._evaluate import Compare
from .lists import AddressList, DomainList, HostList, ItemList, LocalPartList
from .listsplit import split_list
from .operators import lower
from .regexes import text as as_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lists import NamedLists
    from .program import ExpandOptions
    from .scope import Scope
    from .tree import Node

#: name of a condition on two strings -> the number the evaluator knows it by
COMPARE_CODES: Final = {
    "eq": Compare.EQ,
    "eqi": Compare.EQI,
    "lt": Compare.LT,
    "le": Compare.LE,
    "gt": Compare.GT,
    "ge": Compare.GE,
    "lti": Compare.LTI,
    "lei": Compare.LEI,
    "gti": Compare.GTI,
    "gei": Compare.GEI,
    "=": Compare.NUM_EQ,
    "==": Compare.NUM_EQ,
    "<": Compare.NUM_LT,
    "<=": Compare.NUM_LE,
    ">": Compare.NUM_GT,
    ">=": Compare.NUM_GE,
}


def _order(first: bytes | int, second: bytes | int) -> int:
    return (first > second) - (first < second)  # type: ignore[operator]  # both are of one type


def compare(name: str, first: bytes, second: bytes) -> bool:
    """What the condition `name` says of two strings.

    Raises:
        ExpandError: one of them is not a number where numbers are compared (X-20).
    """
    code = COMPARE_CODES[name]
    if code >= Compare.NUM_EQ:
        result = _order(numbers.integer(first), numbers.integer(second))
    elif code == Compare.EQI or code >= Compare.LTI:
        result = _order(lower(first), lower(second))
    else:
        result = _order(first, second)
    if name in ("eq", "eqi", "=", "=="):
        return result == 0
    if name in ("lt", "lti", "<"):
        return result < 0
    if name in ("le", "lei", "<="):
        return result <= 0
    if name in ("gt", "gti", ">"):
        return result > 0
    return result >= 0


_NUMBER: Final = re.compile(rb"-?[0-9]*\Z")


def boolean(text: bytes) -> bool:
    """`bool`.

    Raises:
        ExpandError: `unrecognised boolean value "x"`.
    """
    value = text.strip(b" \t\n\v\f\r")
    if not value:
        return False
    if _NUMBER.match(value):
        return bool(value.strip(b"-0"))
    word = value.lower()
    if word in (b"true", b"yes"):
        return True
    if word in (b"false", b"no"):
        return False
    raise ExpandError(f'unrecognised boolean value "{as_text(value)}"')


def boolean_lax(text: bytes) -> bool:
    """`bool_lax`."""
    return text.strip(b" \t\n\v\f\r").lower() not in (b"", b"-", b"0", b"no", b"false")


def _ip(*versions: int) -> Callable[[bytes], bool]:
    return lambda text: network.address_version(text) in versions


def crypt_equal(text: bytes, encrypted: bytes) -> bool:
    """`crypteq` with `{md5}` and `{sha1}`.

    Raises:
        ExpandError: `unknown encryption mechanism in "x"`; `{crypt}` needs a library that is not here.
    """
    name, brace, digest = encrypted.partition(b"}")
    if encrypted.startswith(b"{") and brace:
        known = _DIGESTS.get(name[1:].lower())
        if known is not None:
            return _digest_equal(known, text, digest)
        if name[1:].lower() not in (b"crypt", b"crypt16"):
            raise ExpandError(f'unknown encryption mechanism in "{as_text(encrypted)}"')
        encrypted = digest
    elif encrypted.startswith(b"{"):
        raise ExpandError(f'unknown encryption mechanism in "{as_text(encrypted)}"')
    if len(encrypted) < 2:
        return False
    raise ExpandError("crypt error: Function not implemented")


_DIGESTS: Final = {b"md5": "md5", b"sha1": "sha1"}


def _digest_equal(algorithm: str, text: bytes, digest: bytes) -> bool:
    made = hashlib.new(algorithm, text, usedforsecurity=False).digest()
    if len(digest) == len(made) * 2:
        return hmac.compare_digest(made.hex().encode(), digest.lower())
    if len(digest) == (len(made) + 2) // 3 * 4:
        try:
            return hmac.compare_digest(made, base64.b64decode(digest))
        except binascii.Error:
            return False
    return False


#: conditions that are functions of their strings alone
TESTS: Final[dict[str, Callable[..., bool]]] = {
    "bool": boolean,
    "bool_lax": boolean_lax,
    "crypteq": crypt_equal,
    "isip": _ip(4, 6),
    "isip4": _ip(4),
    "isip6": _ip(6),
}


# -- lists ----------------------------------------------------------------------------------------------------------


class IpList(HostList):
    """The second argument of `match_ip`: addresses, networks, `*`, named host lists and lookups with the address as
    key; a name never matches."""

    __slots__ = ()

    @classmethod
    def _pattern(cls, item: bytes, named: NamedLists | None, depth: int) -> patterns.Pattern:
        if item.startswith(b"@"):
            raise ExpandError(f'"{as_text(item)}" needs the addresses of this host; write them down')
        return patterns.ip_pattern(item) or patterns.lookup_pattern(item) or patterns.Nothing()


_KINDS: Final[dict[str, tuple[type[ItemList], Callable[[bytes], patterns.Subject]]]] = {
    "match_address": (AddressList, patterns.address_subject),
    "match_domain": (DomainList, patterns.text_subject),
    "match_ip": (IpList, lambda text: patterns.host_subject(text, text)),
    "match_local_part": (LocalPartList, patterns.text_subject),
}


@functools.lru_cache(maxsize=1024)
def _list(kind: str, text: bytes, options: ExpandOptions) -> ItemList:
    return _KINDS[kind][0].of_items(split_list(text), options.lists, text)


def list_is_pure(kind: str, members: Node, options: ExpandOptions) -> bool:
    """Whether matching against the list that `members` stands for never needs a lookup."""
    if members.kind != "text":
        return False
    try:
        return _list(kind, members.data, options).is_pure
    except ExpandError:
        return True


def compiled_list(kind: str, members: bytes, options: ExpandOptions) -> ItemList | None:
    """The list of a `match_domain` and its like that is constant, or None when it cannot be used."""
    try:
        return _list(kind, members, options)
    except ExpandError:
        return None  # Exim notices when it evaluates


def match_list(kind: str, options: ExpandOptions, scope: Scope, subject: bytes, members: bytes) -> bool:
    """`match_domain` and its like: whether `subject` is in the list.

    `$value` becomes what a lookup in the list gave, or else the item that matched; that of an address is no value.

    Raises:
        LookupDeferral: it cannot be told now.
        ExpandError: the list cannot be used, or the subject of `match_ip` is no address.
    """
    if kind == "match_ip" and subject and not network.address_version(subject):
        raise ExpandError(f'"{as_text(subject)}" is not an IP address')
    try:
        items = _list(kind, bytes(members), options)
    except ExpandError as error:
        raise _incomplete(error, members) from None
    return match_compiled(kind, items, scope, subject)


def match_compiled(kind: str, items: ItemList, scope: Scope, subject: bytes) -> bool:
    """As `match_list`, with a list that was compiled before."""
    if kind == "match_ip":
        if subject and not network.address_version(subject):
            raise ExpandError(f'"{as_text(subject)}" is not an IP address')
        find = items.found
    else:
        find = items.shown
    try:
        found = find(_KINDS[kind][1](subject), scope)
    except ExpandError as error:
        raise _incomplete(error, items.source) from None
    if found or kind != "match_ip":
        scope.value = found or None
    return found is not None


def plain_list(kind: str, items: ItemList) -> tuple[bool, bool, tuple[tuple[Any, ...], ...]] | None:
    """A short list of names and `*tails` for the evaluator to look through itself, or None when it is no such list:
    whether its subjects are addresses, whether a match sets `$0`, `$1` …, and its items."""
    rows = None if kind == "match_ip" else items.plain_rows()
    return None if rows is None else (kind == "match_address", items.sets_groups, rows)


def _incomplete(error: ExpandError, members: bytes) -> ExpandError:
    """The same error, with the list in front of the reason."""
    reason = getattr(error, "reason", error.message)
    error.message = f'unable to complete match against "{as_text(members)}": {reason}'
    error.args = (error.message,)
    return error

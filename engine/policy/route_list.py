"""Parse routing rules and host lists of the manualroute router.

Layer: sans-I/O.  Spec: Exim 4 specification, chapter 20 (route_list, route_data, host items, rule options) and 6.20
(changing a separator).
Input: configured or expanded text.  Output: rules with where each part stands, so that an error can point at it.
Two things go beyond Exim, where its reading would only ever be an error: a colon inside brackets does not separate,
and an item of digits alone right behind a host is that host's port (``mx.example:2525``).
Invariants: what cannot be read is a `ConfigError` with a zero-based column, never skipped.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from ..errors import ConfigError, DataError
from ..values import literal_address, parse_domain

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

Lookup = Literal["default", "bydns", "byname"]

#: hosts in one list; arbitrary, far above any real one
MAX_ITEMS: Final = 1000


@dataclass(frozen=True, slots=True)
class HostItem:
    """One item of a host list.

    Attributes:
        name: host name (lower case, no trailing dot) or textual address.
        port: 0 where none is given.
        mx: `name` stands for the hosts of its MX records (``/MX``).
        group: counts the ``+`` items before it.
    """

    name: str
    port: int = 0
    mx: bool = False
    group: int = 0


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """The words behind a host list.

    Attributes:
        randomize: None where the rule does not say.
        transport: "" for the router's.
    """

    randomize: bool | None = None
    lookup: Lookup = "default"
    ipv4_only: bool = False
    ipv4_prefer: bool = False
    transport: str = ""


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One rule of a route_list.

    Attributes:
        pattern: one item of a domain list.
        hosts: host list, still to be expanded.
        column: of the pattern, in the configured text (in the item where that is an array).
        hosts_columns: the column of each character of `hosts`.
        item: index of the array item, 0 where the text is one string.
    """

    pattern: str
    hosts: str
    options: RuleOptions
    column: int
    hosts_columns: tuple[int, ...]
    item: int = 0


@dataclass(frozen=True, slots=True)
class _Text:
    """Text of which each character knows its column in the source."""

    text: str
    columns: tuple[int, ...]
    source: str

    def error(self, message: str, at: int) -> ConfigError:
        column = self.columns[at] if at < len(self.columns) else (self.columns[-1] + 1 if self.columns else 0)
        return ConfigError(message, column=column, source=self.source)

    def cut(self, start: int, end: int) -> _Text:
        return _Text(self.text[start:end], self.columns[start:end], self.source)

    def strip(self) -> _Text:
        start = len(self.text) - len(self.text.lstrip())
        return self.cut(start, max(start, len(self.text.rstrip())))


def _whole(source: str) -> _Text:
    return _Text(source, tuple(range(len(source))), source)


def _split(whole: _Text, separator: str, *, brackets: bool) -> list[_Text]:
    """Cut at single separators; a doubled one stands for itself (6.20)."""
    source = whole.text
    position = 0
    start = len(source) - len(source.lstrip())
    if source[start : start + 1] == "<" and len(source) > start + 1:
        mark = source[start + 1]
        if not mark.isspace() and not mark.isalnum():
            separator, position = mark, start + 2
    brackets = brackets and separator == ":"
    items: list[_Text] = []
    chars: list[str] = []
    columns: list[int] = []
    depth = 0
    while position < len(source):
        char = source[position]
        if char == separator and not depth:
            if source[position + 1 : position + 2] == separator:
                position += 1
            else:
                items.append(_Text("".join(chars), tuple(columns), whole.source))
                chars, columns = [], []
                position += 1
                continue
        if brackets and char in "[]":
            depth = char == "["
        chars.append(char)
        columns.append(whole.columns[position])
        position += 1
    items.append(_Text("".join(chars), tuple(columns), whole.source))
    return items


# --- rules ------------------------------------------------------------------------------------------------------------


def parse_route_list(
    value: str | Sequence[str], *, transports: Collection[str], key: str = "route_list"
) -> tuple[RouteRule, ...]:
    """Read the rules of a route_list: one string with semicolons, or an array with a rule an item.

    Raises:
        ConfigError: with `key` and the column of what is wrong.
    """
    rules: list[RouteRule] = []
    sources = [value] if isinstance(value, str) else value
    for number, source in enumerate(sources):
        whole = _whole(source)
        try:
            parts = _split(whole, ";", brackets=False) if isinstance(value, str) else [whole]
            rules += [
                replace(_parse_rule(part.strip(), transports), item=number) for part in parts if part.text.strip()
            ]
        except ConfigError as error:
            where = key if isinstance(value, str) else f"{key}[{number}]"
            raise ConfigError(error.message, key=where, column=error.column, source=error.source) from None
    if not rules:
        raise ConfigError("there is no rule in it", key=key)
    return tuple(rules)


def _parse_rule(rule: _Text, transports: Collection[str]) -> RouteRule:
    pattern, position = _field(rule, 0)
    if not pattern.text:
        raise rule.error("empty domain pattern", 0)
    hosts, position = _field(rule, position)
    if not hosts.text.strip():
        raise rule.error("a rule needs a host list behind its domain pattern", position)
    return RouteRule(
        pattern.text, hosts.text, _parse_options(rule, position, transports), rule.columns[0], hosts.columns
    )


def parse_route_data(text: str, *, transports: Collection[str]) -> tuple[str, RuleOptions]:
    """Split the data part of a rule into host list and options; the host list is "" for an empty text.

    Raises:
        ConfigError: with a column.
    """
    whole = _whole(text).strip()
    hosts, position = _field(whole, 0)
    return hosts.text, _parse_options(whole, position, transports)


def _field(text: _Text, position: int) -> tuple[_Text, int]:
    """The next field, up to white space or in double quotes, and the position behind it and its white space."""
    source = text.text
    if source[position : position + 1] == '"':
        field, position = _quoted(text, position)
    else:
        end = position
        while end < len(source) and not source[end].isspace():
            end += 1
        field, position = text.cut(position, end), end
    while position < len(source) and source[position].isspace():
        position += 1
    return field, position


_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v"}
_OCTAL: Final = "01234567"


def _quoted(text: _Text, start: int) -> tuple[_Text, int]:
    source = text.text
    chars: list[str] = []
    columns: list[int] = []
    position = start + 1
    while position < len(source):
        char, column = source[position], text.columns[position]
        position += 1
        if char == '"':
            if position < len(source) and not source[position].isspace():
                raise text.error("white space must follow a quoted string", position)
            return _Text("".join(chars), tuple(columns), text.source), position
        if char == "\\" and position < len(source):
            char, position = _escape(source, position)
        chars.append(char)
        columns.append(column)
    raise text.error("the quoted string does not end", start)


def _escape(source: str, position: int) -> tuple[str, int]:
    """The character that stands behind a backslash at `position`, and the position behind that."""
    char = source[position]
    if char == "x":
        digits = next(
            (count for count in (2, 1) if _is_hexadecimal(source[position + 1 : position + 1 + count], count)), 0
        )
        return chr(int(source[position + 1 : position + 1 + digits] or "0", 16)), position + 1 + digits
    if char in _OCTAL:
        end = position
        while end < len(source) and end < position + 3 and source[end] in _OCTAL:
            end += 1
        return chr(int(source[position:end], 8) & 0xFF), end
    return _ESCAPES.get(char, char), position + 1


def _is_hexadecimal(text: str, count: int) -> bool:
    return len(text) == count and all(char in "0123456789abcdefABCDEF" for char in text)


def _parse_options(text: _Text, position: int, transports: Collection[str]) -> RuleOptions:
    options = RuleOptions()
    source = text.text
    while position < len(source):
        start = position
        word, position = _field(text, position)
        match word.text:
            case "randomize" | "no_randomize":
                options = replace(options, randomize=word.text == "randomize")
            case "bydns" | "byname":
                options = replace(options, lookup="bydns" if word.text == "bydns" else "byname")
            case "ipv4_only":
                options = replace(options, ipv4_only=True)
            case "ipv4_prefer":
                options = replace(options, ipv4_prefer=True)
            case name if name in transports:
                if options.transport and options.transport != name:
                    raise text.error(f"a second transport {name!r} behind {options.transport!r}", start)
                options = replace(options, transport=name)
            case name:
                raise text.error(f'unknown routing option or transport name "{name}"', start)
    return options


# --- host lists -------------------------------------------------------------------------------------------------------


def parse_hosts(text: str) -> tuple[HostItem, ...]:
    """Read an expanded host list.

    Raises:
        ConfigError: with a column; also if there is no host in it.
    """
    whole = _whole(text)
    try:
        items = _parse_items(whole)
    except ConfigError:
        # a single IPv6 address needs no doubling
        address = _address_or_none(text.strip())
        if address is None:
            raise
        return (HostItem(address),)
    if not items:
        raise whole.error("there is no host in the list", 0)
    return tuple(items)


def _parse_items(whole: _Text) -> list[HostItem]:
    items: list[HostItem] = []
    group = 0
    may_take_port = False
    for part in _split(whole, ":", brackets=True):
        item = part.strip()
        if not item.text:
            may_take_port = False
        elif item.text == "+":
            group += 1
            may_take_port = False
        elif item.text.isascii() and item.text.isdecimal() and may_take_port and not part.text[0].isspace():
            items[-1] = replace(items[-1], port=_port(item, 0))
            may_take_port = False
        else:
            items.append(replace(_parse_item(item), group=group))
            may_take_port = not items[-1].port and not part.text[-1].isspace()
        if len(items) > MAX_ITEMS:
            raise whole.error(f"more than {MAX_ITEMS} hosts", 0)
    return items


def _parse_item(item: _Text) -> HostItem:
    text = item.text
    if text.startswith("["):
        end = text.find("]")
        address = _address_or_none(text[1:end]) if end > 0 else None
        if address is None:
            raise item.error(f"{text!r} is not an address in brackets", 0)
        return HostItem(address, _port_behind(item, end + 1))
    address = _address_or_none(text)
    if address is not None:
        return HostItem(address)
    name, colon, _ = text.partition(":")
    port = _port_behind(item, len(name)) if colon else 0
    host, slash, kind = name.partition("/")
    if slash and kind.lower() != "mx":
        raise item.error(f"{name!r}: only /MX may follow a host name", len(host))
    address = _address_or_none(host)
    if address is not None and not slash:
        return HostItem(address, port)
    try:
        domain = parse_domain(host)
    except DataError as error:
        raise item.error(str(error), 0) from None
    if address is not None or literal_address(domain) is not None:
        raise item.error(f"{host!r} is an address and has no MX records", 0)
    if host.isdecimal():
        raise item.error(f"{host!r} is not a host name", 0)
    return HostItem(str(domain), port, mx=bool(slash))


def _port_behind(item: _Text, position: int) -> int:
    """The port behind a colon at `position`, 0 if the item ends there."""
    if position == len(item.text):
        return 0
    if item.text[position] != ":":
        raise item.error(f"{item.text[position:]!r} behind an address", position)
    return _port(item, position + 1)


def _port(item: _Text, position: int) -> int:
    digits = item.text[position:].strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 5 and 0 < int(digits) < 65536):
        raise item.error(f"{digits!r} is not a port", position)
    return int(digits)


def _address_or_none(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def order_hosts(items: Sequence[HostItem], *, randomize: bool, random: Random) -> list[HostItem]:
    """The items in the order to try them: by chance within each group of a randomised list, as written otherwise."""
    ordered = list(items)
    if randomize:
        random.shuffle(ordered)
        ordered.sort(key=lambda item: item.group)
    return ordered

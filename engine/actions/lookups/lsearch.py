"""lsearch, wildlsearch, nwildlsearch and iplsearch: a text file with a key and its data on each line.

Layer: adapter.  Spec: expansion 5.2.
Input: ``key: data`` or ``key data`` lines; the key may stand in double quotes with escapes; lines that begin with white
space go on with the data of the line before; a line that begins with ``#`` and an empty line end it.
Invariants: the first key that matches wins; letter case of ASCII is ignored; a line and an entry are bounded; a pattern
is compiled once for as long as the file stays the same.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.errors import ExpandError
from engine.expand import compile_text
from engine.expand.regexes import compile_regex

from .driver import Deferral, Failure, bounded
from .files import MAX_KEPT_OCTETS, ParsedFiles, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from engine.expand.searches import Search

_SPACE: Final = b" \t\n\v\f\r"
_PURPOSE: Final = "linear search"
#: octets of one line (arbitrary; Exim reads longer ones in pieces)
_MAX_LINE_OCTETS: Final = 1024 * 1024
_KEY: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^\s:]*)', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{0,2}|.)", re.DOTALL)
_NAMED: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a file.

    Attributes:
        key: as written, quotes and escapes resolved.
        gap: what stands between it and the data.
        data: its data, continuation lines joined with one space.
    """

    key: bytes
    gap: bytes
    data: bytes

    @property
    def line(self) -> bytes:
        """The whole text, for ``ret=full``."""
        return self.key + self.gap + self.data


def _unescape(match: re.Match[bytes]) -> bytes:
    text = match[1]
    if text[:1] == b"x" and len(text) > 1:
        return bytes([int(text[1:], 16)])
    if text[:1].isdigit() and text[0] < 0x38:
        return bytes([int(text, 8) & 255])
    return _NAMED.get(text, text)


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """The items of a file in order.

    Raises:
        Failure: a line is longer than 1 MiB.
    """
    head: bytes | None = None
    parts: list[bytes] = []
    size = 0
    while raw := file.readline(_MAX_LINE_OCTETS + 1):
        if len(raw) > _MAX_LINE_OCTETS:
            raise Failure(f"a line of more than {_MAX_LINE_OCTETS} octets in a file for {_PURPOSE}")
        line = raw.rstrip(_SPACE)
        if line[:1] and line[0] in _SPACE:
            if head is not None:
                size += len(line)
                if size > _MAX_LINE_OCTETS:
                    raise Failure(f"an item of more than {_MAX_LINE_OCTETS} octets in a file for {_PURPOSE}")
                parts.append(line.lstrip(_SPACE))
            continue
        if head is not None:
            yield _entry(head, parts)
        head = line if line and not line.startswith(b"#") else None
        parts = []
        size = len(line)
    if head is not None:
        yield _entry(head, parts)


def _entry(head: bytes, parts: list[bytes]) -> Entry:
    match = _KEY.match(head)
    if match and match[1] is not None:
        key = _ESCAPE.sub(_unescape, match[1])
        rest = head[match.end() :]
    elif head.startswith(b'"'):
        # no closing quote: the rest of the line is the key, as for Exim
        key, rest = _ESCAPE.sub(_unescape, head[1:]), b""
    else:
        key = match[2] if match else b""
        rest = head[len(key) :]
    data = rest.lstrip(_SPACE)
    if data.startswith(b":"):
        data = data[1:].lstrip(_SPACE)
    return Entry(key, rest[: len(rest) - len(data)], b" ".join([data, *parts]))


def _result(search: Search, entry: Entry) -> bytes:
    return bounded(entry.line if search.option("ret") == b"full" else entry.data)


class Lsearch:
    """The plain type: a key is compared as it stands, ASCII case ignored."""

    def __init__(self) -> None:
        self._files: ParsedFiles[dict[bytes, Entry] | None] = ParsedFiles(self._index, _PURPOSE, "lsearch")

    @staticmethod
    def _index(file: BinaryIO) -> dict[bytes, Entry] | None:
        if file.seek(0, 2) > MAX_KEPT_OCTETS:
            return None
        file.seek(0)
        index: dict[bytes, Entry] = {}
        for entry in read_entries(file):
            index.setdefault(entry.key.lower(), entry)
        return index

    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        index = self._files.get(path)
        wanted = key.lower()
        if index is not None:
            entry = index.get(wanted)
            return None if entry is None else _result(search, entry)
        with open_regular(path, _PURPOSE, "lsearch") as file:
            for entry in read_entries(file):
                if entry.key.lower() == wanted:
                    return _result(search, entry)
        return None


def _read_all(file: BinaryIO) -> list[Entry]:
    if file.seek(0, 2) > MAX_KEPT_OCTETS:
        raise Failure(f"a file of more than {MAX_KEPT_OCTETS} octets is too large for a search by patterns")
    file.seek(0)
    return list(read_entries(file))


class _Pattern:
    """A key of a wildlsearch file: ``*tail``, ``^regular expression``, or a text; `!` in front denies the key."""

    def __init__(self, text: bytes) -> None:
        self.denies = text.startswith(b"!")
        text = text.removeprefix(b"!").lstrip(_SPACE)
        self._tail = text[1:].lower() if text.startswith(b"*") else None
        self._text = text.lower()
        self._regex = None
        if text.startswith(b"^"):
            try:
                self._regex = compile_regex(text, caseless=True)
            except ExpandError as error:
                raise Deferral(error.message) from None

    def matches(self, subject: bytes) -> bool:
        if self._regex is not None:
            try:
                return self._regex.search(subject) is not None
            except ExpandError as error:
                raise Deferral(error.message) from None
        if self._tail is not None:
            return subject.endswith(self._tail)
        return subject == self._text


class WildLsearch:
    """Keys are patterns, and unless the type is nwildlsearch expansions that make a pattern.

    Beside `*tail` and regular expressions no list pattern of Exim (`+name`, lookups) is one here: it is a plain text.
    """

    def __init__(self, *, expands: bool) -> None:
        self._name = "wildlsearch" if expands else "nwildlsearch"
        self._files: ParsedFiles[list[tuple[Entry, Any]]] = ParsedFiles(self._compile, _PURPOSE, self._name)
        self._expands = expands

    def _compile(self, file: BinaryIO) -> list[tuple[Entry, Any]]:
        """Each entry with its pattern, or with its program when the pattern depends on the scope."""
        compiled: list[tuple[Entry, Any]] = []
        for entry in _read_all(file):
            pattern: object
            if not self._expands:
                pattern = self._pattern(entry.key)
            else:
                try:
                    program = compile_text(entry.key)
                except ExpandError as error:
                    pattern = self._bad_expansion(entry.key, error)
                else:
                    pattern = program if program.constant is None else self._pattern(program.constant)
            compiled.append((entry, pattern))
        return compiled

    @staticmethod
    def _pattern(text: bytes) -> _Pattern | Deferral:
        """The pattern, or the error to raise when a search comes to it: an earlier key may match before."""
        try:
            return _Pattern(text)
        except Deferral as error:
            return error

    @staticmethod
    def _bad_expansion(key: bytes, error: ExpandError) -> Deferral:
        shown = key.decode("utf-8", "surrogateescape")
        return Deferral(f'failed to expand "{shown}" while checking a list: {error.message}')

    def look_up(self, search: Search, key: bytes, path: bytes, scope: Any) -> bytes | None:
        subject = key.lower()
        for entry, pattern in self._files.get(path):
            if isinstance(pattern, Deferral):
                raise Deferral(str(pattern))
            if not isinstance(pattern, _Pattern):
                try:
                    pattern = _Pattern(pattern.evaluate(scope))
                except ExpandError as error:
                    raise self._bad_expansion(entry.key, error) from None
            if pattern.matches(subject) is not pattern.denies:
                return _result(search, entry)
        return None


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class IpLsearch:
    """Keys are IP addresses or networks, and `*`, which only the key `*` itself finds."""

    def __init__(self) -> None:
        self._files: ParsedFiles[list[tuple[Entry, _Network | None]]] = ParsedFiles(
            self._compile, _PURPOSE, "iplsearch"
        )

    @staticmethod
    def _compile(file: BinaryIO) -> list[tuple[Entry, _Network | None]]:
        compiled: list[tuple[Entry, _Network | None]] = []
        for entry in _read_all(file):
            try:
                network: _Network | None = ipaddress.ip_network(entry.key.decode("ascii"), strict=False)
            except ValueError:
                network = None
            compiled.append((entry, network))
        return compiled

    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        entries = self._files.get(path)
        if key == b"*":
            return next((_result(search, entry) for entry, _ in entries if entry.key == b"*"), None)
        try:
            address = ipaddress.ip_address(key.decode("ascii"))
        except ValueError:
            shown = key.decode("utf-8", "surrogateescape")
            raise Deferral(
                f'"{shown}" is not a valid iplsearch key (an IP address, with optional CIDR mask, is wanted): '
                "in a host list, use net-iplsearch as the search type"
            ) from None
        # Exim compares an IPv4 address mapped into IPv6 as what it is
        mapped = getattr(address, "ipv4_mapped", None)
        for entry, network in entries:
            if network is not None and (address in network or (mapped is not None and mapped in network)):
                return _result(search, entry)
        return None

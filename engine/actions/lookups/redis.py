"""redis: commands to Redis, in version 2 of its protocol (RESP).

Layer: adapter.  Spec: expansion 5.2, 5.4, X-25; https://redis.io/docs/latest/develop/reference/protocol-spec/.
A command is split at white space that no backslash protects, and its parts are sent as counted strings, so that nothing
in them can end a part or a command.  The protocol is spoken here, since client libraries read a reply of any length and
take the first word of an error away.
A command that changes the connection (another database, a transaction, subscriptions) ends it after the reply.
Invariants: connecting and a command have a deadline each; octets, items and depth of a reply are bounded; a connection
is given up after anything but a complete reply; a command that may write is sent a second time only when the first time
it cannot have been complete.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, TypeAlias

from .driver import MAX_RESULT_OCTETS, Deferral, Result, bounded
from .servers import LostConnection, ServerDeferral, ServerList, Servers, Timeouts, parse_server
from .sockets import connect, is_quiet

if TYPE_CHECKING:
    from engine.expand.searches import Search

_DEFAULT_PORT: Final = 6379
#: parts of one command (arbitrary; Exim silently drops what is over 32)
_MAX_PARTS: Final = 1024
_PART: Final = re.compile(rb"(?:[^\\ \t\n\v\f\r]|\\.|\\\Z)+", re.DOTALL)
_ESCAPED: Final = re.compile(rb"\\(.?)", re.DOTALL)
#: commands that only read and depend on nothing but their keys: their results may be kept
_READING: Final = frozenset(
    b"EXISTS GET GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HVALS LINDEX LLEN LRANGE MGET SCARD SISMEMBER SMEMBERS "
    b"STRLEN TYPE ZCARD ZRANGE ZRANK ZSCORE".split()
)
#: commands after which a connection is not what it was
_LEAVES_TRACES: Final = frozenset(
    b"ASKING AUTH CLIENT HELLO MONITOR MULTI PSUBSCRIBE PSYNC QUIT READONLY READWRITE REPLCONF RESET SELECT SSUBSCRIBE "
    b"SUBSCRIBE SYNC WATCH".split()
)
#: the first words of errors that say: not here, or not now; the command has not run, and another server may take it
_ASK_ANOTHER: Final = frozenset(b"ASK CLUSTERDOWN LOADING MASTERDOWN MOVED READONLY TRYAGAIN".split())

#: octets of a reply with its framing, of a line of it, items of all its arrays, depth (arbitrary)
_MAX_REPLY_OCTETS: Final = 2 * MAX_RESULT_OCTETS
_MAX_LINE_OCTETS: Final = 64 * 1024
_MAX_ITEMS: Final = 1_000_000
_MAX_DEPTH: Final = 8
_CHUNK_OCTETS: Final = 64 * 1024


def split_command(query: bytes) -> list[bytes]:
    """The parts of a command.

    Raises:
        Deferral: it has more than 1,024.
    """
    parts = [_ESCAPED.sub(rb"\1", match[0]) for match in _PART.finditer(query)]
    if len(parts) > _MAX_PARTS:
        raise Deferral(f"REDIS: a command of more than {_MAX_PARTS} parts")
    return parts


def pack_command(parts: list[bytes]) -> bytes:
    """A command as it is sent."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class ReplyError(bytes):
    """An error reply, without its `-`."""


Reply: TypeAlias = "bytes | int | list[Reply] | None"


class BadReply(Exception):
    """What came is no reply of the protocol, or more than one may hold."""


def format_reply(reply: Reply) -> Result | None:
    """The text of an answer: nothing inside one is a value of its own but strings and integers (5.2)."""
    if reply is None:
        return Result(b"", cacheable=False)
    if isinstance(reply, list):
        text = bytearray()
        started = False
        for item in _flatten(reply):
            if started:
                text += b"\n"
            if item is not None:
                text += item
                started = True
        return Result(bounded(bytes(text))) if started else None
    if isinstance(reply, int):
        return Result(b"true" if reply else b"false")
    return Result(bounded(reply))


def _flatten(reply: list[Reply]) -> list[bytes | None]:
    """The items of an array and of the arrays in it; what is nested deeper is left out."""
    flat: list[bytes | None] = []
    for item in reply:
        for inner in item if isinstance(item, list) else [item]:
            if isinstance(inner, int):
                flat.append(b"%d" % inner)
            else:
                flat.append(inner if isinstance(inner, bytes) else None)
    return flat


class _Connection:
    def __init__(self, server: str, timeouts: Timeouts) -> None:
        """Connect.

        Raises:
            ServerDeferral: it cannot be done in time.
        """
        where = parse_server(server, "Redis", 2)
        number, password = where.rest
        if number and not (number.isascii() and number.isdigit()):
            raise ServerDeferral(f"incomplete Redis server data: {where.host}/{number}")
        port = int(where.port) if where.port.isascii() and where.port.isdigit() else _DEFAULT_PORT
        self._query_s = timeouts.query_s
        self._is_changed = False
        try:
            self._plug = connect(where.host or "localhost", port, where.socket, timeouts.connect_s)
        except OSError as error:
            raise ServerDeferral(f"REDIS connection failed: {_why(error)}") from None
        self._buffer = bytearray()
        self._plug.limit(timeouts.connect_s, _MAX_LINE_OCTETS)
        try:
            for parts in ([b"AUTH", _encode(password)], [b"SELECT", _encode(number)]):
                if parts[1]:
                    self._plug.sendall(pack_command(parts))
                    reply = self._read()
                    if isinstance(reply, ReplyError):
                        raise ServerDeferral(f"REDIS connection failed: {_shown(reply)}")
        except (OSError, BadReply) as error:
            self.close()
            raise ServerDeferral(f"REDIS connection failed: {_why(error)}") from None
        except ServerDeferral:
            self.close()
            raise

    @property
    def is_alive(self) -> bool:
        # a reply nobody asked for would be taken for the one to the next command
        return not self._is_changed and not self._buffer and is_quiet(self._plug.fileno())

    def run(self, parts: list[bytes]) -> Result | None:
        """Run a command.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """
        self._plug.limit(self._query_s, _MAX_REPLY_OCTETS)
        self._is_changed = parts[0].upper() in _LEAVES_TRACES
        try:
            self._plug.sendall(pack_command(parts))
        except OSError as error:
            raise LostConnection(_why(error), complete=False, is_final=self._plug.is_late) from None
        try:
            reply = self._read()
        except OSError as error:
            if self._plug.is_exhausted:
                reason = f"result of more than {MAX_RESULT_OCTETS} octets"
                raise LostConnection(reason, complete=True, is_final=True) from None
            raise LostConnection(_why(error), complete=True, is_final=self._plug.is_late) from None
        except BadReply as error:
            raise LostConnection(str(error), complete=True, is_final=True) from None
        if isinstance(reply, ReplyError):
            raise ServerDeferral(
                f"REDIS: lookup result failed: {_shown(reply)}\n",
                next_server=reply.partition(b" ")[0] in _ASK_ANOTHER,
            )
        return format_reply(reply)

    def _read(self) -> Reply:
        """The next reply.

        Raises:
            OSError: the connection broke, or is at its limit of time or octets.
            BadReply: it has another form, too many items or is too deep.
        """
        # arrays under way: how many items each of them lacks
        open_arrays: list[tuple[list[Reply], int]] = []
        items = 0
        while True:
            reply: Reply
            kind, text = self._line()
            if kind in b"+-":
                reply = ReplyError(text) if kind == b"-" else text
            elif kind == b":":
                reply = _number(text)
            elif kind == b"$":
                size = _number(text)
                reply = None if size < 0 else self._octets(size)
            elif kind == b"*":
                size = _number(text)
                items += max(size, 0)
                if items > _MAX_ITEMS or len(open_arrays) >= _MAX_DEPTH:
                    raise BadReply("a reply with too many arrays or items")
                reply = None if size < 0 else []
                if size > 0:
                    open_arrays.append(([], size))
                    continue
            else:
                raise BadReply(f"Protocol error, got {kind + text[:40]!r} as a reply")
            while open_arrays:
                array, size = open_arrays[-1]
                array.append(reply)
                if len(array) < size:
                    break
                reply = open_arrays.pop()[0]
            else:
                return reply

    def _line(self) -> tuple[bytes, bytes]:
        start = 0
        while (end := self._buffer.find(b"\r\n", start)) < 0:
            start = max(len(self._buffer) - 1, 0)
            if len(self._buffer) > _MAX_LINE_OCTETS:
                raise BadReply("a line of a reply is too long")
            self._receive()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line[:1], line[1:]

    def _octets(self, size: int) -> bytes:
        if size > MAX_RESULT_OCTETS:
            raise BadReply(f"result of more than {MAX_RESULT_OCTETS} octets")
        while len(self._buffer) < size + 2:
            self._receive()
        data = bytes(self._buffer[:size])
        if self._buffer[size : size + 2] != b"\r\n":
            raise BadReply("a string of a reply has another length than was said")
        del self._buffer[: size + 2]
        return data

    def _receive(self) -> None:
        data = self._plug.recv(_CHUNK_OCTETS)
        if not data:
            raise ConnectionResetError("Server closed the connection")
        self._buffer += data

    def close(self) -> None:
        self._plug.close()


def _number(text: bytes) -> int:
    if not re.fullmatch(rb"[+-]?\d{1,20}", text):
        raise BadReply(f"Protocol error, got {text[:40]!r} as a number")
    return int(text)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _why(error: Exception) -> str:
    """The words of the system for an error that has a number, as hiredis gives them."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    # the numbers of the resolver are negative, and have words of their own
    return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)


class Redis:
    """The driver.

    Args:
        servers: the option `redis_servers`.
        timeouts: of each connection.
    """

    def __init__(self, servers: str | tuple[str, ...], timeouts: Timeouts) -> None:
        self._servers = ServerList.read("Redis", "redis_servers", servers)
        self._kept: Servers[list[bytes], _Connection] = Servers(
            lambda server: _Connection(server, timeouts), "REDIS: query failed: "
        )

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        servers, query = self._servers.choose(search, query, tainted=tainted)
        parts = split_command(query)
        if not parts:
            return None
        return self._kept.ask(servers, parts, only_reads=parts[0].upper() in _READING)

    def is_cacheable(self, query: bytes) -> bool:
        parts = split_command(query)
        return bool(parts) and parts[0].upper() in _READING

    def close(self) -> None:
        self._kept.close()

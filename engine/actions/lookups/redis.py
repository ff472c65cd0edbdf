"""redis: commands to Redis, through redis-py.

Layer: adapter.  Spec: expansion 5.2, 5.4, X-25.
A command is split at white space that no backslash protects, and its parts are sent as counted strings, so that nothing
in them can end a part or a command.
Invariants: every wait has a deadline; a connection is given up after anything but a complete answer; a command is sent
a second time only when the first time it cannot have been complete.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import redis

from .driver import Deferral, Result, bounded
from .servers import LostConnection, ServerDeferral, ServerList, Servers, Timeouts, parse_server

if TYPE_CHECKING:
    from engine.expand.searches import Search

#: redis-py has types for some of its functions only
_connections: Any = redis.connection

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


def split_command(query: bytes) -> list[bytes]:
    """The parts of a command.

    Raises:
        Deferral: it has more than 1,024.
    """
    parts = [_ESCAPED.sub(rb"\1", match[0]) for match in _PART.finditer(query)]
    if len(parts) > _MAX_PARTS:
        raise Deferral(f"REDIS: a command of more than {_MAX_PARTS} parts")
    return parts


def _packed(parts: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def format_reply(reply: Any) -> Result | None:
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


def _flatten(reply: list[Any]) -> list[bytes | None]:
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
        common: dict[str, Any] = {
            "db": int(number or 0),
            "password": password or None,
            "socket_timeout": timeouts.query_s,
            "socket_connect_timeout": timeouts.connect_s,
            "protocol": 2,
            "retry": None,
        }
        self._redis: Any
        if where.socket:
            self._redis = _connections.UnixDomainSocketConnection(path=where.socket, **common)
        else:
            port = int(where.port) if where.port.isascii() and where.port.isdigit() else _DEFAULT_PORT
            self._redis = _connections.Connection(host=where.host or "localhost", port=port, **common)
        try:
            self._redis.connect()
        except redis.RedisError as error:
            raise ServerDeferral(f"REDIS connection failed: {error}") from None

    @property
    def is_alive(self) -> bool:
        try:
            return not self._redis.can_read(0)
        except (redis.RedisError, OSError):
            return False

    def run(self, parts: list[bytes]) -> Result | None:
        """Run a command.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """
        try:
            self._redis.send_packed_command([_packed(parts)], check_health=False)
        except redis.RedisError as error:
            raise LostConnection(str(error), complete=False) from None
        try:
            reply = self._redis.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            # a cluster names the server that has the key; the next of the list may be it
            raise ServerDeferral(f"REDIS: lookup result failed: {error}\n") from None
        except redis.RedisError as error:
            raise LostConnection(str(error), complete=True) from None
        return format_reply(reply)

    def close(self) -> None:
        self._redis.disconnect()


class Redis:
    """The driver.

    Args:
        servers: the option `redis_servers`.
        timeouts: of each connection.
    """

    def __init__(self, servers: str | tuple[str, ...], timeouts: Timeouts) -> None:
        self._servers = ServerList.read("Redis", "redis_servers", servers)
        self._kept: Servers[list[bytes]] = Servers(
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

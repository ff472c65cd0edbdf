"""mysql: queries to MySQL or MariaDB, through PyMySQL.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-25.
`quote_mysql` writes backslash escapes, so a session never runs with NO_BACKSLASH_ESCAPES; its character set is utf8mb4,
in which no octet of a longer character looks like a quote or a backslash.  One statement a query; `LOAD DATA LOCAL` is
refused.
Invariants: every wait has a deadline; a connection is given up after anything but a complete answer; a statement is
sent a second time only when the first time it cannot have been complete.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Final

import pymysql
from pymysql.constants import CLIENT, SERVER_STATUS
from pymysql.cursors import SSCursor

from .driver import MAX_RESULT_OCTETS, Result
from .servers import (
    LostConnection,
    ServerDeferral,
    ServerList,
    Servers,
    Timeouts,
    format_row,
    is_plain_select,
    is_quiet,
    parse_server,
)

if TYPE_CHECKING:
    from engine.expand.searches import Search

#: the types of PyMySQL know text only, and queries are octets here
_client: Any = pymysql

_DEFAULT_PORT: Final = 3306
_WITH_ESCAPES: Final = "SET SESSION sql_mode = REPLACE(@@sql_mode, 'NO_BACKSLASH_ESCAPES', '')"
#: CR_SERVER_GONE_ERROR, which PyMySQL raises when it could not write the whole statement; 0: the connection was closed
_NOT_SENT: Final = frozenset([0, 2006])
#: CR_SERVER_LOST: written, and no answer
_NOT_ANSWERED: Final = 2013


class _Connection:
    def __init__(self, server: str, timeouts: Timeouts) -> None:
        """Connect.

        Raises:
            ServerDeferral: it cannot be done in time.
        """
        where = parse_server(server, "MySQL", 3)
        database, user, password = where.rest
        port = int(where.port) if where.port.isascii() and where.port.isdigit() else 0
        plug = _open_socket(where.host or "localhost", port or _DEFAULT_PORT, where.socket, timeouts.connect_s)
        # a TLS handshake gives the descriptor to another object, but it stays the same
        self._descriptor = plug.fileno()
        self._my = _client.Connection(
            host=where.host or "localhost",
            user=user or None,
            password=password,
            database=database or None,
            charset="utf8mb4",
            use_unicode=False,
            conv={},
            client_flag=CLIENT.MULTI_RESULTS,
            cursorclass=SSCursor,
            init_command=_WITH_ESCAPES,
            autocommit=True,
            read_timeout=timeouts.connect_s,
            write_timeout=timeouts.connect_s,
            read_default_group=where.group or None,
            defer_connect=True,
        )
        try:
            self._my.connect(plug)
        except (pymysql.MySQLError, OSError) as error:
            plug.close()
            raise ServerDeferral(f"MYSQL connection failed: {_reason(error)}") from None
        # the constructor knows one timeout for the log-in and for queries; it is read anew for each packet
        self._my._read_timeout = self._my._write_timeout = timeouts.query_s

    @property
    def is_alive(self) -> bool:
        return self._my.open and is_quiet(self._descriptor)

    def run(self, query: bytes) -> Result | None:
        """Run a statement.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """
        cursor = self._my.cursor(SSCursor)
        try:
            if self._my.server_status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES:
                cursor.execute(_WITH_ESCAPES)
            cursor.execute(query)
            result = self._read(cursor)
            cursor.close()
        except LostConnection:
            # closing the cursor would read the rest of the answer first
            cursor.connection = None
            raise
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args else 0
            if code in _NOT_SENT or code == _NOT_ANSWERED or not self._my.open:
                raise LostConnection("Lost connection to server during query", complete=code not in _NOT_SENT) from None
            raise ServerDeferral(f"MYSQL: query failed: {_reason(error)}\n") from None
        return result

    @staticmethod
    def _read(cursor: Any) -> Result | None:
        if cursor.description is None:
            return Result(b"%d" % cursor.rowcount)
        names = [column[0].encode("utf-8", "surrogateescape") for column in cursor.description]
        value: bytearray | None = None
        while (row := cursor.fetchone()) is not None:
            # Exim starts a new line only once there is text: leading rows of one NULL leave no trace
            if value is not None:
                value += b"\n"
            if len(names) > 1:
                value = (bytearray() if value is None else value) + format_row(names, [cell or b"" for cell in row])
            elif row[0] is not None:
                value = (bytearray() if value is None else value) + row[0]
            if value is not None and len(value) > MAX_RESULT_OCTETS:
                raise LostConnection(f"result of more than {MAX_RESULT_OCTETS} octets", complete=True)
        return None if value is None else Result(bytes(value))

    def close(self) -> None:
        self._my._force_close()


def _open_socket(host: str, port: int, path: str, timeout_s: float) -> socket.socket:
    """A connected socket.

    Raises:
        ServerDeferral: with Exim's text; a timeout has no errno of its own and shows ETIMEDOUT.
    """
    if path:
        plug = socket.socket(socket.AF_UNIX)
        plug.settimeout(timeout_s)
        try:
            plug.connect(path)
        except OSError as error:
            plug.close()
            code = error.errno or errno.ETIMEDOUT
            reason = f"Can't connect to local server through socket '{path}' ({code})"
            raise ServerDeferral(f"MYSQL connection failed: {reason}") from None
        return plug
    try:
        plug = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        reason = f"Can't connect to server on '{host}' ({error.errno or errno.ETIMEDOUT})"
        raise ServerDeferral(f"MYSQL connection failed: {reason}") from None
    plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plug


def _reason(error: Exception) -> str:
    text = error.args[-1] if error.args else ""
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else str(text)


class Mysql:
    """The driver.

    Args:
        servers: the option `mysql_servers`.
        timeouts: of each connection.
    """

    def __init__(self, servers: str | tuple[str, ...], timeouts: Timeouts) -> None:
        self._servers = ServerList.read("MySQL", "mysql_servers", servers)
        self._kept: Servers[bytes] = Servers(lambda server: _Connection(server, timeouts), "MYSQL: query failed: ")

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        servers, query = self._servers.choose(search, query, tainted=tainted)
        if not query:
            return None
        return self._kept.ask(servers, query, only_reads=is_plain_select(query))

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._kept.close()

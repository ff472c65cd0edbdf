"""mysql: queries to MySQL or MariaDB, through PyMySQL.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-25.
`quote_mysql` writes backslash escapes, so a session never runs with NO_BACKSLASH_ESCAPES; its character set is utf8mb4,
in which no octet of a longer character looks like a quote or a backslash.  One statement a query; `LOAD DATA LOCAL` is
refused.  The host `localhost` without a port is the local socket, where there is one, as for the server's own clients.
A statement commits by itself; one that leaves a transaction open is an error and rolled back.  Those whose results
nobody reads may share a transaction, one after the other; what came before one that fails is committed, since not every
table of MySQL can be rolled back.
Invariants: connecting and a query have a deadline each, whatever the server does (each read has, where an option group
asks for TLS); a connection is given up after
anything but a complete answer, and when it is not as it was opened any more; a statement that may write is sent a
second time only when the first time it cannot have been complete.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from typing import TYPE_CHECKING, Any, Final

import pymysql
from pymysql.constants import CLIENT, SERVER_STATUS
from pymysql.cursors import SSCursor

from .driver import MAX_RESULT_OCTETS, TOGETHER_S, Progress, Result
from .servers import LostConnection, ServerDeferral, ServerList, Servers, Timeouts, format_row, parse_server
from .sockets import connect, is_quiet
from .statements import is_plain_select, leaves_traces, may_share_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.expand.searches import Search

    from .driver import Unit
    from .sockets import BoundedSocket

#: the types of PyMySQL know text only, and queries are octets here
_client: Any = pymysql

_DEFAULT_PORT: Final = 3306
#: where distributions put the socket of the server
_LOCAL_SOCKETS: Final = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")
_WITH_ESCAPES: Final = "SET SESSION sql_mode = REPLACE(@@sql_mode, 'NO_BACKSLASH_ESCAPES', '')"
#: octets of a log-in, and of an answer as it is on the wire (arbitrary: a row of the result has its lengths beside it)
_MAX_LOGIN_OCTETS: Final = 1024 * 1024
_MAX_ANSWER_OCTETS: Final = 4 * MAX_RESULT_OCTETS
#: CR_SERVER_GONE_ERROR, which PyMySQL raises when it could not write the whole statement; 0: the connection was closed
_NOT_SENT: Final = frozenset([0, 2006])
#: CR_SERVER_LOST: written, and no answer
_NOT_ANSWERED: Final = 2013
#: what PyMySQL raises over octets that are no packet of the protocol, and for a LOCAL file that the server asks for
_GARBAGE: Final = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, struct.error)


class _Connection:
    def __init__(self, server: str, timeouts: Timeouts) -> None:
        """Connect.

        Raises:
            ServerDeferral: it cannot be done in time.
        """
        where = parse_server(server, "MySQL", 3)
        database, user, password = where.rest
        port = int(where.port) if where.port.isascii() and where.port.isdigit() else 0
        host = where.host or "localhost"
        path = where.socket or ("" if port or host != "localhost" else _local_socket())
        self._query_s = timeouts.query_s
        self._is_changed = False
        self._plug = _open_socket(host, port or _DEFAULT_PORT, path, timeouts.connect_s)
        # a TLS handshake gives the descriptor to another object, but it stays the same
        self._descriptor = self._plug.fileno()
        self._plug.limit(timeouts.connect_s, _MAX_LOGIN_OCTETS)
        self._my = _client.Connection(
            host=host,
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
            read_timeout=timeouts.query_s,
            write_timeout=timeouts.query_s,
            read_default_group=where.group or None,
            defer_connect=True,
        )
        try:
            self._my.connect(self._plug)
        except (pymysql.MySQLError, OSError, *_GARBAGE) as error:
            self._plug.close()
            reason = "timed out" if self._plug.is_late else _reason(error)
            raise ServerDeferral(f"MYSQL connection failed: {reason}") from None

    @property
    def is_alive(self) -> bool:
        return not self._is_changed and self._my.open and is_quiet(self._descriptor)

    def run(self, query: bytes) -> Result | None:
        """Run a statement.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """
        self._is_changed = leaves_traces(query)
        result = self._execute(query)
        if self._is_in_transaction:
            reason = "it left a transaction open, which is rolled back"
            raise LostConnection(reason, complete=True, is_final=True)
        return result

    @property
    def _is_in_transaction(self) -> bool:
        return bool(self._my.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)

    def _execute(self, query: bytes) -> Result | None:
        """Raises as `run`."""
        self._plug.limit(self._query_s, _MAX_ANSWER_OCTETS)
        cursor = self._my.cursor(SSCursor)
        try:
            if self._my.server_status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES:
                cursor.execute(_WITH_ESCAPES)
            cursor.execute(query)
            result = self._read(cursor)
            # a procedure has more answers, of which the first counts
            while cursor.nextset():
                while cursor.fetchone() is not None:
                    pass
            cursor.close()
        except LostConnection:
            # closing the cursor would read the rest of the answer first
            cursor.connection = None
            raise
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args else 0
            if code in _NOT_SENT or code == _NOT_ANSWERED or not self._my.open:
                cursor.connection = None
                raise self._lost(complete=code not in _NOT_SENT) from None
            raise ServerDeferral(f"MYSQL: query failed: {_reason(error)}\n") from None
        except (OSError, *_GARBAGE):
            cursor.connection = None
            raise self._lost(complete=True) from None
        return result

    def run_together(self, units: Sequence[Unit]) -> Progress:
        """Run statements in one transaction: see `TogetherDriver.run_together`."""
        enough_at = time.monotonic() + TOGETHER_S
        done, failed, reason, commits = 0, None, "", False
        try:
            self._execute(b"START TRANSACTION")
            for unit in units:
                if time.monotonic() >= enough_at and done:
                    break
                try:
                    self._run_unit(unit)
                except ServerDeferral as error:
                    failed, reason = done, str(error)
                    if not self._is_in_transaction:
                        # the server has ended it: of a deadlock nothing is left
                        return Progress(0, failed, reason)
                    break
                done += 1
            commits = True
            self._execute(b"COMMIT")
        except (LostConnection, ServerDeferral) as error:
            self._is_changed = True
            return Progress(0, None, str(error), is_in_doubt=commits)
        return Progress(done, failed, reason)

    def _run_unit(self, unit: Unit) -> None:
        """Raises as `run`."""
        if len(unit) == 1:
            self._execute(unit[0].text)
            return
        # all of it or nothing
        self._execute(b"SAVEPOINT outrider")
        try:
            for statement in unit:
                self._execute(statement.text)
        except ServerDeferral:
            if self._is_in_transaction:
                self._execute(b"ROLLBACK TO SAVEPOINT outrider")
            raise

    def _lost(self, *, complete: bool) -> LostConnection:
        if self._plug.is_exhausted:
            reason = f"result of more than {MAX_RESULT_OCTETS} octets"
            return LostConnection(reason, complete=complete, is_final=True)
        return LostConnection("Lost connection to server during query", complete=complete, is_final=self._plug.is_late)

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
                reason = f"result of more than {MAX_RESULT_OCTETS} octets"
                raise LostConnection(reason, complete=True, is_final=True)
        return None if value is None else Result(bytes(value))

    def close(self) -> None:
        if self._my._result is not None:
            # otherwise its end would be read for when the object goes
            self._my._result.unbuffered_active = False
        self._my._force_close()
        self._plug.close()


def _local_socket() -> str:
    for path in _LOCAL_SOCKETS:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                return path
        except OSError:
            continue
    return ""


def _open_socket(host: str, port: int, path: str, timeout_s: float) -> BoundedSocket:
    """A connected socket.

    Raises:
        ServerDeferral: with Exim's text; what has no errno (a host that nobody knows) shows ETIMEDOUT.
    """
    try:
        return connect(host, port, path, timeout_s)
    except OSError as error:
        number = error.errno if error.errno is not None and error.errno > 0 else errno.ETIMEDOUT
        if path:
            reason = f"Can't connect to local server through socket '{path}' ({number})"
        else:
            reason = f"Can't connect to server on '{host}' ({number})"
        raise ServerDeferral(f"MYSQL connection failed: {reason}") from None


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
        self._kept: Servers[bytes, _Connection] = Servers(
            lambda server: _Connection(server, timeouts), "MYSQL: query failed: "
        )

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        servers, query = self._servers.choose(search, query, tainted=tainted)
        if not query:
            return None
        return self._kept.ask(servers, query, only_reads=is_plain_select(query))

    def postpone(self, search: Search, query: bytes, *, tainted: bool) -> tuple[str, bytes] | None:
        found = self._servers.choose_first(search, query, tainted=tainted)
        return None if found is None or not may_share_transaction(found[1]) else found

    def run_together(self, server: str, units: Sequence[Unit]) -> Progress:
        return self._kept.together(server, lambda connection: connection.run_together(units))

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._kept.close()

"""pgsql: queries to PostgreSQL, through libpq as psycopg wraps it.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-25.
The text of a query goes to the server as octets, with client encoding SQL_ASCII: the server converts nothing and checks
the text against its own encoding, so no multi-byte character can hide a quote.

`quote_pgsql` writes backslash escapes, which a server of today (standard_conforming_strings) takes for plain text
inside '…'.  A literal whose every backslash is one of those escapes is therefore sent as E'…'; where a literal ends is
the same either way, so nothing can leave it (`escape_literals`).

A statement commits by itself; one that leaves a transaction open is an error and rolled back, since whatever came after
it on the same connection would never be committed.

Invariants: every wait has a deadline; a connection is given up after anything but a complete answer, and when it is not
as it was opened any more; a statement that may write is sent a second time only when the first time it cannot have been
complete.  Rows are counted as they come; libpq reads a single row whole before anybody can measure it.
"""

from __future__ import annotations

import re
import select
import time
from typing import TYPE_CHECKING, Final

from psycopg import OperationalError, conninfo, pq

from .driver import MAX_RESULT_OCTETS, Result
from .servers import (
    LostConnection,
    ServerDeferral,
    ServerList,
    Servers,
    Timeouts,
    format_row,
    parse_server,
)
from .sockets import is_quiet, wait_for
from .statements import is_plain_select, leaves_traces

if TYPE_CHECKING:
    from engine.expand.searches import Search

_SOCKET: Final = re.compile(r"(/.*)/\.s\.PGSQL\.(\d+)\Z")
#: a token that may not be looked into, or a plain literal with the ones that continue it on later lines
_TOKEN: Final = re.compile(
    rb"""
    (?P<skip> --[^\n\r]* | "(?:[^"])*" | \$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$
            | (?:[EeBbXxNn]|[Uu]&)' | [A-Za-z_\x80-\xff][\w$\x80-\xff]* | /\*)
    | (?P<literal> ' (?:[^']|'')*+ ' (?: [ \t\v\f]*+ [\n\r] (?:\s | --[^\n\r]*+)*+ ' (?:[^']|'')*+ ' )*+ )
    """,
    re.VERBOSE,
)
#: what may follow a backslash that `quote_pgsql` wrote, or any other octet
_QUOTED_CONTENT: Final = re.compile(rb"(?:[^\\]|\\[\\\"ntrb])*\Z", re.DOTALL)
_END_OF_ESCAPED: Final = re.compile(rb"(?:[^'\\]|''|\\.)*'", re.DOTALL)
_END_OF_PLAIN: Final = re.compile(rb"(?:[^']|'')*'", re.DOTALL)
_COMMENT_MARK: Final = re.compile(rb"/\*|\*/")


def escape_literals(query: bytes) -> bytes:
    """Turn the literals that hold what `quote_pgsql` wrote into E'…', for a server with standard_conforming_strings.

    A literal with another backslash in it stays as it is: it was not written for escapes, and its end might move.
    """
    if b"\\" not in query:
        return query
    out = bytearray()
    at = 0
    while match := _TOKEN.search(query, at):
        start, end = match.span()
        if match["literal"] is not None:
            out += query[at:start]
            text = match["literal"]
            if b"\\" in text and _QUOTED_CONTENT.match(text):
                out += b" E"
            out += text
        else:
            end = _end_of_skipped(query, match)
            out += query[at:end]
        at = end
    return bytes(out + query[at:])


def _end_of_skipped(query: bytes, match: re.Match[bytes]) -> int:
    token, end = match["skip"], match.end()
    if token == b"/*":
        depth = 1
        while depth and (mark := _COMMENT_MARK.search(query, end)):
            depth += 1 if mark[0] == b"/*" else -1
            end = mark.end()
        return len(query) if depth else end
    if token.endswith(b"'"):
        closing = (_END_OF_ESCAPED if token in (b"E'", b"e'") else _END_OF_PLAIN).match(query, end)
        return closing.end() if closing else len(query)
    if token.startswith(b"$"):
        found = query.find(token, end)
        return found + len(token) if found >= 0 else len(query)
    return end


class _Connection:
    def __init__(self, server: str, timeouts: Timeouts) -> None:
        """Connect.

        Raises:
            ServerDeferral: it cannot be done in time.
        """
        self._timeouts = timeouts
        self._is_changed = False
        where = parse_server(server, "pgSQL", 3)
        database, user, password = where.rest
        settings = {"client_encoding": "SQL_ASCII", "fallback_application_name": "outrider"}
        if where.socket:
            match = _SOCKET.match(where.socket)
            if not match:
                raise ServerDeferral(f"PGSQL invalid filename for socket: {where.socket}", next_server=False)
            settings["host"], settings["port"] = match[1], match[2]
        else:
            settings["host"], settings["port"] = where.host, where.port
        settings |= {"dbname": database, "user": user, "password": password}
        text = conninfo.make_conninfo("", **{key: value for key, value in settings.items() if value})
        self._pg = self._connect(text)

    def _connect(self, text: str) -> pq.abc.PGconn:
        deadline = time.monotonic() + self._timeouts.connect_s
        connection = pq.PGconn.connect_start(text.encode("utf-8", "surrogateescape"))
        while connection.status != pq.ConnStatus.BAD:
            state = connection.connect_poll()
            if state == pq.PollingStatus.OK:
                connection.nonblocking = 1
                return connection
            if state == pq.PollingStatus.FAILED:
                break
            events = select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
            if not wait_for(connection.socket, events, deadline):
                connection.finish()
                raise ServerDeferral("PGSQL connection failed: timeout expired\n")
        reason = _decode(connection.error_message)
        connection.finish()
        raise ServerDeferral(f"PGSQL connection failed: {reason}")

    @property
    def is_alive(self) -> bool:
        return not self._is_changed and self._pg.status == pq.ConnStatus.OK and is_quiet(self._pg.socket)

    def run(self, query: bytes) -> Result | None:
        """Run a statement.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """
        if self._pg.parameter_status(b"standard_conforming_strings") == b"on":
            sent = escape_literals(query)
        else:
            sent = query
        deadline = time.monotonic() + self._timeouts.query_s
        self._is_changed = leaves_traces(query)
        self._send(sent, deadline)
        try:
            return self._receive(query, deadline)
        finally:
            self._is_changed |= self._pg.parameter_status(b"client_encoding") != b"SQL_ASCII"

    def _send(self, query: bytes, deadline: float) -> None:
        try:
            self._pg.send_query(query)
            self._pg.set_single_row_mode()
            while self._pg.flush():
                if not wait_for(self._pg.socket, select.POLLOUT | select.POLLIN, deadline):
                    raise LostConnection("timeout expired", complete=False, is_final=True)
                self._pg.consume_input()
        except OperationalError as error:
            raise LostConnection(f"{error}", complete=False) from None

    def _receive(self, query: bytes, deadline: float) -> Result | None:
        value: bytes | None = None
        failure = ""
        rows: list[bytes] | None = None
        octets = 0
        while (answer := self._next_answer(deadline)) is not None:
            status = answer.status
            if status in (pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_OK):
                rows = [] if rows is None else rows
                for number in range(answer.ntuples):
                    rows.append(_row(answer, number))
                    octets += len(rows[-1]) + 1
                if octets > MAX_RESULT_OCTETS:
                    reason = f"result of more than {MAX_RESULT_OCTETS} octets"
                    raise LostConnection(reason, complete=True, is_final=True)
                if status == pq.ExecStatus.TUPLES_OK:
                    # the answer to one statement is complete; of several the last one counts
                    value = b"\n".join(rows) if rows else None
                    rows = None
            elif status == pq.ExecStatus.COMMAND_OK:
                count = answer.command_tuples
                value = None if count is None else b"%d" % count
            elif status == pq.ExecStatus.EMPTY_QUERY:
                value = None
            else:
                failure = (
                    failure
                    or f"{_decode(answer.error_message)} (PGRES_{pq.ExecStatus(status).name}) ({_decode(query)})\n"
                )
                if status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH):
                    raise LostConnection(failure.rstrip("\n"), complete=True, is_final=True)
        if self._pg.status != pq.ConnStatus.OK:
            raise LostConnection((failure or _decode(self._pg.error_message)).rstrip("\n"), complete=True)
        if self._pg.transaction_status != pq.TransactionStatus.IDLE:
            # an error inside of it is told instead
            reason = failure.rstrip("\n") or "it left a transaction open, which is rolled back"
            raise LostConnection(reason, complete=True, is_final=True)
        if failure:
            raise ServerDeferral(f"PGSQL: query failed: {failure}")
        return None if value is None else Result(value)

    def _next_answer(self, deadline: float) -> pq.abc.PGresult | None:
        try:
            while self._pg.is_busy():
                if not wait_for(self._pg.socket, select.POLLIN, deadline):
                    raise LostConnection("timeout expired", complete=True, is_final=True)
                self._pg.consume_input()
            return self._pg.get_result()
        except OperationalError as error:
            raise LostConnection(f"{error}", complete=True) from None

    def close(self) -> None:
        self._pg.finish()


def _row(answer: pq.abc.PGresult, number: int) -> bytes:
    values = [answer.get_value(number, column) or b"" for column in range(answer.nfields)]
    if len(values) == 1:
        return values[0]
    return format_row([answer.fname(column) or b"" for column in range(answer.nfields)], values)


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class Pgsql:
    """The driver.

    Args:
        servers: the option `pgsql_servers`.
        timeouts: of each connection.
    """

    def __init__(self, servers: str | tuple[str, ...], timeouts: Timeouts) -> None:
        self._servers = ServerList.read("PostgreSQL", "pgsql_servers", servers)
        self._kept: Servers[bytes] = Servers(lambda server: _Connection(server, timeouts), "PGSQL: query failed: ")

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        servers, query = self._servers.choose(search, query, tainted=tainted)
        if not query:
            return None
        if b"\0" in query:
            raise ServerDeferral("PGSQL: query failed: a NUL octet in it\n")
        return self._kept.ask(servers, query, only_reads=is_plain_select(query))

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._kept.close()

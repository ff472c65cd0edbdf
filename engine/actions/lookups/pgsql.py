"""pgsql: queries to PostgreSQL, through libpq as psycopg wraps it.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-25.
The text of a query goes to the server as octets, with client encoding SQL_ASCII: the server converts nothing and checks
the text against its own encoding, so no multi-byte character can hide a quote.

`quote_pgsql` writes backslash escapes, which a server of today (standard_conforming_strings) takes for plain text
inside '…'.  A literal whose every backslash is one of those escapes is therefore sent as E'…'; where a literal ends is
the same either way, so nothing can leave it (`escape_literals`).

A statement commits by itself; one that leaves a transaction open is an error and rolled back, since whatever came after
it on the same connection would never be committed.  Statements whose results nobody reads may go together: through
libpq's pipeline, as one transaction, which is committed when every one of them has answered (`run_together`).

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

from .driver import FIRST_STEP, MAX_RESULT_OCTETS, TOGETHER_S, Progress, Result
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
from .statements import is_plain_select, leaves_traces, may_share_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.expand.searches import Search

    from .driver import Unit

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
#: pieces (of 16 KiB mostly) in which a result may come of which nothing is wanted; libpq keeps them in memory, so what
#: is longer is read row by row, by itself
_MANY_READS: Final = 64
#: answers that are complete
_DONE: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
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

    @property
    def _takes_literals_as_they_are(self) -> bool:
        return self._pg.parameter_status(b"standard_conforming_strings") == b"on"

    def run(self, query: bytes) -> Result | None:
        """Run a statement.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """
        sent = escape_literals(query) if self._takes_literals_as_they_are else query
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
            self._flush(deadline)
        except OperationalError as error:
            raise LostConnection(f"{error}", complete=False) from None

    def _flush(self, deadline: float) -> None:
        while self._pg.flush():
            if not wait_for(self._pg.socket, select.POLLOUT | select.POLLIN, deadline):
                raise LostConnection("timeout expired", complete=False, is_final=True)
            self._pg.consume_input()

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

    def _next_answer(self, deadline: float, *, complete: bool = True) -> pq.abc.PGresult | None:
        try:
            while self._pg.is_busy():
                self._read_more(deadline, complete=complete)
            return self._pg.get_result()
        except OperationalError as error:
            raise LostConnection(f"{error}", complete=complete) from None

    def _read_more(self, deadline: float, *, complete: bool = False) -> None:
        if not wait_for(self._pg.socket, select.POLLIN, deadline):
            raise LostConnection("timeout expired", complete=complete, is_final=True)
        self._pg.consume_input()

    # -- many statements --

    def run_together(self, units: Sequence[Unit]) -> Progress:
        """Run statements as one transaction: see `TogetherDriver.run_together`.

        The server is told to commit (by a Sync) when every statement has answered, and not before: what is given up
        until then it rolls back, whatever of it was under way.
        """
        deadline = time.monotonic() + self._timeouts.query_s
        try:
            return self._run_pipeline(units, deadline)
        except LostConnection as lost:
            self._is_changed = True
            return Progress(0, reason=str(lost).rstrip("\n"), is_in_doubt=lost.complete)

    def _run_pipeline(self, units: Sequence[Unit], deadline: float) -> Progress:
        """Raises LostConnection, which is `complete` if the transaction may have been committed."""
        enough_at = time.monotonic() + TOGETHER_S
        self._is_changed = False
        escape = escape_literals if self._takes_literals_as_they_are else bytes
        done, step = 0, FIRST_STEP
        failure: tuple[int, str] | None = None
        try:
            self._pg.enter_pipeline_mode()
            while failure is None and done < len(units) and (not done or time.monotonic() < enough_at):
                some = units[done : done + step]
                for unit in some:
                    for query in unit:
                        self._pg.send_query_params(escape(query), None)
                self._pg.send_flush_request()
                self._flush(deadline)
                failure = self._receive_step(some, deadline)
                done, step = done + len(some), 2 * step
            # one that is in the middle of an answer is closed instead
            reason = "" if self._is_changed else self._end_pipeline(deadline, commits=failure is None)
        except OperationalError as error:
            raise LostConnection(f"{error}", complete=False) from None
        if failure is not None:
            return Progress(0, done - len(some) + failure[0], failure[1])
        return Progress(0, reason=reason) if reason else Progress(done)

    def _receive_step(self, units: Sequence[Unit], deadline: float) -> tuple[int, str] | None:
        """Read the answers to these; the number of the first one that failed, and why."""
        pg = self._pg
        for number, unit in enumerate(units):
            for _ in unit:
                reads = 0
                while pg.is_busy():
                    reads += 1
                    if reads > _MANY_READS:
                        self._is_changed = True
                        return number, "a long result"
                    self._read_more(deadline)
                answer = pg.get_result()
                status = None if answer is None else answer.status
                if status not in _DONE:
                    # what copies, most likely, and cannot go on in a pipeline
                    self._is_changed = status != pq.ExecStatus.FATAL_ERROR
                    return number, _decode(b"" if answer is None else answer.error_message).rstrip("\n")
                # what ends the answers to a statement does not come from the server
                if pg.get_result() is not None:
                    raise LostConnection("two answers to one statement", complete=False)
        return None

    def _end_pipeline(self, deadline: float, *, commits: bool) -> str:
        """End the transaction, and leave the pipeline; why it could not be committed, or nothing."""
        self._pg.pipeline_sync()
        try:
            self._flush(deadline)
        except LostConnection as lost:
            raise LostConnection(str(lost), complete=commits) from None
        reason = ""
        while True:
            answer = self._next_answer(deadline, complete=commits)
            if answer is None:
                # between the answers to two statements; a connection that is gone has no more of them
                if self._pg.status != pq.ConnStatus.OK:
                    raise LostConnection(_decode(self._pg.error_message), complete=commits)
            elif answer.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            elif answer.status == pq.ExecStatus.FATAL_ERROR:
                # what was deferred to the end has failed
                reason = reason or _decode(answer.error_message).rstrip("\n")
        self._pg.exit_pipeline_mode()
        self._is_changed |= self._pg.parameter_status(b"client_encoding") != b"SQL_ASCII"
        if self._pg.transaction_status != pq.TransactionStatus.IDLE:
            self._is_changed = True
            reason = reason or "one of them left a transaction open, which is rolled back"
        return reason

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
        self._kept: Servers[bytes, _Connection] = Servers(
            lambda server: _Connection(server, timeouts), "PGSQL: query failed: "
        )

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        servers, query = self._servers.choose(search, query, tainted=tainted)
        if not query:
            return None
        if b"\0" in query:
            raise ServerDeferral("PGSQL: query failed: a NUL octet in it\n")
        return self._kept.ask(servers, query, only_reads=is_plain_select(query))

    def postpone(self, search: Search, query: bytes, *, tainted: bool) -> tuple[str, bytes] | None:
        found = self._servers.choose_first(search, query, tainted=tainted)
        return None if found is None or b"\0" in found[1] or not may_share_transaction(found[1]) else found

    def run_together(self, server: str, units: Sequence[Unit]) -> Progress:
        return self._kept.together(server, lambda connection: connection.run_together(units))

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._kept.close()

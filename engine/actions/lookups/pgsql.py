"""pgsql: queries to PostgreSQL, through libpq as psycopg wraps it.

Layer: adapter.  Spec: expansion 5.2, 5.3, 5.4, X-25.
The text of a query goes to the server as octets, with client encoding SQL_ASCII: the server converts nothing and checks
the text against its own encoding, so no multi-byte character can hide a quote.

What `quote_pgsql` wrote becomes E'…' on the way: see literals.py.

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
from typing import TYPE_CHECKING, Final, cast

from psycopg import OperationalError, conninfo, pq

from .driver import MAX_RESULT_OCTETS, Result, Statement
from .literals import escape_literals
from .pipeline import run_units
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

    from .driver import Progress, Unit
    from .pipeline import Outcome

#: class of SQLSTATE: syntax error or access rule violation
_SYNTAX: Final = "42"
_SOCKET: Final = re.compile(r"(/.*)/\.s\.PGSQL\.(\d+)\Z")


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

    def run_together(self, units: Sequence[Unit], plain: set[bytes]) -> Progress:
        """Run statements as one transaction: see `TogetherDriver.run_together`.

        Args:
            plain: texts of templates whose values do not travel beside them; what turns out to be one is added.
        """
        if plain:
            units = [tuple(_filled(one) if one.text in plain else one for one in unit) for unit in units]
        outcome = self._transact(units)
        failed = outcome.progress.failed
        if failed is not None and outcome.sqlstate.startswith(_SYNTAX) and not outcome.is_broken:
            texts = {one.text for one in units[failed] if one.template is not None}
            if texts:
                # the place of a literal may take nothing else, or its type be known by nothing else
                again = [tuple(_filled(one) if one.text in texts else one for one in unit) for unit in units]
                outcome = self._transact(again)
                if outcome.progress.failed != failed:
                    plain |= texts
        return outcome.progress

    def _transact(self, units: Sequence[Unit]) -> Outcome:
        # few texts, where their values are beside them
        texts = {one.text for unit in units for one in unit}
        if self._takes_literals_as_they_are and any(b"\\" in text for text in texts):
            units = [tuple(one._replace(text=escape_literals(one.text)) for one in unit) for unit in units]
        outcome = run_units(self._pg, units, self._timeouts.query_s)
        self._is_changed = outcome.is_broken or self._pg.parameter_status(b"client_encoding") != b"SQL_ASCII"
        return outcome

    def close(self) -> None:
        self._pg.finish()


def _row(answer: pq.abc.PGresult, number: int) -> bytes:
    values = [answer.get_value(number, column) or b"" for column in range(answer.nfields)]
    if len(values) == 1:
        return values[0]
    return format_row([answer.fname(column) or b"" for column in range(answer.nfields)], values)


def _filled(statement: Statement) -> Statement:
    """The statement with its values in the text."""
    template, values = statement.template, statement.values
    return statement if template is None or values is None else Statement(template.filled(cast("list[bytes]", values)))


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
        #: there are as many as programs
        self._plain: set[bytes] = set()
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
        return self._kept.together(server, lambda connection: connection.run_together(units, self._plain))

    def is_cacheable(self, query: bytes) -> bool:
        return is_plain_select(query)

    def close(self) -> None:
        self._kept.close()

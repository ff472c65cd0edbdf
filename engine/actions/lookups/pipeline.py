"""Many statements in one transaction of PostgreSQL, none of which waits for the one before it: libpq's pipeline.

Layer: adapter; blocking, with a deadline.  Spec: none of Exim's; PostgreSQL's manual, "Pipeline Mode".

Facts.  A statement that goes alone costs a round trip, and the server a commit with its fsync.  Statements that are
sent one behind the other are one transaction up to the next Sync.  What was sent is done also when nobody waits for it
any more; a Sync that was not sent is never answered with a commit.

What it means.  Whether a transaction is committed must be known, as far as that can be.

Our solution.  Statements go in steps, each twice as long as the last one as long as they are quick; the answers to a
step are read before the next one is sent, and the Sync goes only when all have answered.  So nothing is committed of
what has failed, was too slow or was given up, and in doubt is only what breaks between the Sync and its answer.  A
transaction that has taken `TOGETHER_S` is committed with what it has.
Statements of one text with values of their own are parsed once (as the unnamed statement, which every pooler knows).
Invariants: a connection is left outside of the pipeline and of any transaction, or called broken.
"""

from __future__ import annotations

import math
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import OperationalError, pq

from .driver import TOGETHER_S, Progress
from .sockets import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .driver import Statement, Unit

#: units of the first step
_FIRST_STEP: Final = 8
#: pieces (of 16 KiB mostly) in which a result may come of which nothing is wanted; libpq keeps them in memory, so what
#: is longer is read row by row, by itself
_MANY_READS: Final = 64
#: answers that are complete
_DONE: Final = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a transaction came out.

    Attributes:
        sqlstate: of the statement that failed, where that is known.
        is_broken: the connection cannot be used any more.
    """

    progress: Progress
    sqlstate: str = ""
    is_broken: bool = False


class _Broken(Exception):
    """The connection is of no use any more; or it is in the middle of something, and nobody waits for the end."""


@dataclass(frozen=True, slots=True)
class _Failure:
    unit: int
    reason: str
    sqlstate: str = ""
    is_broken: bool = False


def run_units(
    pg: pq.abc.PGconn, units: Sequence[Unit], timeout_s: float, *, enough_s: float | None = TOGETHER_S
) -> Outcome:
    """Run statements as one transaction, on a connection that does not block.

    Args:
        timeout_s: for all of it.
        enough_s: after which it is committed with what it has; None: it is all or nothing.
    """
    return _Transaction(pg, timeout_s, math.inf if enough_s is None else enough_s).run(units)


class _Transaction:
    def __init__(self, pg: pq.abc.PGconn, timeout_s: float, enough_s: float) -> None:
        self._pg = pg
        now = time.monotonic()
        self._deadline = now + timeout_s
        self._enough_at = now + enough_s
        #: from then on steps stay as they are, so that the last one does not take long beyond that
        self._hurry_at = now + enough_s / 4
        #: text and types of the unnamed statement
        self._parsed: tuple[bytes, tuple[int, ...]] | None = None
        #: whether the server has been told to commit
        self._is_in_doubt = False

    def run(self, units: Sequence[Unit]) -> Outcome:
        try:
            return self._run(units)
        except (_Broken, OperationalError) as error:
            reason = str(error).rstrip("\n")
            return Outcome(Progress(0, reason=reason, is_in_doubt=self._is_in_doubt), is_broken=True)

    def _run(self, units: Sequence[Unit]) -> Outcome:
        pg = self._pg
        done, step = 0, _FIRST_STEP
        pg.enter_pipeline_mode()
        while done < len(units) and (not done or time.monotonic() < self._enough_at):
            some = units[done : done + step]
            # for each answer, whether it ends a unit; those that parse are one more
            expected: list[bool] = []
            for unit in some:
                for statement in unit:
                    self._send(statement, expected)
                expected[-1] = True
            pg.send_flush_request()
            self._flush()
            failure = self._receive(expected)
            if failure is not None:
                progress = Progress(0, done + failure.unit, failure.reason)
                if not failure.is_broken:
                    self._end()
                return Outcome(progress, failure.sqlstate, is_broken=failure.is_broken or not self._is_idle)
            done += len(some)
            if time.monotonic() < self._hurry_at:
                step *= 2
        self._is_in_doubt = True
        reason = self._end()
        if not self._is_idle:
            reason = reason or "one of them left a transaction open, which is rolled back"
        progress = Progress(0, reason=reason) if reason else Progress(done)
        return Outcome(progress, is_broken=not self._is_idle)

    @property
    def _is_idle(self) -> bool:
        return self._pg.transaction_status == pq.TransactionStatus.IDLE

    def _send(self, statement: Statement, expected: list[bool]) -> None:
        text, values, types, _ = statement
        if values is None:
            self._pg.send_query_params(text, None)
            # this is the unnamed statement now
            self._parsed = None
        else:
            if self._parsed != (text, types):
                self._pg.send_prepare(b"", text, types or None)
                expected.append(False)
                self._parsed = text, types
            self._pg.send_query_prepared(b"", values)
        expected.append(False)

    def _receive(self, expected: list[bool]) -> _Failure | None:
        """Read the answers to a step; the first one that is an error."""
        pg = self._pg
        unit = 0
        for ends_unit in expected:
            reads = 0
            while pg.is_busy():
                reads += 1
                if reads > _MANY_READS:
                    return _Failure(unit, "a long result", is_broken=True)
                self._read_more()
            answer = pg.get_result()
            if answer is None:
                raise _Broken(_decode(pg.error_message))
            status = answer.status
            if status not in _DONE:
                # what is no error wants to copy, most likely
                sqlstate = _decode(answer.error_field(pq.DiagnosticField.SQLSTATE) or b"")
                reason = _decode(answer.error_message).rstrip("\n")
                return _Failure(unit, reason, sqlstate, is_broken=status != pq.ExecStatus.FATAL_ERROR)
            # what ends the answers to a statement does not come from the server
            if pg.get_result() is not None:
                raise _Broken("two answers to one statement")
            unit += ends_unit
        return None

    def _end(self) -> str:
        """End the transaction, and leave the pipeline; why it could not be committed, or nothing."""
        pg = self._pg
        pg.pipeline_sync()
        self._flush()
        reason = ""
        while True:
            while pg.is_busy():
                self._read_more()
            answer = pg.get_result()
            if answer is None:
                # between the answers to two statements; a connection that is gone has no more of them
                if pg.status != pq.ConnStatus.OK:
                    raise _Broken(_decode(pg.error_message))
            elif answer.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            elif answer.status == pq.ExecStatus.FATAL_ERROR:
                # of the commit: a constraint that was deferred to it, or the connection
                if pg.status != pq.ConnStatus.OK:
                    raise _Broken(_decode(answer.error_message))
                reason = reason or _decode(answer.error_message).rstrip("\n")
        pg.exit_pipeline_mode()
        return reason

    def _flush(self) -> None:
        pg = self._pg
        while pg.flush():
            if not wait_for(pg.socket, select.POLLOUT | select.POLLIN, self._deadline):
                raise _Broken("timeout expired")
            pg.consume_input()

    def _read_more(self) -> None:
        if not wait_for(self._pg.socket, select.POLLIN, self._deadline):
            raise _Broken("timeout expired")
        self._pg.consume_input()


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")

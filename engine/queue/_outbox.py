"""The outbox of the SQLite queue, and the dead letters of events that no handler could be made to take.

Layer: adapter (SQLite).  Spec: the protocol in store.py; issue "Event actions", "Guarantees".
Invariants: an event that becomes a dead letter leaves the outbox in the commit that stores the letter, and the other
way round when it is tried again; numbers grow and are never used twice, so what is stored later comes later; the counts
in `outbox_size` are those of the rows, and `redelivered` there grows with each event's in the same commit.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Final

from ._database import Database
from .model import DeadLetter, OutboxEvent, OutboxReport

if TYPE_CHECKING:
    from collections.abc import Sequence

#: characters of a reply or error that the queue keeps
MAX_TEXT: Final = 1000
#: the owner of events that no engine has
NOBODY: Final = 0

_ROW: Final = "(?, ?, ?, ?, ?, ?, ?)"
_INSERT: Final = f"INSERT INTO outbox (owner, name, key, payload, stored_at, handler, handler_group) VALUES {_ROW}"
#: events stored by one statement: that takes a quarter less than one after the other
_ROWS: Final = 64
_INSERT_ROWS: Final = ", ".join([_INSERT, *[_ROW] * (_ROWS - 1)])
_LETTER_COLUMNS: Final = "name, key, payload, handler, handler_group, reason, attempts, stored_at, died_at"
_CHOSEN: Final = "id IN (SELECT value FROM json_each(?))"
#: ids a run from which on one statement a run is cheaper than one over a list of all ids; measured
_IDS_A_RUN: Final = 2


def storable(text: str) -> str:
    """Text that came from a server, as the queue can keep it: not too long, and lone surrogates replaced."""
    text = text[:MAX_TEXT]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class OutboxKeeping(Database):
    """The part of the store that keeps events."""

    def _store_events(self, owner: int, events: Sequence[OutboxEvent], now: float) -> None:
        rows = [(owner, event.name, event.key, event.payload, now, event.handler, event.group) for event in events]
        if rows:
            self._grow(len(rows))
            whole = len(rows) - len(rows) % _ROWS
            for start in range(0, whole, _ROWS):
                self._db.execute(_INSERT_ROWS, list(itertools.chain.from_iterable(rows[start : start + _ROWS])))
            self._db.executemany(_INSERT, rows[whole:])
            # within a transaction the numbers follow one another
            (last,) = self._db.execute("SELECT last_insert_rowid()").fetchone()
            for number, event in enumerate(events, last - len(rows) + 1):
                event.id, event.stored_at = number, now

    def _grow(self, waiting: int, dead: int = 0, redelivered: int = 0) -> None:
        self._db.execute(
            "UPDATE outbox_size SET waiting = waiting + ?, dead = dead + ?, redelivered = redelivered + ?",
            (waiting, dead, redelivered),
        )

    def drain_outbox(self, owner: int, limit: int, after: int = 0) -> list[OutboxEvent]:
        with self._errors():
            rows = self._db.execute(
                "SELECT name, key, payload, id, stored_at, handler, handler_group, redelivered FROM outbox"
                " WHERE id > ? AND owner = ? ORDER BY id LIMIT ?",
                (after, owner, limit),
            ).fetchall()
        return [OutboxEvent(*row) for row in rows]

    def ack_outbox(self, ids: Sequence[int], dead: Sequence[DeadLetter] = ()) -> None:
        if not ids and not dead:
            return
        with self._writing():
            self._grow(-self._remove_events(set(ids)), len(dead))
            self._db.executemany(
                f"INSERT INTO dead_letters ({_LETTER_COLUMNS}, redelivered) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(letter.name, letter.key, letter.payload, letter.handler, letter.group),
                        *(storable(letter.reason), letter.attempts, letter.stored_at, letter.died_at),
                        letter.redelivered,
                    )
                    for letter in dead
                ],
            )

    def _remove_events(self, ids: set[int]) -> int:
        """Remove events; how many were there."""
        if not ids:
            return 0
        runs = _runs(sorted(ids))
        if len(ids) >= _IDS_A_RUN * len(runs):
            # events are handled nearly in their order, so there are few runs
            return self._db.executemany("DELETE FROM outbox WHERE id BETWEEN ? AND ?", runs).rowcount
        return self._db.execute(f"DELETE FROM outbox WHERE {_CHOSEN}", (json.dumps(list(ids)),)).rowcount

    def redeliver_outbox(self, ids: Sequence[int]) -> None:
        with self._writing():
            again = self._db.execute(
                f"UPDATE outbox SET redelivered = redelivered + 1 WHERE {_CHOSEN}", (json.dumps(list(ids)),)
            )
            self._grow(0, 0, again.rowcount)

    def _inherit_events(self, engine: int, owner: int) -> int:
        """What a dead engine left goes to another one; how many.  Its actions may have run, all of them."""
        taken = self._db.execute(
            "UPDATE outbox SET owner = ?, redelivered = redelivered + 1 WHERE owner = ?", (owner, engine)
        ).rowcount
        if taken:
            self._grow(0, 0, taken)
        return taken

    def adopt_outbox(self, owner: int) -> int:
        with self._errors():
            if not self._db.execute("SELECT 1 FROM outbox WHERE owner = 0 LIMIT 1").fetchone():
                return 0
        with self._writing():
            return self._db.execute("UPDATE outbox SET owner = ? WHERE owner = 0", (owner,)).rowcount

    def outbox_size(self) -> int:
        with self._errors():
            (waiting,) = self._db.execute("SELECT waiting FROM outbox_size").fetchone()
        return int(waiting)

    def outbox_report(self) -> OutboxReport:
        with self._errors():
            # numbers grow with time, so the first is the oldest
            (row,) = self._db.execute(
                "SELECT waiting, (SELECT stored_at FROM outbox ORDER BY id LIMIT 1), dead, redelivered FROM outbox_size"
            ).fetchall()
        return OutboxReport(*row)

    def outbox_audiences(self, limit: int) -> list[tuple[str, str, int]]:
        with self._errors():
            return self._db.execute(
                "SELECT handler, handler_group, count(*) FROM (SELECT handler, handler_group FROM outbox ORDER BY id"
                " LIMIT ?) GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
                (limit,),
            ).fetchall()

    def dead_letters(
        self, limit: int, after: int = 0, *, event: str | None = None, ids: Sequence[int] | None = None
    ) -> list[DeadLetter]:
        with self._errors():
            rows = self._db.execute(
                f"SELECT {_LETTER_COLUMNS}, id, redelivered FROM dead_letters WHERE id > ?"
                f" AND (? IS NULL OR name GLOB ?) AND (? IS NULL OR {_CHOSEN}) ORDER BY id LIMIT ?",
                (after, event, event, *[None if ids is None else json.dumps(list(ids))] * 2, limit),
            ).fetchall()
        return [DeadLetter(*row) for row in rows]

    def retry_dead_letters(self, ids: Sequence[int], now: float) -> int:
        chosen = json.dumps(list(ids))
        with self._writing():
            count = self._db.execute(
                "INSERT INTO outbox (owner, name, key, payload, stored_at, handler, handler_group, redelivered)"
                f" SELECT {NOBODY}, name, key, payload, ?, handler, handler_group, redelivered + 1 FROM dead_letters"
                f" WHERE {_CHOSEN} ORDER BY id",
                (now, chosen),
            ).rowcount
            self._grow(count, -count, count)
            self._db.execute(f"DELETE FROM dead_letters WHERE {_CHOSEN}", (chosen,))
        return count

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        with self._writing():
            count = self._db.execute(f"DELETE FROM dead_letters WHERE {_CHOSEN}", (json.dumps(list(ids)),)).rowcount
            self._grow(0, -count)
        return count


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers in order as runs: the first and the last of each."""
    if ids[-1] - ids[0] + 1 == len(ids):
        return [(ids[0], ids[-1])]
    # where one does not follow the one before it
    ends = [place for place in range(1, len(ids)) if ids[place] != ids[place - 1] + 1]
    return [(ids[first], ids[last - 1]) for first, last in zip([0, *ends], [*ends, len(ids)], strict=True)]

"""The outbox of the SQLite queue, and the dead letters of events that no handler could be made to take.

Layer: adapter (SQLite).  Spec: the protocol in store.py; issue "Event actions", "Guarantees".
Invariants: an event that becomes a dead letter leaves the outbox in the commit that stores the letter, and the other
way round when it is tried again; numbers grow and are never used twice, so what is stored later comes later; the counts
in `outbox_size` are those of the rows.
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

    def _grow(self, waiting: int, dead: int = 0) -> None:
        self._db.execute("UPDATE outbox_size SET waiting = waiting + ?, dead = dead + ?", (waiting, dead))

    def drain_outbox(self, owner: int, limit: int, after: int = 0) -> list[OutboxEvent]:
        with self._errors():
            rows = self._db.execute(
                "SELECT name, key, payload, id, stored_at, handler, handler_group FROM outbox"
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
                f"INSERT INTO dead_letters ({_LETTER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(letter.name, letter.key, letter.payload, letter.handler, letter.group),
                        *(storable(letter.reason), letter.attempts, letter.stored_at, letter.died_at),
                    )
                    for letter in dead
                ],
            )

    def _remove_events(self, ids: set[int]) -> int:
        """Remove events; how many were there."""
        if ids and max(ids) - min(ids) + 1 == len(ids):
            # exactly this range: the usual case
            return self._db.execute("DELETE FROM outbox WHERE id BETWEEN ? AND ?", (min(ids), max(ids))).rowcount
        return self._db.execute(
            "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
        ).rowcount

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
                "SELECT waiting, (SELECT stored_at FROM outbox ORDER BY id LIMIT 1), dead FROM outbox_size"
            ).fetchall()
        return OutboxReport(*row)

    def dead_letters(
        self, limit: int, after: int = 0, *, event: str | None = None, ids: Sequence[int] | None = None
    ) -> list[DeadLetter]:
        with self._errors():
            rows = self._db.execute(
                f"SELECT {_LETTER_COLUMNS}, id FROM dead_letters WHERE id > ? AND (? IS NULL OR name GLOB ?)"
                " AND (? IS NULL OR id IN (SELECT value FROM json_each(?))) ORDER BY id LIMIT ?",
                (after, event, event, *[None if ids is None else json.dumps(list(ids))] * 2, limit),
            ).fetchall()
        return [DeadLetter(*row) for row in rows]

    def retry_dead_letters(self, ids: Sequence[int], now: float) -> int:
        chosen = json.dumps(list(ids))
        with self._writing():
            count = self._db.execute(
                "INSERT INTO outbox (owner, name, key, payload, stored_at, handler, handler_group)"
                f" SELECT {NOBODY}, name, key, payload, ?, handler, handler_group FROM dead_letters"
                " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
                (now, chosen),
            ).rowcount
            self._grow(count, -count)
            self._db.execute("DELETE FROM dead_letters WHERE id IN (SELECT value FROM json_each(?))", (chosen,))
        return count

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        with self._writing():
            count = self._db.execute(
                "DELETE FROM dead_letters WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
            ).rowcount
            self._grow(0, -count)
        return count

"""What people do with the SQLite queue: look, hold, retry, cancel, remove.

Layer: adapter (SQLite).
A whole job is held, released or cancelled by its one row, whatever its size.  Anything else goes through the
recipients in commits of a bounded size, so that engines are never kept waiting; an operation that is interrupted has
done part of its work and can be repeated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ._leasing import Leasing
from ._loading import normalised
from ._rows import JOB_COLUMNS, RETRY_COLUMNS, STATUS, VIEW_COLUMNS, job_from_row, retry_from_row, view_from_row
from .journal import is_held, journal_path
from .model import (
    MAX_NUMBER,
    NUMBER_BITS,
    Changed,
    Explanation,
    LeaseView,
    RecipientState,
    Status,
    cancelled,
    recipient_id,
)
from .store import NoSuchJob

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Filter, Job, RecipientView, RetryRecord
    from .store import Tell

#: recipients that one commit changes
CHUNK: Final = 5000

#: recipient id, attempts, state, address
_Match = tuple[int, int, int, str]


class Administering(Leasing):
    """The part of the store for people."""

    def job_or_none(self, job_id: int) -> Job | None:
        with self._errors():
            row = self._db.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else job_from_row(row)

    def jobs(self, limit: int, after: int = 0) -> list[Job]:
        with self._errors():
            rows = self._db.execute(
                f"SELECT {JOB_COLUMNS} FROM jobs WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
        return [job_from_row(row) for row in rows]

    def recipients(self, where: Filter, limit: int, after: int = 0) -> list[RecipientView]:
        condition, values = _condition(where)
        with self._errors():
            rows = self._db.execute(
                f"SELECT {VIEW_COLUMNS} FROM recipients r JOIN jobs j ON j.id = r.job WHERE r.id > ? AND {condition}"
                " ORDER BY r.id LIMIT ?",
                (after, *values, limit),
            ).fetchall()
        return [view_from_row(row) for row in rows]

    def retry(self, where: Filter, now: float) -> Changed:
        self._require_job(where)

        def change(rows: list[_Match]) -> None:
            ids = [(row[0],) for row in rows]
            self._db.executemany("DELETE FROM retry WHERE key = (SELECT retry_key FROM recipients WHERE id = ?)", ids)
            self._db.executemany(
                "UPDATE recipients SET next_at = ?, retry_key = NULL WHERE id = ?", [(now, row[0]) for row in rows]
            )
            self._serve_from(rows, now)

        return self._change(where, "r.state = 0 AND r.attempts > 0 AND j.state < 2", change)

    def hold(self, where: Filter) -> Changed:
        job = self._require_job(where)
        if job is not None and where.is_whole_job:
            with self._writing():
                self._db.execute("UPDATE jobs SET state = 1 WHERE id = ? AND state = 0", (job.id,))
            return Changed(job.counts.waiting + job.counts.deferred, job.counts.leased)

        def change(rows: list[_Match]) -> None:
            self._db.executemany("UPDATE recipients SET state = 5 WHERE id = ?", [(row[0],) for row in rows])
            self._move_counts(rows, "held")

        return self._change(where, "r.state = 0 AND j.state < 2", change)

    def release(self, where: Filter, now: float) -> Changed:
        job = self._require_job(where)

        def change(rows: list[_Match]) -> None:
            self._db.executemany("UPDATE recipients SET state = 0 WHERE id = ?", [(row[0],) for row in rows])
            self._move_counts(rows, None)
            self._serve_from(rows, now)

        result = self._change(where, "r.state = 5 AND j.state < 2", change)
        if job is not None and where.is_whole_job:
            with self._writing():
                was_held = self._db.execute("UPDATE jobs SET state = 0 WHERE id = ? AND state = 1", (job.id,)).rowcount
            if was_held:
                changed = job.counts.waiting + job.counts.deferred + result.changed
                return Changed(changed, result.in_flight)
        return result

    def cancel(self, where: Filter, now: float, *, owner: int = 0, tell: Tell | None = None) -> Changed:
        job = self._require_job(where)
        is_whole = job is not None and where.is_whole_job
        if job is not None and is_whole:
            if tell is None:
                return self._cancel_job(job.id, now)
            with self._writing():
                # nobody claims meanwhile, and whoever wants to go on can
                self._db.execute("UPDATE jobs SET state = 1 WHERE id = ? AND state = 0", (job.id,))
        completed: list[int] = []

        def change(rows: list[_Match]) -> None:
            self._db.executemany("UPDATE recipients SET state = 4 WHERE id = ?", [(row[0],) for row in rows])
            self._move_counts(rows, "cancelled")
            if tell is not None:
                found = [cancelled(recipient, 0, address, attempts) for recipient, attempts, _, address in rows]
                self._store_events(owner, list(tell(found)), now)
            if not is_whole:
                completed.extend(self._complete_jobs({row[0] >> NUMBER_BITS for row in rows}, now))

        result = self._change(where, "r.state IN (0, 5) AND j.state < 2", change)
        if job is not None and is_whole:
            rest = self._cancel_job(job.id, now)
            return Changed(result.changed + rest.changed, rest.in_flight, rest.completed)
        return replace(result, completed=tuple(completed))

    def _cancel_job(self, job_id: int, now: float) -> Changed:
        with self._writing():
            row = self._db.execute(
                "SELECT waiting + deferred + held, leased FROM jobs WHERE id = ? AND state < 2", (job_id,)
            ).fetchone()
            if row is None:
                return Changed()
            self._db.execute(
                "UPDATE jobs SET state = 3, cancelled = cancelled + waiting + deferred + held, waiting = 0,"
                " deferred = 0, held = 0 WHERE id = ?",
                (job_id,),
            )
            completed = self._complete_jobs([job_id], now)
        changed, in_flight = row
        return Changed(changed, in_flight, tuple(completed))

    def _change(self, where: Filter, states: str, change: Callable[[list[_Match]], None]) -> Changed:
        """Let `change` work on what matches, a bounded list and a commit at a time."""
        condition, values = _condition(where)
        query = (
            "SELECT r.id, r.attempts, r.state, r.address FROM recipients r JOIN jobs j ON j.id = r.job"
            f" WHERE r.id > ? AND {condition} AND {states} ORDER BY r.id LIMIT ?"
        )
        after = changed = 0
        while True:
            # look first without the lock: an engine need not wait for a search
            with self._errors():
                first = self._db.execute(query, (after, *values, 1)).fetchone()
            if first is None:
                break
            with self._writing():
                rows = self._db.execute(query, (first[0] - 1, *values, CHUNK)).fetchall()
                if rows:
                    change(rows)
            changed += len(rows)
            if len(rows) < CHUNK:
                break
            after = rows[-1][0]
        return Changed(changed, self._in_flight(where))

    def _move_counts(self, rows: list[_Match], to: str | None) -> None:
        """Move recipients from their counter to another one, or back to waiting and deferred (None)."""
        moves: dict[tuple[int, str, str], int] = {}
        for recipient, attempts, state, _ in rows:
            queued = "deferred" if attempts else "waiting"
            move = (recipient >> NUMBER_BITS, "held" if state == RecipientState.HELD else queued, to or queued)
            moves[move] = moves.get(move, 0) + 1
        for (job, source, target), count in moves.items():
            self._db.execute(
                f"UPDATE jobs SET {source} = {source} - ?, {target} = {target} + ? WHERE id = ?", (count, count, job)
            )

    def _serve_from(self, rows: list[_Match], now: float) -> None:
        self._db.executemany(
            "UPDATE jobs SET serve_at = min(serve_at, max(start_at, ?)) WHERE id = ?",
            [(now, job) for job in {row[0] >> NUMBER_BITS for row in rows}],
        )

    def _in_flight(self, where: Filter) -> int:
        condition, values = _condition(where)
        with self._errors():
            if where.is_whole_job:
                row = self._db.execute("SELECT leased FROM jobs WHERE id = ?", (where.job_id,)).fetchone()
                return 0 if row is None else int(row[0])
            (count,) = self._db.execute(
                f"SELECT count(*) FROM recipients r JOIN jobs j ON j.id = r.job WHERE r.state = 1 AND {condition}",
                values,
            ).fetchone()
        return int(count)

    def _require_job(self, where: Filter) -> Job | None:
        if where.job_id is None:
            return None
        job = self.job_or_none(where.job_id)
        if job is None:
            raise NoSuchJob(f"there is no job {where.job_id}")
        return job

    def explain(self, address: str, job_id: int | None = None, *, limit: int = 100) -> list[Explanation]:
        wanted = normalised(address)
        first, last = (0, -1) if job_id is None else (recipient_id(job_id, 0), recipient_id(job_id, MAX_NUMBER))
        with self._errors():
            rows = self._db.execute(
                f"SELECT {VIEW_COLUMNS}, r.retry_key, r.epoch FROM recipients r JOIN jobs j ON j.id = r.job"
                " WHERE r.address = ? AND (? < 0 OR r.id BETWEEN ? AND ?) ORDER BY r.id DESC LIMIT ?",
                (wanted, last, first, last, limit),
            ).fetchall()
        explanations: list[Explanation] = []
        for row in rows:
            view = view_from_row(row)
            job = self.job_or_none(view.job_id)
            if job is not None:
                # the epoch stays when it is settled, and others of its lease may not be
                lease = self._lease_view(row[-1]) if view.status is Status.IN_FLIGHT else None
                explanations.append(Explanation(view, job, lease, self._records_of(wanted, row[-2])))
        return explanations

    def _lease_view(self, epoch: int) -> LeaseView | None:
        with self._errors():
            row = self._db.execute(
                "SELECT l.owner, coalesce(e.pid, 0), l.since, l.until, e.boot_id FROM leases l"
                " LEFT JOIN engines e ON e.id = l.owner WHERE l.epoch = ?",
                (epoch,),
            ).fetchone()
        if row is None:
            return None
        is_alive = row[4] is not None and row[4] == self._boot_id and is_held(journal_path(self.path, row[0]))
        return LeaseView(row[0], row[1], row[2], row[3], is_alive)

    def _records_of(self, address: str, retry_key: str | None) -> tuple[RetryRecord, ...]:
        key = f"R:{address}"
        with self._errors():
            rows = self._db.execute(
                f"SELECT {RETRY_COLUMNS} FROM retry WHERE key IN (?, ?, ?) OR (key > ? AND key < ?) ORDER BY key",
                (retry_key or key, key, f"R:{address.rpartition('@')[2]}", key + ":", key + ";"),
            ).fetchall()
        return tuple(retry_from_row(row) for row in rows)

    def purge(self, completed_before: float) -> int:
        with self._errors():
            jobs = self._db.execute("SELECT id FROM jobs WHERE completed_at < ?", (completed_before,)).fetchall()
        for (job,) in jobs:
            self._remove_job(job)
        return len(jobs)


def _condition(where: Filter) -> tuple[str, list[object]]:
    parts: list[str] = ["1"]
    values: list[object] = []
    if where.recipient_id is not None:
        parts.append("r.id = ?")
        values.append(where.recipient_id)
    if where.job_id is not None:
        parts.append("r.id BETWEEN ? AND ?")
        values += [recipient_id(where.job_id, 0), recipient_id(where.job_id, MAX_NUMBER)]
    if where.domain is not None:
        suffix = "@" + where.domain.lower()
        parts.append("substr(r.address, -?) = ?")
        values += [len(suffix), suffix]
    if where.address is not None:
        parts.append("r.address = ?")
        values.append(normalised(where.address))
    if where.status is not None:
        parts.append(f"{STATUS} = ?")
        values.append(where.status.value)
    return " AND ".join(parts), values

"""Claims and settlements in the SQLite queue: the hot path.

Layer: adapter (SQLite).  Spec: the protocol in store.py; bench: claim_queue.
A claim reads the partial index of what is due, marks the rows and leaves one lease row with the ids of the batch; a
settlement writes each row once more, by its key, and counts how many rows it hit.  Only when a row did not match (a
lease was lost, an outcome came twice) is the work undone and done again with a look at each.
Invariants: the counters of a job move in the commit that moves its recipients; `jobs.serve_at` is never later than the
earliest `next_at` of its queued recipients, but for the past, where every time is as good as now.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ._loading import Loading
from ._outbox import OutboxKeeping, storable
from ._rows import COUNT_COLUMNS, RETRY_COLUMNS, pack_members, retry_from_row
from ._schema import EXPIRES, NEVER, SERVED
from .model import NUMBER_BITS, Claim, JobCounts, JobState, OutcomeKind, RecipientState, SettleResult
from .store import NoSuchJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._rows import Row
    from .journal import Journal
    from .model import OutboxEvent, Outcome, RetryRecord

#: jobs that one step of a claim looks at
_JOBS_A_STEP: Final = 32
#: recipients that a claim takes of one job at least, where there are so many jobs that shares would be tiny
_MIN_SHARE: Final = 8

_CLAIMED: Final = "r.id, r.address, r.attempts, r.in_doubt"
_DELIVERED: Final = (
    "UPDATE recipients SET state = 2, attempts = attempts + 1, in_doubt = 0, last_at = ?, errno = NULL, text = NULL,"
    " retry_key = NULL WHERE epoch = ? AND state = 1 AND id IN (SELECT value FROM json_each(?))"
)
_FAILED: Final = (
    "UPDATE recipients SET state = 3, attempts = attempts + 1, last_at = ?, errno = ?, text = ?,"
    " retry_key = NULL WHERE id = ? AND epoch = ? AND state = 1"
)
_DEFERRED: Final = (
    "UPDATE recipients SET state = ?, next_at = ?, attempts = attempts + 1, in_doubt = max(in_doubt, ?), last_at = ?,"
    " errno = ?, text = ?, retry_key = ? WHERE id = ? AND epoch = ? AND state = 1"
)
_RELEASED: Final = (
    "UPDATE recipients SET state = ?, next_at = coalesce(?, next_at) WHERE id = ? AND epoch = ? AND state = 1"
)
_COUNTERS: Final = (
    "UPDATE jobs SET leased = leased - ?, delivered = delivered + ?, failed = failed + ?, deferred = deferred + ?,"
    " waiting = waiting + ?, cancelled = cancelled + ?, serve_at = min(serve_at, ?) WHERE id = ?"
)


class _Mismatch(Exception):
    """Some outcome did not match a lease."""


class Leasing(Loading, OutboxKeeping):
    """The delivering half of the store."""

    _journals: dict[int, Journal]
    _boot_id: str

    def claim(self, owner: int, limit: int, now: float, lease_s: float, job_id: int | None = None) -> list[Claim]:
        if limit <= 0 or not self._due_jobs(now, job_id, 1):
            return []
        until = now + lease_s
        taken: list[tuple[list[Row], int]] = []
        with self._writing():
            left = limit
            served: set[int] = set()
            while left > 0:
                due = [job for job in self._due_jobs(now, job_id, _JOBS_A_STEP + len(served)) if job[0] not in served]
                if not due:
                    break
                for position, (job, has_merge) in enumerate(due):
                    share = max(-(-left // (len(due) - position)), min(_MIN_SHARE, left))
                    rows = self._due_rows(job, bool(has_merge), now, share)
                    served.add(job)
                    taken.append((rows, job))
                    left -= len(rows)
                    if left <= 0:
                        break
                if len(due) < _JOBS_A_STEP:
                    break
            return self._lease(owner, now, until, taken)

    def claim_expired(
        self, owner: int, limit: int, now: float, lease_s: float, job_id: int | None = None
    ) -> list[Claim]:
        query = (
            f"SELECT id, has_merge, held FROM jobs WHERE {EXPIRES} AND expires_at <= ?"
            f" AND waiting + deferred + held > 0{'' if job_id is None else f' AND id = {job_id:d}'}"
            " ORDER BY expires_at LIMIT ?"
        )
        with self._errors():
            if limit <= 0 or not self._db.execute(query, (now, 1)).fetchone():
                return []
        taken: list[tuple[list[Row], int]] = []
        held: dict[int, int] = {}
        with self._writing():
            left = limit
            for job, has_merge, held_count in self._db.execute(query, (now, _JOBS_A_STEP)).fetchall():
                rows = self._due_rows(job, bool(has_merge), NEVER, left)
                if held_count and len(rows) < left:
                    more = self._held_rows(job, left - len(rows))
                    held[job] = len(more)
                    rows += more
                taken.append((rows, job))
                left -= len(rows)
                if left <= 0:
                    break
            return self._lease(owner, now, now + lease_s, taken, held)

    def _due_jobs(self, now: float, job_id: int | None, limit: int) -> list[tuple[int, int]]:
        alive = "(expires_at IS NULL OR expires_at > ?)"
        with self._errors():
            if job_id is not None:
                return self._db.execute(
                    f"SELECT id, has_merge FROM jobs WHERE id = ? AND {SERVED} AND start_at <= ? AND {alive}"
                    " AND EXISTS (SELECT 1 FROM recipients WHERE job = jobs.id AND state = 0 AND next_at <= ?)",
                    (job_id, now, now, now),
                ).fetchall()
            return self._db.execute(
                f"SELECT id, has_merge FROM jobs WHERE {SERVED} AND serve_at <= ? AND {alive}"
                " ORDER BY serve_at LIMIT ?",
                (now, now, limit),
            ).fetchall()

    def _due_rows(self, job: int, has_merge: bool, now: float, limit: int) -> list[Row]:
        if has_merge:
            query = f"SELECT {_CLAIMED}, m.data FROM recipients r LEFT JOIN merges m ON m.id = r.id"
        else:
            query = f"SELECT {_CLAIMED}, NULL FROM recipients r"
        query += " WHERE r.job = ? AND r.state = 0 AND r.next_at <= ? ORDER BY r.next_at, r.id LIMIT ?"
        return self._db.execute(query, (job, now, limit)).fetchall()

    def _held_rows(self, job: int, limit: int) -> list[Row]:
        return self._db.execute(
            f"SELECT {_CLAIMED}, m.data FROM recipients r LEFT JOIN merges m ON m.id = r.id"
            " WHERE r.id BETWEEN ? AND ? AND r.state = 5 LIMIT ?",
            (job << NUMBER_BITS, (job + 1 << NUMBER_BITS) - 1, limit),
        ).fetchall()

    def _lease(
        self,
        owner: int,
        now: float,
        until: float,
        taken: list[tuple[list[Row], int]],
        held: dict[int, int] | None = None,
    ) -> list[Claim]:
        """Turn rows into claims of one new epoch, and let the jobs go behind those that wait."""
        ids = [row[0] for rows, _ in taken for row in rows]
        epoch = 0
        if ids:
            cursor = self._db.execute(
                "INSERT INTO leases (owner, since, until, remaining, members) VALUES (?, ?, ?, ?, ?)",
                (owner, now, until, len(ids), pack_members(ids)),
            )
            assert cursor.lastrowid is not None
            epoch = cursor.lastrowid
            self._mark_leased(ids, epoch)
        for rows, job in taken:
            tried = sum(1 for row in rows if row[2])
            from_hold = held.get(job, 0) if held else 0
            if from_hold:
                tried = sum(1 for row in rows[:-from_hold] if row[2])
            self._db.execute(
                "UPDATE jobs SET waiting = waiting - ?, deferred = deferred - ?, held = held - ?, leased = leased + ?,"
                " serve_at = coalesce((SELECT max(?, next_at) FROM recipients WHERE job = ? AND state = 0"
                " ORDER BY next_at LIMIT 1), ?) WHERE id = ?",
                (len(rows) - tried - from_hold, tried, from_hold, len(rows), now, job, NEVER, job),
            )
        return [Claim(row[0], epoch, row[1], row[2], row[3] != 0, until, row[4]) for rows, _ in taken for row in rows]

    def _mark_leased(self, ids: list[int], epoch: int) -> None:
        first, last = min(ids), max(ids)
        if last - first + 1 == len(ids):
            # ids are distinct, so they are exactly this range: the usual case in a job that was never tried
            self._db.execute(
                "UPDATE recipients SET state = 1, epoch = ? WHERE id BETWEEN ? AND ?", (epoch, first, last)
            )
            return
        self._db.execute(
            "UPDATE recipients SET state = 1, epoch = ? WHERE id IN (SELECT value FROM json_each(?))",
            (epoch, json.dumps(ids)),
        )

    def settle(
        self,
        owner: int,
        outcomes: Sequence[Outcome],
        now: float,
        *,
        events: Sequence[OutboxEvent] = (),
        retry_updates: Sequence[RetryRecord] = (),
        retry_deletes: Sequence[str] = (),
    ) -> SettleResult:
        with self._writing():
            result = self._settle(owner, outcomes, now)
            self._store_events(owner, events, now)
            if retry_deletes:
                self._db.executemany("DELETE FROM retry WHERE key = ?", [(key,) for key in retry_deletes])
            if retry_updates:
                self._db.executemany(
                    f"INSERT OR REPLACE INTO retry ({RETRY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            storable(record.key),
                            record.first_failed_at,
                            record.last_try_at,
                            record.next_try_at,
                            record.errno,
                            record.more_errno,
                            storable(record.text),
                            record.expired,
                        )
                        for record in retry_updates
                    ],
                )
            journal = self._journals.get(owner)
            if journal is not None and journal.open_count:
                flights = [(outcome.recipient_id, outcome.epoch) for outcome in outcomes]
                self._after_commit.append(lambda: journal.forget_quietly(flights))
        return result

    def _settle(self, owner: int, outcomes: Sequence[Outcome], now: float) -> SettleResult:
        if not outcomes:
            return SettleResult()
        try:
            with self._savepoint():
                return self._apply(owner, outcomes, now)
        except _Mismatch:
            pass
        epochs = {epoch for (epoch,) in self._db.execute("SELECT epoch FROM leases WHERE owner = ?", (owner,))}
        lost: list[Outcome] = []
        ours: dict[int, Outcome] = {}
        for outcome in outcomes:
            row = self._db.execute(
                "SELECT 1 FROM recipients WHERE id = ? AND epoch = ? AND state = 1",
                (outcome.recipient_id, outcome.epoch),
            ).fetchone()
            if row is None or outcome.epoch not in epochs or outcome.recipient_id in ours:
                lost.append(outcome)
            else:
                ours[outcome.recipient_id] = outcome
        result = self._apply(owner, list(ours.values()), now) if ours else SettleResult()
        return SettleResult(tuple(lost), result.completed, result.cancelled)

    def _apply(self, owner: int, outcomes: Sequence[Outcome], now: float) -> SettleResult:
        """Write the outcomes, counters and leases.

        Raises:
            _Mismatch: some outcome matches no lease; the caller undoes all of it.
        """
        delivered: dict[int, list[int]] = {}
        others: list[Outcome] = []
        for outcome in outcomes:
            if outcome.kind == 0:
                delivered.setdefault(outcome.epoch, []).append(outcome.recipient_id)
            else:
                others.append(outcome)
        per_job = Counter([outcome.recipient_id >> NUMBER_BITS for outcome in outcomes])
        # leased, delivered, failed, deferred, waiting, cancelled, serve_at
        deltas: dict[int, list[float]] = {job: [count, count, 0, 0, 0, 0, NEVER] for job, count in per_job.items()}
        # one statement an epoch, not one a recipient: SQLite gives up the interpreter's lock at each, and to get it
        # back from a thread that computes may take 5 ms
        changed = 0
        cancelled: list[Outcome] = []
        for epoch, ids in delivered.items():
            changed += self._db.execute(_DELIVERED, (now, epoch, json.dumps(ids))).rowcount
        if others:
            changed += self._apply_others(others, now, deltas, cancelled)
        if changed != len(outcomes):
            raise _Mismatch
        self._db.executemany(_COUNTERS, [(*delta, job) for job, delta in deltas.items()])
        epochs = Counter([outcome.epoch for outcome in outcomes])
        found = self._db.executemany(
            "UPDATE leases SET remaining = remaining - ? WHERE epoch = ? AND owner = ?",
            [(count, epoch, owner) for epoch, count in epochs.items()],
        ).rowcount
        if found != len(epochs):
            raise _Mismatch
        self._db.executemany("DELETE FROM leases WHERE epoch = ? AND remaining <= 0", [(epoch,) for epoch in epochs])
        return SettleResult((), tuple(self._complete_jobs(per_job, now)), tuple(cancelled))

    def _apply_others(
        self, outcomes: list[Outcome], now: float, deltas: dict[int, list[float]], ended: list[Outcome]
    ) -> int:
        """Write what is no delivery; `ended` gets what ends as cancelled.  Gives how many rows it hit."""
        jobs = {outcome.recipient_id >> NUMBER_BITS for outcome in outcomes}
        cancelled = {
            job
            for (job,) in self._db.execute(
                "SELECT id FROM jobs WHERE state = ? AND id IN (SELECT value FROM json_each(?))",
                (int(JobState.CANCELLED), json.dumps(list(jobs))),
            )
        }
        released = [outcome.recipient_id for outcome in outcomes if outcome.kind == OutcomeKind.RELEASED]
        untried = (
            {
                recipient
                for (recipient,) in self._db.execute(
                    "SELECT id FROM recipients WHERE attempts = 0 AND id IN (SELECT value FROM json_each(?))",
                    (json.dumps(released),),
                )
            }
            if released
            else set()
        )
        rows: dict[str, list[tuple[Any, ...]]] = {_FAILED: [], _DEFERRED: [], _RELEASED: []}
        for outcome in outcomes:
            recipient = outcome.recipient_id
            delta = deltas[recipient >> NUMBER_BITS]
            delta[1] -= 1
            text = storable(outcome.text)
            if outcome.kind == OutcomeKind.FAILED:
                delta[2] += 1
                rows[_FAILED].append((now, outcome.errno, text, recipient, outcome.epoch))
                continue
            if recipient >> NUMBER_BITS in cancelled:
                state = int(RecipientState.CANCELLED)
                delta[5] += 1
                ended.append(outcome)
            else:
                state = int(RecipientState.QUEUED)
                delta[4 if recipient in untried else 3] += 1
                due_at = now if outcome.next_attempt_at is None else max(now, outcome.next_attempt_at)
                delta[6] = min(delta[6], due_at)
            if outcome.kind == OutcomeKind.RELEASED:
                rows[_RELEASED].append((state, outcome.next_attempt_at, recipient, outcome.epoch))
            else:
                next_at = now if outcome.next_attempt_at is None else outcome.next_attempt_at
                rows[_DEFERRED].append(
                    (
                        state,
                        next_at,
                        outcome.in_doubt,
                        now,
                        outcome.errno,
                        text,
                        outcome.retry_key or None,
                        recipient,
                        outcome.epoch,
                    )
                )
        return sum(self._db.executemany(query, values).rowcount for query, values in rows.items() if values)

    def extend(self, owner: int, epochs: Iterable[int], until: float) -> tuple[int, ...]:
        lost: list[int] = []
        with self._writing():
            for epoch in epochs:
                changed = self._db.execute(
                    "UPDATE leases SET until = max(until, ?) WHERE epoch = ? AND owner = ?", (until, epoch, owner)
                ).rowcount
                if not changed:
                    lost.append(epoch)
        return tuple(lost)

    def next_due_at(self, job_id: int | None = None) -> float | None:
        with self._errors():
            if job_id is None:
                (due_at,) = self._db.execute(f"SELECT min(serve_at) FROM jobs WHERE {SERVED}").fetchone()
            else:
                (due_at,) = self._db.execute(
                    "SELECT max(start_at, (SELECT min(next_at) FROM recipients WHERE job = ? AND state = 0)) FROM jobs"
                    f" WHERE id = ? AND {SERVED}",
                    (job_id, job_id),
                ).fetchone() or (None,)
        return None if due_at is None or due_at >= NEVER else float(due_at)

    def next_expiry_at(self) -> float | None:
        with self._errors():
            row = self._db.execute(
                f"SELECT expires_at FROM jobs WHERE {EXPIRES} AND waiting + deferred + held > 0"
                " ORDER BY expires_at LIMIT 1"
            ).fetchone()
        return None if row is None else float(row[0])

    def counts(self, job_id: int) -> JobCounts:
        with self._errors():
            row = self._db.execute(f"SELECT {COUNT_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NoSuchJob(f"there is no job {job_id}")
        return JobCounts(*row)

    def body(self, job_id: int) -> bytes:
        with self._errors():
            row = self._db.execute("SELECT body FROM bodies WHERE job = ?", (job_id,)).fetchone()
        if row is None:
            raise NoSuchJob(f"there is no job {job_id}")
        return bytes(row[0])

    def retry_records(self, keys: Sequence[str]) -> dict[str, RetryRecord]:
        with self._errors():
            rows = self._db.execute(
                f"SELECT {RETRY_COLUMNS} FROM retry WHERE key IN (SELECT value FROM json_each(?))",
                (json.dumps(list(keys)),),
            ).fetchall()
        return {row[0]: retry_from_row(row) for row in rows}

    def all_retry_records(self, limit: int, after: str = "") -> list[RetryRecord]:
        with self._errors():
            rows = self._db.execute(
                f"SELECT {RETRY_COLUMNS} FROM retry WHERE key > ? ORDER BY key LIMIT ?", (after, limit)
            ).fetchall()
        return [retry_from_row(row) for row in rows]

    def drop_retry_records(self, last_tried_before: float) -> int:
        with self._writing():
            return self._db.execute("DELETE FROM retry WHERE last_try_at < ?", (last_tried_before,)).rowcount

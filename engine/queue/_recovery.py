"""Engines of the SQLite queue: registering, and clearing up after those that are gone.

Layer: adapter (SQLite).  Spec: store.py, "What a crash leaves".
Invariants: the lock of a dead engine's journal is held until its leases are settled, so one engine clears up; the
journal is removed only after that commit; a journal that proves nothing makes every lease of its engine doubtful.
"""

from __future__ import annotations

import glob
import json
import os
from typing import TYPE_CHECKING, Final

from ._leasing import Leasing
from ._limits import Limiting
from ._rows import unpack_members
from ._schema import TO_BE_REMOVED
from .journal import Journal, JournalContents, journal_path, read_living, take_dead
from .model import JobState, OutboxEvent, Outcome, OutcomeKind, Recovered, Recovery, RecoveryKind, cancelled
from .store import DEFAULT_IN_DOUBT_DELAY_S, Engine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .journal import DeadJournal
    from .store import Describe, Witness

_KINDS: Final = {
    OutcomeKind.DELIVERED: RecoveryKind.DELIVERED,
    OutcomeKind.FAILED: RecoveryKind.FAILED,
    OutcomeKind.DEFERRED: RecoveryKind.DEFERRED,
}
IN_DOUBT_TEXT: Final = "in doubt: the message was sent and the engine ended before the reply"


class _Findings:
    """What one recovery gathers."""

    def __init__(
        self, owner: int, now: float, delay_s: float, describe: Describe, witness: Witness | None = None
    ) -> None:
        self._witness = witness
        self._witnessed = 0
        self.owner = owner
        self.now = now
        self.delay_s = delay_s
        self.describe = describe
        self.recipients: list[Recovered] = []
        self.released = 0
        self.events = 0
        self.engines: list[int] = []
        self.completed: list[int] = []
        self.removed: list[int] = []
        self.held: list[int] = []

    def tell_witness(self) -> None:
        """What a commit is about to settle; called just before it."""
        fresh, self._witnessed = self.recipients[self._witnessed :], len(self.recipients)
        if fresh and self._witness is not None:
            self._witness(fresh)

    def result(self) -> Recovery:
        return Recovery(
            tuple(self.recipients),
            self.released,
            tuple(self.engines),
            tuple(self.completed),
            tuple(self.removed),
            tuple(self.held),
            self.events,
        )


def _untold(_: Recovered) -> tuple[OutboxEvent, ...]:
    """The events of a recipient where nobody says what they are."""
    return ()


def current_boot_id() -> str:
    """What changes when the machine starts again; "" where it cannot be told (then only journals count)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Recovering(Leasing, Limiting):
    """The part of the store that knows engines."""

    def register(self, now: float) -> Engine:
        journal: Journal | None = None
        try:
            with self._writing():
                owner = self._db.execute(
                    "INSERT INTO engines (pid, boot_id, started_at) VALUES (?, ?, ?)", (os.getpid(), self._boot_id, now)
                ).lastrowid
                assert owner is not None
                # locked before the registration can be seen, so nobody takes us for dead
                journal = Journal(journal_path(self.path, owner))
        except BaseException:
            if journal is not None:
                journal.close(remove=True)
            raise
        self._journals[owner] = journal
        return Engine(owner, journal)

    def retire(self, engine: Engine, now: float, *, in_doubt_delay_s: float = DEFAULT_IN_DOUBT_DELAY_S) -> Recovery:
        self._not_in_group("retire")
        findings = _Findings(engine.owner, now, in_doubt_delay_s, _untold)
        with self._writing():
            self._clear(engine.owner, engine.journal.contents(), findings)
        self._journals.pop(engine.owner, None)
        engine.journal.close(remove=True)
        self._remove_jobs(findings.removed)
        return findings.result()

    def recover(
        self,
        owner: int,
        now: float,
        *,
        in_doubt_delay_s: float = DEFAULT_IN_DOUBT_DELAY_S,
        describe: Describe | None = None,
        witness: Witness | None = None,
    ) -> Recovery:
        self._not_in_group("recover")
        self._check_in_place()
        findings = _Findings(owner, now, in_doubt_delay_s, describe or _untold, witness)
        with self._errors():
            engines = self._db.execute("SELECT id, boot_id FROM engines WHERE id <> ?", (owner,)).fetchall()
        for dead, boot_id in engines:
            journal = take_dead(journal_path(self.path, dead))
            if journal is not None:
                self._bury(dead, boot_id, journal, findings)
        self._recover_expired(findings)
        self._remove_orphans()
        with self._errors():
            removed = self._db.execute("SELECT id FROM jobs WHERE loader = ?", (TO_BE_REMOVED,)).fetchall()
        self._remove_jobs(job for (job,) in removed)
        return findings.result()

    def _bury(self, dead: int, boot_id: str, journal: DeadJournal, findings: _Findings) -> None:
        is_done = False
        try:
            contents = journal.contents()
            if boot_id != self._boot_id:
                contents = JournalContents(contents.entries, is_damaged=True)
            with self._writing():
                # another engine may have done it between our look and our lock
                if self._db.execute("SELECT 1 FROM engines WHERE id = ?", (dead,)).fetchone():
                    self._clear(dead, contents, findings)
                    findings.engines.append(dead)
                    findings.tell_witness()
            is_done = True
        finally:
            journal.close(remove=is_done)

    def _clear(self, engine: int, contents: JournalContents, findings: _Findings) -> None:
        """Settle everything that belongs to an engine and strike it off."""
        leases = self._db.execute("SELECT epoch, members FROM leases WHERE owner = ?", (engine,)).fetchall()
        for epoch, members in leases:
            self._take_back(engine, epoch, members, contents, findings)
        if findings.owner != engine:
            findings.events += self._inherit_events(engine, findings.owner)
        else:
            # events without an engine wait for whoever recovers next
            self._db.execute("UPDATE outbox SET owner = 0 WHERE owner = ?", (engine,))
        for (job,) in self._db.execute("SELECT id FROM jobs WHERE loader = ?", (engine,)).fetchall():
            state = self._end_cut_off_load(job, findings.now)
            if state is None:
                findings.removed.append(job)
            elif state is JobState.HELD:
                findings.held.append(job)
        self._leave_sharing(engine)
        self._db.execute("DELETE FROM engines WHERE id = ?", (engine,))

    def _recover_expired(self, findings: _Findings) -> None:
        query = "SELECT epoch, owner, members FROM leases WHERE until < ?"
        with self._errors():
            expired = self._db.execute(query, (findings.now,)).fetchall()
            orphaned = self._db.execute("SELECT 1 FROM outbox WHERE owner = 0 LIMIT 1").fetchone()
        if expired:
            with self._writing():
                for epoch, engine, members in self._db.execute(query, (findings.now,)).fetchall():
                    # read inside the transaction: what the engine begins from here on is after the end of its lease
                    contents = read_living(journal_path(self.path, engine))
                    self._take_back(engine, epoch, members, contents, findings)
                findings.tell_witness()
        if orphaned:
            with self._writing():
                self._db.execute("UPDATE outbox SET owner = ? WHERE owner = 0", (findings.owner,))

    def _take_back(
        self, engine: int, epoch: int, members: bytes, contents: JournalContents, findings: _Findings
    ) -> None:
        """Settle one lease by what the journal says of its recipients."""
        ids = unpack_members(members)
        rows = self._db.execute(
            "SELECT id, address, attempts FROM recipients WHERE epoch = ? AND state = 1"
            " AND id IN (SELECT value FROM json_each(?))",
            (epoch, json.dumps(ids)),
        ).fetchall()
        outcomes: list[Outcome] = []
        events: list[OutboxEvent] = []
        retry_at = findings.now + findings.delay_s
        for recipient, address, attempts in rows:
            entry = contents.entries.get((recipient, epoch))
            host = entry.host if entry is not None else ""
            if (entry is None and not contents.is_damaged) or (
                entry is not None and entry.kind is OutcomeKind.RELEASED
            ):
                outcomes.append(Outcome(recipient, epoch, OutcomeKind.RELEASED))
                findings.released += 1
                continue
            if entry is None or entry.kind is None:
                kind, text = RecoveryKind.IN_DOUBT, IN_DOUBT_TEXT
                outcomes.append(
                    Outcome(recipient, epoch, OutcomeKind.DEFERRED, next_attempt_at=retry_at, text=text, in_doubt=True)
                )
            else:
                kind, text = _KINDS[entry.kind], entry.text
                outcomes.append(Outcome(recipient, epoch, entry.kind, next_attempt_at=retry_at, text=text))
            recovered = Recovered(kind, recipient, epoch, address, attempts, engine, host, text)
            findings.recipients.append(recovered)
            events.extend(findings.describe(recovered))
        result = self._settle(engine, outcomes, findings.now)
        findings.completed.extend(result.completed)
        if result.cancelled:
            attempted = {recipient: (address, attempts) for recipient, address, attempts in rows}
            known = {found.recipient_id for found in findings.recipients}
            for outcome in result.cancelled:
                recipient = outcome.recipient_id
                recovered = cancelled(recipient, epoch, *attempted[recipient], engine=engine)
                findings.released -= recipient not in known
                findings.recipients.append(recovered)
                events.extend(findings.describe(recovered))
        self._db.execute("DELETE FROM leases WHERE epoch = ?", (epoch,))
        self._store_events(findings.owner, events, findings.now)

    def _remove_orphans(self) -> None:
        """Remove journals whose engine is struck off: it was interrupted between its commit and their removal."""
        prefix = journal_path(self.path, 0)[:-1]
        names = [name for name in glob.glob(glob.escape(prefix) + "*") if name[len(prefix) :].isdecimal()]
        if not names:
            return
        with self._errors():
            engines = {number for (number,) in self._db.execute("SELECT id FROM engines")}
            (last,) = self._db.execute(
                "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'engines'), 0)"
            ).fetchone()
        for name in names:
            number = int(name[len(prefix) :])
            # an engine that is registering right now has a number that was not given out yet
            if number not in engines and number <= last:
                journal = take_dead(name)
                if journal is not None:
                    journal.close(remove=True)

    def _remove_jobs(self, jobs: Iterable[int]) -> None:
        for job in jobs:
            self._remove_job(job)

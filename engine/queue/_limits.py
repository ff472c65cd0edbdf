"""Limits of the SQLite queue: what engines that share it give each other leave to do.

Layer: adapter (SQLite).  Spec: store.py, "Limits"; the arithmetic is that of limits.py.

**Facts.**  A host takes so many connections and messages from us, not from one of our processes.  Engines come and go
without telling each other, by `kill -9` too.  A commit costs a millisecond of the disk; a connection carries up to
hundreds of messages.

**Our solution.**  An engine that is alone writes one row that says so, and keeps its limits in memory: it looks four
times a second whether another one has come, and nothing else.  Otherwise each engine has a row for each place where it
has or wants connections (`slots`: what it holds, what it wants, since when), and opens none there beyond what it holds.
It asks in batches, in one commit, when connections are wanted beyond that, not once a connection and never once a
message; what it holds beyond its share it gives back as its connections end, which it is asked to let happen.  Who
wants slots that others hold is found through a partial index that is nearly always empty.  Tokens of rates are reserved
ahead, some hundred milliseconds' worth at a time.
Rows of an engine that died go with its leases (`recover`): until then its connections count, as they may be open still.
So do those of one that hangs, until it has said nothing for `LOST_S` seconds; it asks anew before it opens any.

**Why not shares by the number of engines.**  Half the slots would lie idle whenever one engine has nothing for a host,
and a limit of one connection cannot be halved.

**What we do not do.**  An engine that says that it is alone and does not look (stopped, swapped out) is waited for
`GRACE_S` seconds; what it has open then is over the limit until it looks again.
Invariants: the sum of `held` at a place is never over its limit by anybody's asking (only a limit that was lowered, or
an engine that was not waited for, can make it so); `held` is never less than the connections that are open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ._database import Database
from .limits import LOST_S, SEEN_S, TURN_S, Want, divide, reserve

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ..values import Rate

#: owner, held, wanted, since when in the line, since when it holds something
_Row = tuple[int, int, int, float, float]

#: rates whose next token has been good for so many seconds are forgotten: a burst makes up for no more than one
_FORGET_S: Final = 60.0

#: seconds that keep two in a line apart
_BEHIND_S: Final = 0.001

_SET_SLOT: Final = (
    "INSERT INTO slots (place, owner, held, wanted, since, began) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (place, owner) DO UPDATE SET held = excluded.held, wanted = excluded.wanted, since = excluded.since,"
    " began = excluded.began"
)
_SET_SHARER: Final = "INSERT OR REPLACE INTO sharers (owner, is_alone, seen_at) VALUES (?, ?, ?)"
_SET_RATE: Final = (
    "INSERT INTO rates (name, next_at) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET next_at = max(next_at, excluded.next_at)"
)


class Limiting(Database):
    """The part of the store that knows limits."""

    def join_sharing(self, owner: int, now: float, *, may_be_alone: bool) -> dict[str, float] | None:
        with self._writing():
            others = self._db.execute("SELECT 1 FROM sharers WHERE owner <> ?", (owner,)).fetchone()
            is_alone = may_be_alone and others is None
            self._db.execute(_SET_SHARER, (owner, is_alone, now))
            if not is_alone:
                return None
            self._db.execute("DELETE FROM slots")
            rates = self._db.execute("SELECT name, next_at FROM rates WHERE next_at > ?", (now - _FORGET_S,))
            known = dict(rates.fetchall())
            self._db.execute("DELETE FROM rates")
        return known

    def begin_sharing(self, owner: int, wants: Mapping[str, Want], rates: Mapping[str, float], now: float) -> None:
        with self._writing():
            self._db.executemany(
                _SET_SLOT, [(place, owner, want.open, want.wanted, now, now) for place, want in wants.items()]
            )
            self._db.executemany(_SET_RATE, rates.items())
            self._db.execute(_SET_SHARER, (owner, False, now))

    def has_other_sharers(self, owner: int) -> bool:
        with self._errors():
            return self._db.execute("SELECT 1 FROM sharers WHERE owner <> ?", (owner,)).fetchone() is not None

    def has_lone_sharer(self, owner: int) -> bool:
        with self._errors():
            query = "SELECT 1 FROM sharers WHERE owner <> ? AND is_alone"
            return self._db.execute(query, (owner,)).fetchone() is not None

    def wanted_by_others(self, owner: int) -> frozenset[str]:
        with self._errors():
            rows = self._db.execute("SELECT place FROM slots WHERE wanted > held AND owner <> ?", (owner,))
            return frozenset(place for (place,) in rows)

    def share(self, owner: int, wants: Mapping[str, Want], now: float) -> dict[str, int]:
        with self._writing():
            seen = dict(self._db.execute("SELECT owner, seen_at FROM sharers").fetchall())
            if now - seen.get(owner, 0.0) >= SEEN_S:
                self._db.execute("UPDATE sharers SET seen_at = ? WHERE owner = ?", (now, owner))
            lost = {other for other, seen_at in seen.items() if other != owner and now - seen_at >= LOST_S}
            return {place: self._share_place(owner, place, want, now, lost) for place, want in wants.items()}

    def _share_place(self, owner: int, place: str, want: Want, now: float, lost: Collection[int]) -> int:
        others: list[_Row] = []
        before: _Row | None = None
        for row in self._db.execute(
            "SELECT owner, held, wanted, since, began FROM slots WHERE place = ?", (place,)
        ).fetchall():
            if row[0] == owner:
                before = row
            elif row[0] not in lost:
                others.append(row)
        if not want.wanted and not want.open:
            if before is not None:
                self._db.execute("DELETE FROM slots WHERE place = ? AND owner = ?", (place, owner))
            return 0
        _, _, _, since, began = before or (owner, 0, 0, now, now)
        wanted = max(want.open, want.wanted)
        share, is_starving = _share_of((owner, 0, wanted, since, began), others, want.limit)
        if is_starving and want.open and not 0 <= now - began < TURN_S:
            # there are more engines than slots: this one goes to the end of those that take turns, also where the clock
            # was set back since its turn began
            since = max([now, *(row[3] + _BEHIND_S for row in others)])
            share, _ = _share_of((owner, 0, wanted, since, began), others, want.limit)
        granted = max(0, min(share, want.limit - sum(row[1] for row in others)))
        held = max(want.open, granted)
        if held and (before is None or not before[1]):
            began = now
        after = (owner, held, wanted, since, began)
        if after != before:
            self._db.execute(_SET_SLOT, (place, *after))
        return granted

    def reserve(self, asks: Mapping[str, tuple[Rate, int]], now: float) -> dict[str, float]:
        starts: dict[str, float] = {}
        with self._writing():
            for name, (rate, count) in asks.items():
                row = self._db.execute("SELECT next_at FROM rates WHERE name = ?", (name,)).fetchone()
                starts[name], next_at = reserve(row[0] if row else 0.0, now, count, rate)
                self._db.execute(_SET_RATE, (name, next_at))
        return starts

    def _leave_sharing(self, owner: int) -> None:
        """Forget an engine; part of the commit that strikes it off."""
        self._db.execute("DELETE FROM slots WHERE owner = ?", (owner,))
        self._db.execute("DELETE FROM sharers WHERE owner = ?", (owner,))


def _share_of(mine: _Row, others: Sequence[_Row], limit: int) -> tuple[int, bool]:
    """The slots that are an engine's part, and whether there are so few that somebody gets none at all."""
    line = sorted([mine, *others], key=lambda row: (row[3], row[0]))
    shares = divide(limit, [row[2] for row in line])
    share = next(share for share, row in zip(shares, line, strict=True) if row[0] == mine[0])
    return share, any(row[2] and not share for share, row in zip(shares, line, strict=True))

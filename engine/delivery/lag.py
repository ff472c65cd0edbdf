"""When to say that actions are behind, and that nobody is there whom events are for.

Layer: orchestration (sans-I/O: time is an argument).  Spec: issue "Event actions", "Guarantees": lag visible.
Stored events press back only when there are `outbox_limit` of them, which may be days later: a person should hear of it
long before.  What is live is lost where nobody listens, so that is told too.
Invariants: each thing is told when it begins, now and then while it lasts, and when it is over if it was told at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..actions.hub import OBSERVERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..actions.hub import GroupReport
    from ..queue.model import OutboxReport

#: seconds that a group may be without a worker before that is told: one that is started again is back by then
ABSENT_S: Final = 10.0
#: seconds between two lines about the same absence
ABSENT_AGAIN_S: Final = 600.0
#: seconds that the oldest event may wait before that is told, at first and each time it is told again
LAGS_S: Final = (60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
#: seconds to which that has to fall before it is over
_OVER_S: Final = 10.0
#: of `outbox_limit`, what is told
_SHARES: Final = (0.5, 0.9)


class LagWatch:
    """See the module's text.

    Args:
        limit: `outbox_limit`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: group -> since when it has no worker, and when that was told
        self._absent: dict[str, tuple[float, float | None]] = {}
        #: how many of `LAGS_S`, and of `_SHARES`, were told
        self._lags = 0
        self._shares = 0

    def look(self, now: float, report: OutboxReport, groups: Iterable[GroupReport]) -> list[str]:
        """What is to be said now.

        Args:
            now: UTC epoch seconds.
        """
        lines = [line for group in groups if group.group != OBSERVERS for line in self._look_at_group(now, group)]
        return [*lines, *self._look_at_lag(now, report), *self._look_at_size(report)]

    def _look_at_group(self, now: float, group: GroupReport) -> list[str]:
        name = group.group
        if group.workers:
            _, told_at = self._absent.pop(name, (now, None))
            return [] if told_at is None else [f"an action worker of {name} is there"]
        since, told_at = self._absent.setdefault(name, (now, None))
        if now - since < ABSENT_S or (told_at is not None and now - told_at < ABSENT_AGAIN_S):
            return []
        self._absent[name] = since, now
        waiting = f"{group.waiting} stored events wait for it" if group.waiting else "no stored event waits for it"
        return [f"no action worker of {name} is there: {waiting}, live events are lost to it"]

    def _look_at_lag(self, now: float, report: OutboxReport) -> list[str]:
        behind_s = 0.0 if report.oldest_at is None else now - report.oldest_at
        if self._lags and behind_s < _OVER_S:
            self._lags = 0
            return ["stored events are not behind any more"]
        before = self._lags
        while self._lags < len(LAGS_S) and behind_s >= LAGS_S[self._lags]:
            self._lags += 1
        if self._lags == before:
            return []
        return [f"{report.waiting} stored events wait for their actions, the oldest for {behind_s:.0f} s"]

    def _look_at_size(self, report: OutboxReport) -> list[str]:
        before = self._shares
        if report.waiting < self._limit * _SHARES[0] / 2:
            self._shares = 0
        while self._shares < len(_SHARES) and report.waiting >= self._limit * _SHARES[self._shares]:
            self._shares += 1
        if self._shares <= before:
            return []
        what = f"at outbox_limit ({self._limit}) nothing new is delivered"
        return [f"{report.waiting} stored events wait for their actions: {what}"]

"""Counts of what a run has done, for the progress display, the summary and the exit code.

Layer: orchestration (values only; time is an argument).
Invariants: counting is a dictionary look-up and an addition; the table of sites is bounded, what comes after is
counted under one name.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

#: sites with a row of their own in the summary
MAX_SITES: Final = 10_000
OTHER_SITES: Final = "(other sites)"
#: seconds over which the rate is averaged
_RATE_SPAN_S: Final = 10.0


@dataclass(slots=True)
class SiteCounts:
    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    in_doubt: int = 0


@dataclass(slots=True)
class Progress:
    """What has happened so far.

    Attributes:
        delivered, failed: recipients settled for good.
        deferred: deferrals, several for one recipient if it is deferred several times.
        in_doubt: deferrals whose message may have been delivered all the same.
        connections: connections open now; opened: all that were ever opened; tls: those of them with TLS.
        sites: label of the first host -> counts.
    """

    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    in_doubt: int = 0
    connections: int = 0
    opened: int = 0
    tls: int = 0
    sites: dict[str, SiteCounts] = field(default_factory=dict)
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def site(self, label: str) -> SiteCounts:
        counts = self.sites.get(label)
        if counts is None:
            if len(self.sites) >= MAX_SITES:
                label = OTHER_SITES
            counts = self.sites.setdefault(label, SiteCounts())
        return counts

    @property
    def settled(self) -> int:
        return self.delivered + self.failed

    def rate(self, now: float) -> float:
        """Recipients settled a second over the last seconds; call it at each refresh of the display."""
        self._samples.append((now, self.settled))
        while len(self._samples) > 2 and self._samples[0][0] < now - _RATE_SPAN_S:
            self._samples.popleft()
        since, count = self._samples[0]
        return (self.settled - count) / (now - since) if now > since else 0.0

"""Counts of what a run has done, for the progress display, the summary and the exit code.

Layer: orchestration (values only; time is an argument).
Invariants: counting is a dictionary look-up and some additions; the table of sites is bounded, what comes after is
counted under one name.  One thread counts; another may read the numbers at any time (each is one attribute).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from ..queue.model import OutcomeKind

#: sites with a row of their own in the summary
MAX_SITES: Final = 10_000
OTHER_SITES: Final = "(other sites)"
#: label for recipients that never got as far as a host
NO_SITE: Final = "(no host)"
#: seconds over which the rate is averaged
_RATE_SPAN_S: Final = 10.0
#: seconds of sending after which the rate says something about the time left
_STEADY_S: Final = 1.0


@dataclass(slots=True)
class SiteCounts:
    """What happened at one site; `deferred` counts deferrals, so one recipient may be in it several times."""

    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    in_doubt: int = 0


@dataclass(slots=True)
class Progress:
    """What has happened so far.

    Attributes:
        total: recipients of the job, those that earlier runs settled included; 0 while it is not known.
        earlier: those of `total` that were settled before this run began.
        loaded: recipients queued so far, while a job is being loaded.
        phase: what the run is about beside sending, in a word or two (``queueing``, ``stopping``), or "".
        started_at: when the run began, in seconds of a clock that never goes back; see `start`.
        delivered, failed: recipients settled for good, in this run.
        deferred: deferrals, several for one recipient if it is deferred several times.
        waiting: recipients whose last outcome in this run is a deferral: they wait for a later try.
        cancelled, elsewhere: recipients that somebody has taken back, or other engines have settled, during this run;
            known when it is over.
        in_doubt: deferrals whose message may have been delivered all the same.
        events: stored events of all engines that wait for their actions; dead: dead letters in the queue.
        events_behind_s: how long the oldest of them has waited, in seconds, when it was looked at.
        actions: group of action workers -> how it stands, by name (``waiting``, ``done``, ``dead`` …).
        connections: connections open now; opened: all that were ever opened; tls: those of them with TLS.
        sites: label of the first host -> counts.
    """

    total: int = 0
    earlier: int = 0
    loaded: int = 0
    phase: str = ""
    started_at: float | None = None
    delivered: int = 0
    failed: int = 0
    deferred: int = 0
    waiting: int = 0
    cancelled: int = 0
    elsewhere: int = 0
    in_doubt: int = 0
    events: int = 0
    dead: int = 0
    events_behind_s: float = 0.0
    actions: dict[str, dict[str, int]] = field(default_factory=dict)
    connections: int = 0
    opened: int = 0
    tls: int = 0
    sites: dict[str, SiteCounts] = field(default_factory=dict)
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def start(self, now: float) -> None:
        """The run begins; a second call changes nothing."""
        if self.started_at is None:
            self.started_at = now

    def count(
        self,
        kind: OutcomeKind,
        label: str = NO_SITE,
        *,
        was_waiting: bool = False,
        in_doubt: bool = False,
        number: int = 1,
    ) -> None:
        """Count committed outcomes of one kind.

        Args:
            kind: how the attempts ended; a release counts nothing.
            label: the site, by its first host.
            was_waiting: this run has counted a deferral of the same recipients before.
            in_doubt: deferrals whose message may have been delivered.
            number: how many there are.
        """
        if kind is OutcomeKind.RELEASED:
            return
        site = self.site(label)
        if was_waiting:
            self.waiting -= number
        if kind is OutcomeKind.DELIVERED:
            self.delivered += number
            site.delivered += number
        elif kind is OutcomeKind.FAILED:
            self.failed += number
            site.failed += number
        else:
            self.deferred += number
            self.waiting += number
            site.deferred += number
            if in_doubt:
                self.in_doubt += number
                site.in_doubt += number

    def site(self, label: str) -> SiteCounts:
        """The counts of a site, made when it is new."""
        counts = self.sites.get(label)
        if counts is None:
            if len(self.sites) >= MAX_SITES:
                label = OTHER_SITES
            counts = self.sites.setdefault(label, SiteCounts())
        return counts

    def reconcile(self, unsettled: int, cancelled: int) -> None:
        """Say what became of those that this run has not settled, once it is over.

        Args:
            unsettled: recipients of the job that are in the queue now.
            cancelled: those that were taken back since the run began.
        """
        gone = max(0, self.left - unsettled)
        self.cancelled = min(gone, cancelled)
        self.elsewhere = gone - self.cancelled
        self.waiting = min(self.waiting, self.left)

    @property
    def settled(self) -> int:
        """Recipients settled for good in this run."""
        return self.delivered + self.failed

    @property
    def left(self) -> int:
        """Recipients that nobody has settled yet, those that wait for a later try included; 0 if unknown."""
        return max(0, self.total - self.earlier - self.settled - self.cancelled - self.elsewhere)

    def elapsed_s(self, now: float) -> float:
        """Seconds since the run began."""
        return 0.0 if self.started_at is None else max(0.0, now - self.started_at)

    def average(self, now: float) -> float:
        """Recipients settled a second since the run began."""
        elapsed = self.elapsed_s(now)
        return self.settled / elapsed if elapsed > 0 else 0.0

    def rate(self, now: float) -> float:
        """Recipients settled a second over the last seconds; call it at each refresh of the display."""
        samples = self._samples
        samples.append((now, self.settled))
        # what came before the first recipient was settled (loading, looking up) says nothing about the rate
        while len(samples) > 2 and (samples[0][0] < now - _RATE_SPAN_S or not samples[1][1]):
            samples.popleft()
        since, count = samples[0]
        return (samples[-1][1] - count) / (now - since) if now > since else 0.0

    def time_left_s(self, rate: float) -> float | None:
        """Seconds until everything that is due now is settled, at `rate`; None when nobody can say (yet)."""
        if not self.total or rate <= 0 or self._samples[-1][0] - self._samples[0][0] < _STEADY_S:
            return None
        return max(0, self.left - self.waiting) / rate

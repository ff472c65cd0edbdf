"""The leases an engine holds: kept up while their recipients wait, dropped when they are lost.

Layer: orchestration.  Spec: store.py "Ownership": whoever has a claim must not start to send after its lease.
Invariants: `holds` is a dictionary look-up and a comparison; an epoch is forgotten once its last claim is settled.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..queue.model import Claim

#: seconds before its end at which a lease is taken for over: what is begun then may outlast it
MARGIN_S: Final = 10.0


class Leases:
    """When the lease of each epoch ends, and how many of its claims are open."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._open: dict[int, int] = {}

    def add(self, claims: Iterable[Claim]) -> None:
        """These claims were made."""
        claims = list(claims)
        self._until.update({claim.epoch: claim.lease_until for claim in claims})
        for epoch, count in Counter([claim.epoch for claim in claims]).items():
            self._open[epoch] = self._open.get(epoch, 0) + count

    def holds(self, claim: Claim, now: float) -> bool:
        """Whether sending may begin for `claim`."""
        return now < self._until.get(claim.epoch, 0.0) - MARGIN_S

    def holds_all(self, epochs: Iterable[int], now: float) -> bool:
        """The same for all claims of some epochs."""
        until = self._until
        return all(now < until.get(epoch, 0.0) - MARGIN_S for epoch in epochs)

    def close(self, epoch: int, count: int = 1) -> None:
        """So many claims of an epoch are settled or dropped."""
        left = self._open.get(epoch, 0) - count
        if left > 0:
            self._open[epoch] = left
        else:
            self._open.pop(epoch, None)
            self._until.pop(epoch, None)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs with open claims."""
        return tuple(self._until)

    def extend(self, until: float, lost: Iterable[int]) -> None:
        """All leases but the lost ones hold until `until` now; sending for the lost ones may not begin any more."""
        gone = set(lost)
        for epoch in self._until:
            self._until[epoch] = 0.0 if epoch in gone else until

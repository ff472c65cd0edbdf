"""Answers to DNS questions from a dictionary, without a server: for tests of routing with a clock of their own.

    dns = CannedDns({("example.test", "MX"): ["10 mx.example.test"], ("mx.example.test", "A"): ["192.0.2.1"]})

A value may also be a `Status`.  What is not there does not exist, or has no such record where the name has another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from engine.policy.answers import Answer, Mx, Status

#: (name, type) -> texts of records, or how the question ends
Records = Mapping[tuple[str, str], Sequence[str] | Status]


class CannedDns:
    """Answers as the resolver would.

    Args:
        records: what there is.
        ttl_s: of each answer; 0 for errors.
        delay_s: before each answer, on trio's clock.
        ad: the AD bit of each answer, of a resolver that is trusted.
    """

    def __init__(
        self,
        records: Records,
        *,
        ttl_s: int = 300,
        delay_s: float = 0.0,
        ad: bool = False,
    ) -> None:
        self.records = dict(records)
        self.ttl_s = ttl_s
        self.delay_s = delay_s
        self.ad = ad
        self.asked: list[tuple[str, str]] = []
        self.most_at_once = 0
        self._now = 0

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        """Nothing is kept."""

    peek = query_nowait

    def tell(self, answer: Answer) -> None:
        """Nobody wants to know."""

    def ask_ahead(self, name: str, rdtype: str, on_end: Callable[[], object]) -> bool:
        """There is no need: nothing is kept."""
        return False

    async def query(self, name: str, rdtype: str) -> Answer:
        self.asked.append((name, rdtype))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await trio.sleep(self.delay_s)
        finally:
            self._now -= 1
        found = self.records.get((name, rdtype))
        if found is None:
            found = Status.NODATA if any(owner == name for owner, _ in self.records) else Status.NXDOMAIN
        if isinstance(found, Status):
            is_error = found in (Status.SERVFAIL, Status.TIMEOUT)
            ttl_s = 0 if is_error else self.ttl_s
            ad = self.ad and not is_error
            return Answer(name, rdtype, found, ad=ad, is_ad_trusted=True, canonical_name=name, ttl_s=ttl_s)
        mx = tuple(Mx(int(text.split()[0]), text.split()[1].rstrip(".")) for text in found) if rdtype == "MX" else ()
        return Answer(
            name,
            rdtype,
            Status.OK,
            ad=self.ad,
            is_ad_trusted=True,
            mx=mx,
            addresses=tuple(found) if rdtype in ("A", "AAAA") else (),
            canonical_name=name,
            ttl_s=self.ttl_s,
        )

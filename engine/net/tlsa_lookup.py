"""Ask the TLSA questions of a plan builder, and remember the answers for a little while.

Layer: adapter (trio).  Spec: dane-tls R6, R16, R17; RFC 7672 §2.1.1.
The resolver keeps answers by their TTL; here they are kept for `MIN_TTL_S` at least, so that the addresses of one host
are decided on by the same answer even where its TTL is 0 (R17; precedent: Postfix keeps them from 1 to 100 seconds).
Invariants: an error is not kept here (the resolver keeps it for some seconds); what is kept is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from .expiring import Expiring

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..policy.answers import Answer
    from ..policy.builder import PlanBuilder
    from ..policy.requirement import Decision, Refusal

#: seconds that an answer serves at least; as long as a route does (RFC 1035 §3.2.1: TTL 0 is for the transaction)
MIN_TTL_S: Final = 10
#: octets of records that count as one of the cache size
_UNIT_OCTETS: Final = 1024


class Asks(Protocol):
    """Answers questions: the resolver."""

    async def query(self, name: str, rdtype: str) -> Answer: ...


class TlsaLookup:
    """Runs plan builders.

    Args:
        resolver: asks DNS questions.
        cache_size: most answers kept; a large one counts as several.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self, resolver: Asks, *, cache_size: int = 10_000, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self._resolver = resolver
        self._kept: Expiring[str, Answer] = Expiring(cache_size, clock)

    async def validates(self) -> bool | None:
        """Whether the resolver validates: the root is signed, so it has to say so (R10).  None if it cannot be told."""
        answer = await self._resolver.query(".", "SOA")
        return None if answer.is_error else answer.secure

    async def run(self, builder: PlanBuilder) -> Decision | Refusal:
        """Ask what `builder` wants to know until it has a result.  Never raises for what DNS does."""
        while builder.result is None:
            query = builder.next_query()
            if query is None:
                raise AssertionError("a plan builder has neither a question nor a result")
            kept = self._kept.get_or_none(query.name)
            if kept is not None:
                builder.on_answer(kept, int(self._kept.seconds_left(query.name)))
            else:
                builder.on_answer(await self._ask(query.name))
        return builder.result

    async def _ask(self, name: str) -> Answer:
        answer = await self._resolver.query(name, "TLSA")
        if not answer.is_error:
            octets = sum(map(len, answer.rdata))
            ttl_s = max(answer.ttl_s, MIN_TTL_S)
            answer = answer.with_ttl(ttl_s)
            self._kept.put(name, answer, ttl_s, 1 + octets // _UNIT_OCTETS)
        return answer

"""Tell TLSRPT what became of the policies a connection was made under.

Layer: orchestration.  Spec: RFC 8460 §3, §4; dane-tls table 1H, R55, R56.
A result is kept only for a domain that asks for reports (a TLSRPT record), so that most connections cost one cached DNS
answer.  One connection is one session for each domain whose mail waits for it when it is made; what joins later is not
counted again.
Invariants: nothing here stops or delays the mail but for that one DNS answer; what was sent under TLS-Required: no is
not reported (R56).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from ..logs.facts import Fact, FactKind
from ..policy.requirement import Refusal
from ..policy.tls_report import Session as ReportedSession
from ..policy.tls_report import SessionReport, report_record, results
from ..policy.wishes import Wish

if TYPE_CHECKING:
    from ..errors import DeliveryError
    from ..logs.tlsrpt import TlsrptLog
    from ..net.resolver import Resolver
    from ..policy.requirement import Decision
    from ..tls.dane import Verdict
    from ..tls.facts import TlsFacts
    from .core import Core
    from .site import Site

#: pieces of work that are looked at to see for whom a connection is, and domains that it is counted for
_LOOKED_AT: Final = 1000
_MAX_DOMAINS: Final = 50
#: seconds for the TLSRPT records of these domains
_RECORD_TIMEOUT_S: Final = 10.0


class Reporting:
    """Reports, if anybody is configured to take them.

    Args:
        log: None: nothing is reported and nothing is asked.
    """

    def __init__(self, log: TlsrptLog | None, resolver: Resolver) -> None:
        self._log = log
        self._resolver = resolver

    async def report(
        self,
        core: Core,
        site: Site,
        number: int,
        found: Decision | Refusal,
        *,
        facts: TlsFacts | None = None,
        error: DeliveryError | None = None,
        verdict: Verdict | None = None,
        local_address: str = "",
    ) -> None:
        """One connection, or one that was not to be.  Never raises but for cancellation."""
        host = site.hosts[number]
        if self._log is None or site.wish is Wish.OPTIONAL or not core.sts.is_by_dns(site.router):
            return
        sts = site.sts
        if sts.must_wait and isinstance(found, Refusal):
            return  # the trouble is ours
        session = ReportedSession(
            domain=host.domain,
            host=host,
            found=found,
            sts=sts.policy,
            sts_problem=sts.problem,
            sts_detail=sts.detail,
            facts=facts,
            error=error,
            verdict=verdict,
            sending_ip=_address(local_address) or site.transport.options.interface,
        )
        if not results(session):
            return
        with trio.move_on_after(_RECORD_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for domain in _domains(site, number):
                    nursery.start_soon(self._record, self._log, core.clock(), replace(session, domain=domain))
        trouble = self._log.take_trouble()
        if trouble:
            core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=trouble))

    async def _record(self, log: TlsrptLog, at: float, session: ReportedSession) -> None:
        answer = await self._resolver.query(f"_smtp._tls.{session.domain}", "TXT")
        record = report_record(answer.rdata)
        if record:
            log.record(SessionReport(at, session.domain, record, results(session)))


def _domains(site: Site, number: int) -> list[str]:
    """The domains whose mail waits for a connection; where that is not known, the one that the site was made for."""
    waiting = (work.next_hop for work in islice(site.waiting_work(), _LOOKED_AT))
    found = list(dict.fromkeys(domain for domain in waiting if domain))
    return found[:_MAX_DOMAINS] or [domain for domain in (site.hosts[number].domain,) if domain]


def _address(local: str) -> str:
    """The address of ``[ip]:port``."""
    return local[1:].partition("]")[0] if local.startswith("[") else ""

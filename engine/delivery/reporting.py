"""Tell TLSRPT what became of the policies a connection was made under.

Layer: orchestration.  Spec: RFC 8460 §3, §4; dane-tls table 1H, R55, R56.
A result is kept only for a domain that asks for reports (a TLSRPT record), so that most connections cost one cached DNS
answer.  One connection is one session, counted for the domain that its site was made for; where several domains share a
connection, that is the first of them.
Invariants: nothing here stops or delays the mail but for that one DNS answer; what was sent under TLS-Required: no is
not reported (R56).
"""

from __future__ import annotations

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

#: seconds for the TLSRPT record of a domain
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
        if self._log is None or site.wish is Wish.OPTIONAL or not core.sts.is_by_dns(site.router) or not host.domain:
            return
        sts = site.sts
        if sts.must_wait and isinstance(found, Refusal):
            return  # the trouble is ours
        policies = results(
            ReportedSession(
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
        )
        if not policies:
            return
        record = ""
        with trio.move_on_after(_RECORD_TIMEOUT_S):
            answer = await self._resolver.query(f"_smtp._tls.{host.domain}", "TXT")
            record = report_record(answer.rdata)
        if record:
            self._log.record(SessionReport(core.clock(), host.domain, record, policies))
            trouble = self._log.take_trouble()
            if trouble:
                core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=trouble))


def _address(local: str) -> str:
    """The address of ``[ip]:port``."""
    return local[1:].partition("]")[0] if local.startswith("[") else ""

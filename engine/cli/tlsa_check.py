"""Look at a mail host and its TLSA records: what `outrider tlsa check` tells.

Layer: command line.  Spec: R15, R16 (where the records are), R36 (names), R39 (SNI), R40; issue "TLS that is really
verified", "Tools".
Every address is connected to as delivery would do it under DANE, but for the certificate, which is looked at whatever
it is.  Nothing is sent but EHLO, STARTTLS and QUIT.
Invariants: what DNS or a server does ends in a line of the report, never in an exception; at most `MAX_ADDRESSES`
addresses are connected to, one after another, each within the time that was given.
"""

from __future__ import annotations

import datetime
import random
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..delivery.routing.search import find_hosts
from ..errors import DeliveryError
from ..net.opener import open_session
from ..net.session import SessionOptions
from ..policy.answers import Status
from ..policy.hosts import Deferral, HostList
from ..policy.mx import HostSearch, SearchOptions
from ..policy.plan import Plan, TlsLevel
from ..policy.requirement import base_domains
from ..smtp import HostMemory
from ..tls.context import TlsContexts, TlsOptions
from ..tls.facts import ChainVerdict
from ..tls.rollover import Examination, examine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..net.resolver import Resolver
    from ..policy.answers import Answer
    from ..policy.hosts import Host

#: addresses that are connected to; arbitrary, a host with more serves the same from all of them
MAX_ADDRESSES: Final = 8
_SECURITY: Final = {True: "secure", False: "insecure", None: "AD not trusted"}


@dataclass(slots=True)
class AddressReport:
    """What was found at one address.

    Attributes:
        way: what DNSSEC says of the name and the address, and the base domain that comes of it.
        in_force: senders use the records here: they are secure, and so is the way to them.
        error: why there is nothing to be seen, or "".
        session: protocol and cipher.
        found: None where there was no chain to look at.
    """

    address: str
    way: str
    in_force: bool = False
    error: str = ""
    session: str = ""
    found: Examination | None = None

    @property
    def is_proved(self) -> bool:
        """Whether a sender with DANE has its mail delivered here, verified."""
        return self.in_force and self.found is not None and self.found.verdict.is_match

    def as_object(self) -> dict[str, Any]:
        """As JSON has it."""
        row: dict[str, Any] = {
            "address": self.address,
            "way": self.way,
            "in_force": self.in_force,
            "error": self.error or None,
            "session": self.session or None,
            "proved": self.is_proved,
        }
        found = self.found
        if found is None:
            return row
        verdict = found.verdict
        row["verdict"] = {
            "status": verdict.status,
            "usage": verdict.usage,
            "depth": verdict.depth,
            "record": verdict.record,
            "reason": verdict.reason,
        }
        row["certificates"] = [
            {
                "subject": view.subject,
                "issuer": view.issuer,
                "names": list(view.names),
                "not_before": view.not_before.isoformat() if view.not_before else None,
                "not_after": view.not_after.isoformat() if view.not_after else None,
            }
            for view in found.certificates
        ]
        row["records"] = [
            {
                "record": view.text,
                "unusable": view.unusable or None,
                "ignored": view.is_shadowed,
                "matches": list(view.matches),
                "proves": view.verdict.is_match,
                "says": view.says,
            }
            for view in found.records
        ]
        row["rollover"] = found.rollover
        row["warnings"] = list(found.warnings)
        return row


@dataclass(slots=True)
class HostReport:
    """All that was found.

    Attributes:
        problem: why there are no addresses, or "".
        is_temporary: DNS had no answer for now.
        tlsa: questions for records and their outcome, a line each.
    """

    host: str
    port: int
    is_ad_trusted: bool
    problem: str = ""
    is_temporary: bool = False
    tlsa: list[str] = field(default_factory=list)
    addresses: list[AddressReport] = field(default_factory=list)

    @property
    def is_proved(self) -> bool:
        return bool(self.addresses) and all(address.is_proved for address in self.addresses)

    @property
    def conclusion(self) -> str:
        """The report in one sentence."""
        if self.problem:
            return f"{self.host}: {self.problem}"
        proved = sum(address.is_proved for address in self.addresses)
        if proved == len(self.addresses):
            return f"{self.host}: DANE proves it"
        matching = sum(address.found is not None and address.found.verdict.is_match for address in self.addresses)
        if matching > proved:
            return f"{self.host}: the records match, but senders do not use them, for they are not secure"
        if any(address.found is not None and address.found.records for address in self.addresses):
            return f"{self.host}: DANE proves it at {proved} of {len(self.addresses)} addresses; elsewhere mail waits"
        return f"{self.host}: nothing was proved"

    def as_object(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "host": self.host,
            "port": self.port,
            "ad_trusted": self.is_ad_trusted,
            "problem": self.problem or None,
            "tlsa": self.tlsa,
            "addresses": [address.as_object() for address in self.addresses],
            "proved": self.is_proved,
            "conclusion": self.conclusion,
        }


async def check_host(
    resolver: Resolver, host: str, port: int, *, domains: Sequence[str] = (), timeout_s: float = 30.0
) -> HostReport:
    """Look at every address of a host.

    Args:
        host: as MX records name it.
        domains: reference names beside the base domain and the host (R36).
        timeout_s: seconds for each connection and each reply.
    """
    report = HostReport(host, port, resolver.is_ad_trusted)
    search = HostSearch(host, SearchOptions(use_mx=False, port=port), random=random.Random())
    found = await find_hosts(search, resolver)
    if not isinstance(found, HostList):
        report.problem = found.message
        report.is_temporary = isinstance(found, Deferral)
        return report
    contexts = TlsContexts(TlsOptions(verify_certificates=None, resumption=False))
    told: dict[str, Answer] = {}
    for one in found.hosts[:MAX_ADDRESSES]:
        report.addresses.append(await _check_address(resolver, report, told, one, contexts, domains, timeout_s))
    return report


async def _check_address(
    resolver: Resolver,
    report: HostReport,
    told: dict[str, Answer],
    host: Host,
    contexts: TlsContexts,
    domains: Sequence[str],
    timeout_s: float,
) -> AddressReport:
    bases, step = base_domains(host)
    result = AddressReport(host.address, str(step))
    base = host.name
    records: tuple[bytes, ...] = ()
    # what senders would not ask for is looked at all the same
    for name in bases or dict.fromkeys((host.canonical_name or host.name, host.name)):
        question = f"_{report.port}._tcp.{name}"
        if question not in told:
            told[question] = await resolver.query(question, "TLSA")
            report.tlsa.append(_told(told[question]))
        answer = told[question]
        if answer.is_error:
            report.is_temporary = True
            result.error = f"no answer for TLSA {question}: senders put the host off ({answer.status.value})"
            return result
        if answer.status is not Status.OK:
            continue
        if answer.ad and bases:
            base, records, result.in_force = name, answer.rdata, True
            break
        if not answer.ad:
            result.way += f"; the records of {name} are not secure, so senders do not use them"
        if not records:
            base, records = name, answer.rdata
    await _connect(result, host, report.port, base, records, contexts, (base, host.name, *domains), timeout_s)
    return result


async def _connect(
    result: AddressReport,
    host: Host,
    port: int,
    base: str,
    records: Sequence[bytes],
    contexts: TlsContexts,
    names: Sequence[str],
    timeout_s: float,
) -> None:
    """Take the chain of the server and examine it."""

    def take(chain: tuple[bytes, ...]) -> ChainVerdict:
        now = datetime.datetime.now(datetime.UTC)
        result.found = examine(records, chain, tuple(dict.fromkeys(names)), now=now)
        return ChainVerdict(True)

    options = SessionOptions(
        helo_name=socket.getfqdn(),
        plan=Plan(TlsLevel.DANE, sni=base, reference_names=tuple(names), tlsa=tuple(records)),
        connect_timeout_s=timeout_s,
        command_timeout_s=timeout_s,
    )
    try:
        session = await open_session(host, port, options, contexts, HostMemory(), decide=take)
    except DeliveryError as error:
        # a server may still break off after the handshake: what it showed has been seen
        result.error = "" if result.found is not None else error.message
        result.session = error.message if result.found is not None else ""
        return
    if session.facts.tls is not None:
        result.session = session.facts.tls.log_text
    await session.quit()


def _told(answer: Answer) -> str:
    """A question for records and its outcome, in a line."""
    text = f"TLSA {answer.name}: {len(answer.rdata)} records" if answer.rdata else f"TLSA {answer.name}: none"
    if answer.is_error:
        return f"TLSA {answer.name}: {answer.status.value} {answer.extended_error}".rstrip()
    via = f" by way of {', '.join(answer.cnames)}" if answer.cnames else ""
    return f"{text} ({answer.status.value}{via}), {_SECURITY[answer.secure]}, TTL {answer.ttl_s}"

"""`outrider why`: how a domain is reached, what TLS must prove there, and what would happen to mail.

Layer: command line.  Spec: dane-tls R1 to R21 (each step names its rule), R10 (a resolver that vouches for nothing).
Everything is decided by what decides it for mail: routers, `PlanBuilder`, MTA-STS, the transport.  DNS is
asked, and the host of an MTA-STS policy where there is one; no mail host is connected to.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import trio
import typer

from .. import app as composition
from ..actions.lookups.registry import LookupRegistry
from ..config import load, loads
from ..delivery.routing import Routed, RouteDeferred
from ..delivery.sts import NO_POLICY, StsGate
from ..errors import ExpandError
from ..expand import Scope
from ..net.resolver import Resolver
from ..net.sts_cache import StsAnswer, StsPolicies
from ..net.tlsa_lookup import TlsaLookup
from ..policy.builder import PlanBuilder
from ..policy.plan import TlsLevel
from ..policy.requirement import Decision, Refusal
from ..policy.wishes import decide
from ..tls import tlsa
from ..values import parse_address
from .exits import Exit, exit_on_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..app import Compiled
    from ..config import Config
    from ..delivery.routing import Route
    from ..policy.answers import Answer
    from ..policy.hosts import Host
    from ..policy.plan import Plan
    from ..values import Address

#: who is asked about where only a domain is given; every domain with mail has it (RFC 5321 §4.5.1)
_LOCAL_PART: Final = "postmaster"
_SECURITY: Final = {True: "secure", False: "insecure", None: "AD not trusted"}


def why(
    domain: Annotated[str, typer.Argument(help="A domain, or an address where routing looks at the local part.")],
    config: Annotated[Path | None, typer.Option(help="Configuration file; default: none, all defaults.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how mail for a domain would go, hop by hop, and why: hosts, DNSSEC, DANE, TLS.

    Exit status: 0 if some host may be delivered to, 75 if mail would wait, 69 if it would fail.
    """
    with exit_on_error():
        address = parse_address(domain if "@" in domain else f"{_LOCAL_PART}@{domain}")
        loaded = load(str(config)) if config is not None else loads(b"")
        story = trio.run(_find_out, loaded, address)
    print(json.dumps(story.as_object(), indent=2, ensure_ascii=False) if as_json else story.as_text())
    raise SystemExit(story.exit_code)


class WatchedResolver(Resolver):
    """A resolver that remembers what it was asked, once each, in order."""

    answers: dict[tuple[str, str], Answer]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.answers = {}

    async def query(self, name: str, rdtype: str) -> Answer:
        answer = await super().query(name, rdtype)
        self.answers.setdefault((answer.name, rdtype), answer)
        return answer

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        answer = super().query_nowait(name, rdtype)
        if answer is not None:
            self.answers.setdefault((answer.name, rdtype), answer)
        return answer


@dataclass(frozen=True, slots=True)
class Hop:
    """One address of one host, and what was decided about it; `error` where an option cannot be expanded."""

    host: Host
    port: int
    found: Decision | Refusal | None
    error: str = ""

    @property
    def may_be_used(self) -> bool:
        return isinstance(self.found, Decision)


@dataclass(slots=True)
class Story:
    """All that was found out."""

    address: Address
    resolver: WatchedResolver
    route: Route
    validates: bool | None = None
    sts: StsAnswer = NO_POLICY
    hops: list[Hop] = field(default_factory=list)

    @property
    def exit_code(self) -> Exit:
        if self.sts.must_wait:
            return Exit.TEMPORARY
        if isinstance(self.route, Routed):
            return Exit.OK if any(hop.may_be_used for hop in self.hops) else Exit.TEMPORARY
        return Exit.TEMPORARY if isinstance(self.route, RouteDeferred) else Exit.UNAVAILABLE

    @property
    def mail(self) -> str:
        """What would happen to mail, in a sentence."""
        if isinstance(self.route, RouteDeferred):
            return f"mail waits: {self.route.message}"
        if not isinstance(self.route, Routed):
            return f"mail fails: {self.route.message}"
        if self.sts.must_wait:
            return f"mail waits: {self.sts.must_wait}"
        first = next((hop for hop in self.hops if hop.may_be_used), None)
        if first is None or not isinstance(first.found, Decision):
            return "mail waits: no host may be connected to for now"
        return f"mail goes to {first.host.name} [{first.host.address}], {manner(first.found.plan)}"

    def as_object(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "address": str(self.address),
            "domain": str(self.address.domain),
            "resolver": {
                "servers": [str(server) for server in self.resolver.servers],
                "ad_trusted": self.resolver.is_ad_trusted,
                "validates": self.validates,
            },
            "router": self.route.router,
            "transport": self.route.transport if isinstance(self.route, Routed) else None,
            "questions": [question_as_object(answer) for answer in self.resolver.answers.values()],
            "steps": list(self.route.reasons),
            "mta_sts": sts_as_object(self.sts),
            "hosts": [hop_as_object(hop) for hop in self.hops],
            "mail": self.mail,
            "exit_code": int(self.exit_code),
        }

    def as_text(self) -> str:
        """For people."""
        lines = [f"{self.address.domain}", "", "resolver"]
        lines += [f"  {', '.join(str(server) for server in self.resolver.servers)}: {self._trust()}", ""]
        lines.append("questions")
        lines += [f"  {question_as_text(answer)}" for answer in self.resolver.answers.values()]
        lines += ["", "route"]
        if isinstance(self.route, Routed):
            lines.append(f"  router {self.route.router}, transport {self.route.transport}")
        else:
            lines += [f"  {reason}" for reason in self.route.reasons]
            lines.append(f"  {self.route.message}")
        lines += [f"  {line}" for line in _sts_lines(self.sts)]
        for number, hop in enumerate(self.hops, 1):
            preference = "" if hop.host.preference is None else f", preference {hop.host.preference}"
            lines += ["", f"host {number}: {hop.host.name} [{hop.host.address}]:{hop.port}{preference}"]
            lines += [f"  {line}" for line in _hop_lines(hop)]
        return "\n".join([*lines, "", self.mail])

    def _trust(self) -> str:
        if not self.resolver.is_ad_trusted:
            return "its AD bit is not believed (R1: it is not on loopback, and trust_ad does not vouch for it): no DANE"
        if self.validates is None:
            return "its AD bit is believed (R1); whether it validates cannot be told: it does not answer for the root"
        if not self.validates:
            return (
                "its AD bit is believed (R1), but it does not set it for the root: it does not validate (R10): no DANE"
            )
        return "its AD bit is believed (R1), and it validates (R10)"


async def _find_out(config: Config, address: Address) -> Story:
    compiled = composition.compile_config(config, resolver_type=WatchedResolver)
    resolver = compiled.resolver
    assert isinstance(resolver, WatchedResolver)
    lookups = LookupRegistry(composition.lookup_options(config))
    try:
        scope = _scope(compiled, lookups, {"local_part": address.local_part, "domain": str(address.domain)})
        route = await compiled.routers.route(address, scope)
        story = Story(address, resolver, route)
        if isinstance(route, Routed):
            with _policies(compiled) as policies:
                gate = StsGate(
                    policies,
                    config.routers,
                    compiled.transports,
                    lambda variables: _scope(compiled, lookups, variables),
                    compiled.routers.threads,
                )
                story.sts = await gate.look_up(route, str(address.domain))
            lookup = TlsaLookup(resolver)
            for host in route.hosts:
                story.hops.append(await _hop(compiled, lookups, lookup, gate, story, host))
        if resolver.is_ad_trusted:
            root = await Resolver.query(resolver, ".", "SOA")
            story.validates = None if root.is_error else root.ad
        return story
    finally:
        lookups.close()


@contextlib.contextmanager
def _policies(compiled: Compiled) -> Iterator[StsPolicies]:
    """The MTA-STS policies that the engine keeps; where we may not write there, none beyond the end of the block."""
    config, resolver = compiled.config, compiled.resolver
    fetch = composition.sts_fetcher(config, resolver).fetch
    directory = composition.sts_directory(config)
    if os.access(directory, os.W_OK):
        yield StsPolicies(directory, resolver, fetch, clock=time.time)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield StsPolicies(scratch, resolver, fetch, clock=time.time)


def _scope(compiled: Compiled, lookups: LookupRegistry, variables: dict[str, Any]) -> Scope:
    variables = {"primary_hostname": compiled.host_name, **variables}
    return Scope(variables, lookups=lookups, now=time.time, random=random.randrange)


async def _hop(
    compiled: Compiled, lookups: LookupRegistry, lookup: TlsaLookup, gate: StsGate, story: Story, host: Host
) -> Hop:
    route = story.route
    assert isinstance(route, Routed)
    transport = compiled.transports[route.transport]
    port = host.port or transport.options.port
    variables = {
        "host": host.name,
        "host_address": host.address,
        "host_port": port,
        "router_name": route.router,
        "transport_name": transport.name,
        "domain": host.domain,
    }
    scope = _scope(compiled, lookups, variables)
    scope.dynamic["lookup_dnssec_authenticated"] = {True: b"yes", False: b"no", None: b""}[host.secure]
    try:
        decisions = await trio.to_thread.run_sync(transport.decide, host, scope)
    except ExpandError as error:
        return Hop(host, port, None, error.message)
    found = await lookup.run(PlanBuilder(host, port, decisions.tls))
    if isinstance(found, Decision):
        found = decide(
            found,
            host,
            decisions.tls,
            sts=story.sts.policy,
            must_wait=story.sts.must_wait,
            is_by_dns=gate.is_by_dns(route.router),
        )
    return Hop(host, port, found)


# --- in words ---------------------------------------------------------------------------------------------------------


def manner(plan: Plan) -> str:
    """How mail goes under a plan."""
    match plan.level:
        case TlsLevel.DANE if plan.authenticates:
            return "over TLS that DANE has proved, or not at all"
        case TlsLevel.DANE:
            return "over TLS with a certificate that matches the TLSA records, or not at all; not counted as verified"
        case TlsLevel.VERIFIED:
            return "over TLS with a certificate that verifies, or not at all"
        case TlsLevel.MANDATORY:
            return "over TLS, whoever answers, or not at all"
        case TlsLevel.OPPORTUNISTIC:
            return "over TLS if it is offered, whoever answers; otherwise in clear"
        case _:
            return "in clear"


def _hop_lines(hop: Hop) -> list[str]:
    if hop.found is None:
        return [f"-> no connection: an option cannot be expanded: {hop.error}"]
    lines = [str(step) for step in hop.found.steps]
    if isinstance(hop.found, Refusal):
        return [*lines, f"-> no connection for now: {hop.found.message}"]
    plan = hop.found.plan
    for rdata in plan.tlsa:
        lines.append(f"   {tlsa.to_text(rdata)}{_use(rdata, plan.tlsa)}")
    if plan.level > TlsLevel.CLEAR and plan.sni:
        lines.append(f"   SNI {plan.sni}")
    return [*lines, f"-> {manner(plan)}"]


def _use(rdata: bytes, records: tuple[bytes, ...]) -> str:
    """What is to be said of a record among its siblings (R18, R23)."""
    reason = tlsa.why_unusable(rdata)
    if reason:
        return f"  (unusable: {reason})"
    if rdata in {records[index] for index in tlsa.shadowed(records)}:
        return "  (ignored: there is a stronger digest)"
    return ""


def _sts_lines(sts: StsAnswer) -> list[str]:
    lines = []
    if sts.policy is not None:
        policy = sts.policy
        lines.append(f"MTA-STS policy of {policy.domain}: mode {policy.mode.value}, mx {', '.join(policy.mx)}")
    if sts.problem:
        lines.append(f"MTA-STS: {sts.problem}: {sts.detail}")
    if sts.must_wait:
        lines.append(sts.must_wait)
    return lines


def sts_as_object(sts: StsAnswer) -> dict[str, Any]:
    """What is known of a domain's MTA-STS policy as JSON has it."""
    policy = sts.policy
    return {
        "policy": None if policy is None else {"mode": policy.mode.value, "mx": policy.mx, "id": policy.id},
        "must_wait": sts.must_wait or None,
        "problem": sts.problem or None,
        "detail": sts.detail or None,
    }


def hop_as_object(hop: Hop) -> dict[str, Any]:
    """One host as JSON has it."""
    host, found = hop.host, hop.found
    row: dict[str, Any] = {
        "name": host.name,
        "address": host.address,
        "port": hop.port,
        "preference": host.preference,
        "canonical_name": host.canonical_name,
        "secure": host.secure,
        "mx_secure": host.mx_secure,
        "address_secure": host.address_secure,
        "alias_secure": host.alias_secure,
        "steps": [{"rule": step.rule, "text": step.text} for step in found.steps] if found is not None else [],
        "plan": None,
        "refusal": None,
    }
    if isinstance(found, Decision):
        plan = found.plan
        row["plan"] = {
            "level": plan.level.name.lower(),
            "sni": plan.sni,
            "reference_names": plan.reference_names,
            "tlsa": [
                {"record": tlsa.to_text(rdata), "unusable": tlsa.why_unusable(rdata) or None} for rdata in plan.tlsa
            ],
            "tlsa_usage": found.usage_mask,
            "authenticates": plan.level >= TlsLevel.VERIFIED and plan.authenticates,
            "ciphers": plan.ciphers,
            "ttl": found.ttl_s,
        }
        row["means"] = manner(plan)
    else:
        message = found.message if found is not None else hop.error
        dane_fail = found.dane_fail or None if found is not None else None
        row["refusal"] = {
            "message": message,
            "errno": found.errno if found is not None else -27,
            "dane_fail": dane_fail,
        }
        row["means"] = "no connection for now"
    return row


def _records(answer: Answer) -> list[str]:
    if answer.mx:
        return [f"{mx.preference} {mx.exchange or '.'}" for mx in answer.mx]
    if answer.addresses:
        return list(answer.addresses)
    if answer.rdtype == "TLSA":
        return [tlsa.to_text(rdata) for rdata in answer.rdata]
    return [] if answer.rdtype == "CNAME" else [rdata.hex() for rdata in answer.rdata]


def question_as_object(answer: Answer) -> dict[str, Any]:
    """One question and its answer as JSON has them."""
    return {
        "name": answer.name,
        "type": answer.rdtype,
        "status": answer.status.value,
        "records": _records(answer),
        "cnames": answer.cnames,
        "ad": answer.ad,
        "secure": None if answer.is_error else answer.secure,
        "ttl": answer.ttl_s,
        "extended_error": answer.extended_error or None,
        "server": answer.server or None,
    }


def question_as_text(answer: Answer) -> str:
    """One question and its answer, in a line."""
    text = f"{answer.rdtype:<5} {answer.name or '.'}: {', '.join(_records(answer)) or answer.status.value}"
    if answer.cnames:
        text += f" by way of {', '.join(answer.cnames)}"
    if not answer.is_error:
        text += f"; {_SECURITY[answer.secure]}; TTL {answer.ttl_s}"
    if answer.extended_error:
        text += f"; {answer.extended_error}"
    return text + (f"; from {answer.server}" if answer.server else "")

"""Connect to a host of a site as its options and its policy say.

Layer: orchestration.  Spec: events-dane 7.5 (DANE that fails), 7.6, 8.2 (TL-7), 11.6 (-27, -32, -36 to -38);
dane-tls R4, R41 to R43, R46, R47.
What the options say of a host is decided once a connection, or once a site where it cannot change; what TLS must prove
is decided anew when the TLSA answer has had its time, and no connection outlives the decision it was made under.
Invariants: no connection is made without a decision; under DANE nothing is ever sent in clear, and every failure is
temporary (R42); what makes a connection good for the recipients of one domain only marks the site as theirs.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ..errors import ConfigError, DeliveryError, ExpandError, LocalProtocolError, TlsPolicyError
from ..events import Happening
from ..events.happening import VARIABLES
from ..logs.facts import Fact, FactKind
from ..net.opener import open_session
from ..net.session import SessionOptions
from ..policy.builder import PlanBuilder
from ..policy.plan import CLEAR, Plan, TlsLevel
from ..policy.requirement import STARTTLS_NOT_SUPPORTED, VALIDATION_FAILURE, Decision, Refusal
from ..policy.wishes import Wish, choices_for, decide
from ..smtp import HostMemory
from ..tls.dane import judge
from ..tls.facts import ChainVerdict
from ..tls.names import has_dns_names
from ..tls.ocsp import Demand
from .hosterrors import port_of, tell_host_deferred
from .site import Policy, Way
from .transport import OF_CONNECTION
from .watch import ConnectionWatch, contact_for, own_certificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ..events import Contact
    from ..expand import Scope as ExpandScope
    from ..net.session import Session
    from ..policy.hosts import Host
    from ..tls.dane import Verdict
    from ..tls.facts import Decide, TlsFacts
    from .core import Core
    from .events import Events
    from .site import Site
    from .transport import HostDecisions

    ChooseAuth = Callable[[str, TlsFacts | None], Awaitable[tuple[tuple[str, str] | None, bool]]]

#: errno of an option that cannot be expanded, of a failed handshake, and of TLS that cannot be had (11.6)
_ERRNO_EXPANSION: Final = -27
_ERRNO_TLS_FAILED: Final = -37
_ERRNO_TLS_REQUIRED: Final = -38


async def connect(core: Core, site: Site, number: int) -> Session:
    """A session with a host.

    Raises:
        DeliveryError, TlsPolicyError: see `open_session`; a policy that allows no connection, and an option that cannot
            be expanded or used, are one as well.  `dane_fail` has the data of the event (7.6).
    """
    try:
        decisions = await _decide(core, site, number)
        policy = await _policy(core, site, number, decisions)
        session = await _open_as_planned(core, site, number, decisions, policy)
    except ExpandError as error:
        raise DeliveryError(error.message, errno=_ERRNO_EXPANSION) from error
    except (ConfigError, LocalProtocolError) as error:
        raise DeliveryError(str(error), errno=_ERRNO_EXPANSION) from error
    if site.wish is Wish.REQUIRE and not session.capabilities.requiretls:
        # the certificate is proved, so it is the host that says so: nothing to wait for (R51)
        await session.quit()
        text = f"REQUIRETLS is not offered by {site.hosts[number].name}"
        raise DeliveryError(text, permanent=True, retry_name="tls_required")
    session.use_until = policy.until
    return session


async def _open_as_planned(core: Core, site: Site, number: int, decisions: HostDecisions, policy: Policy) -> Session:
    host, plan = site.hosts[number], policy.decision.plan
    try:
        ocsp = await _ocsp_demand(core, site, number, policy.decision.usage_mask)
        way = _way(site, number, decisions, plan, ocsp)
        return await _open_and_report(core, site, number, way, policy.decision)
    except TlsPolicyError as error:
        if plan.level is TlsLevel.DANE:
            _tell_dane_failure(core, host, error)
            raise
        if error.errno != _ERRNO_TLS_FAILED or not plan.try_clear or plan.level is not TlsLevel.OPPORTUNISTIC:
            raise
        if core.events is not None:
            tell_host_deferred(core, site, number, error)
        text = f"{error.message}: delivering unencrypted to H={host.name} [{host.address}] (not in hosts_require_tls)"
        core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=text))
    return await _open(core, site, number, _way(site, number, decisions, CLEAR, Demand.NONE))


async def _open_and_report(core: Core, site: Site, number: int, way: Way, found: Decision) -> Session:
    """Open a session, and let TLSRPT know what became of the policies it is made under."""
    verdicts: list[Verdict] = []
    try:
        session = await _open(core, site, number, way, verdicts.append, found.usage_mask)
    except DeliveryError as error:
        for line in getattr(error, "__notes__", ()):
            _note(core, site, number, line)
        await core.reporting.report(core, site, number, found, error=error, verdict=verdicts[-1] if verdicts else None)
        raise
    try:
        facts = session.facts
        if facts.tls is not None and facts.tls.ocsp_log:
            _note(core, site, number, facts.tls.ocsp_log)
        await core.reporting.report(core, site, number, found, facts=facts.tls, local_address=facts.local_address)
    except BaseException:
        with trio.CancelScope(shield=True):
            await session.aclose()
        raise
    return session


def _note(core: Core, site: Site, number: int, text: str) -> None:
    host = site.hosts[number]
    core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=f"H={host.name} [{host.address}]: {text}"))


def _tell_dane_failure(core: Core, host: Host, error: TlsPolicyError) -> None:
    """7.5: a failed handshake has a line of its own; what `dane:fail` will tell stays with the error (7.6)."""
    error.dane_fail = _dane_fail_of(error)
    if error.errno == _ERRNO_TLS_FAILED:
        reason = error.message.removeprefix("TLS session: ")
        text = f"DANE attempt failed; TLS connection to {host.name} [{host.address}]: {reason}"
        core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=text))


def _dane_fail_of(error: DeliveryError) -> str:
    """7.5: why a connection under DANE did not come about."""
    is_missing = error.errno == _ERRNO_TLS_REQUIRED and "did not offer" in error.message
    return STARTTLS_NOT_SUPPORTED if is_missing else VALIDATION_FAILURE


# --- policy -----------------------------------------------------------------------------------------------------------


async def _policy(core: Core, site: Site, number: int, decisions: HostDecisions) -> Policy:
    """What TLS must prove, from TLSA answers that still hold.

    Raises:
        DeliveryError: no connection may be made to the host for now.
    """
    kept = site.policies.get(number)
    if (
        kept is not None
        and kept.until > trio.current_time()
        and (kept.choices is decisions.tls or kept.choices == decisions.tls)
    ):
        return kept
    host = site.hosts[number]
    choices = choices_for(site.wish, decisions.tls)
    with core.events.lookups_of(site.transport.name) if core.events is not None else contextlib.nullcontext():
        found = await core.tlsa.run(PlanBuilder(host, port_of(site, number), choices))
    if isinstance(found, Decision):
        found = decide(
            found,
            host,
            choices,
            wish=site.wish,
            sts=site.sts.policy,
            must_wait=site.sts.must_wait,
            is_by_dns=core.sts.is_by_dns(site.router),
        )
    if isinstance(found, Decision) and found.depends_on_domain and not site.by_domain:
        site.by_domain = True
        # those of other domains go back, to be routed to sites of their own (DN-11)
        for work in site.take_foreign():
            for claim in work.claims:
                core.settlement.release(claim)
    for line in found.log:
        core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=line))
    if isinstance(found, Refusal):
        await core.reporting.report(core, site, number, found)
        error = DeliveryError(found.message, errno=found.errno, retry_name=found.retry_name, permanent=found.permanent)
        error.dane_fail = found.dane_fail
        if core.events is not None and found.dane_fail:
            await _watch(core, core.events, site, number, CLEAR).on_dane_failed(found.dane_fail)
        raise error
    until = math.inf if found.ttl_s is None else trio.current_time() + found.ttl_s
    policy = site.policies[number] = Policy(found, until, decisions.tls)
    return policy


def _judge_by(
    plan: Plan, clock: Callable[[], float], note: Callable[[Verdict], None], *, by_policy: bool
) -> Decide | None:
    """Who decides about the chain of certificates: the TLSA records, where there are some."""
    if plan.level is TlsLevel.VERIFIED and by_policy:
        return _refuse_without_names
    if plan.level is not TlsLevel.DANE:
        return None

    def decide(chain: tuple[bytes, ...]) -> ChainVerdict:
        now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
        verdict = judge(plan.tlsa, chain, plan.reference_names, now=now)
        note(verdict)
        # R13: what insecure MX records lead to may match, and proves nothing
        return ChainVerdict(verdict.is_match, verdict.is_match and plan.authenticates, verdict.reason)

    return decide


def _refuse_without_names(chain: tuple[bytes, ...]) -> ChainVerdict:
    """RFC 8461 §4.2: a DNS name in the subject alternative name; what is verified beside it is verified already."""
    if chain and has_dns_names(chain[0]):
        return ChainVerdict(True)
    return ChainVerdict(False, message="SSL verify error: certificate name mismatch: there is a common name only")


# --- options ----------------------------------------------------------------------------------------------------------


async def _decide(core: Core, site: Site, number: int) -> HostDecisions:
    kept = site.decisions.get(number)
    if kept is not None:
        return kept
    host, transport = site.hosts[number], site.transport
    scope = _scope(core, site, number)
    if transport.is_pure:
        decisions = transport.decide(host, scope)
        if transport.is_fixed:
            site.decisions[number] = decisions
        return decisions
    return await trio.to_thread.run_sync(transport.decide, host, scope, limiter=core.threads)


async def _ocsp_demand(core: Core, site: Site, number: int, usage_mask: int) -> Demand:
    """OC-3: looked at once the TLSA records are known."""
    host, transport = site.hosts[number], site.transport
    usual = transport.usual_ocsp_demand(usage_mask)
    if usual is not None:
        return usual
    scope = _scope(core, site, number, {"tls_out_tlsa_usage": str(usage_mask)})
    if transport.is_pure:
        return transport.ocsp_demand(host, scope, usage_mask)
    return await trio.to_thread.run_sync(transport.ocsp_demand, host, scope, usage_mask, limiter=core.threads)


def _scope(core: Core, site: Site, number: int, more: Mapping[str, object] | None = None) -> ExpandScope:
    host = site.hosts[number]
    scope = core.make_scope(
        {
            "host": host.name,
            "host_address": host.address,
            "host_port": port_of(site, number),
            "router_name": site.router,
            "transport_name": site.transport.name,
            "domain": host.domain,
            **(more or {}),
        }
    )
    scope.dynamic["lookup_dnssec_authenticated"] = _AUTHENTICATED[host.secure]
    return scope


def _choose_auth(core: Core, site: Site, number: int, contact: Contact) -> ChooseAuth:
    """Expands what is said for AUTH when it is known over what connection it is said."""
    host, transport = site.hosts[number], site.transport

    async def choose(local_address: str, tls: TlsFacts | None) -> tuple[tuple[str, str] | None, bool]:
        contact.local_address, contact.tls = local_address, tls
        it = Happening(contact)
        scope = _scope(core, site, number, {name: VARIABLES[name](it) for name in OF_CONNECTION})
        try:
            if transport.is_pure:
                return transport.auth(host, scope)
            return await trio.to_thread.run_sync(transport.auth, host, scope, limiter=core.threads)
        except ExpandError as error:
            raise DeliveryError(error.message, errno=_ERRNO_EXPANSION) from error

    return choose


#: `$lookup_dnssec_authenticated` of a host (section 5)
_AUTHENTICATED: Final = {True: b"yes", False: b"no", None: b""}


def _way(site: Site, number: int, decisions: HostDecisions, plan: Plan, ocsp: Demand) -> Way:
    """The options of a connection, made anew only where something of what makes them is."""
    kept = site.ways.get(number)
    if kept is not None and kept.decisions is decisions and kept.plan is plan and kept.ocsp is ocsp:
        return kept
    host, options = site.hosts[number], site.transport.options
    # an interface of the other family is not for this host
    interface = options.interface if (":" in options.interface) == (":" in host.address) else ""
    session = SessionOptions(
        helo_name=decisions.helo_name,
        plan=plan,
        window=decisions.window,
        max_flight_octets=options.pipeline_size,
        auth=decisions.auth,
        auth_required=decisions.auth_required,
        auth_mechanisms=options.auth_mechanisms,
        auth_in_clear=options.auth_in_clear,
        connect_timeout_s=options.connect_timeout,
        command_timeout_s=options.command_timeout,
        data_timeout_s=options.data_timeout,
        final_timeout_s=options.final_timeout,
        interface=interface or None,
    )
    files = replace(decisions.files, ocsp=ocsp)
    if plan.level is TlsLevel.DANE:
        # DN-10: neither trust anchors nor revocation lists count
        files = replace(files, verify_certificates=None, crl=None)
    way = site.ways[number] = Way(decisions, plan, ocsp, session, files)
    return way


async def _open(
    core: Core,
    site: Site,
    number: int,
    way: Way,
    note: Callable[[Verdict], None] = lambda _: None,
    usage_mask: int = 0,
) -> Session:
    host, plan, session_options, files = site.hosts[number], way.plan, way.session, way.files
    memory = site.memory.get(number)
    if memory is None:
        memory = site.memory[number] = HostMemory()
    port, by_policy = port_of(site, number), site.sts.policy is not None
    if site.transport.auth_is_late:
        contact = contact_for(site, number, port)
        contact.usage_mask, contact.our_certificate = usage_mask, own_certificate(files.certificate)
        session_options = replace(session_options, choose_auth=_choose_auth(core, site, number, contact))
    if core.events is None or not core.events.has_any(site.transport.name):
        decide = _judge_by(plan, core.clock, note, by_policy=by_policy)
        return await open_session(host, port, session_options, core.contexts, memory, decide=decide, tls_options=files)
    watch = _watch(core, core.events, site, number, plan)
    watch.contact.learn(usage_mask=usage_mask, our_certificate=own_certificate(files.certificate))

    def note_both(verdict: Verdict) -> None:
        note(verdict)
        watch.on_verdict(verdict)

    decide = watch.listening(_judge_by(plan, core.clock, note_both, by_policy=by_policy))
    try:
        await watch.ask_to_connect()
        return await open_session(
            host, port, session_options, core.contexts, memory, decide=decide, tls_options=files, watch=watch
        )
    except DeliveryError as error:
        error.contact = watch.contact
        dane_fail = ""
        if isinstance(error, TlsPolicyError):
            watch.contact.learn(refused_certificate=error.certificate)
            dane_fail = _dane_fail_of(error) if plan.level is TlsLevel.DANE else ""
        await watch.on_failed(dane_fail)
        raise


def _watch(core: Core, events: Events, site: Site, number: int, plan: Plan) -> ConnectionWatch:
    only_wire = site.transport.options.event_certificates == "wire"
    contact = contact_for(site, number, port_of(site, number))
    return ConnectionWatch(core, events, contact, next(site.waiting_work(), None), plan, only_wire=only_wire)

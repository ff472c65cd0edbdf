"""One router: its preconditions, and the two drivers that find hosts.

Layer: orchestration.  Spec: Exim 4 specification 3.12 (order of preconditions), 15 (generic options), 17 (dnslookup),
18 (ipliteral: address literals are routed by dnslookup here), 20 (manualroute); dane-tls R14.
A router ends in one of four ways: a route, `Skip` (a precondition does not hold), `Decline` (it knows no host) or
`Pass` (the next router is to try, whatever `more` says).
Invariants: what an expansion or list of the router looked at is in `Walk.reads` before its result is used; an error in
an expansion, or a lookup that cannot be done now, defers the address and never skips a router.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from ...errors import ConfigError, ExpandError, ForcedFailure, LookupDeferral
from ...net.expiring import Expiring
from ...policy.answers import Status
from ...policy.hosts import (
    ERRNO_UNKNOWN,
    ERRNO_UNKNOWN_HOST,
    Deferral,
    Failure,
    FailureKind,
    Found,
    HostList,
    apply_self,
)
from ...policy.mx import HostSearch, SearchOptions
from ...policy.route_list import (
    HostItem,
    RouteRule,
    RuleOptions,
    order_hosts,
    parse_hosts,
    parse_route_data,
    parse_route_list,
)
from .routes import Group, Routed, RouteDeferred, Unrouteable
from .search import Asks, MustWait, find_hosts, find_known

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container
    from random import Random

    from ...config import RouterOptions
    from ...policy.answers import Answer, Mx
    from ...policy.hosts import Host
    from ...values import Address
    from .expansion import DomainPattern, Expander, Membership, Text

_T = TypeVar("_T")

#: 11.6: an expansion failed
ERRNO_EXPANSION: Final = -27
#: seconds that hosts hold which no DNS answer limits; arbitrary
STATIC_TTL_S: Final = 3600
#: seconds that a route holds for which something was looked up in a file or database; arbitrary
LOOKUP_TTL_S: Final = 60
_SELF_ACTIONS: Final = ("defer", "fail", "send")
#: sets of mail hosts that are remembered so that domains share them; arbitrary
_MAX_SETS: Final = 10_000
_FALSE: Final = (b"", b"0", b"no", b"false")


@dataclass(frozen=True, slots=True)
class Skip:
    """A precondition does not hold."""


@dataclass(frozen=True, slots=True)
class Decline:
    """The router knows no host for the address; `message` is why, or ""."""

    message: str = ""
    code: str = "5.1.2"
    ttl_s: int = STATIC_TTL_S
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """The next router is to try.  `deferral` stands if there is none."""

    deferral: RouteDeferred | None = None


Verdict = Routed | Unrouteable | RouteDeferred | Skip | Decline | Pass


@dataclass(slots=True)
class Walk:
    """An address on its way through the routers.

    Attributes:
        make_scope: gives what the caller evaluates expansions in, or None.
        is_quick: nothing may be waited for: what has to be raises `MustWait`.
        reads: the variables that decided so far; blocks: something was looked up on the way.
        untold: answers of which nobody has been told, of a walk that is quick; shared_ttl_s: seconds for which the
            route of another domain holds for this one, where it has ended there.
    """

    address: Address
    make_scope: Callable[[], Any]
    is_quick: bool = False
    reads: set[str] = field(default_factory=set)
    blocks: bool = False
    untold: list[Answer] = field(default_factory=list)
    shared_ttl_s: int | None = None


#: whether DNSSEC is asked for, and whether it is required
_Dnssec = tuple[bool, bool]
#: MX records, whether they are secure, and what is asked of DNSSEC
_SetKey = tuple["tuple[Mx, ...]", "bool | None", _Dnssec]


@dataclass(frozen=True, slots=True)
class _HostSet:
    """What domains with the same MX records have in common: the route of the first of them, and the answers about the
    hosts that found nothing."""

    routed: Routed
    empty: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all routers of a chain share."""

    resolver: Asks
    system_hosts: Asks
    expander: Expander
    transports: Collection[str]
    local_addresses: Container[str]
    families: tuple[str, ...]
    random: Random
    threads: trio.CapacityLimiter
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule of route_list, compiled."""

    pattern: DomainPattern
    hosts: Text | tuple[HostItem, ...]
    options: RuleOptions


class Router:
    """A router of the configuration, compiled.

    Raises:
        ConfigError: an option cannot be used; the key is ``routers.NAME.option``.
    """

    def __init__(self, options: RouterOptions, around: Surroundings) -> None:
        self.name = options.name
        self.options = options
        self._around = around
        expander = around.expander
        if options.driver not in ("dnslookup", "manualroute"):
            raise ConfigError(f"unknown driver {options.driver!r}", key=self._key("driver"))
        if options.self_ not in _SELF_ACTIONS:
            known = ", ".join(_SELF_ACTIONS)
            raise ConfigError(f"{options.self_!r} is not supported; what is: {known}", key=self._key("self"))
        self._domains = expander.domains(options.domains, key=self._key("domains"))
        self._local_parts = expander.local_parts(options.local_parts, key=self._key("local_parts"))
        self._condition = expander.text(options.condition, key=self._key("condition")) if options.condition else None
        self._ignored = self._hosts_or_none(options.ignore_target_hosts)
        self._mx_domains = expander.domains(options.mx_domains, key=self._key("mx_domains"))
        self._request = expander.domains(options.dnssec_request_domains, key=self._key("dnssec_request_domains"))
        self._require = expander.domains(options.dnssec_require_domains, key=self._key("dnssec_require_domains"))
        self._rules: tuple[_Rule, ...] = ()
        self._sets: Expiring[_SetKey, _HostSet] = Expiring(_MAX_SETS, around.clock)
        self._data: Text | None = None
        if options.driver == "manualroute":
            self._compile_manual()

    @property
    def looks_up_all(self) -> bool:
        """Whether it asks for the MX records of every domain."""
        everyone = self._domains.always and self._local_parts.always and self._condition is None
        return self.options.driver == "dnslookup" and bool(everyone)

    def _key(self, option: str) -> str:
        return f"routers.{self.name}.{option}"

    def _hosts_or_none(self, source: str | tuple[str, ...]) -> Membership | None:
        return self._around.expander.hosts(source, key=self._key("ignore_target_hosts")) if source else None

    def _compile_manual(self) -> None:
        options = self.options
        if bool(options.route_list) == bool(options.route_data):
            raise ConfigError("a manualroute router needs either route_list or route_data", key=f"routers.{self.name}")
        if options.route_data:
            self._data = self._around.expander.text(options.route_data, key=self._key("route_data"))
            return
        key = self._key("route_list")
        rules = parse_route_list(options.route_list, transports=self._around.transports, key=key)
        self._rules = tuple(self._compile_rule(rule, key) for rule in rules)

    def _compile_rule(self, rule: RouteRule, key: str) -> _Rule:
        route_list = self.options.route_list
        key = key if isinstance(route_list, str) else f"{key}[{rule.item}]"
        source = route_list if isinstance(route_list, str) else route_list[rule.item]
        try:
            pattern = self._around.expander.pattern(rule.pattern, key=key)
        except ConfigError as error:
            raise ConfigError(error.message, key=key, column=rule.column, source=source) from None
        try:
            hosts: Text | tuple[HostItem, ...]
            if "$" in rule.hosts or "\\" in rule.hosts:
                hosts = self._around.expander.text(rule.hosts, key=key)
            else:
                hosts = parse_hosts(rule.hosts)
        except ConfigError as error:
            at = error.column or 0
            column = rule.hosts_columns[at] if at < len(rule.hosts_columns) else rule.hosts_columns[-1] + 1
            raise ConfigError(error.message, key=key, column=column, source=source) from None
        return _Rule(pattern, hosts, rule.options)

    # --- preconditions ------------------------------------------------------------------------------------------------

    async def route(self, walk: Walk) -> Verdict:
        """Try to route the address of `walk`."""
        try:
            if not await self._is_for(walk):
                return Skip()
            if self.options.driver == "dnslookup":
                return await self._dnslookup(walk)
            return await self._manualroute(walk)
        except LookupDeferral as error:
            return self._deferred(f"{self.name} router: {error.message}", ERRNO_UNKNOWN, "4.3.0")
        except ExpandError as error:
            return self._deferred(f"{self.name} router: {error.message}", ERRNO_EXPANSION, "4.3.5")

    async def _is_for(self, walk: Walk) -> bool:
        """Exim's order (3.12): domains, local_parts, condition."""
        address = walk.address
        if not await self._contains(walk, self._domains, address.domain):
            return False
        if self._local_parts.always is None:
            walk.reads.add("local_part")
        if not await self._contains(walk, self._local_parts, address.local_part):
            return False
        if self._condition is None:
            return True
        try:
            text = await self._evaluate(walk, self._condition, self._scope(walk))
        except ForcedFailure:
            return False
        return text.strip().lower() not in _FALSE

    async def _contains(self, walk: Walk, items: Membership, subject: str) -> bool:
        if items.always is not None:
            return items.always
        scope = self._scope(walk)
        return await self._run(walk, items.is_pure, items.reads, lambda: items.contains(scope, subject))

    async def _evaluate(self, walk: Walk, text: Text, scope: Any) -> bytes:
        return await self._run(walk, text.is_pure, text.reads, lambda: text.evaluate(scope))

    async def _run(self, walk: Walk, is_pure: bool, reads: frozenset[str], step: Callable[[], _T]) -> _T:
        """Evaluate here what cannot block, and in the one thread for it what may."""
        walk.reads |= reads
        if is_pure:
            return step()
        if walk.is_quick:
            raise MustWait
        walk.blocks = True
        return await trio.to_thread.run_sync(step, abandon_on_cancel=True, limiter=self._around.threads)

    def _scope(
        self, walk: Walk, *, value: bytes | None = None, groups: tuple[bytes, ...] = (), host_address: str = ""
    ) -> Any:
        variables = {
            "local_part": walk.address.local_part,
            "domain": str(walk.address.domain),
            "router_name": self.name,
            "transport_name": "",
        }
        if host_address:
            variables["host_address"] = host_address
        return self._around.expander.scope(walk.make_scope(), variables, value=value, groups=groups)

    # --- dnslookup ----------------------------------------------------------------------------------------------------

    async def _dnslookup(self, walk: Walk) -> Verdict:
        domain = walk.address.domain
        dnssec = await self._dnssec(walk, domain)
        shared = self._shared_or_none(walk, domain, dnssec)
        if shared is not None:
            return shared
        options = self._search_options(walk, dnssec)
        if await self._contains(walk, self._mx_domains, domain):
            options = replace(options, must_have_mx=True)
        search = HostSearch(domain, options, random=self._around.random)
        found = await self._find(walk, search, self._around.resolver)
        if isinstance(found, HostList):
            found = apply_self(found, self.options.self_)
        match found:
            case HostList():
                routed = self._routed(self.options.transport, found.hosts, found.ttl_s, found.reasons)
                return routed if search.is_partial else self._share(search, dnssec, routed)
            case Failure(kind=FailureKind.SELF):
                return Unrouteable(found.message, self.name, found.code, found.ttl_s, reasons=found.reasons)
            case Failure():
                return Decline(found.message, found.code, found.ttl_s, found.reasons)
            case Deferral():
                return self._postponed(found, found.message)

    def _shared_or_none(self, walk: Walk, domain: str, dnssec: _Dnssec) -> Routed | None:
        """The route that another domain with the same MX records has got, for as long as all of it holds."""
        mx = self._around.resolver.peek(domain, "MX")
        if mx is None or mx.status is not Status.OK or mx.cnames or self._ignored is not None:
            return None
        key: _SetKey = mx.mx, mx.secure, dnssec
        known = self._sets.get_or_none(key)
        if known is None:
            return None
        ttl_s = min(mx.ttl_s, int(self._sets.seconds_left(key)))
        if walk.is_quick:
            walk.untold += known.empty
            walk.shared_ttl_s = ttl_s
            return known.routed
        for answer in known.empty:
            self._around.resolver.tell(answer)
        return known.routed.for_domain(domain, ttl_s)

    def _share(self, search: HostSearch, dnssec: _Dnssec, routed: Routed) -> Routed:
        """Remember a route for other domains with the same MX records."""
        mx, used = self._around.resolver.peek(search.domain, "MX"), search.mx
        if mx is None or mx.status is not Status.OK or mx.cnames or self._ignored is not None:
            return routed
        if used is None or (used.mx, used.secure, used.cnames) != (mx.mx, mx.secure, mx.cnames):
            # asked for anew while hosts were looked up: whoever has the new records must not get the hosts of the old
            return routed
        routed = replace(routed, group=Group())
        key: _SetKey = mx.mx, mx.secure, dnssec
        self._sets.put(key, _HostSet(routed, tuple(search.empty)), routed.ttl_s)
        return routed

    async def _dnssec(self, walk: Walk, name: str) -> _Dnssec:
        """Whether DNSSEC is asked for, and whether it is required."""
        require = await self._contains(walk, self._require, name)
        return require or await self._contains(walk, self._request, name), require

    def _search_options(self, walk: Walk, dnssec: _Dnssec) -> SearchOptions:
        ignored = self._ignored
        is_ignored: Callable[[str, str], bool] | None = None
        if ignored is not None:

            def is_ignored(host: str, address: str) -> bool:
                return ignored.contains(self._scope(walk, host_address=address), host, address)

        request, require = dnssec
        return SearchOptions(
            port=self.options.port,
            families=self._around.families,
            request_dnssec=request,
            require_dnssec=require,
            is_ignored=is_ignored,
            local_addresses=self._around.local_addresses,
        )

    async def _find(self, walk: Walk, search: HostSearch, source: Asks) -> Found:
        ignored = self._ignored
        if ignored is None or ignored.is_pure:
            walk.reads |= ignored.reads if ignored is not None else frozenset()
            if walk.is_quick:
                found = find_known(search, source)
                walk.untold += search.empty
                return found
            return await find_hosts(search, source)
        if walk.is_quick:
            raise MustWait

        async def run(step: Callable[[], None]) -> None:
            await self._run(walk, False, ignored.reads, step)

        return await find_hosts(search, source, run)

    # --- manualroute --------------------------------------------------------------------------------------------------

    async def _manualroute(self, walk: Walk) -> Verdict:
        try:
            rule = await (self._rule_of_data(walk) if self._data is not None else self._rule_of_list(walk))
        except ForcedFailure:
            return Decline()
        except ConfigError as error:
            # what an expansion gave is no host list
            where = f" in {error.source!r}" if error.source else ""
            return self._deferred(f"{self.name} router: {error.message}{where}", ERRNO_EXPANSION, "4.3.5")
        if rule is None:
            return Decline()
        items, options = rule
        randomize = self.options.hosts_randomize if options.randomize is None else options.randomize
        return await self._hosts(walk, order_hosts(items, randomize=randomize, random=self._around.random), options)

    async def _rule_of_list(self, walk: Walk) -> tuple[tuple[HostItem, ...], RuleOptions] | None:
        domain = str(walk.address.domain)
        for rule in self._rules:
            pattern, scope = rule.pattern, self._scope(walk)
            match = await self._run(walk, pattern.is_pure, pattern.reads, partial(pattern.match, scope, domain))
            if match is None:
                continue
            if isinstance(rule.hosts, tuple):
                return rule.hosts, rule.options
            # 20.4: $0 is the domain, $1 and on what the pattern caught, $value what a lookup in it gave
            groups = match.groups or (domain.encode(),)
            hosts = await self._evaluate(walk, rule.hosts, self._scope(walk, value=match.value, groups=groups))
            return (parse_hosts(_text(hosts)), rule.options) if hosts.strip() else None
        return None

    async def _rule_of_data(self, walk: Walk) -> tuple[tuple[HostItem, ...], RuleOptions] | None:
        assert self._data is not None
        scope = self._scope(walk)
        data = await self._evaluate(walk, self._data, scope)
        # 20.4: a host list is expanded by itself before use, wherever it comes from
        data = await self._run(
            walk, b"$" not in data, frozenset(), lambda: self._around.expander.expand_again(data, scope)
        )
        if not data.strip():
            return None
        hosts, options = parse_route_data(_text(data), transports=self._around.transports)
        return parse_hosts(hosts), options

    async def _hosts(self, walk: Walk, items: list[HostItem], options: RuleOptions) -> Verdict:
        """Look up every host of the list and put them together as `self` and host_find_failed say."""
        results: list[Found | ExpandError | None] = [None] * len(items)

        async def look_up(number: int) -> None:
            try:
                results[number] = await self._look_up(walk, items[number], options)
            except ExpandError as error:
                results[number] = error

        if len(items) == 1 or walk.is_quick:
            for number in range(len(items)):
                await look_up(number)
        else:
            async with trio.open_nursery() as nursery:
                for number in range(len(items)):
                    nursery.start_soon(look_up, number)
        hosts: list[Host] = []
        ttl_s = STATIC_TTL_S
        reasons: list[str] = []
        sends_to_self = False
        for item, found in zip(items, results, strict=True):
            if found is None or isinstance(found, ExpandError):
                raise found or AssertionError("the nursery ended early")
            reasons += found.reasons
            ttl_s = min(ttl_s, found.ttl_s)
            if isinstance(found, Deferral):
                return self._postponed(found, f"host lookup for {item.name} did not complete (DNS timeout?)")
            if isinstance(found, Failure):
                # a host whose every address is in ignore_target_hosts counts as one that has none, as Exim has it
                if self.options.host_find_failed == "ignore":
                    continue
                return self._not_found(item, found)
            if found.is_ours and not sends_to_self:
                if hosts:
                    # 20.6: what stands behind other hosts goes, with all that follows
                    break
                ended = self._self_verdict(found)
                if ended is not None:
                    return ended
                sends_to_self = True
            hosts += found.hosts
        if not hosts:
            text = (
                f"lookup failed for all hosts in {self.name} router: host_find_failed={self.options.host_find_failed}"
            )
            return self._deferred(f"{text} host_all_ignored=defer", ERRNO_UNKNOWN_HOST, "4.4.4", tuple(reasons))
        return self._routed(options.transport or self.options.transport, tuple(hosts), ttl_s, tuple(reasons))

    def _self_verdict(self, found: HostList) -> Verdict | None:
        applied = apply_self(found, self.options.self_)
        if isinstance(applied, Failure):
            return Unrouteable(applied.message, self.name, applied.code, applied.ttl_s, reasons=applied.reasons)
        if isinstance(applied, Deferral):
            return self._deferred(applied.message, applied.errno, applied.code, applied.reasons)
        return None

    async def _look_up(self, walk: Walk, item: HostItem, rule: RuleOptions) -> Found:
        options = replace(
            self._search_options(walk, await self._dnssec(walk, item.name)), port=item.port or self.options.port
        )
        if rule.ipv4_only:
            options = replace(options, families=tuple(family for family in options.families if family == "A"))
        elif rule.ipv4_prefer:
            options = replace(options, families=tuple(sorted(options.families)))
        random = self._around.random
        found: Found | None = None
        if item.mx or rule.lookup != "byname":
            # as in Exim, /MX is for MX records alone: a domain that is its own host is written without it
            search = HostSearch(item.name, replace(options, use_mx=item.mx, must_have_mx=item.mx), random=random)
            if search.result is None:
                found = await self._find(walk, search, self._around.resolver)
            else:
                found = replace(search.result, ttl_s=STATIC_TTL_S)
            is_missing = isinstance(found, Failure) and found.kind is FailureKind.NO_ADDRESS
            if item.mx or rule.lookup == "bydns" or not is_missing:
                return found
        by_name = replace(options, use_mx=False, request_dnssec=False)
        return await self._find(walk, HostSearch(item.name, by_name, random=random), self._around.system_hosts)

    def _not_found(self, item: HostItem, found: Failure) -> Verdict:
        """host_find_failed (20.1)."""
        message = f'lookup of host "{item.name}" failed in {self.name} router'
        match self.options.host_find_failed:
            case "decline":
                return Decline(ttl_s=found.ttl_s, reasons=found.reasons)
            case "pass":
                return Pass()
            case "fail":
                return Unrouteable(message, self.name, "5.4.4", found.ttl_s, reasons=found.reasons)
            case "defer":
                return self._deferred(message, ERRNO_UNKNOWN_HOST, "4.4.4", found.reasons)
            case _:
                frozen = self._deferred(message, ERRNO_UNKNOWN_HOST, "4.4.4", found.reasons)
                return replace(frozen, is_frozen=True)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def _routed(self, transport: str, hosts: tuple[Host, ...], ttl_s: int, reasons: tuple[str, ...]) -> Routed:
        return Routed(transport, self.name, hosts, ttl_s, reasons=reasons)

    def _postponed(self, found: Deferral, message: str) -> RouteDeferred | Pass:
        """A DNS deferral, which pass_on_timeout hands to the next router."""
        is_self = found.errno == ERRNO_UNKNOWN
        deferral = RouteDeferred(message, found.errno, self.name, found.code, found.retry_name, reasons=found.reasons)
        return Pass(deferral) if self.options.pass_on_timeout and not is_self else deferral

    def _deferred(self, message: str, errno: int, code: str, reasons: tuple[str, ...] = ()) -> RouteDeferred:
        # octets that are no UTF-8 are lone surrogates in text (`_text`, ExpandError), which no file or database takes
        shown = message.encode("utf-8", "backslashreplace").decode()
        return RouteDeferred(shown, errno, self.name, code, reasons=reasons)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")

"""Find the hosts of a domain: a machine that asks for DNS answers and ends with an ordered list, or the reason why not.

Layer: sans-I/O (randomness is an argument).  Spec: RFC 5321 §5.1 (locating the target host), RFC 7505 (null MX),
RFC 974 (a host does not send to itself); events-dane 7.1 (DN-1 to DN-3); dane-tls R3, R4, R8, R11, R12.

    domain --MX--> names in order --A, AAAA--> addresses [--CNAME--> is the alias itself secure?] --> HostList

Invariants: preference orders hosts, chance only decides within one preference (R11); an error is never taken for a
denial (R4); a host whose addresses cannot be looked up is left out, and the whole search defers only if no host is
left; every host carries what DNSSEC said of its MX, of its own address and of its first alias, so that deciding on
DANE needs no second look-up.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..errors import DataError
from ..values import literal_address, parse_domain
from .answers import Answer, Mx, Status
from .hosts import Deferral, Failure, FailureKind, Found, Host, HostList

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable
    from random import Random

__all__ = ["Host", "HostSearch", "Query", "SearchOptions"]

#: MX hosts looked at, best first; precedent: Exim tries 50 hosts at most (hosts_max_try_hardlimit)
MAX_MX_HOSTS: Final = 50
#: addresses kept of one host; arbitrary
MAX_ADDRESSES: Final = 32
#: addresses kept in all; arbitrary, five times what is tried of one message (hosts_max_try_hardlimit)
MAX_HOSTS: Final = 256
#: steps kept for people, and characters of one; a domain with 50 MX hosts asks 101 questions
MAX_REASONS: Final = 128
MAX_REASON_LENGTH: Final = 300
#: seconds for which a list holds when a host had to be left out for an error, or nothing was found for one
INCOMPLETE_TTL_S: Final = 60


@dataclass(frozen=True, slots=True)
class Query:
    """A question to be asked; its answer goes to `on_answer`."""

    name: str
    rdtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        use_mx: False: the name itself is the host (manualroute).
        port: given to every host.
        families: address families to look up, in the order in which a host's addresses are tried.
        must_have_mx: no MX records means failure (mx_domains).
        request_dnssec, require_dnssec: dnssec_request_domains, dnssec_require_domains match.
        is_ignored: (host name, address) -> in ignore_target_hosts; may raise what a list raises.
        local_addresses: the addresses of this machine.
    """

    use_mx: bool = True
    port: int = 0
    families: tuple[str, ...] = ("AAAA", "A")
    must_have_mx: bool = False
    request_dnssec: bool = True
    require_dnssec: bool = False
    is_ignored: Callable[[str, str], bool] | None = None
    local_addresses: Container[str] = frozenset()


class _End(enum.Enum):
    """What became of one host name."""

    FOUND = enum.auto()
    MISSING = enum.auto()
    IGNORED = enum.auto()
    INSECURE = enum.auto()
    ERROR = enum.auto()


@dataclass(slots=True)
class _Candidate:
    """A host name on its way to addresses."""

    name: str
    preference: int | None
    answers: dict[str, Answer] = field(default_factory=dict)
    alias: Answer | None = None
    asks_alias: bool = False
    is_name: bool = True
    hosts: list[Host] = field(default_factory=list)
    end: _End | None = None


class HostSearch:
    """The search for the hosts of one domain or the addresses of one host.

    Take queries from `next_query` until it gives None, ask them at once or one after another, and hand each answer to
    `on_answer`; each answer may make new queries.  When `result` is set, the search is over.

    Attributes:
        empty: the answers that found nothing or failed.
        is_partial: some host was left out since what had to be known of it is not.
    """

    def __init__(self, domain: str, options: SearchOptions, *, random: Random) -> None:
        self.domain = domain
        self.result: Found | None = None
        self._options = options
        self._random = random
        self._queries: deque[Query] = deque()
        self._open: set[Query] = set()
        self._mx: Answer | None = None
        self._candidates: dict[str, _Candidate] = {}
        self._ttls: list[int] = []
        self._reasons: list[str] = []
        self._saw_timeout = False
        self.empty: list[Answer] = []
        self.is_partial = False
        self._start()

    @property
    def mx(self) -> Answer | None:
        """The answer about MX records that the hosts come from; None if they were not asked for."""
        return self._mx

    def next_query(self) -> Query | None:
        """The next question, or None if there is none to ask before another answer comes (or at all)."""
        return self._queries.popleft() if self._queries else None

    def on_answer(self, answer: Answer) -> None:
        """Take the answer to a question that was asked; anything else is ignored."""
        query = Query(answer.name, answer.rdtype)
        if query not in self._open or self.result is not None:
            return
        self._open.discard(query)
        self._note(answer)
        if answer.rdtype == "MX":
            self._on_mx(answer)
        else:
            candidate = self._candidates[answer.name]
            if answer.rdtype == "CNAME":
                candidate.alias = answer
            else:
                candidate.answers[answer.rdtype] = answer
            self._ask_alias(candidate)
        if not self._open and self.result is None:
            self._finish()

    # --- questions ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        address = literal_address(self.domain)
        if address is None and not self._options.use_mx:
            # an operator may write a bare address; a domain that looks like one is a name (RFC 5321 §4.1.3)
            address = self.domain
        try:
            parsed = str(ipaddress.ip_address(address or ""))
        except ValueError:
            if self._options.use_mx:
                self._ask(self.domain, "MX")
            else:
                self._ask_addresses(_Candidate(self.domain, None))
            return
        candidate = _Candidate(self.domain, None, is_name=False)
        self._candidates[self.domain] = candidate
        self._add_hosts(candidate, [parsed], None)
        self._finish()

    def _ask(self, name: str, rdtype: str) -> None:
        query = Query(name, rdtype)
        self._open.add(query)
        self._queries.append(query)

    def _ask_addresses(self, candidate: _Candidate) -> None:
        self._candidates[candidate.name] = candidate
        for rdtype in self._options.families:
            self._ask(candidate.name, rdtype)

    def _ask_alias(self, candidate: _Candidate) -> None:
        """R3: an insecure answer behind a CNAME does not tell whether the CNAME itself is secure."""
        if candidate.asks_alias or len(candidate.answers) < len(self._options.families):
            return
        aliased = [answer for answer in candidate.answers.values() if answer.cnames]
        if not self._options.request_dnssec or any(answer.ad for answer in aliased):
            return
        if any(answer.is_ad_trusted and not answer.is_error for answer in aliased):
            candidate.asks_alias = True
            self._ask(candidate.name, "CNAME")

    def _on_mx(self, answer: Answer) -> None:
        self._mx = answer
        if answer.is_error:
            self._defer("host lookup did not complete")
        elif answer.status is Status.NXDOMAIN:
            self._fail("Unrouteable address", FailureKind.NO_DOMAIN, "5.1.2")
        elif self._options.require_dnssec and not answer.ad:
            self._defer("host lookup done insecurely", retry_name="")
        elif answer.status is Status.NODATA:
            if self._options.must_have_mx:
                self._fail("Unrouteable address", FailureKind.NO_MX, "5.1.2")
            else:
                # RFC 5321 §5.1: "If an empty list of MXs is returned, the address is treated as if it was associated
                # with an implicit MX RR ... pointing to that host."
                self._ask_addresses(_Candidate(self.domain, None))
        elif all(mx.exchange == "" for mx in answer.mx):
            # RFC 7505 §3; §4.1 gives the code
            self._fail("an MX or SRV record indicated no SMTP service", FailureKind.NO_SERVICE, "5.1.10")
        else:
            for mx in self._order(answer.mx):
                candidate = _Candidate(mx.exchange, mx.preference)
                if _is_host_name(mx.exchange):
                    self._ask_addresses(candidate)
                else:
                    candidate.end = _End.MISSING
                    self._candidates[mx.exchange] = candidate
                    self._say(f"MX {mx.exchange!r} is not a host name")

    def _order(self, records: Collection[Mx]) -> Iterable[Mx]:
        """Best preference first, chance within one (RFC 5321 §5.1); a host named twice counts with its best."""
        best: dict[str, Mx] = {}
        for mx in records:
            known = best.get(mx.exchange)
            # RFC 7505 §3: a null MX beside others is not one, and no host either
            if mx.exchange and (known is None or mx.preference < known.preference):
                best[mx.exchange] = mx
        shuffled = list(best.values())
        self._random.shuffle(shuffled)
        return sorted(shuffled, key=lambda mx: mx.preference)[:MAX_MX_HOSTS]

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        for candidate in self._candidates.values():
            if candidate.end is None:
                self._settle(candidate)
        hosts = [host for candidate in self._candidates.values() for host in candidate.hosts]
        ends = {candidate.end for candidate in self._candidates.values()}
        if _End.ERROR in ends or _End.INSECURE in ends:
            self.is_partial = True
            self._ttls.append(INCOMPLETE_TTL_S)
        kept, is_ours = self._without_us(hosts)
        if kept:
            self.result = HostList(tuple(kept[:MAX_HOSTS]), is_ours, self._ttl(), tuple(self._reasons))
        elif hosts or _End.ERROR in ends:
            # also when only worse hosts than this machine are left and the better ones had errors
            self._defer("host lookup did not complete")
        elif _End.INSECURE in ends:
            self._defer("host lookup done insecurely", retry_name="")
        else:
            self._fail_for_want_of_hosts(FailureKind.IGNORED if ends == {_End.IGNORED} else FailureKind.NO_ADDRESS)

    def _fail_for_want_of_hosts(self, kind: FailureKind) -> None:
        """In Exim's words, to which an ignored address does not exist; `reasons` tell it apart."""
        if not self._options.use_mx:
            text = f'lookup of host "{self.domain}" failed'
        elif self._mx is not None and self._mx.status is Status.OK:
            text = "all relevant MX records point to non-existent hosts"
            if any(not _is_host_name(name) for name in self._candidates):
                text += " or (invalidly) to IP addresses"
        else:
            text = "Unrouteable address"
            kind = FailureKind.NO_DOMAIN if kind is FailureKind.NO_ADDRESS else kind
        self._fail(text, kind, "5.1.2")

    def _settle(self, candidate: _Candidate) -> None:
        """Decide what became of a host whose questions are answered."""
        if candidate.alias is not None and candidate.alias.is_error:
            # R4: an error on a CNAME step makes the host unreachable
            candidate.end = _End.ERROR
            return
        for rdtype in self._options.families:
            answer = candidate.answers.get(rdtype)
            if answer is not None and answer.addresses:
                self._add_hosts(candidate, answer.addresses, answer)
        if candidate.end is not _End.FOUND and any(answer.is_error for answer in candidate.answers.values()):
            # R8: one family is enough; without any, what the broken one would have said is not known
            candidate.end = _End.ERROR
        candidate.end = candidate.end or _End.MISSING

    def _add_hosts(self, candidate: _Candidate, addresses: Iterable[str], answer: Answer | None) -> None:
        options = self._options
        usable: list[str] = []
        for address in dict.fromkeys(addresses):
            if options.is_ignored is not None and options.is_ignored(candidate.name, address):
                self._say(f"{candidate.name} [{address}] is in ignore_target_hosts")
                candidate.end = candidate.end or _End.IGNORED
            elif options.require_dnssec and candidate.is_name and not (answer is not None and answer.ad):
                candidate.end = candidate.end if candidate.end is _End.FOUND else _End.INSECURE
            else:
                usable.append(address)
        self._random.shuffle(usable)
        if usable:
            candidate.end = _End.FOUND
        room = MAX_ADDRESSES - len(candidate.hosts)
        candidate.hosts += [self._host(candidate, address, answer) for address in usable[:room]]

    def _host(self, candidate: _Candidate, address: str, answer: Answer | None) -> Host:
        mx = self._mx
        mx_secure = mx.secure if mx is not None and self._options.request_dnssec else None
        address_secure = answer.secure if answer is not None and self._options.request_dnssec else None
        alias_secure: bool | None = None
        aliased = [other for other in candidate.answers.values() if other.cnames]
        if aliased and self._options.request_dnssec:
            # a secure answer proves its whole chain, the first link included
            proof = next((other for other in aliased if other.ad), candidate.alias)
            alias_secure = proof.secure if proof is not None else None
        canonical = answer if answer is not None and answer.cnames else next(iter(aliased), None)
        return Host(
            name=candidate.name,
            address=address,
            port=self._options.port,
            preference=candidate.preference,
            secure=address_secure if mx is None else _both(mx_secure, address_secure),
            mx_secure=mx_secure,
            address_secure=address_secure,
            alias_secure=alias_secure,
            canonical_name=canonical.canonical_name if canonical is not None else candidate.name,
            from_mx=candidate.preference is not None,
            domain=self.domain,
            domain_canonical_name=(mx.canonical_name if mx is not None else "") or self.domain,
        )

    def _without_us(self, hosts: list[Host]) -> tuple[list[Host], bool]:
        """Drop ourselves with every host of the same or a worse preference; (all of them, True) if we are the best."""
        ours = next((host for host in hosts if host.address in self._options.local_addresses), None)
        if ours is None:
            return hosts, False
        better = [host for host in hosts if _rank(host.preference) < _rank(ours.preference)]
        if better:
            self._say(f"{ours.name} [{ours.address}] is this machine: hosts from {ours.preference} on dropped")
            return better, False
        hidden = any(
            candidate.end is _End.ERROR and _rank(candidate.preference) < _rank(ours.preference)
            for candidate in self._candidates.values()
        )
        return ([], False) if hidden else (hosts, True)

    def _fail(self, message: str, kind: FailureKind, code: str) -> None:
        self.result = Failure(message, kind, code, self._ttl(), tuple(self._reasons))

    def _defer(self, message: str, *, retry_name: str | None = None) -> None:
        if retry_name is None:
            retry_name = "timeout_DNS" if self._saw_timeout else ""
        self.result = Deferral(message, retry_name=retry_name, ttl_s=0, reasons=tuple(self._reasons))

    def _say(self, reason: str) -> None:
        if len(self._reasons) < MAX_REASONS:
            is_long = len(reason) > MAX_REASON_LENGTH
            self._reasons.append(f"{reason[: MAX_REASON_LENGTH - 1]}\u2026" if is_long else reason)

    def _ttl(self) -> int:
        return min(self._ttls, default=INCOMPLETE_TTL_S)

    def _note(self, answer: Answer) -> None:
        self._saw_timeout = self._saw_timeout or answer.status is Status.TIMEOUT
        if answer.status is not Status.OK:
            self.empty.append(answer)
        if not answer.is_error:
            self._ttls.append(answer.ttl_s)
        text = f"{answer.rdtype} {answer.name}: "
        text += ", ".join(
            [f"{mx.preference} {mx.exchange or '.'}" for mx in answer.mx] or answer.addresses or [answer.status.value]
        )
        if answer.cnames:
            text += f" (alias of {answer.canonical_name})"
        if not answer.is_error:
            text += {True: ", secure", False: ", insecure", None: ""}[answer.secure]
        if answer.extended_error:
            text += f", {answer.extended_error}"
        self._say(text)


def _rank(preference: int | None) -> int:
    return -1 if preference is None else preference


def _both(first: bool | None, second: bool | None) -> bool | None:
    """DN-1, DN-2: unknown if the first is; insecure stays insecure."""
    if first is None or second is None:
        return None
    return first and second


def _is_host_name(name: str) -> bool:
    """Whether an MX target can be looked up: a name of letters, digits, hyphens and underscores, no address."""
    try:
        if literal_address(parse_domain(name)) is not None:
            return False
        ipaddress.ip_address(name)
    except DataError:
        return False
    except ValueError:
        return True
    return False

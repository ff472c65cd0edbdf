"""Ask DNS questions: servers in turn, UDP then TCP, with a cache and one query in flight for one question.

Layer: adapter (trio).  Spec: RFC 1035 §4.2 (UDP, TCP), RFC 5452 §9 (random id and port, matching), RFC 6891 §7 (servers
without EDNS), RFC 2308 (negative caching), RFC 7766 §5 (TCP on truncation); dane-tls R1 to R6, R9.
Names are absolute: there is no search list, and /etc/hosts is not read here (see system_hosts).
Who forges a datagram has to guess the id, the port and the case of each letter of the name.  A datagram that has all
but the case right is believed only where the server folds case over TCP, too; until that is known it is asked by TCP.
Invariants: `query` returns an `Answer` whatever the servers do; `ad` is False where the way to the server is not
trusted; an error is kept for `ERROR_TTL_S` only, and is never turned into a denial (R6); a waiter that is cancelled
takes nobody with it.
Nearly every question is answered by the first datagram that comes back, and is then a matter of two plain calls
(`_begin`, `_on_first`); whatever else happens goes on in a task of its own (`_go_on`).
Bounds: `max_in_flight` questions are on the way, each ends within `timeout_s` of its turn; what waits for a turn is
bounded by who asks: a task, or somebody who counts what he has asked ahead.  `cache_size` bounds what is kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.rcode
import trio

from ..policy.answers import Answer, Status
from .dns_cache import AnswerCache
from .dns_datagrams import Datagrams
from .dns_message import MAX_CNAMES, Response, make_query
from .dns_names import Garbled, labels_of
from .dns_servers import Server, TrustAd, configured_servers, system_servers
from .dns_stream import exchange_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .dns_cache import Key
    from .dns_datagrams import Outcome
    from .dns_message import Question

#: seconds that an error is kept, so that a broken domain with many recipients is not asked for each of them
ERROR_TTL_S: Final = 3
#: seconds, RFC 1035 §3.2.1 lets a TTL be years; precedent: BIND max-cache-ttl is a week, unbound's a day
MAX_TTL_S: Final = 86_400
#: seconds, RFC 2308 §5: "values of one to three hours have been found to work well"
MAX_NEGATIVE_TTL_S: Final = 3_600
#: seconds that a server which did not reply is asked last
PENALTY_S: Final = 30.0
#: how the time of one question is dealt out to the rounds over all servers
_ROUNDS: Final = (2 / 15, 4 / 15, 9 / 15)
_ANSWERS: Final = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
_WITHOUT_EDNS: Final = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)


@dataclass(slots=True)
class Counts:
    """What the resolver has done since it was made (R10: `secure` that stays 0 tells of a resolver without DNSSEC)."""

    queries: int = 0
    cache_hits: int = 0
    tcp: int = 0
    secure: int = 0
    insecure: int = 0
    errors: int = 0


class _Flight:
    """A question on its way; whoever asks the same waits for it, too.

    Attributes:
        tasks: who wait for the answer; on_end: who are told that it is there.
        until: the second of trio's clock at which it ends; first: what came of the first question to a server, if
            that was no usable answer.
    """

    __slots__ = ("answer", "first", "key", "on_end", "tasks", "until")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.answer: Answer | None = None
        self.first: _First | None = None
        self.on_end: list[Callable[[], object]] = []
        self.tasks: dict[trio.lowlevel.Task, None] = {}
        self.until = 0.0

    async def wait(self) -> Answer:
        """The answer; a task that is cancelled takes nobody with it."""
        task = trio.lowlevel.current_task()
        self.tasks[task] = None

        def abort(_: object) -> trio.lowlevel.Abort:
            del self.tasks[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        assert self.answer is not None, "who waits is woken by the answer"
        return self.answer


class _First(NamedTuple):
    """What came of a question to a server."""

    server: Server
    edns: bool
    outcome: Outcome


class _Failed(Exception):
    """A server gave no usable response; `text` says why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Said(NamedTuple):
    """What came of one question to all servers."""

    server: Server | None
    response: Response | None
    status: Status
    error: str = ""


_TIMED_OUT: Final = _Said(None, None, Status.TIMEOUT, "no reply in time")


class Resolver:
    """A stub resolver.

    Args:
        nameservers: ``address``, ``address:port`` or ``[address]:port``, asked in this order; empty: those of
            `resolv_conf`.
        trust_ad: whose AD bit is believed (R1): of loopback servers or as resolv.conf says, of all, of none.
        timeout_s: seconds that a question may take over all servers, once it is its turn.
        cache_size: most answers kept; one of more than `UNIT_OCTETS` counts as several.
        max_in_flight: most questions on the way at one time; the rest wait.
        clock: seconds of a monotonic clock, for the age of what is kept.

    Attributes:
        on_failure: told of each question that found nothing or failed, also from what is kept; None for nobody.

    Raises:
        ConfigError: a name server is not an address.
    """

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        *,
        trust_ad: TrustAd = "loopback",
        timeout_s: float = 15.0,
        cache_size: int = 50_000,
        max_in_flight: int = 200,
        clock: Callable[[], float] = trio.current_time,
        resolv_conf: str = "/etc/resolv.conf",
    ) -> None:
        found = configured_servers(nameservers) if nameservers else system_servers(resolv_conf)
        self.servers = found.servers
        self.is_ad_trusted = found.is_ad_trusted(trust_ad)
        self.counts = Counts()
        self.on_failure: Callable[[Answer], object] | None = None
        self._timeout_s = timeout_s
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._kept = AnswerCache(cache_size, clock)
        self._flights: dict[Key, _Flight] = {}
        #: flights that wait for their turn
        self._line: deque[_Flight] = deque()
        self._in_flight = 0
        self._datagrams: Datagrams | None = None
        self._labels = {server: str(server) for server in self.servers}
        self._penalties: dict[Server, float] = {}
        self._without_edns: set[Server] = set()
        self._folding_case: set[Server] = set()

    async def query(self, name: str, rdtype: str) -> Answer:
        """Ask for the records of `rdtype` at `name`, an absolute name (a trailing dot does no harm).

        Never raises for what DNS does: see `Answer.status`.
        """
        key = _key(name, rdtype)
        answer = self.cached_or_none(*key)
        if answer is not None:
            await trio.lowlevel.checkpoint()
        else:
            answer = await self._flight(key).wait()
        self.tell(answer)
        return answer

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        """As `query`, where the answer is kept; None where somebody has to be asked."""
        answer = self.peek(name, rdtype)
        if answer is not None:
            self.tell(answer)
        return answer

    def peek(self, name: str, rdtype: str) -> Answer | None:
        """As `query_nowait`, and nobody is told: whoever makes use of the answer does so by `tell`."""
        return self.cached_or_none(*_key(name, rdtype))

    def tell(self, answer: Answer) -> None:
        """A question found nothing or failed: let `on_failure` know."""
        if self.on_failure is not None and answer.status is not Status.OK:
            self.on_failure(answer)

    def ask_ahead(self, name: str, rdtype: str, on_end: Callable[[], object]) -> bool:
        """Ask what somebody will want to know soon.

        Args:
            on_end: called once the answer is there; it must not raise.

        Returns:
            False where the answer is kept already; `on_end` is not called then.
        """
        key = _key(name, rdtype)
        if key in self._kept:
            return False
        self._flight(key).on_end.append(on_end)
        return True

    def forget(self, name: str, rdtype: str) -> None:
        """Keep an answer no longer: whoever asked keeps what was made of it."""
        self._kept.discard(_key(name, rdtype))

    def cached_or_none(self, name: str, rdtype: str) -> Answer | None:
        """The answer that is kept, with what is left of its TTL, or None."""
        answer = self._kept.get_or_none((name, rdtype))
        self.counts.cache_hits += answer is not None
        return answer

    def flush(self) -> None:
        """Forget every answer."""
        self._kept.clear()

    def _keep(self, key: Key, answer: Answer) -> None:
        if answer.is_error:
            self.counts.errors += 1
        elif answer.ad:
            self.counts.secure += 1
        else:
            self.counts.insecure += 1
        self._kept.put(key, answer, ERROR_TTL_S if answer.is_error else answer.ttl_s)

    # --- flights ------------------------------------------------------------------------------------------------------

    def _flight(self, key: Key) -> _Flight:
        """The flight of a question, begun if there is none."""
        if self._datagrams is None or self._datagrams.is_over:
            # the first question of a run of trio; what an earlier one left will never end
            self._datagrams = Datagrams()
            self._flights.clear()
            self._line.clear()
            self._in_flight = 0
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(key)
            if self._in_flight < self._max_in_flight:
                self._begin(flight)
            else:
                self._line.append(flight)
        return flight

    def _begin(self, flight: _Flight) -> None:
        """Put the question to the first server; what comes of that is an answer, nearly always."""
        self._in_flight += 1
        now = trio.current_time()
        flight.until = now + self._timeout_s
        name, rdtype = flight.key
        server = self._in_play()[0] if self._penalties else self.servers[0]
        edns = server not in self._without_edns
        try:
            question = make_query(name, rdtype, edns=edns)
        except ValueError:
            trio.lowlevel.spawn_system_task(self._go_on, flight)
            return
        self.counts.queries += 1
        assert self._datagrams is not None
        deadline = min(flight.until, now + _ROUNDS[0] * self._timeout_s)
        self._datagrams.ask(server, question, deadline, partial(self._on_first, flight, server, edns))

    def _on_first(self, flight: _Flight, server: Server, edns: bool, outcome: Outcome) -> None:
        if isinstance(outcome, Response) and self._is_plain(server, flight.key[1], outcome):
            if self._penalties:
                self._penalties.pop(server, None)
            name, rdtype = flight.key
            ttl_s = outcome.ttl_s if outcome.cnames or outcome.has_records else MAX_TTL_S
            said = _Said(server, outcome, Status.OK)
            secure = self.is_ad_trusted and outcome.ad
            self._end(flight, self._answer(name, rdtype, said, outcome.cnames, secure, min(MAX_TTL_S, ttl_s)))
            return
        flight.first = _First(server, edns, outcome)
        trio.lowlevel.spawn_system_task(self._go_on, flight)

    def _is_plain(self, server: Server, rdtype: str, response: Response) -> bool:
        """Whether a response over UDP says all there is to know."""
        return (
            response.rcode in _ANSWERS
            and not response.truncated
            and not response.is_referral
            and (response.is_case_kept or server in self._folding_case)
            and not _stops_short(response, rdtype)
        )

    async def _go_on(self, flight: _Flight) -> None:
        """Ask on where the first server has not answered a question."""
        self._end(flight, await self._look_up(flight))

    def _end(self, flight: _Flight, answer: Answer) -> None:
        flight.answer = answer
        self._keep(flight.key, answer)
        del self._flights[flight.key]
        self._in_flight -= 1
        for task in flight.tasks:
            trio.lowlevel.reschedule(task)
        flight.tasks.clear()
        while self._line and self._in_flight < self._max_in_flight:
            self._begin(self._line.popleft())
        for on_end in flight.on_end:
            on_end()

    # --- one question -------------------------------------------------------------------------------------------------

    async def _look_up(self, flight: _Flight) -> Answer:
        """Ask, and ask on where a server stopped within a CNAME chain (R3: one insecure link makes all insecure)."""
        name, rdtype = flight.key
        cnames: tuple[str, ...] = ()
        secure = self.is_ad_trusted
        ttl_s = MAX_TTL_S
        asked = {name}
        target = name
        while True:
            said = await self._ask(flight, target)
            response = said.response
            if response is None:
                break
            cnames += response.cnames
            secure = secure and response.ad
            if response.cnames or response.has_records:
                ttl_s = min(ttl_s, response.ttl_s)
            if not _stops_short(response, rdtype):
                break
            target = response.cnames[-1]
            if target in asked or len(cnames) > MAX_CNAMES:
                said = said._replace(response=None, status=Status.SERVFAIL, error="CNAME loop")
                break
            asked.add(target)
        return self._answer(name, rdtype, said, cnames, secure, ttl_s)

    def _answer(self, name: str, rdtype: str, said: _Said, cnames: tuple[str, ...], secure: bool, ttl_s: int) -> Answer:
        server = self._labels[said.server] if said.server else ""
        response = said.response
        if response is None:
            return Answer(name, rdtype, said.status, canonical_name=name, extended_error=said.error, server=server)
        if response.rcode == dns.rcode.NXDOMAIN:
            status = Status.NXDOMAIN
        else:
            status = Status.OK if response.has_records else Status.NODATA
        if status is not Status.OK:
            negative = response.negative_ttl_s
            # RFC 2308 §5: without SOA a denial should not be cached; a few seconds serve a burst of recipients
            ttl_s = min(ttl_s, ERROR_TTL_S if negative is None else min(negative, MAX_NEGATIVE_TTL_S))
        has_records = status is Status.OK
        return Answer(
            name=name,
            rdtype=rdtype,
            status=status,
            ad=secure,
            is_ad_trusted=self.is_ad_trusted,
            mx=response.mx if has_records else (),
            addresses=response.addresses if has_records else (),
            rdata=response.rdata if has_records else (),
            canonical_name=cnames[-1] if cnames else name,
            cnames=cnames,
            ttl_s=ttl_s,
            extended_error=response.extended_error,
            server=server,
        )

    def _in_play(self) -> list[Server]:
        """The servers in the order to ask them."""
        servers = list(self.servers)
        if self._penalties:
            now = self._clock()
            servers.sort(key=lambda server: self._penalties.get(server, 0.0) > now)
        return servers

    async def _ask(self, flight: _Flight, name: str) -> _Said:
        """Put one question to the servers in turn, in rounds with longer and longer waits, but not beyond its time."""
        until, first = flight.until, flight.first
        try:
            labels_of(name)
        except ValueError as error:
            # what cannot be a name does not exist
            return _Said(None, Response(dns.rcode.NXDOMAIN, False, False, extended_error=str(error)), Status.NXDOMAIN)
        in_play = self._in_play()
        if first is not None and in_play[0] != first.server:
            # others have met with something meanwhile; this question is with the one that it was put to
            in_play.sort(key=lambda server: server != first.server)
        worst = _TIMED_OUT
        for share in _ROUNDS:
            for server in tuple(in_play):
                try:
                    response = await self._ask_server(flight, server, name, share * self._timeout_s)
                except trio.TooSlowError:
                    if trio.current_time() >= until:
                        return _TIMED_OUT
                    self._penalties[server] = self._clock() + PENALTY_S
                    continue
                except _Failed as failed:
                    in_play.remove(server)
                    if worst.status is Status.TIMEOUT:
                        worst = _Said(server, None, Status.SERVFAIL, failed.text)
                    continue
                if self._penalties:
                    self._penalties.pop(server, None)
                if response.rcode in _ANSWERS:
                    return _Said(server, response, Status.OK)
                in_play.remove(server)
                worst = _Said(server, None, Status.SERVFAIL, response.extended_error or _rcode_text(response.rcode))
        return worst

    async def _ask_server(self, flight: _Flight, server: Server, name: str, wait_s: float) -> Response:
        """Ask one server, by UDP and if need be by TCP, with EDNS and if need be without.

        Raises:
            trio.TooSlowError: no reply within `wait_s` seconds, or in the time of the flight.
            _Failed: no usable reply.
        """
        rdtype, until = flight.key[1], flight.until
        first, flight.first = flight.first, None
        edns = server not in self._without_edns if first is None else first.edns
        response = await self._exchange(server, make_query(name, rdtype, edns=edns), wait_s, until, first)
        if edns and response.rcode in _WITHOUT_EDNS:
            # RFC 6891 §7: it may know no EDNS
            response = await self._exchange(server, make_query(name, rdtype, edns=False), wait_s, until)
            if response.rcode in _ANSWERS:
                self._without_edns.add(server)
        if response.is_referral:
            # an authority of another zone, which says nothing about the name: no denial (R6)
            raise _Failed("the server does not resolve names for us")
        return response

    async def _exchange(
        self, server: Server, question: Question, wait_s: float, until: float, first: _First | None = None
    ) -> Response:
        """Ask by UDP, unless that was done already, and by TCP if need be."""
        try:
            if first is None:
                self.counts.queries += 1
                response = await self._exchange_datagrams(server, question, min(until, trio.current_time() + wait_s))
            elif isinstance(first.outcome, Exception):
                raise first.outcome
            else:
                response = first.outcome
            has_wrong_case = response is not None and not response.is_case_kept and server not in self._folding_case
            if response is None or response.truncated or has_wrong_case:
                self.counts.tcp += 1
                response = None
                with trio.CancelScope(deadline=min(until, trio.current_time() + wait_s)):
                    response = await exchange_stream(server, question)
                    if not response.is_case_kept:
                        self._folding_case.add(server)
            if response is None:
                raise trio.TooSlowError
        except Garbled as error:
            raise _Failed(f"garbled response: {error}") from None
        except OSError as error:
            raise _Failed(error.strerror or str(error)) from None
        if response.truncated:
            raise _Failed("truncated response over TCP")
        return response

    async def _exchange_datagrams(self, server: Server, question: Question, deadline: float) -> Response | None:
        assert self._datagrams is not None, "a flight has begun"
        return await self._datagrams.exchange(server, question, deadline)


def _key(name: str, rdtype: str) -> Key:
    return name.lower().removesuffix("."), rdtype


def _stops_short(response: Response, rdtype: str) -> bool:
    """Whether the server left the rest of a CNAME chain to us: RFC 2308 §2.2 has an SOA in a real denial."""
    return (
        response.rcode == dns.rcode.NOERROR
        and bool(response.cnames)
        and not response.has_records
        and response.negative_ttl_s is None
        and rdtype != "CNAME"
    )


def _rcode_text(rcode: int) -> str:
    text = dns.rcode.to_text(dns.rcode.Rcode.make(rcode))
    return f"response code {rcode}" if text.isdecimal() else text

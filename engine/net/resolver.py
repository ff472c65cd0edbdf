"""Ask DNS questions: servers in turn, UDP then TCP, with a cache and one query in flight for one question.

Layer: adapter (trio).  Spec: RFC 1035 §4.2 (UDP, TCP), RFC 5452 §9 (random id and port, matching), RFC 6891 §7 (servers
without EDNS), RFC 2308 (negative caching), RFC 7766 §5 (TCP on truncation); dane-tls R1 to R6, R9.
Names are absolute: there is no search list, and /etc/hosts is not read here (see system_hosts).
Who forges a datagram has to guess the id, the port and the case of each letter of the name.  A datagram that has all
but the case right is believed only where the server folds case over TCP, too; until that is known it is asked by TCP.
Invariants: `query` returns an `Answer` whatever the servers do; `ad` is False where the way to the server is not
trusted; an error is kept for `ERROR_TTL_S` only, and is never turned into a denial (R6); a waiter that is cancelled
takes nobody with it.
Bounds: `max_in_flight` questions are on the way, each ends within `timeout_s`; who waits for a turn is one of the
caller's tasks, so there are never more flights than tasks that ask.  `cache_size` bounds the answers kept, where an
answer of more than `UNIT_OCTETS` counts as several, so that a cache full of answers made to be large is no larger.
"""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.rcode
import trio

from ..policy.answers import Answer, Status
from .dns_message import MAX_CNAMES, NotOurs, Question, Response, build_query, parse_response
from .dns_names import Garbled, labels_of
from .dns_servers import Server, TrustAd, configured_servers, system_servers
from .expiring import Expiring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: seconds that an error is kept, so that a broken domain with many recipients is not asked for each of them
ERROR_TTL_S: Final = 3
#: seconds, RFC 1035 §3.2.1 lets a TTL be years; precedent: BIND max-cache-ttl is a week, unbound's a day
MAX_TTL_S: Final = 86_400
#: seconds, RFC 2308 §5: "values of one to three hours have been found to work well"
MAX_NEGATIVE_TTL_S: Final = 3_600
#: seconds that a server which did not reply is asked last
PENALTY_S: Final = 30.0
#: octets of names and data in an answer that count as one of `cache_size`; the usual answer has far less
UNIT_OCTETS: Final = 1024
#: octets that each record takes beside its data; about what CPython needs
_RECORD_OCTETS: Final = 64
#: random bits for the id of a query (RFC 1035 §4.1.1)
_ID_BITS: Final = 16
#: random bits for the case of the letters of a name, which has 255 octets at most
_CASE_BITS: Final = 256
#: how the time of one question is dealt out to the rounds over all servers
_ROUNDS: Final = (2 / 15, 4 / 15, 9 / 15)
_ANSWERS: Final = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
_WITHOUT_EDNS: Final = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)
_RECEIVE_OCTETS: Final = 4096


@dataclass(slots=True)
class Counts:
    """What the resolver has done since it was made (R10: `secure` that stays 0 tells of a resolver without DNSSEC)."""

    queries: int = 0
    cache_hits: int = 0
    tcp: int = 0
    secure: int = 0
    insecure: int = 0
    errors: int = 0


@dataclass(slots=True, eq=False)
class _Flight:
    """A question on its way; whoever asks the same waits for `done`."""

    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None


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
        self._turn = trio.Semaphore(max_in_flight)
        self._kept: Expiring[tuple[str, str], Answer] = Expiring(cache_size, clock)
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._penalties: dict[Server, float] = {}
        self._without_edns: set[Server] = set()
        self._folding_case: set[Server] = set()

    async def query(self, name: str, rdtype: str) -> Answer:
        """Ask for the records of `rdtype` at `name`, an absolute name (a trailing dot does no harm).

        Never raises for what DNS does: see `Answer.status`.
        """
        return self._told(await self._query(name, rdtype))

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        """As `query`, where the answer is kept; None where somebody has to be asked."""
        answer = self.cached_or_none(name.lower().removesuffix("."), rdtype)
        return None if answer is None else self._told(answer)

    def _told(self, answer: Answer) -> Answer:
        if self.on_failure is not None and answer.status is not Status.OK:
            self.on_failure(answer)
        return answer

    async def _query(self, name: str, rdtype: str) -> Answer:
        key = (name.lower().removesuffix("."), rdtype)
        while True:
            answer = self.cached_or_none(*key)
            if answer is not None:
                await trio.lowlevel.checkpoint()
                return answer
            flight = self._flights.get(key)
            if flight is None:
                break
            await flight.done.wait()
            if flight.answer is not None:
                return flight.answer
            # whoever asked was cancelled: ask again
        flight = self._flights[key] = _Flight()
        try:
            try:
                self._turn.acquire_nowait()
            except trio.WouldBlock:
                await self._turn.acquire()
            try:
                flight.answer = await self._look_up(*key)
            finally:
                self._turn.release()
            self._keep(key, flight.answer)
            return flight.answer
        finally:
            del self._flights[key]
            flight.done.set()

    def cached_or_none(self, name: str, rdtype: str) -> Answer | None:
        """The answer that is kept, with what is left of its TTL, or None."""
        key = (name, rdtype)
        answer = self._kept.get_or_none(key)
        if answer is None:
            return None
        self.counts.cache_hits += 1
        return answer if answer.is_error else answer.with_ttl(int(self._kept.seconds_left(key)))

    def flush(self) -> None:
        """Forget every answer."""
        self._kept.clear()

    def _keep(self, key: tuple[str, str], answer: Answer) -> None:
        if answer.is_error:
            self.counts.errors += 1
        elif answer.ad:
            self.counts.secure += 1
        else:
            self.counts.insecure += 1
        ttl_s = ERROR_TTL_S if answer.is_error else answer.ttl_s
        self._kept.put(key, answer, ttl_s, 1 + _octets(answer) // UNIT_OCTETS)

    # --- one question -------------------------------------------------------------------------------------------------

    async def _look_up(self, name: str, rdtype: str) -> Answer:
        """Ask, and ask on where a server stopped within a CNAME chain (R3: one insecure link makes all insecure)."""
        until = trio.current_time() + self._timeout_s
        cnames: tuple[str, ...] = ()
        secure = self.is_ad_trusted
        ttl_s = MAX_TTL_S
        asked = {name}
        target = name
        while True:
            said = await self._ask(target, rdtype, until)
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
        server = str(said.server) if said.server else ""
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

    async def _ask(self, name: str, rdtype: str, until: float) -> _Said:
        """Put one question to the servers in turn, in rounds with longer and longer waits, but not beyond `until`."""
        try:
            labels_of(name)
        except ValueError as error:
            # what cannot be a name does not exist
            return _Said(None, Response(dns.rcode.NXDOMAIN, False, False, extended_error=str(error)), Status.NXDOMAIN)
        now = self._clock()
        in_play = list(self.servers)
        if self._penalties:
            in_play.sort(key=lambda server: self._penalties.get(server, 0.0) > now)
        worst = _TIMED_OUT
        for share in _ROUNDS:
            for server in tuple(in_play):
                try:
                    response = await self._ask_server(server, name, rdtype, share * self._timeout_s, until)
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

    async def _ask_server(self, server: Server, name: str, rdtype: str, wait_s: float, until: float) -> Response:
        """Ask one server, by UDP and if need be by TCP, with EDNS and if need be without.

        Raises:
            trio.TooSlowError: no reply within `wait_s` seconds, or by `until`.
            _Failed: no usable reply.
        """
        edns = server not in self._without_edns
        response = await self._exchange(server, _question(name, rdtype, edns), wait_s, until)
        if edns and response.rcode in _WITHOUT_EDNS:
            # RFC 6891 §7: it may know no EDNS
            response = await self._exchange(server, _question(name, rdtype, False), wait_s, until)
            if response.rcode in _ANSWERS:
                self._without_edns.add(server)
        if response.is_referral:
            # an authority of another zone, which says nothing about the name: no denial (R6)
            raise _Failed("the server does not resolve names for us")
        return response

    async def _exchange(self, server: Server, question: Question, wait_s: float, until: float) -> Response:
        self.counts.queries += 1
        try:
            response: Response | None = None
            with trio.CancelScope(deadline=min(until, trio.current_time() + wait_s)) as scope:
                response = await _exchange_datagrams(server, question)
            has_wrong_case = response is not None and not response.is_case_kept and server not in self._folding_case
            if not scope.cancelled_caught and (response is None or response.truncated or has_wrong_case):
                self.counts.tcp += 1
                with trio.CancelScope(deadline=min(until, trio.current_time() + wait_s)) as scope:
                    response = await _exchange_stream(server, question)
                    if not response.is_case_kept:
                        self._folding_case.add(server)
            if scope.cancelled_caught or response is None:
                raise trio.TooSlowError
        except Garbled as error:
            raise _Failed(f"garbled response: {error}") from None
        except OSError as error:
            raise _Failed(error.strerror or str(error)) from None
        if response.truncated:
            raise _Failed("truncated response over TCP")
        return response


def _question(name: str, rdtype: str, edns: bool) -> Question:
    bits = secrets.randbits(_ID_BITS + _CASE_BITS)
    return build_query(name, rdtype, bits & (1 << _ID_BITS) - 1, edns=edns, case_bits=bits >> _ID_BITS)


def _octets(answer: Answer) -> int:
    """About how many octets an answer takes, beside the few that every one does."""
    texts = (*answer.addresses, *answer.rdata, *answer.cnames, answer.extended_error)
    records = len(texts) + len(answer.mx)
    return records * _RECORD_OCTETS + sum(map(len, texts)) + sum(len(mx.exchange) for mx in answer.mx)


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


async def _exchange_datagrams(server: Server, question: Question) -> Response | None:
    """Send the query from a fresh port and wait for what matches it; None for a garbled response.

    Raises:
        OSError: the server refused.
    """
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        # a connected socket takes datagrams of this server only (RFC 5452 §9.1)
        channel.connect((server.address, server.port))
        channel.send(question.wire)
        try:
            while True:
                await trio.lowlevel.wait_readable(channel)
                try:
                    return parse_response(channel.recv(_RECEIVE_OCTETS), question)
                except (NotOurs, BlockingIOError):
                    continue
                except Garbled:
                    return None
        finally:
            trio.lowlevel.notify_closing(channel)


async def _exchange_stream(server: Server, question: Question) -> Response:
    """Ask over TCP.

    Raises:
        OSError: no connection, or it broke.
        Garbled: another answer than ours, or one that cannot be read.
    """
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_STREAM) as channel:
        await channel.connect((server.address, server.port))
        stream = trio.SocketStream(channel)
        try:
            await stream.send_all(len(question.wire).to_bytes(2, "big") + question.wire)
            length = int.from_bytes(await _receive_exactly(stream, 2), "big")
            wire = await _receive_exactly(stream, length)
        except trio.BrokenResourceError as error:
            raise Garbled(f"connection lost: {error.__cause__ or error}") from None
    try:
        return parse_response(wire, question)
    except NotOurs as error:
        raise Garbled(f"the response over TCP is not ours: {error}") from None


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        if not chunk:
            raise Garbled(f"connection closed after {len(received)} of {count} octets")
        received += chunk
    return bytes(received)

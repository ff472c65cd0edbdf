"""dnsdb: records from the DNS, through dnspython's stub resolver.

Layer: adapter.  Spec: expansion 5.2; RFC 1035, RFC 4035 §3.2.3 (AD), RFC 6698 (TLSA), RFC 7208 §3.1.
Input: ``[>separator[,inner|;]] [modifier,…] [type=]name[:name…]``.  Output: one item a record, joined by the separator.
Invariants: each question has a deadline; the AD bit counts only from a resolver that is trusted; a name or text that is
not ASCII is escaped as in a zone file; everything returned is text from outside.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename

from engine.expand.listsplit import split_list
from engine.values import parse_interval

from .driver import Deferral, Result, bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.expand.searches import Search

_SPACE: Final = b" \t\n\v\f\r"
#: names in one query, and labels taken off one name (arbitrary)
_MAX_NAMES: Final = 256
_DEFAULT_RETRANS_S: Final = 5.0
_DEFAULT_RETRIES: Final = 2


class Mode(enum.Enum):
    """What ``defer_`` and ``dnssec_`` may say."""

    STRICT = b"strict"
    LAX = b"lax"
    NEVER = b"never"


@dataclass(frozen=True, slots=True)
class Question:
    """A query taken apart.

    Attributes:
        separator: between records.
        inner: between the fields or strings of one record; None: each type's own way.
        defer: what a temporary error of one name means.
        dnssec: whether DNSSEC is asked for, and what its absence means.
        retrans_s: seconds for one try.
        retries: tries.
        kind: type as written, lower case.
        names: what is asked for.
    """

    separator: bytes = b"\n"
    inner: bytes | None = None
    defer: Mode = Mode.LAX
    dnssec: Mode = Mode.LAX
    retrans_s: float = _DEFAULT_RETRANS_S
    retries: int = _DEFAULT_RETRIES
    kind: str = "txt"
    names: tuple[bytes, ...] = ()


_MODIFIER: Final = re.compile(rb"(defer|dnssec|retrans|retry)_", re.IGNORECASE)
_WORD: Final = re.compile(rb"[^,\s]*")


def parse_question(query: bytes, *, retrans_s: float = _DEFAULT_RETRANS_S) -> Question:
    """Take a query apart.

    Raises:
        Deferral: with Exim's text.
    """
    question = Question(retrans_s=retrans_s)
    text = query.lstrip(_SPACE)
    if text.startswith(b">"):
        question = replace(question, separator=text[1:2])
        text = text[2:]
        if text.startswith(b","):
            question = replace(question, inner=text[1:2])
            text = text[2:]
        elif text.startswith(b";"):
            question = replace(question, inner=b"")
            text = text[1:]
        text = text.lstrip(_SPACE)
    while match := _MODIFIER.match(text):
        word = _WORD.match(text, match.end())
        value = word[0] if word else b""
        question = _modified(question, match[1].lower(), value)
        text = text[match.end() + len(value) :].lstrip(_SPACE)
        if not text.startswith(b","):
            raise Deferral("dnsdb modifier syntax error")
        text = text[1:].lstrip(_SPACE)
    kind, equals, names = text.partition(b"=")
    if not equals:
        kind, names = b"txt", text
    name = kind.strip(_SPACE).lower().decode("latin-1")
    if name not in _KINDS:
        raise Deferral("unsupported DNS record type")
    return replace(question, kind=name, names=tuple(filter(None, split_list(names.strip(_SPACE))))[:_MAX_NAMES])


def _modified(question: Question, name: bytes, value: bytes) -> Question:
    if name in (b"defer", b"dnssec"):
        try:
            mode = Mode(value.lower())
        except ValueError:
            raise Deferral(f"unsupported dnsdb {name.decode()} behaviour") from None
        return replace(question, defer=mode) if name == b"defer" else replace(question, dnssec=mode)
    if name == b"retrans":
        try:
            return replace(question, retrans_s=float(min(parse_interval(value.decode("latin-1")) or 1, 3600)))
        except ValueError:
            raise Deferral("unsupported dnsdb timeout value") from None
    if not value.isdigit() or len(value) > 3:
        raise Deferral("dnsdb modifier syntax error")
    return replace(question, retries=max(1, min(int(value), 20)))


def _host(name: dns.name.Name) -> bytes:
    return name.to_text(omit_final_dot=True).encode() if name != dns.name.root else b""


def _fields(question: Question, *fields: bytes) -> bytes:
    return (b" " if question.inner is None else question.inner).join(fields)


def _text(question: Question, rdata: Any) -> bytes:
    strings: Sequence[bytes] = rdata.strings
    # of a text in several strings only the first is wanted unless it is said how to join them
    return strings[0] if question.inner is None else question.inner.join(strings)


def _spf(question: Question, rdata: Any) -> bytes:
    return (question.inner or b"").join(rdata.strings)


def _srv(question: Question, rdata: Any) -> bytes:
    return _fields(question, b"%d" % rdata.priority, b"%d" % rdata.weight, b"%d" % rdata.port, _host(rdata.target))


def _soa(question: Question, rdata: Any) -> bytes:
    if not question.inner:
        return _host(rdata.mname)
    numbers = (rdata.serial, rdata.refresh, rdata.retry, rdata.expire, rdata.minimum)
    return _fields(question, _host(rdata.mname), _host(rdata.rname), *(b"%d" % number for number in numbers))


def _tlsa(question: Question, rdata: Any) -> bytes:
    numbers = (rdata.usage, rdata.selector, rdata.mtype)
    return _fields(question, *(b"%d" % number for number in numbers), rdata.cert.hex().encode())


_CSA_VERDICTS: Final = {1: b"N", 2: b"Y", 3: b"?"}


def _csa(question: Question, rdata: Any) -> bytes | None:
    """Client SMTP authorization (an expired draft): version 1 only, the weight holds the verdict."""
    verdict = _CSA_VERDICTS.get(rdata.weight)
    return None if rdata.priority != 1 or verdict is None else verdict + b" " + _host(rdata.target)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A type of query.

    Attributes:
        rdtypes: record types asked for in order.
        show: the text of one record, or None to leave it out.
        walks: leading labels come off until a name has such records.
        prefix: labels in front of each name.
    """

    rdtypes: tuple[str, ...]
    show: Callable[[Question, Any], bytes | None]
    walks: bool = False
    prefix: bytes = b""


def _kind(*rdtypes: str, show: Callable[[Question, Any], bytes | None], walks: bool = False) -> _Kind:
    return _Kind(rdtypes, show, walks)


_KINDS: Final = {
    "a": _kind("A", show=lambda _, rdata: rdata.address.encode()),
    "aaaa": _kind("AAAA", show=lambda _, rdata: str(ipaddress.IPv6Address(rdata.address)).encode()),
    "a+": _kind("AAAA", "A", show=lambda _, rdata: str(ipaddress.ip_address(rdata.address)).encode()),
    "cname": _kind("CNAME", show=lambda _, rdata: _host(rdata.target)),
    "csa": _Kind(("SRV",), _csa, prefix=b"_client._smtp."),
    "mx": _kind("MX", show=lambda question, rdata: _fields(question, b"%d" % rdata.preference, _host(rdata.exchange))),
    "mxh": _kind("MX", show=lambda _, rdata: _host(rdata.exchange)),
    "ns": _kind("NS", show=lambda _, rdata: _host(rdata.target)),
    "ptr": _kind("PTR", show=lambda _, rdata: _host(rdata.target)),
    "soa": _kind("SOA", show=_soa, walks=True),
    "spf": _kind("SPF", show=_spf),
    "srv": _kind("SRV", show=_srv),
    "tlsa": _kind("TLSA", show=_tlsa),
    "txt": _kind("TXT", show=_text),
    "zns": _kind("NS", show=lambda _, rdata: _host(rdata.target), walks=True),
}


class _Temporary(Exception):
    """A question has no answer for now."""


class Dnsdb:
    """The driver.

    Args:
        nameservers: ``address`` or ``address:port`` (``[address]:port`` for IPv6); none: the system's.
        trust_ad: whose AD bit is believed: ``loopback``, ``always`` or ``never``.
        timeout_s: for all tries of one question together.
    """

    def __init__(self, nameservers: Sequence[str], trust_ad: str, timeout_s: float) -> None:
        self._nameservers = [_nameserver(text) for text in nameservers]
        self._trust_ad = trust_ad
        self._timeout_s = timeout_s

    @functools.cached_property
    def _resolver(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = self._nameservers
        resolver.cache = None
        resolver.search = []
        return resolver

    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        question = parse_question(query, retrans_s=min(_DEFAULT_RETRANS_S, self._timeout_s))
        kind = _KINDS[question.kind]
        items: list[bytes] = []
        authenticated = True
        ttl_s: float = 86400.0
        failed = False
        for name in question.names:
            for rdtype in kind.rdtypes:
                try:
                    answer = self._walk(question, kind, kind.prefix + name, rdtype)
                except _Temporary:
                    if question.defer is Mode.STRICT:
                        raise Deferral("") from None
                    failed = failed or question.defer is Mode.LAX
                    continue
                if answer is None:
                    continue
                shown = [kind.show(question, rdata) for rdata in answer.rrset or ()]
                items += [item for item in shown if item is not None]
                authenticated = authenticated and self._is_authentic(answer)
                ttl_s = min(ttl_s, answer.chaining_result.minimum_ttl)
        value = question.separator.join(items)
        # a null MX (RFC 7505) has a name without text, and nothing is nothing found
        if not value:
            if failed:
                raise Deferral("")
            return None
        known = None if question.dnssec is Mode.NEVER else authenticated
        return Result(bounded(value), ttl_s=ttl_s, authenticated=known)

    def _walk(self, question: Question, kind: _Kind, name: bytes, rdtype: str) -> dns.resolver.Answer | None:
        try:
            owner = _owner(name, rdtype)
        except (ValueError, dns.exception.DNSException):
            return None
        while True:
            answer = self._ask_one(question, owner, rdtype)
            if answer is not None or not kind.walks or owner == dns.name.root:
                return answer
            owner = owner.parent()
            if owner == dns.name.root:
                return None

    def _ask_one(self, question: Question, owner: dns.name.Name, rdtype: str) -> dns.resolver.Answer | None:
        resolver = self._resolver
        wants_dnssec = question.dnssec is not Mode.NEVER
        resolver.flags = dns.flags.RD | (dns.flags.AD if wants_dnssec else 0)
        resolver.use_edns(0, dns.flags.DO if wants_dnssec else 0, 1232)
        resolver.timeout = question.retrans_s
        lifetime_s = min(question.retrans_s * question.retries, self._timeout_s)
        try:
            answer = resolver.resolve(owner, rdtype, raise_on_no_answer=False, search=False, lifetime=lifetime_s)
        except dns.resolver.NXDOMAIN:
            return None
        except dns.exception.DNSException:
            raise _Temporary from None
        if question.dnssec is Mode.STRICT and not self._is_authentic(answer):
            raise _Temporary
        return answer if answer.rrset is not None else None

    def _is_authentic(self, answer: dns.resolver.Answer) -> bool:
        if not answer.response.flags & dns.flags.AD or self._trust_ad == "never":
            return False
        if self._trust_ad == "always":
            return True
        try:
            return ipaddress.ip_address(str(answer.nameserver)).is_loopback
        except ValueError:
            return False

    def is_cacheable(self, query: bytes) -> bool:
        return True

    def close(self) -> None:
        """Nothing stays open between questions."""


def _owner(name: bytes, rdtype: str) -> dns.name.Name:
    text = name.decode("ascii", "backslashreplace") if name.isascii() else name.decode("utf-8")
    if rdtype == "PTR":
        try:
            return dns.reversename.from_address(str(ipaddress.ip_address(text)))
        except ValueError:
            pass
    return dns.name.from_text(text)


def _nameserver(text: str) -> dns.nameserver.Nameserver:
    match = re.fullmatch(r"\[(.*)\](?::(\d+))?|([^:]*)(?::(\d+))?|(.*)", text)
    groups = match.groups() if match else (None, None, None, None, text)
    address = groups[0] or groups[2] or groups[4] or ""
    return dns.nameserver.Do53Nameserver(address, int(groups[1] or groups[3] or 53))

"""From a host to its plan: a machine that asks for TLSA answers and ends with a decision.

Layer: sans-I/O.  Spec: events-dane 7.2; dane-tls R4 to R9, R13 to R17; RFC 7672 §2.2.1, §2.2.3.

    host, port, choices --> [TLSA _<port>._tcp.<base>] --> [TLSA at the next base domain] --> Decision or Refusal

The rules are in `requirement`; here is their order.  `mx.HostSearch` has taken in the MX, CNAME and address answers
before, so that TLSA is never asked for a host whose addresses are insecure (R7: there are servers that fail on it).
Invariants: at most two questions; none before the other's answer; an error ends it at once, and the second base domain
is not tried (R15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tls import tlsa
from .answers import Status
from .mx import Query
from .requirement import (
    Decision,
    InsecureMx,
    Refusal,
    Step,
    TlsaRecords,
    base_domains,
    has_signed_way,
    refuse_for_error,
    refuse_insecure,
    refuse_unsigned,
    refuse_without_records,
    with_records,
    without_dane,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .answers import Answer
    from .hosts import Host
    from .requirement import TlsChoices

#: records that a step shows; the rest is counted
_SHOWN_RECORDS = 8


class PlanBuilder:
    """The way to the plan of one address of one host.

    Take queries from `next_query` until it gives None, ask them, and hand each answer to `on_answer`.  When `result` is
    set, it is over; it may be so from the beginning.

    Args:
        host: with what DNSSEC said of it.
        port: the port that will be connected to (R16).
        choices: what the options say of the host.
    """

    def __init__(self, host: Host, port: int, choices: TlsChoices) -> None:
        self.result: Decision | Refusal | None = None
        self._host = host
        self._port = port
        self._choices = choices
        self._steps: list[Step] = []
        self._log: list[str] = []
        self._ttls: list[int] = []
        self._bases: list[str] = []
        self._query: Query | None = None
        self._open: Query | None = None
        self._start()

    def next_query(self) -> Query | None:
        """The next question, or None if there is none to ask before another answer comes (or at all)."""
        query, self._query = self._query, None
        return query

    def on_answer(self, answer: Answer, ttl_s: int | None = None) -> None:
        """Take the answer to the question that was asked; anything else is ignored.

        Args:
            ttl_s: seconds for which it still holds, where that is not `answer.ttl_s`.
        """
        if self._open is None or (answer.name, answer.rdtype) != (self._open.name, self._open.rdtype):
            return
        self._open = None
        base = self._bases.pop(0)
        if answer.is_error:
            self._say("R4", f"TLSA {answer.name}: {answer.status.value}{_comma(answer.extended_error)}")
            self.result = refuse_for_error(
                self._choices, tuple(self._steps), is_timeout=answer.status is Status.TIMEOUT, log=tuple(self._log)
            )
            return
        self._ttls.append(answer.ttl_s if ttl_s is None else ttl_s)
        if answer.status is Status.OK and answer.ad:
            self._say("R15", lambda: f"TLSA {answer.name}: {_shown(answer.rdata)}, secure: the base domain is {base}")
            records = TlsaRecords(base, tuple(sorted(set(answer.rdata))), self._ttl() or 0)
            self.result = with_records(self._host, self._choices, records, tuple(self._steps), log=tuple(self._log))
            return
        if answer.status is Status.OK:
            # 7.2 and R15: what is not signed is not there
            self._log.append(f"DANE error: TLSA lookup for {base} not DNSSEC")
            self._say("R3", lambda: f"TLSA {answer.name}: {_shown(answer.rdata)}, insecure: not to be used")
        else:
            # RFC 7672 §2.1.1: an insecure denial is no error either
            security = "secure" if answer.ad else "insecure"
            self._say("R5", f"TLSA {answer.name}: {answer.status.value}, {security}: no records")
        self._next_base()

    # --- the order ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        host, choices = self._host, self._choices
        if choices.require_dnssec:
            self.result = refuse_unsigned(host)
            if self.result is not None:
                return
        if not choices.wants_dane:
            self._say("7.2", "neither hosts_try_dane nor hosts_require_dane: no DANE")
            self.result = without_dane(host, choices, tuple(self._steps))
            return
        bases: tuple[str, ...] = ()
        if choices.request_dnssec:
            bases, step = base_domains(host)
            self._steps.append(step)
        else:
            self._say("DN-3", "dnssec_request_domains: what DNSSEC says of the host is not heeded")
        signed = has_signed_way(host, choices)
        if bases and not signed:
            self._say("R13", "what led to its name is insecure")
            if choices.require_dane or choices.insecure_mx is InsecureMx.MAY:
                bases = ()
        if bases:
            self._bases = list(bases)
            self._next_base()
        elif choices.require_dane:
            self.result = refuse_insecure(host, tuple(self._steps))
        else:
            self.result = without_dane(host, choices, tuple(self._steps))

    def _next_base(self) -> None:
        if self._bases:
            # R16: the port that is really used, the name as it is (R9: absolute)
            self._query = self._open = Query(f"_{self._port}._tcp.{self._bases[0]}", "TLSA")
            return
        steps, log, ttl_s = tuple(self._steps), tuple(self._log), self._ttl()
        refusal = refuse_without_records(self._choices, steps, ttl_s=ttl_s, log=log)
        self.result = refusal or without_dane(self._host, self._choices, steps, ttl_s=ttl_s, log=log)

    def _say(self, rule: str, said: str | Callable[[], str]) -> None:
        self._steps.append(Step(rule, said))

    def _ttl(self) -> int | None:
        return min(self._ttls, default=None)


def _comma(text: str) -> str:
    return f", {text}" if text else ""


def _shown(records: tuple[bytes, ...]) -> str:
    texts = [_short(tlsa.to_text(rdata)) for rdata in records[:_SHOWN_RECORDS]]
    more = len(records) - len(texts)
    return "; ".join(texts) + (f" and {more} more" if more > 0 else "")


def _short(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:31]}\u2026"

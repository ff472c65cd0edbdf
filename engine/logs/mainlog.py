"""Render facts as lines of Exim's main log.

Layer: adapter (formatting only; the file is logs/writer.py).  Spec: events-dane LG-1 to LG-7.
Invariants: one fact is one line; no octet of a server's text can end a line or start another (`printable`); the
parts of a line that depend only on the connection are rendered once a connection.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .facts import ConnectionFacts, Fact, FactKind

if TYPE_CHECKING:
    from collections.abc import Callable

#: selector name -> on by default (LG-1, LG-2)
SELECTORS: Final = {
    "deliver_time": False,
    "delivery_size": False,
    "dnssec": False,
    "millisec": False,
    "outgoing_interface": False,
    "outgoing_port": False,
    "pipelining": True,
    "queue_time": False,
    "retry_defer": True,
    "sender_on_delivery": False,
    "smtp_confirmation": True,
    "tls_certificate_verified": True,
    "tls_cipher": True,
    "tls_peerdn": False,
}

#: octets of a confirmation that are logged (LG-1)
MAX_CONFIRMATION: Final = 1024
#: rendered connections kept; a busy engine has a few hundred open
_CACHE_SIZE: Final = 2048

_UNPRINTABLE: Final = {code: f"\\{code:03o}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_UNPRINTABLE.update({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})


def parse_selector(text: str) -> frozenset[str]:
    """The selectors that are on, from text such as ``+delivery_size -tls_cipher``.

    Raises:
        ConfigError: a word does not start with + or -, or names no selector.
    """
    on = {name for name, default in SELECTORS.items() if default}
    for word in text.split():
        names = SELECTORS if word[1:] == "all" else (word[1:],)
        if word[0] not in "+-" or any(name not in SELECTORS for name in names):
            raise ConfigError(
                f"{word!r} is not a log selector with + or - in front; known are {', '.join(SELECTORS)}",
                key="main.log_selector",
            )
        (on.update if word[0] == "+" else on.difference_update)(names)
    return frozenset(on)


def printable(text: str) -> str:
    """`text` with every control character written as Exim writes it (``\\n``, ``\\033``)."""
    return text if text.isprintable() else text.translate(_UNPRINTABLE)


def _quoted(text: str) -> str:
    text = printable(text[:MAX_CONFIRMATION])
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


class MainLogFormat:
    """Renders facts under one set of selectors.

    Args:
        selectors: from `parse_selector`.
        localtime: seconds -> struct_time, the time zone of the log.
    """

    def __init__(
        self, selectors: frozenset[str], localtime: Callable[[float], time.struct_time] = time.localtime
    ) -> None:
        self._on = selectors
        self._localtime = localtime
        self._second = -1
        self._stamp = ""
        self._connections: dict[tuple[ConnectionFacts, bool], tuple[str, str]] = {}
        self._render: dict[FactKind, Callable[[Fact], str]] = {
            FactKind.DELIVERED: self._delivered,
            FactKind.DEFERRED: self._deferred,
            FactKind.FAILED: self._failed,
            FactKind.COMPLETED: lambda fact: f"Completed{self._queue_time(fact)}",
            FactKind.HOST: self._host_line,
            FactKind.IN_DOUBT: self._in_doubt,
            FactKind.NOTE: lambda fact: printable(fact.text),
        }

    def line(self, fact: Fact) -> str:
        """The line for `fact` without its newline; "" when the selectors leave it out."""
        body = self._render[fact.kind](fact)
        if not body:
            return ""
        stamp = self._time(fact.at)
        return f"{stamp} {fact.message_id} {body}" if fact.message_id else f"{stamp} {body}"

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", self._localtime(second))
        return f"{self._stamp}.{int((at - second) * 1000):03d}" if "millisec" in self._on else self._stamp

    def _connection(self, connection: ConnectionFacts, reused: bool) -> tuple[str, str]:
        """The ` H=…` part and the ` X=… CV=… A=…` part."""
        key = (connection, reused)
        parts = self._connections.get(key)
        if parts is None:
            if len(self._connections) >= _CACHE_SIZE:
                self._connections.clear()
            parts = self._connections[key] = (self._host(connection, reused), self._tls(connection))
        return parts

    def _host(self, connection: ConnectionFacts, reused: bool) -> str:
        on = self._on
        text = f" H={printable(connection.host)}"
        if connection.secure and "dnssec" in on:
            text += " DS"
        text += f" [{connection.address}]"
        if "outgoing_port" in on:
            text += f":{connection.port}"
        if reused:
            text += "*"
        if connection.local_address and "outgoing_interface" in on:
            text += f" I={connection.local_address}"
        return text

    def _tls(self, connection: ConnectionFacts) -> str:
        on, text = self._on, ""
        if connection.cipher:
            if "tls_cipher" in on:
                text += f" X={connection.tls_version}:{connection.cipher}:{connection.bits}"
            if "tls_certificate_verified" in on:
                text += f" CV={connection.verified}"
            if "tls_peerdn" in on and connection.peer_dn:
                text += f" DN={_quoted(connection.peer_dn)}"
        if connection.authenticator:
            text += f" A={connection.authenticator}"
        return text

    def _route(self, fact: Fact) -> str:
        text = f" F=<{fact.sender}>" if "sender_on_delivery" in self._on else ""
        if fact.router:
            text += f" R={fact.router}"
        if fact.transport:
            text += f" T={fact.transport}"
        return text

    def _delivered(self, fact: Fact) -> str:
        on = self._on
        text = f"{'=>' if fact.first else '->'} {printable(fact.address)}{self._route(fact)}"
        if "delivery_size" in on:
            text += f" S={fact.size_octets}"
        if fact.connection is not None:
            host, tls = self._connection(fact.connection, fact.reused)
            text += host + tls
        if fact.pipelined and "pipelining" in on:
            text += " L"
        if fact.chunked:
            text += " K"
        if fact.text and "smtp_confirmation" in on:
            text += f" C={_quoted(fact.text)}"
        return text + self._queue_time(fact) + self._deliver_time(fact)

    def _deferred(self, fact: Fact) -> str:
        # LG-2: retry not due and event refusals are retry_defer's to show
        if fact.errno <= -52 and "retry_defer" not in self._on:
            return ""
        text = f"== {printable(fact.address)}{self._route(fact) or ' routing'} defer ({fact.errno})"
        if fact.errno > 0:
            text += f": {os.strerror(fact.errno)}"
        if fact.connection is not None and fact.with_host:
            text += f" H={printable(fact.connection.host)} [{fact.connection.address}]"
        text += self._deliver_time(fact)
        return f"{text}: {printable(fact.text)}" if fact.text else text

    def _failed(self, fact: Fact) -> str:
        text = f"** {printable(fact.address)}{self._route(fact)}"
        if fact.connection is not None and fact.with_host:
            text += f" H={printable(fact.connection.host)} [{fact.connection.address}]{self._tls(fact.connection)}"
        if fact.errno > 0:
            text += f" : {os.strerror(fact.errno)}"
        if fact.text:
            # LG-3 and LG-4: a bare `**` line (no router, no host) has the text straight after the address
            text += f" : {printable(fact.text)}" if fact.router or fact.connection else f": {printable(fact.text)}"
        return text + self._deliver_time(fact)

    def _host_line(self, fact: Fact) -> str:
        if fact.connection is None:
            return printable(fact.text)
        text = f"H={printable(fact.connection.host)} [{fact.connection.address}]"
        if "outgoing_port" in self._on:
            text += f":{fact.connection.port}"
        strerror = os.strerror(fact.errno) if fact.errno > 0 else ""
        if not fact.text:
            return f"{text} {strerror}"
        text += f": {printable(fact.text)}"
        return f"{text}: {strerror}" if strerror else text

    def _in_doubt(self, fact: Fact) -> str:
        text = f"== {printable(fact.address)}{self._route(fact)} in doubt"
        if fact.connection is not None:
            text += f" H={printable(fact.connection.host)} [{fact.connection.address}]"
        return f"{text}: {printable(fact.text)}" if fact.text else text

    def _queue_time(self, fact: Fact) -> str:
        return f" QT={fact.queue_time_s:.3f}s" if "queue_time" in self._on else ""

    def _deliver_time(self, fact: Fact) -> str:
        return f" DT={fact.deliver_time_s:.3f}s" if "deliver_time" in self._on else ""

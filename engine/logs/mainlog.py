"""Render facts as lines of Exim's main log.

Layer: adapter (formatting only; the file is logs/writer.py).  Spec: events-dane LG-1 to LG-7, and what Exim 4.96 was
seen to write (tests/logs/test_exim_shape.py): where the two differ, what it writes wins, since programs read it.
Invariants: one fact is one line; no character of anybody's text can end a line, start another or move a terminal's
cursor (`printable`); the parts of a line that depend only on the connection are rendered once a connection.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .facts import ConnectionFacts, Fact, FactKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: selector name -> on by default (LG-1, LG-2)
SELECTORS: Final = {
    "deliver_time": False,
    "delivery_size": False,
    "dnssec": False,
    "millisec": False,
    "outgoing_interface": False,
    "outgoing_port": False,
    "pipelining": False,
    "queue_time": False,
    "queue_time_overall": False,
    "retry_defer": True,
    "return_path_on_delivery": False,
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

#: what a host line says of an error that has no text: the veto of `tcp:connect`
_WORDS: Final = {-58: "Event requests alternate response"}

_LETTERS: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\v": "\\v", "\f": "\\f"}


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
    """`text` with everything that is no plain character written as Exim writes it (``\\n``, ``\\033``).

    That is control and format characters (those that turn the direction of text too), line separators, and octets that
    were no UTF-8; letters of any script stay, as in an Exim with `print_topbitchars`.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _LETTERS.get(char) or _octal(char) for char in text)


def _octal(char: str) -> str:
    try:
        octets = char.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        octets = char.encode("utf-8", "surrogatepass")
    return "".join(f"\\{octet:03o}" for octet in octets)


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
        #: by the number of the object, which is kept with it: to hash one costs as much as to render a line
        self._connections: dict[int, tuple[ConnectionFacts, str, str, str]] = {}
        self._with_sender = not selectors.isdisjoint(("sender_on_delivery", "return_path_on_delivery"))
        self._with_size = "delivery_size" in selectors
        self._with_pipelining = "pipelining" in selectors
        self._with_confirmation = "smtp_confirmation" in selectors
        self._render: dict[FactKind, Callable[[Fact], str]] = {
            FactKind.DELIVERED: self._delivered,
            FactKind.DEFERRED: self._deferred,
            FactKind.FAILED: self._failed,
            FactKind.COMPLETED: self._completed,
            FactKind.HOST: self._host_line,
            FactKind.IN_DOUBT: self._in_doubt,
            FactKind.NOTE: lambda fact: printable(fact.text),
        }

    def lines(self, facts: Iterable[Fact]) -> list[str]:
        """The lines for `facts`, with that of the end of its message after each that completes one."""
        lines: list[str] = []
        for fact in facts:
            line = self.line(fact)
            if line:
                lines.append(line)
            if fact.completes:
                lines.append(f"{self._time(fact.at)} {fact.message_id} {self._completed(fact)}")
        return lines

    def line(self, fact: Fact) -> str:
        """The line for `fact` alone, without its newline; "" when the selectors leave it out."""
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
        kept = self._connections.get(id(connection))
        if kept is None or kept[0] is not connection:
            if len(self._connections) >= _CACHE_SIZE:
                self._connections.clear()
            hosts = self._host(connection, False), self._host(connection, True)
            kept = self._connections[id(connection)] = (connection, *hosts, self._tls(connection))
        return (kept[2] if reused else kept[1]), kept[3]

    def _host(self, connection: ConnectionFacts, reused: bool) -> str:
        on = self._on
        text = f" H={printable(connection.host)}"
        if connection.secure and "dnssec" in on:
            text += " DS"
        text += f" [{connection.address}]"
        if "outgoing_port" in on and connection.port:
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

    def _sender(self, fact: Fact) -> str:
        text = f" F=<{printable(fact.sender)}>" if "sender_on_delivery" in self._on else ""
        # the return path is that of the transaction; without a transport there was none
        if fact.transport and "return_path_on_delivery" in self._on:
            text += f" P=<{printable(fact.sender)}>"
        return text

    def _route(self, fact: Fact) -> str:
        text = ""
        if fact.router:
            text += f" R={printable(fact.router)}"
        if fact.transport:
            text += f" T={printable(fact.transport)}"
        return text

    def _delivered(self, fact: Fact) -> str:
        text = "=> " if fact.first else "-> "
        text += printable(fact.address)
        if self._with_sender:
            text += self._sender(fact)
        text += self._route(fact)
        if self._with_size:
            text += f" S={fact.size_octets}"
        if fact.connection is not None:
            host, tls = self._connection(fact.connection, fact.reused)
            text += host + tls
        if fact.pipelined and self._with_pipelining:
            text += " L"
        if fact.chunked:
            text += " K"
        if fact.text and self._with_confirmation:
            text += " C=" + _quoted(fact.text)
        return text + self._queue_time(fact) + self._deliver_time(fact)

    def _deferred(self, fact: Fact) -> str:
        # LG-2: retry not due and event refusals are retry_defer's to show
        if fact.errno <= -52 and "retry_defer" not in self._on:
            return ""
        text = f"== {printable(fact.address)}{self._route(fact) or ' routing'} defer ({fact.errno})"
        if fact.errno > 0:
            text += f": {os.strerror(fact.errno)}"
        if fact.connection is not None and fact.with_host:
            text += self._connection(fact.connection, fact.reused)[0]
        text += self._deliver_time(fact)
        return f"{text}: {printable(fact.text)}" if fact.text else text

    def _failed(self, fact: Fact) -> str:
        text = f"** {printable(fact.address)}{self._sender(fact)}{self._route(fact)}"
        if fact.connection is not None and fact.with_host:
            text += "".join(self._connection(fact.connection, fact.reused))
        if fact.errno > 0:
            text += f": {os.strerror(fact.errno)}"
        if fact.text:
            text += f": {printable(fact.text)}"
        return text + self._deliver_time(fact)

    def _host_line(self, fact: Fact) -> str:
        if fact.connection is None:
            return printable(fact.text)
        text = f"H={printable(fact.connection.host)} [{fact.connection.address}]"
        if "outgoing_port" in self._on:
            text += f":{fact.connection.port}"
        strerror = os.strerror(fact.errno) if fact.errno > 0 else _WORDS.get(fact.errno, "")
        if not fact.text:
            return f"{text} {strerror}".rstrip()
        text += f": {printable(fact.text)}"
        return f"{text}: {strerror}" if strerror else text

    def _in_doubt(self, fact: Fact) -> str:
        text = f"== {printable(fact.address)}{self._route(fact)} in doubt"
        if fact.connection is not None:
            text += f" H={printable(fact.connection.host)} [{fact.connection.address}]"
        return f"{text}: {printable(fact.text)}" if fact.text else text

    def _completed(self, fact: Fact) -> str:
        return f"Completed QT={fact.queue_time_s:.3f}s" if "queue_time_overall" in self._on else "Completed"

    def _queue_time(self, fact: Fact) -> str:
        return f" QT={fact.queue_time_s:.3f}s" if "queue_time" in self._on else ""

    def _deliver_time(self, fact: Fact) -> str:
        return f" DT={fact.deliver_time_s:.3f}s" if "deliver_time" in self._on else ""

"""What the lookups with servers share: lists of servers, the order they are tried in, connections that are kept, rows.

Layer: adapter.  Spec: expansion 5.2, 5.3, X-24.
Invariants: servers are tried in order, the next one only after a deferral that says the statement has not run; the
number of connections kept is bounded; a server named by text from outside is never connected to.
"""

from __future__ import annotations

import re
import select
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from engine.expand.listsplit import split_list

from .driver import Deferral, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.expand.searches import Search

    from .driver import Result

#: connections one driver keeps open (arbitrary; a configuration names a handful of servers)
MAX_KEPT_CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds.

    Attributes:
        connect_s: for a connection to stand, its log-in included.
        query_s: for an answer to be complete.
    """

    connect_s: float = 5.0
    query_s: float = 30.0


class ServerDeferral(Deferral):
    """One server could not answer.

    Args:
        reason: Exim's text.
        next_server: whether the next server of the list may be asked; False where the statement may have run.
    """

    def __init__(self, reason: str, *, next_server: bool = True) -> None:
        super().__init__(reason)
        self.next_server = next_server


@dataclass(frozen=True, slots=True)
class ServerList:
    """The servers of one lookup type.

    Attributes:
        label: what messages call the type: ``MySQL``.
        option: the option that holds the list: ``mysql_servers``.
        configured: its items, passwords included.
    """

    label: str
    option: str
    configured: tuple[str, ...]

    @classmethod
    def read(cls, label: str, option: str, value: str | Sequence[str]) -> ServerList:
        """Read an option: an Exim list in one string, or a sequence with an item each."""
        if isinstance(value, str):
            items = [item.decode("utf-8", "surrogateescape") for item in split_list(value.encode())]
        else:
            items = list(value)
        return cls(label, option, tuple(filter(None, items)))

    def choose(self, search: Search, query: bytes, *, tainted: bool) -> tuple[tuple[str, ...], bytes]:
        """The servers to try in order, and the query without the old ``servers=…;`` in front of it.

        Raises:
            Deferral: there are none, or one is not in the option.
            Failure: the query names servers and has text from outside in it.
        """
        chosen = search.option("servers")
        query = query.lstrip(b" \t\n\v\f\r")
        if query.startswith(b"servers="):
            chosen, semicolon, query = query[8:].partition(b";")
            if tainted:
                raise Failure(f"attempt to use tainted string 'servers={_shown(chosen)}' for {self.label} servers")
            if not semicolon:
                raise Deferral(f'missing ; after "servers=" in {self.label} lookup')
            query = query.lstrip(b" \t\n\v\f\r")
        if chosen is None:
            if not self.configured:
                raise Deferral(f"no {self.label} servers defined ({self.option} option)")
            return self.configured, query
        return tuple(self._by_name(_shown(item)) for item in split_list(chosen)), query

    def _by_name(self, item: str) -> str:
        if "/" in item:
            return item
        for known in self.configured:
            if known.partition("/")[0] == item:
                return known
        raise Deferral(f'{self.label} server "{item}" not found in {self.option}')


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Server:
    """One server, taken apart.

    Attributes:
        host: name or address; empty for the driver's default.
        port: as written, or empty.
        socket: path of a local socket, or empty.
        group: group in an option file (MySQL), or empty.
        rest: what stands after the host, from left to right: database, user, password.
    """

    host: str
    port: str
    socket: str
    group: str
    rest: tuple[str, ...]


_HOST: Final = re.compile(
    r"(\[[0-9A-Fa-f:.%]*:[0-9A-Fa-f:.%]*\]|[^:(\[]*)(?::([^(\[]*))?(?:\(([^)]*)\)?)?(?:\[([^]]*)\]?)?"
)


def parse_server(text: str, label: str, fields: int) -> Server:
    """Take ``host:port(socket)[group]/field/…`` apart.

    Args:
        text: an item of a server list.
        label: what the message calls the type.
        fields: how many fields follow the host.

    Raises:
        Deferral: a field is missing, or a slash too many.
    """
    # a socket's path has slashes of its own
    opening, closing = text.find("("), text.find(")")
    inside = text[opening : closing + 1] if 0 <= opening < closing else ""
    outside = text.replace(inside, "()", 1) if inside else text
    host_part, *rest = outside.rsplit("/", fields)
    if len(rest) < fields:
        raise Deferral(f"incomplete {label} server data: {host_part}")
    if "/" in host_part:
        raise Deferral(f"unexpected slash in {label} server hostname: {host_part}")
    match = _HOST.fullmatch(host_part)
    if not match:
        raise Deferral(f"incomplete {label} server data: {host_part}")
    host, port, _, group = match.groups(default="")
    if host.startswith("["):
        host = host[1:-1]
    return Server(host.strip(), port.strip(), inside[1:-1], group, tuple(rest))


class Closable(Protocol):
    def close(self) -> None:
        """Close it; never raises."""


class LostConnection(Exception):
    """A connection broke, or was given up, while a statement was under way.

    Args:
        reason: for the message.
        complete: whether the whole statement had been handed over, so that it may have run.
    """

    def __init__(self, reason: str, *, complete: bool) -> None:
        super().__init__(reason)
        self.complete = complete


_Q = TypeVar("_Q", contravariant=True)
_C = TypeVar("_C", bound=Closable)


class ServerConnection(Closable, Protocol[_Q]):
    """An open connection of a driver."""

    @property
    def is_alive(self) -> bool:
        """Whether it still stands, as far as can be told without asking the server."""

    def run(self, query: _Q) -> Result | None:
        """Run a statement.

        Raises:
            ServerDeferral: the server refuses it; the connection can be used again.
            LostConnection: the connection cannot.
        """


class KeptConnections(Generic[_C]):
    """Open connections by the text that named their server."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _C] = OrderedDict()

    def take(self, server: str) -> _C | None:
        """The connection, no longer kept; whoever took it puts it back or closes it."""
        return self._kept.pop(server, None)

    def put(self, server: str, connection: _C) -> None:
        self._kept[server] = connection
        while len(self._kept) > MAX_KEPT_CONNECTIONS:
            self._kept.popitem(last=False)[1].close()

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].close()


_S = TypeVar("_S")


class Servers(Generic[_S]):
    """The servers of one driver and the connections to them; `_S` is what a statement is to the driver.

    Args:
        connect: opens a connection to the server an item of the list names; raises `ServerDeferral`.
        failed: what stands before the reason when a connection is lost: ``PGSQL: query failed: ``.
    """

    def __init__(self, connect: Callable[[str], ServerConnection[_S]], failed: str) -> None:
        self._connect = connect
        self._failed = failed
        self._connections: KeptConnections[ServerConnection[_S]] = KeptConnections()

    def ask(self, servers: tuple[str, ...], query: _S, *, only_reads: bool) -> Result | None:
        """Ask one server after the other until one answers.

        Args:
            servers: items of the server list, in order.
            query: the statement.
            only_reads: whether it may be given to another server when it is not known whether it has run.

        Raises:
            ServerDeferral: of the last server asked.
        """
        last = ServerDeferral("")
        for server in servers:
            try:
                return self._ask_one(server, query, only_reads)
            except ServerDeferral as error:
                if not error.next_server:
                    raise
                last = error
        raise last

    def _ask_one(self, server: str, query: _S, only_reads: bool) -> Result | None:
        connection = self._connections.take(server)
        if connection is not None and not connection.is_alive:
            connection.close()
            connection = None
        try:
            if connection is not None:
                try:
                    return self._run(server, connection, query)
                except LostConnection as lost:
                    if lost.complete:
                        raise
            # there was none, or not all of the statement was handed over: it cannot have run
            return self._run(server, self._connect(server), query)
        except LostConnection as lost:
            next_server = only_reads or not lost.complete
            raise ServerDeferral(f"{self._failed}{lost}\n", next_server=next_server) from None

    def _run(self, server: str, connection: ServerConnection[_S], query: _S) -> Result | None:
        try:
            result = connection.run(query)
        except ServerDeferral:
            self._connections.put(server, connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._connections.put(server, connection)
        return result

    def close(self) -> None:
        self._connections.close()


def wait_for(descriptor: int, events: int, deadline: float) -> bool:
    """Wait for `events` (of `select.poll`) until `deadline` of the monotonic clock; False: it passed."""
    poller = select.poll()
    poller.register(descriptor, events)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def is_quiet(descriptor: int) -> bool:
    """Whether an idle connection still stands: nothing to read, no hang-up."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return not poller.poll(0)


_SPACE_INSIDE: Final = re.compile(rb"[ \t\n\v\f\r]")
_PLAIN_START: Final = re.compile(rb"\s*(?:select)\b", re.IGNORECASE)
_CALL: Final = re.compile(rb"([A-Za-z_\x80-\xff][\w$\x80-\xff]*|[\"`\]])\s*\(")
_IMPURE: Final = re.compile(
    rb";|:=|/\*|--|#|\b(?:into|for|lock|call|procedure|returning|current_\w+|localtime\w*|sysdate|session_user)\b",
    re.IGNORECASE,
)
# names before a parenthesis that call nothing, and functions that read nothing but their arguments
_HARMLESS: Final = frozenset(
    b"select from where and or not in exists any some all on using as values between like when then else over union "
    b"except intersect by having limit offset join left right cross inner outer natural case distinct "
    b"abs ascii avg cast ceil ceiling char char_length character_length coalesce concat concat_ws convert count "
    b"decimal floor group_concat hex ifnull instr isnull lcase least length locate lower lpad ltrim max md5 "
    b"greatest min mod nullif numeric octet_length position replace reverse round rpad rtrim sha1 sign split_part "
    b"string_agg strpos substr substring sum total trim ucase unhex upper varchar".split()
)


def is_plain_select(query: bytes) -> bool:
    """Whether a statement only reads, as far as its text can tell: then its result may be kept.

    A SELECT may call a function that writes (the trap of 5.2), so a call of any function that is not known to be
    harmless makes it no plain one; so does anything that needs a parser to be sure of.
    """
    if not _PLAIN_START.match(query) or _IMPURE.search(query):
        return False
    return all(match[1].lower() in _HARMLESS for match in _CALL.finditer(query))


def format_row(names: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """``name=value `` for each column, quoted where it must be (5.3)."""
    parts = []
    for name, value in zip(names, values, strict=True):
        if not value or value.startswith(b'"') or _SPACE_INSIDE.search(value):
            value = b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        parts.append(name + b"=" + value + b" ")
    return b"".join(parts)

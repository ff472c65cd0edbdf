"""What the lookups with servers share: lists of servers, the order they are tried in, connections that are kept, rows.

Layer: adapter.  Spec: expansion 5.2, 5.3, X-24.
Invariants: servers are tried in order, the next one only after a deferral that says the statement has not run; the
number of connections kept is bounded; a server named by text from outside is never connected to.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from engine.expand.listsplit import split_list

from .driver import Deferral, Failure, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

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
            items = [
                item.decode("utf-8", "surrogateescape") for item in split_list(value.encode("utf-8", "surrogateescape"))
            ]
        else:
            items = list(value)
        return cls(label, option, tuple(filter(None, items)))

    def choose(self, search: Search, query: bytes, *, tainted: bool) -> tuple[Iterator[str], bytes]:
        """The servers to try in order, and the query without the old ``servers=…;`` in front of it.

        A server by name is looked up in the option when its turn comes: the iterator raises Deferral if it is not
        there.

        Raises:
            Deferral: there are none.
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
            return map(self._by_name, self.configured), query
        return map(self._by_name, [_shown(item) for item in split_list(chosen)]), query

    def choose_first(self, search: Search, query: bytes, *, tainted: bool) -> tuple[str, bytes] | None:
        """The first server of `choose`, and the query; None if there is none, or nothing to ask.  Raises as it does."""
        servers, query = self.choose(search, query, tainted=tainted)
        server = next(servers, None)
        return None if server is None or not query else (server, query)

    def _by_name(self, item: str) -> str:
        if "/" in item:
            return item
        for known in self.configured:
            if known.startswith(item + "/"):
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
        # all but the last field, which may be the password
        raise Deferral(f"incomplete {label} server data: {outside.rpartition('/')[0] if rest else outside}")
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
        is_final: whether another try would end the same way or take as long again: the time was over, or the answer
            too long.
    """

    def __init__(self, reason: str, *, complete: bool, is_final: bool = False) -> None:
        super().__init__(reason)
        self.complete = complete
        self.is_final = is_final


_Q = TypeVar("_Q", contravariant=True)
_C = TypeVar("_C", bound=Closable)


class ServerConnection(Closable, Protocol[_Q]):
    """An open connection of a driver."""

    @property
    def is_alive(self) -> bool:
        """Whether it still stands, as far as can be told without asking the server, and is as it was when opened."""

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
_K = TypeVar("_K", bound=ServerConnection[Any])


class Servers(Generic[_S, _K]):
    """The servers of one driver and the connections to them; `_S` is what a statement is to the driver.

    Args:
        connect: opens a connection to the server an item of the list names; raises `ServerDeferral`.
        failed: what stands before the reason when a connection is lost: ``PGSQL: query failed: ``.
    """

    def __init__(self, connect: Callable[[str], _K], failed: str) -> None:
        self._connect = connect
        self._failed = failed
        self._connections: KeptConnections[_K] = KeptConnections()

    def ask(self, servers: Iterable[str], query: _S, *, only_reads: bool) -> Result | None:
        """Ask one server after the other until one answers.

        Args:
            servers: items of the server list, in order.
            query: the statement.
            only_reads: whether it may be sent again when it is not known whether it has run.

        Raises:
            Deferral: of the last server asked.
        """
        last = Deferral("")
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
        try:
            if connection is not None:
                if connection.is_alive:
                    try:
                        return self._run(server, connection, query)
                    except LostConnection as lost:
                        if lost.is_final or (lost.complete and not only_reads):
                            raise
                else:
                    connection.close()
            # there was no connection, or it was stale: not all of the statement was handed over, or it only reads
            return self._run(server, self._connect(server), query)
        except LostConnection as lost:
            next_server = only_reads or not lost.complete
            raise ServerDeferral(f"{self._failed}{lost}\n", next_server=next_server) from None

    def together(self, server: str, run: Callable[[_K], Progress]) -> Progress:
        """Let `run` do much with one server; it leaves a connection that is not as it was dead."""
        connection = self._connections.take(server)
        if connection is not None and not connection.is_alive:
            connection.close()
            connection = None
        try:
            connection = connection or self._connect(server)
        except ServerDeferral as error:
            return Progress(0, reason=str(error).rstrip("\n"))
        try:
            progress = run(connection)
        except BaseException:
            connection.close()
            raise
        self._put(server, connection)
        return progress

    def _run(self, server: str, connection: _K, query: _S) -> Result | None:
        try:
            result = connection.run(query)
        except ServerDeferral:
            self._put(server, connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._put(server, connection)
        return result

    def _put(self, server: str, connection: _K) -> None:
        if connection.is_alive:
            self._connections.put(server, connection)
        else:
            connection.close()

    def close(self) -> None:
        self._connections.close()


_SPACE_INSIDE: Final = re.compile(rb"[ \t\n\v\f\r]")


def format_row(names: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """``name=value `` for each column, quoted where it must be (5.3)."""
    parts = []
    for name, value in zip(names, values, strict=True):
        if not value or value.startswith(b'"') or _SPACE_INSIDE.search(value):
            value = b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        parts.append(name + b"=" + value + b" ")
    return b"".join(parts)

"""The lookups of one process: drivers by type, partial matching and defaults, taint, and what is kept of results.

Layer: adapter.  Spec: expansion 5.1, 5.2, X-24, X-25.
A result is kept by type, options and query until `forget` is called (at the start of each message), and for a minute at
most.  It is kept only when the query cannot have changed anything, as far as its text can tell; a statement with side
effects reaches its server each time it is evaluated, and empties what is kept of its type.

Threads.  A lookup blocks, so a registry lives where trio does not run: in a worker process, or in one thread that does
nothing else.  No object here belongs to a thread: calls may come from different ones (`trio.to_thread.run_sync` takes
any thread of its pool) as long as one call ends before the next begins, which a `trio.CapacityLimiter(1)` sees to.  Two
calls at once are a bug of the caller and raise RuntimeError, since the answer of one would be given to the other.  A
call cannot be cancelled; it ends by its timeouts, which add up over the servers of a list.  Connections must not be
carried over a fork: make the registry in the process that uses it.

Invariants: a tainted file name is never opened, a tainted query that is not quoted for its type never sent; the number
and size of kept results are bounded.  Nothing here knows trio.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from engine.errors import ExpandError
from engine.expand.searches import Found, Search, SearchDeferral, Star, Style

from .driver import Bound, Deferral, Failure, KeyDriver, Progress, QueryDriver, Result, Statement
from .kept import KeptResults
from .servers import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .driver import TogetherDriver, Unit

#: labels of a key that a partial search takes off one by one (RFC 1035 §3.1 allows 127)
_MAX_LABELS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupOptions:
    """What `[actions]` and `[dns]` say about lookups.

    Attributes:
        pgsql_servers: ``host/database/user/password``, an Exim list or one item each; so the next two.
        mysql_servers: the same with ``host:port(socket)[group]``.
        redis_servers: ``host/number/password``.
        sqlite_dbfile: absolute path, for queries that name no file.
        nameservers: ``address`` or ``address:port`` for dnsdb; none: the system's.
        trust_ad: whose AD bit dnsdb believes: ``loopback``, ``always`` or ``never``.
        timeouts: of servers.
    """

    pgsql_servers: str | tuple[str, ...] = ""
    mysql_servers: str | tuple[str, ...] = ""
    redis_servers: str | tuple[str, ...] = ""
    sqlite_dbfile: str = ""
    nameservers: tuple[str, ...] = ()
    trust_ad: str = "loopback"
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - an immutable value


#: type -> module, class, how it is made; modules load when a lookup needs them, since some need packages of an extra
_KEY_DRIVERS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "lsearch": ("lsearch", "Lsearch", {}),
    "wildlsearch": ("lsearch", "WildLsearch", {"expands": True}),
    "nwildlsearch": ("lsearch", "WildLsearch", {"expands": False}),
    "iplsearch": ("lsearch", "IpLsearch", {}),
    "dsearch": ("dsearch", "Dsearch", {}),
    "cdb": ("cdb", "Cdb", {}),
    "json": ("jsonfile", "JsonFile", {}),
}
_QUERY_DRIVERS: Final[dict[str, tuple[str, str, Callable[[LookupOptions], tuple[Any, ...]]]]] = {
    "pgsql": ("pgsql", "Pgsql", lambda options: (options.pgsql_servers, options.timeouts)),
    "mysql": ("mysql", "Mysql", lambda options: (options.mysql_servers, options.timeouts)),
    "redis": ("redis", "Redis", lambda options: (options.redis_servers, options.timeouts)),
    "sqlite": ("sqlite", "Sqlite", lambda options: (options.sqlite_dbfile, options.timeouts)),
    "dnsdb": ("dnsdb", "Dnsdb", lambda options: (options.nameservers, options.trust_ad, options.timeouts.query_s)),
    "passwd": ("passwd", "Passwd", lambda _: ()),
}

#: types of `_QUERY_DRIVERS` whose driver is a `TogetherDriver`
TOGETHER: Final = frozenset({"pgsql", "mysql", "sqlite"})


class Place(NamedTuple):
    """Where a postponed lookup is done: its type, and what the driver calls the server."""

    type: str
    server: str


class Postponed(NamedTuple):
    """A lookup that is ready to be done with others of its place."""

    place: Place
    statement: Statement


def _load(name: str, module: str, cls: str) -> Any:
    try:
        return getattr(importlib.import_module(f".{module}", __package__), cls)
    except ModuleNotFoundError:
        # as for a type that is not built in: the package of its extra is not installed
        raise ExpandError(f'unknown lookup type "{name}"') from None


class LookupRegistry:
    """Does the lookups of expansions (`engine.expand.searches.Lookups`).

    Args:
        options: where servers and files are.
        monotonic: a clock in seconds.
    """

    def __init__(
        self, options: LookupOptions | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = LookupOptions() if options is None else options
        self._key_drivers: dict[str, KeyDriver] = {}
        self._query_drivers: dict[str, QueryDriver] = {}
        #: where lookups of programs are done that have only their values told; as many as programs have
        self._bound: dict[Bound, Place] = {}
        self._kept = KeptResults(monotonic)
        # the pattern of a wildlsearch file may hold a lookup, so the thread that has it may come again
        self._busy = threading.RLock()

    def find(
        self,
        search: Search,
        *,
        key: bytes | None,
        text: bytes,
        tainted: bool = False,
        quoted_for: str | None = None,
        text_tainted: bool = False,
        cached: bool = True,
        scope: object = None,
    ) -> Found | None:
        """Do one lookup: see `engine.expand.searches.Lookups.find`.

        Raises:
            RuntimeError: another thread is in the middle of one.
        """
        subject = text if key is None else key
        self._enter()
        try:
            if search.type.style is Style.QUERY:
                return self._find_by_query(search, subject, tainted, quoted_for, cached)
            if text_tainted:
                raise ExpandError(f"attempt to use tainted string '{_shown(text)}' for {search.type.name} file name")
            return self._find_by_key(search, subject, text, scope)
        except Deferral as error:
            raise SearchDeferral(subject, str(error)) from None
        except Failure as error:
            raise ExpandError(str(error)) from None
        finally:
            self._busy.release()

    def _enter(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("two threads use one LookupRegistry at the same time")

    def forget(self) -> None:
        """Drop every kept result; connections and parsed files stay.  To be called at the start of each message."""
        self._enter()
        try:
            self._kept.forget()
        finally:
            self._busy.release()

    def close(self) -> None:
        """Close every connection and file, and forget; the next lookup opens what it needs."""
        self._enter()
        try:
            self._kept.forget()
            self._key_drivers.clear()
            for driver in self._query_drivers.values():
                driver.close()
        finally:
            self._busy.release()

    def _find_by_query(
        self, search: Search, query: bytes, tainted: bool, quoted_for: str | None, cached: bool
    ) -> Found | None:
        _check_quoting(search, query, tainted, quoted_for)
        if not query.strip(b" \t\n\v\f\r"):
            return None
        name = search.type.name
        driver = self._query_driver(name)
        only_reads = driver.is_cacheable(query)
        place = (name, search.options, query)
        if cached and only_reads and search.reads_cache and (known := self._kept.get(place)):
            return _found(name, known[0])
        if not only_reads:
            self._kept.forget_type(name)
        result = driver.ask(search, query, tainted=tainted)
        if cached and only_reads and search.writes_cache:
            self._kept.put(place, result)
        return _found(name, result)

    def _query_driver(self, name: str) -> QueryDriver:
        driver = self._query_drivers.get(name)
        if driver is None:
            module, cls, arguments = _QUERY_DRIVERS[name]
            driver = self._query_drivers[name] = _load(name, module, cls)(*arguments(self._options))
        return driver

    # -- lookups whose results nobody reads --

    def postpone(
        self, search: Search | Bound, query: bytes, *, tainted: bool, quoted_for: str | None
    ) -> Postponed | None:
        """A lookup of one of the types `TOGETHER`, ready to be done with others; None if it is to be done alone.

        Raises:
            ExpandError: as `find`.
        """
        if isinstance(search, Bound):
            return self._postpone_bound(search, query)
        _check_quoting(search, query, tainted, quoted_for)
        found = self._choose_together(search, query, tainted=tainted)
        return None if found is None else Postponed(found[0], Statement(found[1]))

    def _postpone_bound(self, bound: Bound, values: bytes) -> Postponed | None:
        place = self._bound.get(bound)
        template = bound.template
        if place is None:
            found = self._choose_together(bound.search, template.text, tainted=False)
            if found is None or found[1] != template.text.lstrip(b" \t\n\v\f\r"):
                return None
            place = self._bound[bound] = found[0]
        parts = values.split(b"\0")
        if len(parts) != len(template.pieces) - 1:
            # one of them has a NUL
            return None
        return Postponed(place, Statement(template.text, parts, (), template))

    def _choose_together(self, search: Search, query: bytes, *, tainted: bool) -> tuple[Place, bytes] | None:
        name = search.type.name
        try:
            found = cast("TogetherDriver", self._query_driver(name)).postpone(search, query, tainted=tainted)
        except Deferral as error:
            raise SearchDeferral(query, str(error)) from None
        except Failure as error:
            raise ExpandError(str(error)) from None
        return None if found is None else (Place(name, found[0]), found[1])

    def run_together(self, place: Place, units: Sequence[Unit]) -> Progress:
        """Do postponed lookups of one place in order, as one transaction: see `TogetherDriver.run_together`."""
        self._enter()
        try:
            self._kept.forget_type(place.type)
            return cast("TogetherDriver", self._query_driver(place.type)).run_together(place.server, units)
        finally:
            self._busy.release()

    def _find_by_key(self, search: Search, key: bytes, path: bytes, scope: object) -> Found | None:
        name = search.type.name
        driver = self._key_drivers.get(name)
        if driver is None:
            module, cls, arguments = _KEY_DRIVERS[name]
            driver = self._key_drivers[name] = _load(name, module, cls)(**arguments)
        for wanted, groups in candidates(search, key):
            # an empty key is never looked for; the default of one is
            if not wanted:
                continue
            try:
                value = driver.look_up(search, wanted, path, scope)
            except OSError as error:
                raise Deferral(f"{_shown(path)}: {os.strerror(error.errno or 0)}") from None
            if value is not None:
                return Found(key if search.option("ret") == b"key" else value, groups=groups)
        return None


def _check_quoting(search: Search, query: bytes, tainted: bool, quoted_for: str | None) -> None:
    if tainted and search.type.quoter is not None and quoted_for != search.type.quoter:
        raise ExpandError(f"tainted search query is not properly quoted: {_shown(query)}")


def candidates(search: Search, key: bytes) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """The keys to look for in order, each with the wild and the fixed part it stands for (5.2).

    Of an affix that matches alone Exim loses the last octet of the wild part; so does this.
    """
    tries: list[tuple[bytes, tuple[bytes, ...]]] = [(key, (b"", key) if search.partial is not None else ())]
    if search.partial is not None:
        affix = search.affix
        if affix:
            tries.append((affix + key, (b"", key)))
        parts = key.split(b".", _MAX_LABELS)
        for taken in range(1, len(parts)):
            if len(parts) - taken < search.partial:
                break
            fixed = b".".join(parts[taken:])
            tries.append((affix + fixed, (b".".join(parts[:taken]), fixed)))
        alone = affix.removesuffix(b".")
        if search.partial == 0 and alone:
            tries.append((alone, (key[:-1], b"")))
    if search.star & Star.STAR_AT:
        local_part, _, domain = key.rpartition(b"@")
        if local_part:
            tries.append((b"*@" + domain, (local_part, b"")))
    if search.star & Star.STAR:
        tries.append((b"*", (key, b"")))
    return tries


def _found(name: str, result: Result | None) -> Found | None:
    if result is None:
        return None
    return Found(result.value, tainted=name == "dnsdb", authenticated=result.authenticated)


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")

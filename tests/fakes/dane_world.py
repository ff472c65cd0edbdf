"""An engine that finds its hosts and their TLSA records in signed zones, and mail hosts at addresses of their own.

Every host listens on the same port, each at its own loopback address (127.9.0.1, 127.9.0.2, …), as hosts in the field
all listen on 25.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio
from OpenSSL import SSL

from engine import app
from engine.actions.lookups.registry import LookupRegistry
from engine.config import loads
from engine.delivery.progress import Progress
from engine.delivery.settlement import Settlement
from engine.logs.mainlog import MainLogFormat, parse_selector
from engine.net.sink import Sink, SinkOptions, open_sink
from engine.queue.sqlite import SqliteStore
from engine.smtp.server import EXTENSIONS, ServerOptions
from engine.tls import tlsa
from engine.tls.context import server_context
from engine.tls.selfmade import Identity
from fakes.engine_world import Clock, RealClock, RecordingLog, World
from fakes.peers import free_port


class LaterClock(RealClock):
    """The time of the machine and `seconds` more, so that what is due then is due now."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __call__(self) -> float:
        return super().__call__() + self.seconds


@contextlib.contextmanager
def dane_world(
    directory: Path,
    nameserver: str,
    port: int,
    *,
    main: str = "",
    transport: str = "",
    dns: str = "",
    retry: str = "F,1h,1s",
    router: str = 'driver = "dnslookup"',
    clock: Clock | None = None,
) -> Iterator[World]:
    """An engine that routes by DNS (or as `router` says) and delivers to `port`; its store is closed at the end."""
    config = loads(
        (
            f'[main]\nprimary_hostname = "client.example"\nqueue = "sqlite://{directory}/queue.db"\n{main}\n'
            f'[dns]\nnameservers = ["{nameserver}"]\n{dns}\n'
            f'[[routers]]\nname = "dnslookup"\n{router}\nself = "send"\ntransport = "smtp"\n'
            f'[transports.smtp]\ndriver = "smtp"\nport = {port}\n{transport}\n'
            f'[[retry]]\npattern = "*"\nrule = "{retry}"\n'
        ).encode()
    )
    clock, log = clock or RealClock(), RecordingLog()
    store = SqliteStore(str(directory / "queue.db"))
    try:
        core = app.make_core(app.compile_config(config), store, log, LookupRegistry(), Progress(), clock, Random(1))
        core.settlement = Settlement(
            core.database, core.engine, log, core.retries, clock, core.on_settled, core.completion_of_job
        )
        yield World(core, store, clock, log)
    finally:
        store.close()


def log_lines(world: World, selector: str = "+dnssec +tls_peerdn") -> list[str]:
    """The lines of the main log, without their time and message id, and without the one about a DNS that signs nothing,
    which comes when it comes."""
    made = MainLogFormat(parse_selector(selector))
    rows = [made.line(fact).split(" ", 2 + bool(fact.message_id)) for fact in world.log.facts]
    return [row[-1] for row in rows if not row[-1].startswith("DNS: ")]


def record(
    identity: Identity, usage: int, selector: int, matching: int, *, index: int = 0
) -> tuple[int, int, int, bytes]:
    """The fields of a TLSA record for certificate `index` of what the identity sends."""
    made = tlsa.make(identity.chain_der[index], usage, selector, matching)
    return usage, selector, matching, made.data


def wrong(usage: int, selector: int, matching: int) -> tuple[int, int, int, bytes]:
    """The fields of a TLSA record that names nothing."""
    return usage, selector, matching, hashlib.sha256(b"nothing").digest() * (2 if matching == 2 else 1)


@dataclass
class MailHost:
    """A mail host: where it is, and what it shows.

    Attributes:
        context: makes what it shows instead of `identity`.
        names: what SNI asked it for, one a handshake.
        sink: once it listens.
    """

    address: str
    identity: Identity | None
    context: Callable[[], SSL.Context] | None = None
    names: list[str] = field(default_factory=list)
    sink: Sink | None = None

    @property
    def messages(self) -> int:
        assert self.sink is not None
        return self.sink.counts.messages


class MailHosts:
    """Hosts that all listen on one port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.hosts: list[MailHost] = []

    def add(self, identity: Identity | None, context: Callable[[], SSL.Context] | None = None) -> MailHost:
        """One more host; without an identity or a context it offers no STARTTLS."""
        host = MailHost(f"127.9.{len(self.hosts) // 200}.{len(self.hosts) % 200 + 1}", identity, context)
        self.hosts.append(host)
        return host

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """All of them listen while the block runs."""
        async with contextlib.AsyncExitStack() as stack:
            for host in self.hosts:
                host.sink = await stack.enter_async_context(open_sink(_options(host, self.port)))
            yield
            await trio.lowlevel.checkpoint()


def _options(host: MailHost, port: int) -> SinkOptions:
    context = host.context() if host.context is not None else None
    if context is None and host.identity is not None:
        context = server_context(host.identity)
    if context is None:
        plain = tuple(name for name in EXTENSIONS if name != "STARTTLS")
        return SinkOptions(host=host.address, port=port, server=ServerOptions(extensions=plain), track=True)
    names = host.names
    context.set_tlsext_servername_callback(
        lambda connection: names.append((connection.get_servername() or b"").decode())
    )
    return SinkOptions(host=host.address, port=port, tls=context, track=True)

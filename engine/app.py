"""The composition root: from a configuration to an engine that runs.

Layer: application.  Spec: design.md "Layers and rooms": only this module constructs things.
Whoever wants to send mail from Python starts here: `check` a configuration, `open_engine`, then `delivery.run.run`.
Invariants: everything that can be wrong with a configuration is found by `compile_config`, before a file is opened or a
packet sent; nothing is global, so two engines can live in one process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .actions.hub import OBSERVERS
from .actions.lookups.registry import LookupOptions, LookupRegistry
from .actions.options import check as check_workers
from .actions.options import settings_of, sockets_of
from .actions.workers import Workers
from .delivery.core import Core
from .delivery.events import Events
from .delivery.jobs import Jobs
from .delivery.leases import Leases
from .delivery.limits import Limits
from .delivery.progress import Progress
from .delivery.reporting import Reporting
from .delivery.retries import Retries
from .delivery.routing import RouterChain
from .delivery.routing.expansion import EngineExpander
from .delivery.settlement import StoreThread
from .delivery.sts import StsGate
from .delivery.transport import Transport
from .errors import ConfigError, DataError
from .events import compile_actions
from .events.choice import split
from .expand import ExpandOptions, Scope
from .expand.acl import Acls
from .expand.lists import NamedLists
from .logs.facts import Fact, FactKind
from .logs.mainlog import MainLogFormat, parse_selector
from .logs.tlsrpt import TlsrptLog
from .logs.writer import LogFile, LogWriter
from .net.resolver import Resolver
from .net.sts_cache import StsPolicies
from .net.sts_fetch import StsFetcher
from .net.system_hosts import LocalAddresses, SystemHosts
from .net.tlsa_lookup import TlsaLookup
from .queue._database import queue_path
from .queue.rules import RetryRules
from .queue.sqlite import open_store
from .tls.context import TlsContexts
from .values import parse_domain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .config import Config
    from .events import Actions
    from .queue.store import Store


@dataclass(frozen=True, slots=True)
class Compiled:
    """A configuration with everything in it compiled.

    Attributes:
        host_name: primary_hostname, or the system's name.
        actions: transport, "" for [main] -> what the string of its `event_action` does.
        choices: transport, "" for [main] -> whose handlers get its events; all where it is not there.
    """

    config: Config
    host_name: str
    resolver: Resolver
    acls: Acls
    routers: RouterChain
    transports: dict[str, Transport]
    rules: RetryRules
    log_format: MainLogFormat
    actions: dict[str, Actions]
    choices: dict[str, tuple[str, ...]]


def compile_config(
    config: Config, *, rng: random.Random | None = None, resolver_type: type[Resolver] = Resolver
) -> Compiled:
    """Compile every expansion, list, rule and server name of a configuration.

    Args:
        rng: shuffles hosts and spreads retries.
        resolver_type: `Resolver`, or what watches one at work.

    Raises:
        ConfigError: naming file, key and column of what is wrong.
    """
    try:
        named = named_lists(config)
        dns = config.dns
        resolver = resolver_type(
            dns.nameservers, trust_ad=_trust_ad(dns.trust_ad), timeout_s=dns.timeout, cache_size=dns.cache_size
        )
        check_workers(config)
        try:
            sts_fetcher(config, resolver).check()
        except ConfigError as error:
            raise ConfigError(error.message, key="mta_sts.verify_certificates") from None
        transports = {
            name: Transport.compile(name, options, named, config.file) for name, options in config.transports.items()
        }
        actions, choices = event_actions(config, named)
        return Compiled(
            config=config,
            host_name=host_name(config),
            resolver=resolver,
            acls=Acls.compile(config.acls, options=ExpandOptions(lists=named)),
            routers=RouterChain(
                config.routers,
                resolver,
                expander=EngineExpander(named),
                system_hosts=SystemHosts(timeout_s=dns.timeout),
                transports=tuple(transports),
                local_addresses=LocalAddresses(),
                random=rng,
            ),
            transports=transports,
            rules=RetryRules.compile(config.retry),
            log_format=MainLogFormat(parse_selector(config.main.log_selector)),
            actions=actions,
            choices=choices,
        )
    except ConfigError as error:
        if error.file is None and config.file:
            error.file = config.file
        raise


def event_actions(config: Config, named: NamedLists) -> tuple[dict[str, Actions], dict[str, tuple[str, ...]]]:
    """What the `event_action` of each transport, and that of [main] as "", does, and whose handlers get its events.

    Raises:
        ConfigError: a string does not compile, or there is no such handler.
    """
    groups = tuple(socket.group for socket in sockets_of(config) if socket.group != OBSERVERS)
    options = {"": ("main.event_action", config.main.event_action)} | {
        name: (f"transports.{name}.event_action", transport.event_action)
        for name, transport in config.transports.items()
    }
    actions: dict[str, Actions] = {}
    choices: dict[str, tuple[str, ...]] = {}
    for transport, (key, value) in options.items():
        text, chosen = split(value, key=key, file=config.file, handlers=config.handlers, groups=groups)
        found = compile_actions(text, key=key, transport=transport, file=config.file, named=named)
        if found:
            actions[transport] = found
        if chosen is not None:
            choices[transport] = chosen
    return actions, choices


def make_workers(config: Config) -> Workers | None:
    """What runs event actions beside the engine; None where the configuration has neither workers nor sockets."""
    options, sockets = config.actions, sockets_of(config)
    if not options.workers and not sockets:
        return None
    return Workers(
        options.workers,
        sockets=sockets,
        settings=settings_of(config, lookup_options(config)),
        window=options.worker_window,
        silence_s=options.worker_timeout,
        deaths=options.worker_deaths,
    )


def check(config: Config) -> None:
    """See that a configuration can be used.

    Raises:
        ConfigError: as `compile_config` does, or its queue is of a kind that there is not.
    """
    compile_config(config)
    try:
        queue_path(config.main.queue)
    except ConfigError as error:
        raise ConfigError(error.message, file=config.file or None, key="main.queue") from None


def _trust_ad(value: str) -> Any:
    return value  # the option table allows just the values that the resolver knows


def host_name(config: Config) -> str:
    """The name of this host: `primary_hostname`, or the system's.  Raises ConfigError."""
    name = config.main.primary_hostname or socket.getfqdn()
    try:
        return parse_domain(name)
    except DataError as error:
        if config.main.primary_hostname:
            raise ConfigError(str(error), key="main.primary_hostname") from None
        return "localhost"


@contextlib.contextmanager
def open_engine(
    config: Config,
    *,
    progress: Progress | None = None,
    log_to_stderr: bool = True,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    may_be_alone: bool = True,
) -> Iterator[Core]:
    """An engine over the queue of the configuration, registered and ready for `delivery.run.run`.

    Args:
        progress: counts what happens; a new one by default.
        log_to_stderr: whether the main log goes to standard error where the configuration names no file.
        clock: UTC epoch seconds.
        may_be_alone: whether it may be the only one on its queue; False saves one of several from finding out.

    Raises:
        ConfigError: the configuration cannot be used, or a log file cannot be opened.
        StoreError: the queue cannot be opened.
    """
    compiled = compile_config(config, rng=rng)
    with contextlib.ExitStack() as stack:
        log = open_log(compiled, log_to_stderr=log_to_stderr)
        stack.callback(log.close)
        store = open_store(config.main.queue)
        stack.callback(store.close)
        lookups = LookupRegistry(lookup_options(config))
        stack.callback(lookups.close)
        core = make_core(
            compiled,
            store,
            log,
            lookups,
            progress or Progress(),
            clock,
            rng or random.Random(),
            may_be_alone=may_be_alone,
        )
        if core.events is not None:
            # a database that is slow or away holds up no lookup that mail waits for
            own = LookupRegistry(lookup_options(config))
            stack.callback(own.close)
            core.events.use_lookups(own)
        yield core


def spare_collector() -> None:
    """Let Python look for cycles of references less often: for a process that is an engine and nothing else.

    A delivery makes some dozens of objects and no cycle, and tens of thousands of recipients wait in memory: to go
    through all of these again and again took a tenth of an engine's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def open_log(compiled: Compiled, *, log_to_stderr: bool = True) -> LogWriter:
    """The main log, the records and the panic log of a configuration.  Raises ConfigError if one cannot be opened."""
    main = compiled.config.main
    file = LogFile(main.log_file) if main.log_file or log_to_stderr else None
    records = LogFile(main.json_log_file) if main.json_log_file else None
    panic = LogFile(main.panic_log_file) if main.panic_log_file else None
    return LogWriter(compiled.log_format, file, records, panic)


def make_core(
    compiled: Compiled,
    store: Store,
    log: LogWriter,
    lookups: LookupRegistry,
    progress: Progress,
    clock: Callable[[], float],
    rng: random.Random,
    *,
    may_be_alone: bool = True,
) -> Core:
    """Put an engine together and register it with the queue.  Raises StoreError."""
    config, name = compiled.config, compiled.host_name
    database = StoreThread(store)

    def logwrite(text: bytes, _: frozenset[str]) -> None:
        log.write([Fact(FactKind.NOTE, clock(), text=text.decode("utf-8", "backslashreplace"))])

    def make_scope(variables: dict[str, object]) -> Scope:
        return Scope(
            {"primary_hostname": name, **variables},
            lookups=lookups,
            acls=compiled.acls,
            now=clock,
            random=rng.randrange,
            logwrite=logwrite,
            strict_acl_vars=config.main.strict_acl_vars,
        )

    engine = store.register(clock())
    core = Core(
        config=config,
        host_name=name,
        clock=clock,
        database=database,
        engine=engine,
        log=log,
        retries=Retries(compiled.rules, config.main, rng.random),
        routers=compiled.routers,
        transports=compiled.transports,
        contexts=TlsContexts(clock=clock),
        tlsa=TlsaLookup(compiled.resolver),
        sts=StsGate(
            StsPolicies(
                sts_directory(config), compiled.resolver, sts_fetcher(config, compiled.resolver).fetch, clock=clock
            ),
            config.routers,
            compiled.transports,
            make_scope,
            compiled.routers.threads,
        ),
        reporting=Reporting(tlsrpt_log(config), compiled.resolver),
        jobs=Jobs(database, name),
        leases=Leases(),
        limits=Limits(database, engine, clock, may_be_alone=may_be_alone),
        progress=progress,
        make_scope=make_scope,
        threads=compiled.routers.threads,
    )
    workers = make_workers(config)
    if compiled.actions or workers is not None:
        core.events = Events(core, compiled.actions, compiled.choices, workers)
        compiled.resolver.on_failure = core.events.on_dns_failed
    return core


def named_lists(config: Config) -> NamedLists:
    """What `+name` means in the lists of a configuration."""
    return NamedLists(
        domains=config.lists.get("domainlist", {}),
        hosts=config.lists.get("hostlist", {}),
        addresses=config.lists.get("addresslist", {}),
        local_parts=config.lists.get("localpartlist", {}),
    )


def lookup_options(config: Config) -> LookupOptions:
    """Where the lookups of a configuration find their servers."""
    actions, dns = config.actions, config.dns
    return LookupOptions(
        pgsql_servers=actions.pgsql_servers,
        mysql_servers=actions.mysql_servers,
        redis_servers=actions.redis_servers,
        sqlite_dbfile=actions.sqlite_dbfile,
        nameservers=dns.nameservers,
        trust_ad=dns.trust_ad,
    )


def sts_directory(config: Config) -> str:
    """Where MTA-STS policies are kept."""
    if config.mta_sts.directory:
        return config.mta_sts.directory
    path = "/" + config.main.queue.partition("://")[2].lstrip("/")
    return os.path.join(os.path.dirname(path), "mta-sts")


def sts_fetcher(config: Config, resolver: Resolver) -> StsFetcher:
    """What fetches them."""
    options = config.mta_sts
    return StsFetcher(resolver, trust_anchors=options.verify_certificates, port=options.port)


def tlsrpt_log(config: Config) -> TlsrptLog | None:
    """Where results of TLS go, if they are to go anywhere."""
    options = config.tlsrpt
    return TlsrptLog(options.directory, options.collector) if options.directory or options.collector else None


def with_queue(config: Config, queue: str | None) -> Config:
    """The configuration with another queue, if one is given."""
    return config if queue is None else replace(config, main=replace(config.main, queue=queue))

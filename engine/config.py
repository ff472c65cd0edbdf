"""The configuration: one TOML file, checked against the option table.

Layer: leaf.  Spec: design.md "Configuration"; option names and defaults are Exim's (events-dane section 6).
The table *is* the dataclasses below: a field is an option, its metadata give kind and documentation, and
`outrider config options` prints it.  Unknown keys, wrong types and impossible values are a `ConfigError` naming file
and key, raised before anything runs.
Invariants: loading reads one file and nothing else; a loaded `Config` never changes; strings that are expansions or
lists are kept as text here and compiled by the room that uses them.
Long because what can be configured is one table, looked for in one place.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .errors import ConfigError
from .values import parse_interval, parse_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_T = TypeVar("_T")

#: what TCP can say
MAX_PORT: Final = 65535

#: an Exim list as one string (separators and all), or a TOML array with an item each
ListText = str | tuple[str, ...]


class Kind(enum.Enum):
    """What a value may be in the file, and how a person is told of it."""

    STRING = "string"
    EXPANSION = "string (expansion)"
    #: compiled once for each event, by engine.events
    EVENT_ACTION = "string (expansion for each event), or array of names of handlers and one such string"
    FILE = "file name"
    BOOLEAN = "boolean"
    INTEGER = "whole number"
    INTERVAL = "time interval"
    SIZE = "size in octets"
    RATE = "rate"
    EXPANDED_INTEGER = "whole number (expansion)"
    LIST = "list"
    EXPANDED_LIST = "list (expansion)"


def _option(
    kind: Kind,
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: int = 0,
    maximum: int | None = None,
) -> Any:
    metadata = {"kind": kind, "doc": doc, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=metadata | {"array": isinstance(default, tuple)})


def _required(kind: Kind, doc: str, *, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"kind": kind, "doc": doc, "choices": choices, "minimum": 0, "required": True}
    return field(default="", metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class MainOptions:
    """`[main]`: what holds for the whole engine."""

    primary_hostname: str = _option(
        Kind.STRING, "", "name of this host, in EHLO and message ids; default: the system's"
    )
    queue: str = _option(Kind.STRING, "sqlite:///var/spool/outrider/queue.db", "URL of the queue")
    log_file: str = _option(Kind.FILE, "", "main log; default: standard error, or none where a progress bar is shown")
    json_log_file: str = _option(Kind.FILE, "", "the same facts as JSON lines; default: none")
    panic_log_file: str = _option(Kind.FILE, "", "lines that somebody has to look at, a second time; default: none")
    log_selector: str = _option(Kind.STRING, "", "log details to add or drop, as in `+delivery_size -tls_cipher`")
    max_connections: int = _option(
        Kind.INTEGER, 500, "most connections open at one time, over all hosts and all engines of the queue", minimum=1
    )
    claim_size: int = _option(Kind.INTEGER, 500, "recipients taken from the queue in one batch", minimum=1)
    lease_time: int = _option(
        Kind.INTERVAL, 900, "how long a claim holds before another engine may take it", minimum=30
    )
    shutdown_timeout: int = _option(Kind.INTERVAL, 20, "how long a stop waits for transactions in flight")
    in_doubt_delay: int = _option(Kind.INTERVAL, 300, "wait before sending again what may have been delivered")
    job_expiry: int = _option(Kind.INTERVAL, 5 * 86400, "age at which what is left of a job fails; 0: never")
    retry_interval_max: int = _option(Kind.INTERVAL, 86400, "longest interval a retry rule can give", minimum=1)
    retry_data_expire: int = _option(Kind.INTERVAL, 7 * 86400, "age at which a retry record is forgotten", minimum=1)
    strict_acl_vars: bool = _option(Kind.BOOLEAN, False, "an ACL variable that nothing has set is an error, not empty")
    event_action: ListText = _option(
        Kind.EVENT_ACTION, "", "expanded at each event of no transport; an array: only these handlers get it"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsOptions:
    """`[dns]`: whom to ask, and whom to believe."""

    nameservers: tuple[str, ...] = _option(Kind.LIST, (), "`address` or `address:port`; default: the system's")
    trust_ad: str = _option(
        Kind.STRING, "loopback", "whose AD bit is believed", choices=("loopback", "always", "never")
    )
    timeout: int = _option(Kind.INTERVAL, 15, "how long a question may take over all servers", minimum=1)
    cache_size: int = _option(Kind.INTEGER, 50_000, "most answers kept", minimum=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionsOptions:
    """`[actions]`: the workers that run event actions, and where lookups find their servers."""

    workers: int = _option(Kind.INTEGER, 0, "action workers that the engine starts; 0: none")
    worker_sockets: tuple[str, ...] = _option(
        Kind.LIST, (), "`group:/path` of sockets where workers attach themselves; the group `tail` only looks on"
    )
    worker_socket_mode: str = _option(Kind.STRING, "0600", "permission bits of these sockets, octal")
    worker_users: tuple[str, ...] = _option(Kind.LIST, (), "users that may attach workers beside root and the engine's")
    worker_timeout: int = _option(
        Kind.INTERVAL, 300, "how long a worker that has work may say nothing before it is replaced", minimum=1
    )
    worker_window: int = _option(Kind.INTEGER, 10_000, "events that a worker may hold unacknowledged", minimum=1)
    worker_nice: int = _option(
        Kind.INTEGER,
        10,
        "nice value of the engine's own workers while they handle what nobody waits for, so that mail goes first",
        minimum=0,
        maximum=19,
    )
    worker_deaths: int = _option(
        Kind.INTEGER, 3, "workers that an event may crash, alone with each, before it is a dead letter", minimum=1
    )
    event_timeout: int = _option(Kind.INTERVAL, 5, "how long a step waits for the expansion of its event", minimum=1)
    event_timeout_action: str = _option(
        Kind.STRING,
        "ignore",
        "what no answer in time means: as an expansion that fails, or the step is refused where it can be",
        choices=("ignore", "refuse"),
    )
    give_up: int = _option(
        Kind.INTERVAL, 86_400, "how long a stored event whose lookup cannot be done is tried again", minimum=1
    )
    lookup_batch: int = _option(
        Kind.INTEGER,
        250,
        "stored events whose SQL lookups share a transaction, where nobody reads their results; 1: each has its own",
        minimum=1,
        maximum=500,
    )
    outbox_limit: int = _option(
        Kind.INTEGER, 1_000_000, "stored events at which nothing new is delivered until some have run", minimum=1
    )

    pgsql_servers: ListText = _option(Kind.LIST, "", "PostgreSQL servers, `host/database/user/password`")
    mysql_servers: ListText = _option(Kind.LIST, "", "MySQL servers, `host/database/user/password`")
    redis_servers: ListText = _option(Kind.LIST, "", "Redis servers, `host/number/password`")
    sqlite_dbfile: str = _option(Kind.FILE, "", "SQLite file for lookups that name none")


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaStsOptions:
    """`[mta_sts]`: where policies are kept, and how their hosts are verified."""

    directory: str = _option(Kind.FILE, "", "where policies are kept; default: `mta-sts` beside the queue")
    verify_certificates: str = _option(
        Kind.STRING, "system", "trust anchors for policy hosts: `system`, a file or a directory"
    )
    port: int = _option(
        Kind.INTEGER, 443, "port of policy hosts; another one only in closed networks", minimum=1, maximum=MAX_PORT
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsrptOptions:
    """`[tlsrpt]`: results of TLS, for reports to the domains that ask for them."""

    directory: str = _option(Kind.FILE, "", "where results are kept for `outrider tlsrpt`; default: nowhere")
    collector: str = _option(Kind.FILE, "", "socket of the collector of tlsrpt-reporter; default: none")
    organization: str = _option(Kind.STRING, "", "who reports; default: primary_hostname")
    contact: str = _option(Kind.STRING, "", "whom to ask about a report; default: postmaster at primary_hostname")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """`[handlers.NAME]`: what is done with events, without code; it runs in the action workers."""

    driver: str = _required(Kind.STRING, "what is done with them", choices=("jsonl", "sql", "webhook", "redis", "nats"))
    events: tuple[str, ...] = _option(Kind.LIST, ("*",), "which events; `*` in a name stands for anything")
    batch: int = _option(Kind.INTEGER, 100, "most events handled at one time", minimum=1)
    linger_ms: int = _option(Kind.INTEGER, 50, "milliseconds to wait for a batch to fill up")
    attempts: int = _option(Kind.INTEGER, 20, "attempts before an event becomes a dead letter", minimum=1)
    timeout: int = _option(Kind.INTERVAL, 30, "for each step with a server", minimum=1)
    file: str = _option(Kind.FILE, "", "jsonl: absolute path of the file to append to")
    sync: bool = _option(Kind.BOOLEAN, False, "jsonl: whether each batch is on disk before it counts as handled")
    url: str = _option(
        Kind.STRING, "", "sql: `postgresql://`, `mysql://`, `sqlite:///`; webhook: `https://`; redis, nats: the server"
    )
    statement: str = _option(Kind.STRING, "", "sql: one statement, with `:name` for values, `:event_name`, `:event_id`")
    secret: str = _option(Kind.STRING, "", "webhook: key of the signature (HMAC-SHA256)")
    headers: tuple[str, ...] = _option(Kind.LIST, (), "webhook: further headers, `Name: value` each")
    stream: str = _option(Kind.STRING, "", "redis: key of the stream")
    max_length: int = _option(Kind.INTEGER, 0, "redis: entries kept in the stream, about; 0: all")
    subject: str = _option(Kind.STRING, "", "nats: what subjects begin with; the event's name follows")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOptions:
    """`[[routers]]`: in order, the first whose conditions hold decides."""

    name: str = _required(Kind.STRING, "name in the log")
    driver: str = _required(Kind.STRING, "how hosts are found", choices=("dnslookup", "manualroute"))
    domains: ListText = _option(Kind.EXPANDED_LIST, "*", "domains this router handles")
    local_parts: ListText = _option(Kind.EXPANDED_LIST, "*", "local parts this router handles")
    condition: str = _option(Kind.EXPANSION, "", "must not expand to empty, 0, no or false")
    transport: str = _required(Kind.STRING, "transport that delivers")
    self_: str = _option(Kind.STRING, "defer", "what a host that is ourselves means", choices=("defer", "fail", "send"))
    ignore_target_hosts: ListText = _option(Kind.EXPANDED_LIST, "", "addresses and hosts never used")
    more: bool = _option(Kind.BOOLEAN, True, "whether the next router is tried when this one declines (no_more: false)")
    pass_on_timeout: bool = _option(Kind.BOOLEAN, False, "whether the next router is tried when DNS gives no answer")
    mx_domains: ListText = _option(Kind.EXPANDED_LIST, "", "dnslookup: domains that must have MX records")
    route_list: ListText = _option(Kind.LIST, "", "manualroute: `domain-pattern host-list options`, one rule an item")
    route_data: str = _option(Kind.EXPANSION, "", "manualroute: `host-list options` for every domain")
    hosts_randomize: bool = _option(Kind.BOOLEAN, False, "manualroute: try the hosts in random order")
    host_find_failed: str = _option(
        Kind.STRING,
        "freeze",
        "manualroute: what a host without address means",
        choices=("decline", "defer", "fail", "freeze", "ignore", "pass"),
    )
    dnssec_request_domains: ListText = _option(Kind.EXPANDED_LIST, "*", "domains whose answers should be signed")
    dnssec_require_domains: ListText = _option(Kind.EXPANDED_LIST, "", "domains whose answers must be signed")
    port: int = _option(Kind.INTEGER, 0, "port where the host list gives none; 0: the transport's")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """`[transports.NAME]`: how a message is sent."""

    driver: str = _required(Kind.STRING, "how it is sent", choices=("smtp",))
    port: int = _option(Kind.INTEGER, 25, "port where the router gives none", minimum=1, maximum=MAX_PORT)
    interface: str = _option(Kind.STRING, "", "local address to send from")
    helo_data: str = _option(Kind.EXPANSION, "$primary_hostname", "name said in EHLO")
    connect_timeout: int = _option(Kind.INTERVAL, 300, "for the TCP connection", minimum=1)
    command_timeout: int = _option(Kind.INTERVAL, 300, "for the reply to a command", minimum=1)
    data_timeout: int = _option(Kind.INTERVAL, 300, "for each block of data to be taken", minimum=1)
    final_timeout: int = _option(Kind.INTERVAL, 600, "for the reply to the end of data", minimum=1)
    connection_max_messages: int = _option(Kind.INTEGER, 500, "messages on one connection; 0: no limit")
    connections_per_host: int = _option(
        Kind.INTEGER, 20, "most connections open to one host, over all engines of the queue", minimum=1
    )
    connection_rate_per_host: str = _option(
        Kind.RATE, "", "connections begun to one host in a time, such as `10/s` or `1/10s`; default: no limit"
    )
    message_rate_per_host: str = _option(
        Kind.RATE, "", "messages begun at one host in a time, such as `100/s` or `3000/h`; default: no limit"
    )
    max_rcpt: int = _option(Kind.INTEGER, 100, "recipients in one transaction; 0: no limit")
    hosts_max_try: int = _option(Kind.INTEGER, 5, "hosts tried for one message (RT-13)", minimum=1)
    hosts_max_try_hardlimit: int = _option(Kind.INTEGER, 50, "hosts tried whatever their state (RT-13)", minimum=1)
    pipeline_window: str = _option(
        Kind.EXPANDED_INTEGER, "4", "transactions in flight on a connection that has earned it", minimum=1
    )
    pipeline_size: int = _option(
        Kind.SIZE,
        64 << 10,
        "octets in flight on such a connection; larger content is sent when its recipients were accepted",
        minimum=1024,
    )
    hosts_avoid_pipelining: ListText = _option(Kind.EXPANDED_LIST, "", "hosts spoken to one command at a time")
    dnssec_request_domains: ListText = _option(
        Kind.EXPANDED_LIST, "*", "hosts whose DNSSEC status is heeded, as DANE needs it"
    )
    dnssec_require_domains: ListText = _option(Kind.EXPANDED_LIST, "", "hosts whose address must be signed")
    hosts_try_dane: ListText = _option(Kind.EXPANDED_LIST, "*", "hosts for which DANE is used where it is published")
    hosts_require_dane: ListText = _option(Kind.EXPANDED_LIST, "", "hosts that get no mail without DANE")
    dane_require_tls_ciphers: str = _option(
        Kind.EXPANSION, "", "OpenSSL cipher list for DANE; default: tls_require_ciphers"
    )
    dane_insecure_mx: str = _option(
        Kind.STRING,
        "dane",
        "what TLSA records are worth where the MX records are not signed",
        choices=("may", "encrypt", "dane"),
    )
    dane_trust_host_list: bool = _option(
        Kind.BOOLEAN, True, "whether a host named in the configuration counts as named by a signed MX record (R14)"
    )
    hosts_request_ocsp: ListText = _option(
        Kind.EXPANDED_LIST, "*", "hosts asked for a stapled OCSP response; `*` leaves out those with DANE-EE records"
    )
    hosts_require_ocsp: ListText = _option(
        Kind.EXPANDED_LIST, "", "hosts that get no mail without a good stapled OCSP response"
    )
    mta_sts_domains: ListText = _option(
        Kind.EXPANDED_LIST, "*", "recipients' domains whose MTA-STS policy is heeded where DANE has no say"
    )
    hosts_avoid_tls: ListText = _option(Kind.EXPANDED_LIST, "", "hosts to which STARTTLS is never sent")
    hosts_require_tls: ListText = _option(Kind.EXPANDED_LIST, "", "hosts that get no mail in clear")
    tls_tempfail_tryclear: bool = _option(Kind.BOOLEAN, True, "a failed TLS start may be retried in clear (TL-3, TL-7)")
    tls_require_ciphers: str = _option(Kind.EXPANSION, "", "OpenSSL cipher list")
    tls_sni: str = _option(Kind.EXPANSION, "", "name sent in the SNI extension; default: the host's")
    tls_verify_certificates: str = _option(Kind.EXPANSION, "system", "trust anchors: `system`, a file or a directory")
    tls_crl: str = _option(Kind.EXPANSION, "", "revocation lists: a file or a directory")
    tls_certificate: str = _option(Kind.EXPANSION, "", "file with the certificate to show as a client")
    tls_privatekey: str = _option(Kind.EXPANSION, "", "file with its private key; default: that of the certificate")
    tls_verify_cert_hostnames: ListText = _option(
        Kind.EXPANDED_LIST, "*", "hosts whose certificate must have their name where it is verified"
    )
    tls_verify_hosts: ListText = _option(Kind.EXPANDED_LIST, "", "hosts whose certificate must verify")
    tls_try_verify_hosts: ListText = _option(
        Kind.EXPANDED_LIST, "*", "hosts whose certificate is verified, failure tolerated"
    )
    hosts_require_auth: ListText = _option(Kind.EXPANDED_LIST, "", "hosts that get no mail unauthenticated")
    hosts_try_auth: ListText = _option(Kind.EXPANDED_LIST, "", "hosts to which we authenticate where they offer it")
    auth_username: str = _option(Kind.EXPANSION, "", "user name for AUTH")
    auth_password: str = _option(Kind.EXPANSION, "", "password for AUTH")
    auth_mechanisms: tuple[str, ...] = _option(
        Kind.LIST, ("SCRAM-SHA-256", "PLAIN", "LOGIN"), "mechanisms in order of preference"
    )
    auth_in_clear: bool = _option(Kind.BOOLEAN, False, "whether AUTH may be used without TLS")
    address_retry_include_sender: bool = _option(Kind.BOOLEAN, True, "recipient retry keys hold the sender (11.2)")
    delay_after_cutoff: bool = _option(Kind.BOOLEAN, True, "one try after expiry when the retry time has come (RT-11)")
    event_action: ListText = _option(
        Kind.EVENT_ACTION, "", "expanded at each event of this transport; an array: only these handlers get it"
    )
    event_certificates: str = _option(
        Kind.STRING,
        "all",
        "certificates that `tls:cert` is raised for: all of the chain, or those that came over the wire",
        choices=("all", "wire"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """`[[retry]]`: when a deferred delivery is tried again; the first rule whose pattern and error match."""

    pattern: str = _required(Kind.STRING, "host, domain or address pattern")
    error: str = _option(Kind.STRING, "*", "error name, such as `refused_MX` or `rcpt_4xx`")
    rule: str = _required(Kind.STRING, "`F,cutoff,interval; G,cutoff,start,factor; H,…`")


DEFAULT_ROUTERS: Final = (RouterOptions(name="dnslookup", driver="dnslookup", transport="remote_smtp"),)
DEFAULT_TRANSPORTS: Final = {"remote_smtp": TransportOptions(driver="smtp")}
DEFAULT_RETRY: Final = (RetryOptions(pattern="*", rule="F,2h,15m; G,16h,1h,1.5; F,4d,6h"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A checked configuration.

    Attributes:
        acls: name -> text of an ACL.
        lists: ``kind_name`` -> items, for `+name` in lists; kind is domainlist, hostlist, addresslist, localpartlist.
        macros: NAME -> text, for `outrider expand`.
        file: path it was read from, or "" for the built-in defaults.
    """

    main: MainOptions = field(default_factory=MainOptions)
    dns: DnsOptions = field(default_factory=DnsOptions)
    actions: ActionsOptions = field(default_factory=ActionsOptions)
    mta_sts: MtaStsOptions = field(default_factory=MtaStsOptions)
    tlsrpt: TlsrptOptions = field(default_factory=TlsrptOptions)
    routers: tuple[RouterOptions, ...] = field(default_factory=lambda: DEFAULT_ROUTERS)
    transports: Mapping[str, TransportOptions] = field(default_factory=lambda: DEFAULT_TRANSPORTS)
    retry: tuple[RetryOptions, ...] = field(default_factory=lambda: DEFAULT_RETRY)
    handlers: Mapping[str, HandlerOptions] = field(default_factory=dict)
    acls: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, Mapping[str, ListText]] = field(default_factory=dict)
    macros: Mapping[str, str] = field(default_factory=dict)
    file: str = ""


LIST_KINDS: Final = ("domainlist", "hostlist", "addresslist", "localpartlist")

#: section name -> table of its options, for `outrider config options`
SECTIONS: Final = {
    "main": MainOptions,
    "dns": DnsOptions,
    "actions": ActionsOptions,
    "mta_sts": MtaStsOptions,
    "tlsrpt": TlsrptOptions,
    "routers": RouterOptions,
    "transports": TransportOptions,
    "retry": RetryOptions,
    "handlers": HandlerOptions,
}
_FREE_TABLES: Final = ("acls", "lists", "macros")


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One row of the option table, for printing."""

    section: str
    name: str
    kind: Kind
    default: object
    doc: str
    choices: tuple[str, ...]
    required: bool


def options() -> Iterator[OptionInfo]:
    """Every option of every section, in the order of the table."""
    for section, table in SECTIONS.items():
        for row in dataclasses.fields(table):
            yield OptionInfo(
                section,
                _file_name(row.name),
                row.metadata["kind"],
                row.default,
                row.metadata["doc"],
                row.metadata["choices"],
                row.metadata.get("required", False),
            )


def load(path: str) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or says something the table does not allow.
    """
    try:
        with open(path, "rb") as file:
            return loads(file.read(), path)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from None


def loads(text: bytes, file: str = "") -> Config:
    """Check a configuration given as text.  Raises ConfigError as `load` does."""
    try:
        document = tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at octet {error.start}", file=file) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}", file=file) from None
    return _Reader(file).config(document)


class _Reader:
    """Turns the parsed document into options, keeping file and key for the errors."""

    def __init__(self, file: str) -> None:
        self._file = file

    def config(self, document: dict[str, Any]) -> Config:
        known = (*SECTIONS, *_FREE_TABLES)
        for key in document:
            if key not in known:
                raise self._unknown(key, key, known)
        transports = {
            name: self._table(TransportOptions, f"transports.{name}", value)
            for name, value in self._dict("transports", document.get("transports", {})).items()
        }
        routers = tuple(
            self._table(RouterOptions, f"routers[{number}]", value)
            for number, value in enumerate(self._array("routers", document.get("routers", [])))
        )
        retry = tuple(
            self._table(RetryOptions, f"retry[{number}]", value)
            for number, value in enumerate(self._array("retry", document.get("retry", [])))
        )
        config = Config(
            main=self._table(MainOptions, "main", document.get("main", {})),
            dns=self._table(DnsOptions, "dns", document.get("dns", {})),
            actions=self._table(ActionsOptions, "actions", document.get("actions", {})),
            mta_sts=self._table(MtaStsOptions, "mta_sts", document.get("mta_sts", {})),
            tlsrpt=self._table(TlsrptOptions, "tlsrpt", document.get("tlsrpt", {})),
            routers=routers or DEFAULT_ROUTERS,
            transports=transports or DEFAULT_TRANSPORTS,
            retry=retry or DEFAULT_RETRY,
            handlers={
                name: self._table(HandlerOptions, f"handlers.{name}", value)
                for name, value in self._dict("handlers", document.get("handlers", {})).items()
            },
            acls=self._strings("acls", document.get("acls", {})),
            macros=self._strings("macros", document.get("macros", {})),
            lists=self._lists(document.get("lists", {})),
            file=self._file,
        )
        self._check_references(config)
        return config

    def _check_references(self, config: Config) -> None:
        names: set[str] = set()
        for number, router in enumerate(config.routers):
            key = f"routers[{number}]"
            if router.name in names:
                raise self._error(f"{key}.name", f"there are two routers called {router.name!r}")
            names.add(router.name)
            if router is DEFAULT_ROUTERS[0] and router.transport not in config.transports:
                text = f"there is none, and the default one needs a transport called {router.transport!r}"
                raise self._error("routers", text)
            if router.transport not in config.transports:
                raise self._unknown(f"{key}.transport", router.transport, tuple(config.transports), "transport")
            if router.driver == "manualroute" and bool(router.route_list) == bool(router.route_data):
                raise self._error(key, "a manualroute router needs either route_list or route_data")
            if router.driver == "dnslookup" and (router.route_list or router.route_data):
                raise self._error(key, "route_list and route_data belong to the manualroute driver")
        if "://" not in config.main.queue:
            raise self._error("main.queue", f"{config.main.queue!r} is not a URL such as sqlite:///path/queue.db")

    def _table(self, table: type[_T], key: str, value: object) -> _T:
        given = self._dict(key, value)
        rows = {_file_name(row.name): row for row in dataclasses.fields(table)}  # type: ignore[arg-type]  # T is one of SECTIONS
        values: dict[str, object] = {}
        for name, raw in given.items():
            row = rows.get(name)
            if row is None:
                raise self._unknown(f"{key}.{name}", name, tuple(rows))
            values[row.name] = self._value(f"{key}.{name}", row.metadata, raw)
        for name, row in rows.items():
            if row.metadata.get("required") and not values.get(row.name):
                raise self._error(key, f"{name} is missing")
        return table(**values)

    def _value(self, key: str, metadata: Mapping[str, Any], raw: object) -> object:
        kind: Kind = metadata["kind"]
        value: object
        match kind:
            case Kind.BOOLEAN:
                if not isinstance(raw, bool):
                    raise self._wrong(key, kind, raw)
                return raw
            case Kind.INTEGER | Kind.INTERVAL | Kind.SIZE:
                number = self._number(key, kind, raw)
                if number < metadata["minimum"]:
                    raise self._error(key, f"{raw} is less than {metadata['minimum']}")
                if metadata.get("maximum") is not None and number > metadata["maximum"]:
                    raise self._error(key, f"{raw} is more than {metadata['maximum']}")
                return number
            case Kind.LIST | Kind.EXPANDED_LIST | Kind.EVENT_ACTION:
                if isinstance(raw, list):
                    value = tuple(self._string(key, kind, item) for item in raw)
                else:
                    value = self._string(key, kind, raw)
                if metadata["array"] and isinstance(value, str):
                    return (value,)
                return value
            case Kind.EXPANDED_INTEGER:
                if isinstance(raw, str) and not raw.strip().isdecimal():
                    return self._string(key, kind, raw)
                number = self._number(key, Kind.INTEGER, int(raw) if isinstance(raw, str) else raw)
                if number < metadata["minimum"]:
                    raise self._error(key, f"{raw} is less than {metadata['minimum']}")
                return str(number)
            case Kind.RATE:
                text = self._string(key, kind, raw)
                try:
                    if text:
                        parse_rate(text)
                except ValueError as error:
                    raise self._error(key, str(error)) from None
                return text
            case _:
                text = self._string(key, kind, raw)
                choices = metadata["choices"]
                if choices and text not in choices:
                    raise self._unknown(key, text, choices, "value")
                return text

    def _number(self, key: str, kind: Kind, raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and kind is Kind.INTERVAL:
            try:
                return parse_interval(raw)
            except ValueError as error:
                raise self._error(key, str(error)) from None
        if isinstance(raw, str) and kind is Kind.SIZE and raw[:-1].isdecimal() and raw[-1:].upper() in "KMG":
            return int(raw[:-1]) << (10 * ("KMG".index(raw[-1].upper()) + 1))
        raise self._wrong(key, kind, raw)

    def _string(self, key: str, kind: Kind, raw: object) -> str:
        if not isinstance(raw, str):
            raise self._wrong(key, kind, raw)
        if "\0" in raw:
            raise self._error(key, "a string must not contain NUL")
        return _join_lines(raw)

    def _strings(self, key: str, value: object) -> dict[str, str]:
        given = self._dict(key, value)
        return {name: self._string(f"{key}.{name}", Kind.STRING, raw) for name, raw in given.items()}

    def _lists(self, value: object) -> dict[str, dict[str, ListText]]:
        found: dict[str, dict[str, ListText]] = {}
        for kind, names in self._dict("lists", value).items():
            if kind not in LIST_KINDS:
                raise self._unknown(f"lists.{kind}", kind, LIST_KINDS)
            metadata = {"kind": Kind.EXPANDED_LIST, "array": False}
            found[kind] = {
                name: self._value(f"lists.{kind}.{name}", metadata, raw)  # type: ignore[misc]  # the kind makes it a ListText
                for name, raw in self._dict(f"lists.{kind}", names).items()
            }
        return found

    def _dict(self, key: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(key, "must be a table")
        return value

    def _array(self, key: str, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise self._error(key, f"must be an array of tables: [[{key}]]")
        return value

    def _error(self, key: str, message: str) -> ConfigError:
        return ConfigError(message, file=self._file or None, key=key)

    def _wrong(self, key: str, kind: Kind, raw: object) -> ConfigError:
        return self._error(key, f"{raw!r} will not do: the value is a {kind.value}")

    def _unknown(self, key: str, name: str, known: tuple[str, ...], what: str = "key") -> ConfigError:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
        return self._error(key, f"unknown {what} {name!r}{hint}")


def _file_name(field_name: str) -> str:
    # `self` is Exim's name for the option and a poor one for a Python field
    return field_name.rstrip("_")


def _join_lines(text: str) -> str:
    """Join lines ending in a backslash, as Exim's file reader does, and drop white space at both ends."""
    if "\\\n" in text:
        lines = text.split("\n")
        joined = [lines[0]]
        for line in lines[1:]:
            if joined[-1].endswith("\\"):
                joined[-1] = joined[-1][:-1] + line.lstrip(" \t")
            else:
                joined.append(line)
        text = "\n".join(joined)
    return text.strip()

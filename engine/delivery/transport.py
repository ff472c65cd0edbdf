"""A transport as delivery uses it: its options compiled, its decisions about one host.

Layer: orchestration (sans-I/O itself).  Spec: events-dane sections 6 and 8 (TL-1 to TL-14); policy/plan.py.
Host lists and strings are expansions; what holds for a host is decided once a connection, never once a message.
Invariants: everything that can be wrong with the text of an option is found by `Transport.compile`, before anything
runs; a program with a lookup in it makes `is_pure` False, and its decisions are then made in a thread.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..config import Kind
from ..errors import ConfigError, ExpandError, ForcedFailure
from ..events.happening import VARIABLES
from ..expand import ExpandOptions, Program, Scope, compile_option
from ..expand.lists import DomainList, HostList
from ..policy.requirement import InsecureMx, TlsChoices
from ..tls import tlsa
from ..tls.context import TlsOptions
from ..tls.ocsp import Demand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..config import TransportOptions
    from ..expand.lists import ItemList, NamedLists
    from ..policy.mx import Host


@dataclass(frozen=True, slots=True)
class HostDecisions:
    """What the options of a transport say about one host.

    Attributes:
        tls: what the options about TLS and DANE say; policy.builder makes the plan of it.
        files: trust anchors, revocation lists, our certificate.
        helo_name: the name for EHLO.
        window: transactions in flight at most; 0 keeps to one command at a time.
        auth: (user name, password) to authenticate with, or None; auth_required: no mail without it.  Neither is known
            where the transport's `auth_is_late`.
    """

    tls: TlsChoices
    files: TlsOptions
    helo_name: str
    window: int
    auth: tuple[str, str] | None
    auth_required: bool


@dataclass(frozen=True, slots=True)
class Transport:
    """One transport of the configuration, compiled.

    Attributes:
        is_pure: deciding never blocks.
        is_fixed: what is decided for a host is the same each time.
        auth_is_late: what is said for AUTH depends on the connection.
    """

    name: str
    options: TransportOptions
    is_pure: bool
    is_fixed: bool
    auth_is_late: bool
    _programs: Mapping[str, Program]
    _hosts: Mapping[str, HostList]
    _domains: Mapping[str, DomainList]

    @classmethod
    def compile(cls, name: str, options: TransportOptions, named: NamedLists, file: str = "") -> Transport:
        """Compile every expansion and list of a transport.

        Raises:
            ConfigError: naming the key and the column of what is wrong.
        """
        programs: dict[str, Program] = {}
        hosts: dict[str, HostList] = {}
        domains: dict[str, DomainList] = {}
        for row in dataclasses.fields(options):
            value: Any = getattr(options, row.name)
            key = f"transports.{name}.{row.name}"
            if row.metadata["kind"] in (Kind.EXPANSION, Kind.EXPANDED_INTEGER):
                programs[row.name] = compile_option(
                    value, key=key, file=file or None, options=ExpandOptions(lists=named)
                )
            elif row.name.endswith("_domains"):
                domains[row.name] = compile_list(DomainList, value, named, key, file)
            elif row.metadata["kind"] is Kind.EXPANDED_LIST:
                hosts[row.name] = compile_list(HostList, value, named, key, file)
        _check_interface(options.interface, f"transports.{name}.interface", file)
        lists: list[ItemList] = [*hosts.values(), *domains.values()]
        is_pure = all(program.is_pure for program in programs.values()) and all(items.is_pure for items in lists)
        is_fixed = (
            is_pure
            # ${randint:…} reads nothing, and is another number each time all the same
            and all(program.reads <= _OF_HOST and b"randint" not in program.source for program in programs.values())
            and not any(b"$" in items.source for items in lists)
        )
        auth_is_late = any(programs[name].reads & OF_CONNECTION for name in ("auth_username", "auth_password")) or any(
            variable.encode() in hosts[name].source
            for name in ("hosts_require_auth", "hosts_try_auth")
            for variable in OF_CONNECTION
        )
        return cls(name, options, is_pure, is_fixed, auth_is_late, programs, hosts, domains)

    def decide(self, host: Host, scope: Scope) -> HostDecisions:
        """What holds for `host`.  Blocks if not `is_pure`.

        Raises:
            ExpandError: an option cannot be expanded now; the host cannot be used.
        """
        auth, auth_required = (None, False) if self.auth_is_late else self.auth(host, scope)
        anchors = self._text("tls_verify_certificates", scope)
        return HostDecisions(
            tls=self._tls(host, scope, has_anchors=bool(anchors)),
            files=TlsOptions(
                verify_certificates=anchors or None,
                crl=self._text("tls_crl", scope) or None,
                certificate=self._text("tls_certificate", scope) or None,
                private_key=self._text("tls_privatekey", scope) or None,
            ),
            helo_name=self._text("helo_data", scope),
            window=0 if self._listed("hosts_avoid_pipelining", host, scope) else self._number("pipeline_window", scope),
            auth=auth,
            auth_required=auth_required,
        )

    def _tls(self, host: Host, scope: Scope, *, has_anchors: bool) -> TlsChoices:
        options = self.options
        verify = self._listed("tls_verify_hosts", host, scope)
        try_verify = self._listed("tls_try_verify_hosts", host, scope)
        if not options.tls_verify_hosts and not options.tls_try_verify_hosts:
            verify = True  # TL-1: both unset, and anchors given
        # DN-3: where DNSSEC is not asked for, what it said is not known
        require_dnssec = self._is_domain_listed("dnssec_require_domains", host, scope)
        request_dnssec = require_dnssec or self._is_domain_listed("dnssec_request_domains", host, scope)
        try_dane = self._listed("hosts_try_dane", host, scope)
        require_dane = self._listed("hosts_require_dane", host, scope)
        dane_ciphers, dane_ciphers_error = "", ""
        try:
            dane_ciphers = self._text("dane_require_tls_ciphers", scope)
        except ExpandError as error:
            # section 6: a TLS failure, and only where the list would be used
            dane_ciphers_error = error.message
        return TlsChoices(
            avoid_tls=self._listed("hosts_avoid_tls", host, scope),
            require_tls=self._listed("hosts_require_tls", host, scope),
            verify=verify and has_anchors,  # TL-9
            try_verify=try_verify and has_anchors,
            any_name=not self._listed("tls_verify_cert_hostnames", host, scope),
            try_clear=options.tls_tempfail_tryclear,
            request_dnssec=request_dnssec,
            require_dnssec=require_dnssec,
            try_dane=try_dane,
            require_dane=require_dane,
            insecure_mx=InsecureMx(options.dane_insecure_mx),
            trust_host_list=options.dane_trust_host_list,
            sni=self._text("tls_sni", scope),
            ciphers=self._text("tls_require_ciphers", scope),
            dane_ciphers=dane_ciphers,
            dane_ciphers_error=dane_ciphers_error,
        )

    def wants_sts(self, domain: str, scope: Scope) -> bool:
        """Whether the MTA-STS policy of a recipients' domain is heeded.  Blocks if not `is_pure`."""
        return self._domains["mta_sts_domains"].matches(domain, scope)

    def usual_ocsp_demand(self, usage_mask: int) -> Demand | None:
        """What `ocsp_demand` says, if neither option was set and there is nothing to expand."""
        options = self.options
        is_usual = options.hosts_request_ocsp == "*" and not options.hosts_require_ocsp
        return _default_demand(usage_mask) if is_usual else None

    def ocsp_demand(self, host: Host, scope: Scope, usage_mask: int) -> Demand:
        """Whether a stapled OCSP response is asked for (OC-1 to OC-3).  Blocks if not `is_pure`; raises ExpandError.

        Args:
            scope: with `$tls_out_tlsa_usage`, now that the TLSA records are known; usage_mask: its value.
        """
        if self._listed("hosts_require_ocsp", host, scope):
            return Demand.REQUIRE
        if self.options.hosts_request_ocsp == "*":
            return _default_demand(usage_mask)
        return Demand.REQUEST if self._listed("hosts_request_ocsp", host, scope) else Demand.NONE

    def auth(self, host: Host, scope: Scope) -> tuple[tuple[str, str] | None, bool]:
        """See `HostDecisions.auth` and `auth_required`.  Blocks if not `is_pure`; raises ExpandError.

        Args:
            scope: with the variables `OF_CONNECTION` where the transport's `auth_is_late`.
        """
        required = self._listed("hosts_require_auth", host, scope)
        if not required and not self._listed("hosts_try_auth", host, scope):
            return None, False
        username = self._text("auth_username", scope)
        return ((username, self._text("auth_password", scope)) if username else None), required

    def _listed(self, option: str, host: Host, scope: Scope) -> bool:
        return self._hosts[option].matches(name=host.name, address=host.address, scope=scope)

    def _is_domain_listed(self, option: str, host: Host, scope: Scope) -> bool:
        """Whether the name of the host is in a domain list, as in Exim, where the transport looks hosts up by name."""
        return self._domains[option].matches(host.name, scope)

    def _number(self, option: str, scope: Scope) -> int:
        """A whole number of at least 1."""
        text = self._text(option, scope).strip()
        if not text.isdecimal() or not int(text):
            raise ConfigError(f"{text!r} is not a whole number above 0", key=f"transports.{self.name}.{option}")
        return int(text)

    def _text(self, option: str, scope: Scope) -> str:
        program = self._programs[option]
        octets = program.constant
        try:
            if octets is None:
                octets = program.evaluate(scope)
            return octets.decode("utf-8", "surrogateescape")
        except ForcedFailure:
            return ""  # a forced failure leaves these options unset


#: variables that are known once a connection is made and TLS is done: what is said for AUTH may depend on them
OF_CONNECTION: Final = frozenset(name for name in VARIABLES if name.startswith(("tls_out_", "sending_")))
#: variables that are the same whenever a host is decided on
_OF_HOST: Final = frozenset(
    {
        *("host", "host_address", "host_port", "lookup_dnssec_authenticated"),
        *("primary_hostname", "router_name", "transport_name", "domain"),
    }
)


def _default_demand(usage_mask: int) -> Demand:
    """OC-2: where a record names the certificate itself, nobody else has to vouch for it."""
    return Demand.REQUEST if usage_mask in (0, 1 << tlsa.Usage.DANE_TA) else Demand.NONE


def _check_interface(text: str, key: str, file: str) -> None:
    try:
        if text:
            ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address", file=file or None, key=key) from None


def compile_list(kind: Any, value: Any, named: NamedLists, key: str, file: str) -> Any:
    """Compile a list option; ExpandError becomes a ConfigError that names the key."""
    try:
        return kind.compile(value, named=named)
    except ExpandError as error:
        source = value if isinstance(value, str) else None
        raise ConfigError(
            error.message, file=file or None, key=key, column=error.column if source else None, source=source
        ) from None

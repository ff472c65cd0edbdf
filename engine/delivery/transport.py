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
from ..expand import ExpandOptions, Program, Scope, compile_option
from ..expand.lists import HostList
from ..policy.plan import CLEAR, Plan, TlsLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..config import TransportOptions
    from ..expand.lists import NamedLists
    from ..policy.mx import Host


@dataclass(frozen=True, slots=True)
class HostDecisions:
    """What the options of a transport say about one host.

    Attributes:
        plan: what TLS must prove.
        helo_name: the name for EHLO.
        window: transactions in flight at most; 0 keeps to one command at a time.
        auth: (user name, password) to authenticate with, or None; auth_required: no mail without it.
        trust_anchors: tls_verify_certificates as expanded: ``system``, a file or a directory, or "" for none.
    """

    plan: Plan
    helo_name: str
    window: int
    auth: tuple[str, str] | None
    auth_required: bool
    trust_anchors: str


@dataclass(frozen=True, slots=True)
class Transport:
    """One transport of the configuration, compiled.

    Attributes:
        is_pure: deciding never blocks.
        is_fixed: what is decided for a host is the same each time.
    """

    name: str
    options: TransportOptions
    is_pure: bool
    is_fixed: bool
    _programs: Mapping[str, Program]
    _hosts: Mapping[str, HostList]

    @classmethod
    def compile(cls, name: str, options: TransportOptions, named: NamedLists, file: str = "") -> Transport:
        """Compile every expansion and list of a transport.

        Raises:
            ConfigError: naming the key and the column of what is wrong.
        """
        programs: dict[str, Program] = {}
        hosts: dict[str, HostList] = {}
        for row in dataclasses.fields(options):
            value: Any = getattr(options, row.name)
            key = f"transports.{name}.{row.name}"
            if row.metadata["kind"] is Kind.EXPANSION:
                programs[row.name] = compile_option(
                    value, key=key, file=file or None, options=ExpandOptions(lists=named)
                )
            elif row.metadata["kind"] is Kind.EXPANDED_LIST:
                hosts[row.name] = compile_list(HostList, value, named, key, file)
        _check_interface(options.interface, f"transports.{name}.interface", file)
        is_pure = all(program.is_pure for program in programs.values()) and all(
            items.is_pure for items in hosts.values()
        )
        is_fixed = (
            is_pure
            and all(program.reads <= _OF_HOST for program in programs.values())
            and not any(b"$" in items.source for items in hosts.values())
        )
        return cls(name, options, is_pure, is_fixed, programs, hosts)

    def decide(self, host: Host, scope: Scope) -> HostDecisions:
        """What holds for `host`.  Blocks if not `is_pure`.

        Raises:
            ExpandError: an option cannot be expanded now; the host cannot be used.
        """
        auth, auth_required = self._auth(host, scope)
        return HostDecisions(
            plan=self._plan(host, scope),
            helo_name=self._text("helo_data", scope),
            window=0 if self._listed("hosts_avoid_pipelining", host, scope) else self.options.pipeline_window,
            auth=auth,
            auth_required=auth_required,
            trust_anchors=self._text("tls_verify_certificates", scope),
        )

    def _plan(self, host: Host, scope: Scope) -> Plan:
        if self._listed("hosts_avoid_tls", host, scope):
            return CLEAR
        required = self._listed("hosts_require_tls", host, scope)
        anchors = self._text("tls_verify_certificates", scope)
        verify = self._listed("tls_verify_hosts", host, scope)
        try_verify = self._listed("tls_try_verify_hosts", host, scope)
        if anchors and not self.options.tls_verify_hosts and not self.options.tls_try_verify_hosts:
            verify = True  # TL-1: both unset and anchors given
        if not anchors:
            verify = try_verify = False  # TL-9
        level = TlsLevel.VERIFIED if verify else TlsLevel.MANDATORY if required else TlsLevel.OPPORTUNISTIC
        if verify and not required:
            # TL-7: only hosts_require_tls forbids clear text; verification alone is of the TLS that there is
            reasons: tuple[str, ...] = ("tls_verify_hosts",)
        else:
            reasons = ("hosts_require_tls",) if required else ("opportunistic",)
        return Plan(
            level,
            sni=self._text("tls_sni", scope) or host.name,
            reference_names=(host.name,),
            try_verify=try_verify and not verify,
            try_clear=self.options.tls_tempfail_tryclear and not required,
            ciphers=self._text("tls_require_ciphers", scope) or None,
            reasons=reasons,
        )

    def _auth(self, host: Host, scope: Scope) -> tuple[tuple[str, str] | None, bool]:
        required = self._listed("hosts_require_auth", host, scope)
        if not required and not self._listed("hosts_try_auth", host, scope):
            return None, False
        username = self._text("auth_username", scope)
        return ((username, self._text("auth_password", scope)) if username else None), required

    def _listed(self, option: str, host: Host, scope: Scope) -> bool:
        return self._hosts[option].matches(name=host.name, address=host.address, scope=scope)

    def _text(self, option: str, scope: Scope) -> str:
        try:
            return self._programs[option].evaluate(scope).decode("utf-8", "surrogateescape")
        except ForcedFailure:
            return ""  # a forced failure leaves these options unset


#: variables that are the same whenever a host is decided on
_OF_HOST: Final = frozenset(
    {"host", "host_address", "host_port", "primary_hostname", "router_name", "transport_name", "domain"}
)


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

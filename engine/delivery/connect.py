"""Connect to a host of a site as the options of its transport say.

Layer: orchestration.  Spec: events-dane 8.2 (TL-7), 11.6 (-27, -37).
What the options say of a host is decided once a connection, or once a site where it cannot change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ..errors import ConfigError, DeliveryError, ExpandError, LocalProtocolError, TlsPolicyError
from ..logs.facts import Fact, FactKind
from ..net.session import SessionOptions, open_session
from ..policy.plan import CLEAR, TlsLevel
from ..smtp import HostMemory
from ..tls.context import TlsOptions
from .hosterrors import port_of

if TYPE_CHECKING:
    from ..expand import Scope as ExpandScope
    from ..net.session import Session
    from .core import Core
    from .site import Site
    from .transport import HostDecisions

#: errno of an option that cannot be expanded, and of a failed handshake (11.6)
_ERRNO_EXPANSION: Final = -27
_ERRNO_TLS_FAILED: Final = -37


async def connect(core: Core, site: Site, number: int) -> Session:
    """A session with a host.

    Raises:
        DeliveryError, TlsPolicyError: see `open_session`; an option that cannot be expanded or used is one as well.
    """
    try:
        decisions = await _decide(core, site, number)
        try:
            return await _open(core, site, number, decisions)
        except TlsPolicyError as error:
            plan = decisions.plan
            if error.errno != _ERRNO_TLS_FAILED or not plan.try_clear or plan.level is not TlsLevel.OPPORTUNISTIC:
                raise
            host = site.hosts[number]
            text = (
                f"{error.message}: delivering unencrypted to H={host.name} [{host.address}] (not in hosts_require_tls)"
            )
            core.settlement.tell(Fact(FactKind.NOTE, core.clock(), text=text))
        return await _open(core, site, number, replace(decisions, plan=CLEAR))
    except ExpandError as error:
        raise DeliveryError(error.message, errno=_ERRNO_EXPANSION) from error
    except (ConfigError, LocalProtocolError) as error:
        raise DeliveryError(str(error), errno=_ERRNO_EXPANSION) from error


async def _decide(core: Core, site: Site, number: int) -> HostDecisions:
    kept = site.decisions.get(number)
    if kept is not None:
        return kept
    host, transport = site.hosts[number], site.transport
    scope = _scope(core, site, number)
    if transport.is_pure:
        decisions = transport.decide(host, scope)
        if transport.is_fixed:
            site.decisions[number] = decisions
        return decisions
    return await trio.to_thread.run_sync(transport.decide, host, scope, limiter=core.threads)


def _scope(core: Core, site: Site, number: int) -> ExpandScope:
    host = site.hosts[number]
    return core.make_scope(
        {
            "host": host.name,
            "host_address": host.address,
            "host_port": port_of(site, number),
            "router_name": site.router,
            "transport_name": site.transport.name,
            "domain": host.domain,
        }
    )


async def _open(core: Core, site: Site, number: int, decisions: HostDecisions) -> Session:
    host, options = site.hosts[number], site.transport.options
    # an interface of the other family is not for this host
    interface = options.interface if (":" in options.interface) == (":" in host.address) else ""
    memory = site.memory.get(number)
    if memory is None:
        memory = site.memory[number] = HostMemory()
    return await open_session(
        host,
        port_of(site, number),
        SessionOptions(
            helo_name=decisions.helo_name,
            plan=decisions.plan,
            window=decisions.window,
            auth=decisions.auth,
            auth_required=decisions.auth_required,
            auth_mechanisms=options.auth_mechanisms,
            auth_in_clear=options.auth_in_clear,
            connect_timeout_s=options.connect_timeout,
            command_timeout_s=options.command_timeout,
            data_timeout_s=options.data_timeout,
            final_timeout_s=options.final_timeout,
            interface=interface or None,
        ),
        core.contexts,
        memory,
        tls_options=TlsOptions(verify_certificates=decisions.trust_anchors or None),
    )

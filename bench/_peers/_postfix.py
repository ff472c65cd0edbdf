"""Postfix as a sender: everything goes to the sink, `connections` at a time, over TLS that is proved by nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench._peers import _real, _servers
from fakes.peer_postfix import Postfix

if TYPE_CHECKING:
    from bench._harness import Timing
    from bench._mail import Load

#: main.cf: no limit below the load's connections, connections that are kept are kept as long as there is mail; the
#: session cache is Debian's default
_MAIN: Final = """
relayhost = [127.0.0.1]:{port}
disable_dns_lookups = yes
smtp_tls_security_level = {level}
smtp_tls_connection_reuse = {reuse}
smtp_tls_session_cache_database = btree:$data_directory/smtp_scache
smtp_connection_cache_on_demand = yes
smtp_connection_cache_destinations = {cached}
smtp_connection_reuse_time_limit = 3600s
default_process_limit = {connections}
default_destination_concurrency_limit = {connections}
initial_destination_concurrency = {connections}
default_destination_recipient_limit = 1
qmgr_message_active_limit = 100000
qmgr_message_recipient_limit = 100000
queue_run_delay = 3600s
minimal_backoff_time = 3600s
maximal_backoff_time = 3600s
"""


def version() -> str:
    """That of Postfix."""
    return _real.version("postfix", Postfix)


def run(load: Load, *, reuse: bool) -> Timing:
    """Relay a load; with `reuse`, several messages go over a connection, its TLS included."""
    extra = _MAIN.format(
        port=load.port,
        level="encrypt" if load.tls else "none",
        reuse="yes" if reuse else "no",
        cached="static:all" if reuse else "",
        connections=load.connections,
    )
    return _servers.Relay(lambda: Postfix(extra=extra), _prepare, Postfix.start, _left).run(load)


def _prepare(server: Postfix) -> None:
    # into the deferred queue, all of which a queue manager goes through as soon as it starts
    server.control("postsuper", "-H", "ALL")


def _left(server: Postfix) -> int:
    return server.queued("hold", "incoming", "active", "deferred")

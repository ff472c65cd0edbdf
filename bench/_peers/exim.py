"""Exim: a queue run, in which each message gets a process and a connection of its own.

A run of two passes (``-qqf``) sends them all over one connection, and takes three times the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench._peers import _real, _servers
from fakes.peer_exim import Exim

if TYPE_CHECKING:
    from bench._harness import Timing
    from bench._mail import Load

label = "Exim"

_MAIN: Final = """
remote_max_parallel = {connections}
queue_run_max = {connections}
begin routers
sink:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = sink
begin transports
sink:
  driver = smtp
  port = {port}
  allow_localhost
  {tls}
  connection_max_messages = 1000000
begin retry
* * F,1h,10m
"""


class _Exim(Exim):
    """With the log lines that it writes by default."""

    log_selector = ""


def version() -> str:
    """That of Exim."""
    return _real.version("exim4-base", Exim)


def run(load: Load) -> Timing:
    """Relay a load."""
    tls = "hosts_require_tls = *\n  tls_tempfail_tryclear = false" if load.tls else "hosts_avoid_tls = *"
    extra = _MAIN.format(port=load.port, connections=load.connections, tls=tls)
    relay = _servers.Relay(lambda: _Exim(extra=extra), lambda _: None, _release, Exim.count, is_started_again=False)
    return relay.run(load)


def _release(server: Exim) -> None:
    server.run_queue("-qf")

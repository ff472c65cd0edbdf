"""Exim as the oracle for events: a message is delivered by a real Exim whose `event_action` logs what it can see.

    with EximEvents("127.0.0.1::2525") as exim:
        await exim.send("a@d.example")  # [Seen(…), …] as Exim raised them

The action is `fakes.event_probe.PROBE` in an ACL with `logwrite`, then what a test adds as a veto.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Self

import trio

from fakes.dns_server import Reply
from fakes.event_probe import LOGWRITE, Seen, seen_in
from fakes.exim_routing import fakens_for, in_test_mode
from fakes.peers import Place, peer_path

_USER = "Debian-exim"

_CONFIGURATION = """\
primary_hostname = client.example
spool_directory = {spool}
log_file_path = {spool}/%slog
exim_path = {program}
keep_environment =
notifier_socket =
queue_only
tls_advertise_hosts =
local_interfaces = <; 127.0.0.1
event_action = {action}
log_selector = +all -pid
{main}
acl_not_smtp_start = accept
begin acl
note:
  accept {logwrite}
begin routers
smart:
  {router}
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
  allow_localhost
  hosts_try_fastopen =
  hosts_try_prdr =
  {transport}
  event_action = {action}
begin retry
{retry} * F,1h,5m
"""
MESSAGE = "From: a@sender.example\nSubject: x\n\nbody\n"


class EximEvents:
    """An Exim that has a message to deliver.

    Args:
        hosts: host list of a route, ``address::port`` items; "" to route by the DNS.
        veto: an expansion that follows the log line.
        transport, main: further lines of the configuration.
        retry: pattern of its only retry rule.
        zone: what the DNS says; see `fakes.exim_routing`.
    """

    def __init__(
        self,
        hosts: str = "",
        *,
        veto: str = "",
        transport: str = "",
        main: str = "",
        retry: str = "*",
        zone: Mapping[tuple[str, str], Reply] | None = None,
    ) -> None:
        binary = peer_path("exim", "usr/sbin/exim4").read_bytes()
        self._place = Place([_USER])
        self._spool = self._place.directory("spool", owner=_USER)
        if zone is not None:
            binary = in_test_mode(binary)
            self._place.directory("bin")
            self._place.file("bin/fakens", fakens_for(zone), mode=0o755)
        # Exim starts itself again for a bounce: with our libraries, which one that is set-uid would not look at
        copy = self._place.file("exim4", binary, mode=0o755)
        names = " ".join(f"{name}='{value}'" for name, value in self._place.environment.items())
        self._program = self._place.file("exim", f'#!/bin/sh\nexec /usr/bin/env {names} {copy} "$@"\n', mode=0o755)
        router = f'driver = manualroute\n  route_list = * "{hosts}"' if hosts else "driver = dnslookup"
        text = _CONFIGURATION.format(
            spool=self._spool,
            program=self._program,
            action=f"${{acl{{note}}}}{veto}",
            main=main,
            logwrite=LOGWRITE,
            router=router,
            transport="\n  ".join(transport.splitlines()),
            retry=retry,
        )
        self._configuration = self._place.file("exim.conf", text)

    async def send(self, *recipients: str, message: str = MESSAGE) -> list[Seen]:
        """Queue a message and try it once; the events of that, in order."""
        await self._run("-odq", "-i", "-f", "news@sender.example", *recipients, message=message.encode())
        await self._run("-qf")
        return seen_in(self.log_text())

    async def _run(self, *arguments: str, message: bytes = b"") -> None:
        done = await trio.run_process(
            [str(self._program), "-C", str(self._configuration), *arguments],
            stdin=message,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd="/",
            env=self._place.environment,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)

    def log_text(self) -> str:
        """The main log."""
        log = self._spool / "mainlog"
        return log.read_text(errors="surrogateescape") if log.exists() else ""

    @property
    def lines(self) -> list[str]:
        """The main log without times, message ids and what the probe wrote."""
        rows = [line.split(" ", 2)[2] for line in self.log_text().splitlines()]
        return [row for row in rows if "EVENT " not in row]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.remove()

"""The sink that deliveries are measured with: in a process of its own, and asked what it has while it runs.

    with Sink(core=1) as sink, peer("postfix_reuse", bench.note, core=0) as postfix:
        load = sink.load(count=4000)
        bench.compare("CPU a delivery", sink.judged(ours), sink.judged(postfix, load), metric=CPU_US)

It is the sink of `outrider sink` (engine/net/sink.py), here with a second port, on which anybody may ask for its counts
or wait until it has so many messages: a sender is done when the sink has everything, not when the sender says so.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import trio
from OpenSSL._util import lib

from engine.net import sink as engine_sink
from engine.net.sink_dns import SinkNames, open_names
from engine.smtp.server import ServerOptions
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf

from ._env import PROJECT
from ._harness import Contender, Timing, pin
from ._mail import Load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from OpenSSL import SSL

    from engine.tls.selfmade import Identity

#: seconds within which the sink must start, and answer a question that is not to wait
PATIENCE_S = 20.0
#: seconds within which a run's messages must be there
ARRIVAL_S = 280.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """What came since the last mark.

    Attributes:
        messages: taken; unique: different pairs of Message-ID and recipient (with `track`); duplicates: pairs seen
            again (with `track`).
        deferred: recipients answered with 4xx; connections: accepted.
        cpu_s: CPU time of the sink's process; at: `time.monotonic` when the messages waited for were there.
    """

    messages: int
    unique: int
    duplicates: int
    deferred: int
    connections: int
    cpu_s: float
    at: float


class Sink:
    """A sink in a process of its own.

    Args:
        core: to pin it to, if there are two; None for no pinning.
        tls: offer STARTTLS.
        delay_s: seconds between a command and its reply.
        defer: probability that a recipient is deferred.
        track: look for duplicates.
        host_name: in the greeting and the certificate.
        own_hosts: each domain has a mail host of its own, at the same address.
        groups: for the key exchange, in OpenSSL's words; "" for those of the library.

    Attributes:
        port: for SMTP; control_port: for questions.
        nameserver: address and port of its name server: every domain has the sink for its mail host, proved by DANE.
    """

    def __init__(
        self,
        *,
        core: int | None = None,
        tls: bool = True,
        delay_s: float = 0.0,
        defer: float = 0.0,
        track: bool = True,
        host_name: str = "mx.bench.test",
        own_hosts: bool = False,
        groups: str = "",
    ) -> None:
        options = {"core": core, "tls": tls, "delay_s": delay_s, "defer": defer, "track": track, "host_name": host_name}
        options |= {"own_hosts": own_hosts, "groups": groups}
        command = [sys.executable, "-m", "bench._sink", json.dumps(options)]
        self._popen = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"the sink did not start (exit status {self._popen.wait(PATIENCE_S)})")
        first = json.loads(line)
        self.port: int = first["port"]
        self.control_port: int = first["control_port"]
        self.nameserver: str = first["nameserver"]

    def load(self, count: int, *, octets: int = 4096, connections: int = 20, tls: bool = True) -> Load:
        """Work for a sender: so many messages of this size to this sink."""
        return Load(self.port, self.control_port, count, octets, connections, tls)

    def mark(self) -> None:
        """Count anew from here."""
        ask(self.control_port, "mark")

    def arrived(self, count: int = 0, *, timeout_s: float = ARRIVAL_S) -> Arrived:
        """What came since the mark, as soon as there are `count` messages.

        Raises:
            TimeoutError: there were fewer after `timeout_s`.
        """
        return wait_for_mail(self.control_port, count, timeout_s=timeout_s)

    @property
    def cpu_s(self) -> float:
        """CPU time of its process."""
        return self.arrived().cpu_s

    def judged(self, contender: Contender, *arguments: object) -> Contender:
        """The same contender, running with these arguments; a run fails unless the sink got every message once.

        Raises:
            AssertionError: in `Contender.run`, when the sink's counts are not those of the timing.
        """

        def run() -> Timing:
            self.mark()
            timing: Timing = contender.run(*arguments)
            found = self.arrived(timing.count)
            if (found.messages, found.unique, found.duplicates) != (timing.count, timing.count, 0):
                raise AssertionError(f"{contender.label} sent {timing.count} messages, the sink has {found}")
            return replace(timing, check="every message once")

        return replace(contender, run=run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.kill()
        self._popen.communicate()


# --- the other side's questions ---------------------------------------------------------------------------------------


def ask(control_port: int, question: str, *, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
    """Put one question to a sink: ``mark``, or ``wait COUNT``.

    Raises:
        TimeoutError: no answer within `timeout_s`.
    """
    with socket.create_connection(("127.0.0.1", control_port), timeout=timeout_s) as client:
        client.sendall(question.encode() + b"\n")
        answer: dict[str, Any] = json.loads(client.makefile().readline())
        return answer


def wait_for_mail(control_port: int, count: int, *, timeout_s: float = ARRIVAL_S) -> Arrived:
    """What a sink has as soon as there are `count` messages since the mark.

    Raises:
        TimeoutError: there were fewer after `timeout_s`; the text says how many.
    """
    try:
        return Arrived(**ask(control_port, f"wait {count}", timeout_s=timeout_s))
    except TimeoutError:
        found = ask(control_port, "wait 0")["messages"]
        raise TimeoutError(f"{found} of {count} messages came within {timeout_s:.0f} s") from None


# --- the sink's process -----------------------------------------------------------------------------------------------


class _Process:
    """The sink itself, and the port for questions."""

    def __init__(self, options: dict[str, Any]) -> None:
        pin(options["core"])
        identity = make_leaf([options["host_name"]], now=datetime.datetime.now(datetime.UTC))
        self._tlsa = identity.tlsa_record if options["tls"] else None
        self._host_name = options["host_name"]
        self._own_hosts = options["own_hosts"]
        self._options = engine_sink.SinkOptions(
            server=ServerOptions(host_name=options["host_name"], defer=options["defer"]),
            tls=_context(identity, options["groups"]) if options["tls"] else None,
            track=options["track"],
            delay_s=options["delay_s"],
            max_connections=4000,
            seed=1,
        )
        self._mark: dict[str, int] = {}

    async def run(self) -> None:
        """Serve until standard input closes."""
        async with (
            engine_sink.open_sink(self._options) as self._sink,
            open_names(self._names(), "127.0.0.1", 0) as names,
            trio.open_nursery() as nursery,
        ):
            self._mark = self._sink.counts.to_dict()
            listener = (await nursery.start(trio.serve_tcp, self._answer, 0))[0]
            told = {
                "port": self._sink.port,
                "control_port": listener.socket.getsockname()[1],
                "nameserver": f"127.0.0.1:{names[1]}",
            }
            print(json.dumps(told), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    def _names(self) -> SinkNames:
        return SinkNames(self._host_name, "127.0.0.1", self._sink.port, self._tlsa, self._own_hosts)

    async def _answer(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for line in _lines(stream):
                word, _, number = line.partition(" ")
                if word == "mark":
                    self._mark = self._sink.counts.to_dict()
                    await stream.send_all(b"{}\n")
                else:
                    await self._sink.wait_messages(self._mark["messages"] + int(number))
                    at = time.monotonic()
                    await stream.send_all(json.dumps({**self._since_mark(), "at": at}).encode() + b"\n")

    def _since_mark(self) -> dict[str, float]:
        now = self._sink.counts.to_dict()
        names = ("messages", "unique", "duplicates", "deferred", "connections")
        return {**{name: now[name] - self._mark[name] for name in names}, "cpu_s": time.process_time()}


def _context(identity: Identity, groups: str) -> SSL.Context:
    context = server_context(identity)
    if groups and lib.SSL_CTX_set1_curves_list(context._context, groups.encode()) != 1:
        raise ValueError(f"OpenSSL knows no groups {groups!r}")
    return context


async def _lines(stream: trio.SocketStream) -> AsyncIterator[str]:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


if __name__ == "__main__":
    trio.run(_Process(json.loads(sys.argv[1])).run)

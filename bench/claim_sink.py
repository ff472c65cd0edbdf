"""The sink is no bottleneck: it takes a message over TLS in at most 12 µs of one core when messages come in bulk.

How: `outrider sink` runs in a process of its own.  A client that costs little (blocking sockets, messages written
before the time is taken) sends 4 KiB messages with windows of 1 and 32 transactions in flight, in clear and over TLS
1.3. Measured is the CPU time of the sink's process, user and system, so that the client and a busy machine do not
count; the rate is told beside it.  Right: every message is answered with 250, and the sink's own count agrees.

Why 12 µs: a sender that does nothing but hand ready octets to trio and pyOpenSSL needs that much for a message with 32
in flight (design.md, "Speed").  The engine does everything else besides, so it cannot be half as cheap as the sink.

What would falsify it: a median over 12 µs on an idle machine, or an engine that needs less than twice what is told
here for the same window (see claim_delivery).
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ._harness import CPU_US, RATE, Contender, Timing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._harness import Harness

_PROGRAM = "import typer; from engine.cli.sink import sink; app = typer.Typer(); app.command()(sink); app()"
_BODY = b"Message-ID: <%010d@bench.test>\r\nSubject: x\r\n\r\n" + (b"x" * 76 + b"\r\n") * 52
_TAKEN = b"250 2.0.0 Ok: queued as "


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    for tls in (False, True):
        way = "TLS" if tls else "clear text"
        for connections, window, full in ((20, 1, 10_000), (1, 32, 40_000)):
            with _Sink() as sink, _clients(sink.port, connections, tls=tls) as clients:
                count = bench.size(full, 640)
                contender = Contender("sink", _Load(sink, clients, window, count).run)
                what = f"{way}, {connections} × {window} in flight"
                is_figure = tls and window == 32
                found = bench.measure(
                    what, contender, metric=CPU_US, at_most=12 if is_figure else None, is_figure=is_figure
                )
                bench.measure(what, contender, metric=RATE, runs=3)
                sent = (len(found.runs) + 3 + 2) * count if not bench.quick else 2 * count
                assert sink.stop() == sent, "the sink counted otherwise"


class _Sink:
    """The sink's process."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _PROGRAM, "--json"]
        self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._popen.stdout is not None
        self.port: int = json.loads(self._popen.stdout.readline())["port"]

    @property
    def cpu_s(self) -> float:
        """CPU time of its main thread, which does all the work."""
        return int(Path(f"/proc/{self._popen.pid}/schedstat").read_text().split()[0]) / 1e9

    def stop(self) -> int:
        """End it and return how many messages it took."""
        self._popen.terminate()
        output, _ = self._popen.communicate(timeout=20)
        return int(json.loads(output)["messages"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


class _Load:
    """Flights of whole transactions, all written beforehand."""

    def __init__(self, sink: _Sink, clients: list[socket.socket], window: int, count: int) -> None:
        self._sink = sink
        self._clients = clients
        self._window = window
        self._flights = [
            b"".join(_transaction(start + number) for number in range(window)) for start in range(0, count, window)
        ]

    def run(self) -> Timing:
        """Send all flights, one on each connection at a time; time is the sink's."""
        cpu, wall, taken = self._sink.cpu_s, time.perf_counter(), 0
        for start in range(0, len(self._flights), len(self._clients)):
            pairs = list(zip(self._clients, self._flights[start : start + len(self._clients)], strict=False))
            for client, flight in pairs:
                client.sendall(flight)
            taken += sum(_read_replies(client, 3 * self._window).count(_TAKEN) for client, _ in pairs)
        count = len(self._flights) * self._window
        assert taken == count, f"{taken} of {count} messages were taken"
        return Timing(count, time.perf_counter() - wall, self._sink.cpu_s - cpu, taken)


def _transaction(number: int) -> bytes:
    body = _BODY % number
    return b"MAIL FROM:<a@b.test>\r\nRCPT TO:<r%d@d.test>\r\nBDAT %d LAST\r\n%s" % (number, len(body), body)


@contextlib.contextmanager
def _clients(port: int, count: int, *, tls: bool) -> Iterator[list[socket.socket]]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _read_replies(client, 1)
            if tls:
                for command in (b"EHLO bench.test\r\n", b"STARTTLS\r\n"):
                    client.sendall(command)
                    _read_replies(client, 1)
                client = context.wrap_socket(client)
            clients.append(stack.enter_context(client))
            client.sendall(b"EHLO bench.test\r\n")
            _read_replies(client, 1)
        yield clients


def _read_replies(client: socket.socket, count: int) -> bytes:
    """Read so many replies; the middle lines of a long one have a hyphen behind the code."""
    found = b""
    while sum(line[3:4] == b" " for line in found.splitlines()) < count or not found.endswith(b"\n"):
        data = client.recv(1 << 18)
        if not data:
            raise ConnectionError(f"the sink closed after {found[-200:]!r}")
        found += data
    return found

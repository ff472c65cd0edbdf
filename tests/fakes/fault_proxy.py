"""A TCP proxy between a client and a real server that does something wrong at a chosen point.

A `Fault` is a `Point` in one direction of the stream (after so many octets, or before or after a pattern) and an action
(`Cut`, `Reset`, `Stall`, `Dribble`, `Inject`, `Replace`, `Answer`, `TakeOver`).  The proxy keeps what passed, so that a
test can assert that no octet of a message ever left.  `strip_starttls` and its neighbours are the attacks on STARTTLS.

    async with open_fault_proxy(peer.host, peer.port, [Fault(Point(TO_SERVER, after=b"DATA\\r\\n"), Cut())]) as proxy:
        ...  # connect to 127.0.0.1:proxy.port

Time is trio's; with real sockets on both sides it must be the real clock, not `autojump_clock`.
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio
import trio.abc

from fakes.patience import PATIENCE_S

#: from the client to the server
TO_SERVER = "to_server"
#: from the server to the client
TO_CLIENT = "to_client"

#: how much of each direction is kept, in octets; arbitrary, more than any test message
_KEPT_OCTETS = 64 * 1024 * 1024
_CHUNK_OCTETS = 65_536


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the stream of one direction.  Exactly one of `octets`, `before`, `after` is given.

    Attributes:
        direction: `TO_SERVER` or `TO_CLIENT`.
        octets: this many octets have passed.
        before: the next octets are these.
        after: these octets have just passed.
        armed_by: the point counts only once this pattern has passed in the other direction, such as
            ``b"STARTTLS\\r\\n"``.
    """

    direction: str
    octets: int | None = None
    before: bytes | None = None
    after: bytes | None = None
    armed_by: bytes | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.octets, self.before, self.after)) != 1:
            raise ValueError("give one of octets, before, after")


@dataclass(frozen=True, slots=True)
class Cut:
    """Close both connections in an orderly way (FIN)."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break both connections (RST)."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Pass nothing more in this direction, and keep the connections open; for ever, or for `seconds`."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Dribble:
    """From here on pass `octets` at a time, with `pause_s` between them, for `count` pieces."""

    octets: int = 1
    pause_s: float = 0.001
    count: int = 1_000


@dataclass(frozen=True, slots=True)
class Inject:
    """Pass these octets as well, in one piece with what came just before."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Replace:
    """Pass these octets in place of the pattern of the point (`before`)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Swallow the pattern of the point (`before`), and send these octets back to where it came from."""

    data: bytes


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Shake hands with the client in the server's place, and with the server as a client, and pass the clear text.

    Attributes:
        context: what the client gets to see; its certificate is the swapped one.
        server_name: SNI towards the server; its certificate is not checked.
    """

    context: ssl.SSLContext
    server_name: str | None = None


Action: TypeAlias = Cut | Reset | Stall | Dribble | Inject | Replace | Answer | TakeOver


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong where; it happens once a connection."""

    point: Point
    action: Action

    def __post_init__(self) -> None:
        if isinstance(self.action, Replace | Answer) and self.point.before is None:
            raise ValueError("Replace and Answer take the place of a pattern: give `before`")


def strip_starttls() -> list[Fault]:
    """Hide the STARTTLS extension from the client."""
    return [Fault(Point(TO_CLIENT, before=b"STARTTLS"), Replace(b"XXXXXXXX"))]


def refuse_starttls(reply: bytes = b"454 4.7.0 TLS not available\r\n") -> list[Fault]:
    """Answer STARTTLS in the server's place."""
    return [Fault(Point(TO_SERVER, before=b"STARTTLS\r\n"), Answer(reply))]


def inject_after_starttls(data: bytes) -> list[Fault]:
    """Send clear text in one piece with the reply to STARTTLS (the attack of RFC 3207 §4.2 and CVE-2011-0411)."""
    return [Fault(Point(TO_CLIENT, after=b"\r\n", armed_by=b"STARTTLS\r\n"), Inject(data))]


def swap_certificate(context: ssl.SSLContext, *, server_name: str | None = None) -> list[Fault]:
    """Be the man in the middle: finish STARTTLS with another certificate."""
    return [Fault(Point(TO_CLIENT, after=b"\r\n", armed_by=b"STARTTLS\r\n"), TakeOver(context, server_name))]


def random_fault(rng: random.Random, *, octets: int) -> Fault:
    """A fault somewhere in the first `octets` of either direction."""
    point = Point(rng.choice((TO_SERVER, TO_CLIENT)), octets=rng.randrange(octets))
    action: Action = rng.choice(
        (Cut(), Reset(), Stall(), Stall(0.05), Dribble(count=200), Inject(rng.randbytes(rng.randrange(1, 200))))
    )
    return Fault(point, action)


@dataclass(slots=True)
class Connection:
    """What passed through one connection.

    Attributes:
        number: 0 for the first one.
        sent: octets that went to the server, in clear after a `TakeOver`.
        received: octets that went to the client, in clear after a `TakeOver`.
        fired: the faults that happened.
        is_open: it has not ended yet.
    """

    number: int
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    fired: list[Fault] = field(default_factory=list)
    is_open: bool = True


class FaultProxy:
    """A running proxy; `open_fault_proxy` makes one.

    Attributes:
        port: where it listens, on 127.0.0.1.
        connections: one for each that was accepted, in order.
        faults: for the connections to come: a list, or a function from the number of the connection to one.
    """

    def __init__(
        self, host: str, port: int, faults: Sequence[Fault] | Callable[[int], Sequence[Fault]], own_port: int
    ) -> None:
        self.upstream = (host, port)
        self.faults = faults
        self.port = own_port
        self.connections: list[Connection] = []

    async def handle(self, client: trio.SocketStream) -> None:
        """Serve one connection until it ends."""
        connection = Connection(len(self.connections))
        self.connections.append(connection)
        faults = list(self.faults(connection.number) if callable(self.faults) else self.faults)
        try:
            with trio.fail_after(PATIENCE_S):
                server = await trio.open_tcp_stream(*self.upstream)
        except (OSError, trio.TooSlowError):
            await client.aclose()
            connection.is_open = False
            return
        try:
            await _Session(connection, client, server, faults).run()
        finally:
            connection.is_open = False
            # neither waits for anything; with a deadline, a machine that stops for a while would leave one open
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)
                await trio.aclose_forcefully(server)


@contextlib.asynccontextmanager
async def open_fault_proxy(
    host: str, port: int, faults: Sequence[Fault] | Callable[[int], Sequence[Fault]] = (), *, listen_port: int = 0
) -> AsyncIterator[FaultProxy]:
    """Run a proxy to `host`:`port` on a port of its own; leaving ends every connection."""
    listeners = await trio.open_tcp_listeners(listen_port, host="127.0.0.1")
    proxy = FaultProxy(host, port, faults, listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.handle, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


class _EndError(Exception):
    """The session is over, for the reason that a fault gave."""


class _Direction:
    """One way of the stream: finds the points of its faults, whatever the pieces that the octets arrive in."""

    def __init__(self, name: str, faults: Sequence[Fault], kept: bytearray) -> None:
        self.name = name
        self.faults = [fault for fault in faults if fault.point.direction == name]
        self.kept = kept
        self.passed = 0
        self.tail = b""
        self.held = b""
        self.dribble: Dribble | None = None
        self.dribbled = 0

    def next_fault(self, data: bytes, other: _Direction) -> tuple[int, Fault] | None:
        """The first fault in `data` (what follows on what has passed) and its place there, if there is one."""
        found: list[tuple[int, int, Fault]] = []
        for order, fault in enumerate(self.faults):
            point = fault.point
            if point.armed_by is not None and point.armed_by not in other.kept:
                continue
            if point.octets is not None:
                place = max(point.octets - self.passed, 0)
                if place <= len(data):
                    found.append((place, order, fault))
            elif point.before is not None:
                place = data.find(point.before)
                if place >= 0:
                    found.append((place, order, fault))
            elif point.after is not None:
                # the pattern may have begun in what has passed already, but must end in `data`
                size = len(point.after)
                before = self.tail[-(size - 1) :] if size > 1 else b""
                place = (before + data).find(point.after)
                if place >= 0:
                    found.append((place + size - len(before), order, fault))
        if not found:
            return None
        place, _, fault = min(found, key=lambda entry: entry[:2])
        return place, fault

    def hold_back(self, data: bytes) -> int:
        """How many octets at the end of `data` may be the beginning of a pattern that a fault waits for."""
        patterns = [fault.point.before for fault in self.faults if fault.point.before]
        sizes = [
            size for pattern in patterns for size in range(1, len(pattern)) if data.endswith(pattern[:size])
        ]  # fmt: skip
        return max(sizes, default=0)

    def note(self, data: bytes) -> None:
        """`data` has passed."""
        self.passed += len(data)
        self.tail = (self.tail + data)[-256:]
        if len(self.kept) < _KEPT_OCTETS:
            self.kept += data


class _Session:
    """One connection: two pumps, which a `TakeOver` stops and starts again on the decrypted streams."""

    def __init__(
        self, connection: Connection, client: trio.SocketStream, server: trio.SocketStream, faults: Sequence[Fault]
    ) -> None:
        self.connection = connection
        self.client: trio.abc.Stream = client
        self.server: trio.abc.Stream = server
        self.raw = (client, server)
        self.up = _Direction(TO_SERVER, faults, connection.sent)
        self.down = _Direction(TO_CLIENT, faults, connection.received)
        self.take_over: TakeOver | None = None
        self.is_cut = False
        # an `Answer` goes against the stream, where the other pump may be sending
        self.sending = {TO_SERVER: trio.Lock(), TO_CLIENT: trio.Lock()}

    async def run(self) -> None:
        is_over = False
        while not is_over:
            self.take_over = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, self.up, nursery.cancel_scope)
                    nursery.start_soon(self._pump, self.down, nursery.cancel_scope)
            except* (_EndError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                is_over = True
            is_over = is_over or self.take_over is None or not await self._shake_hands(self.take_over)
        if self.is_cut:
            await self._end_in_order()

    async def _end_in_order(self) -> None:
        # closing a socket with unread octets sends RST: say that we are done, and read for a moment what still comes
        with trio.move_on_after(0.2):
            for stream in self.raw:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_eof()
            for stream in self.raw:
                with contextlib.suppress(trio.BrokenResourceError):
                    while await stream.receive_some(_CHUNK_OCTETS):
                        pass

    async def _shake_hands(self, action: TakeOver) -> bool:
        upstream = ssl.create_default_context()
        upstream.check_hostname = False
        upstream.verify_mode = ssl.CERT_NONE
        server = trio.SSLStream(self.server, upstream, server_hostname=action.server_name, https_compatible=True)
        client = trio.SSLStream(self.client, action.context, server_side=True, https_compatible=True)
        with trio.move_on_after(PATIENCE_S):
            try:
                await server.do_handshake()
                await client.do_handshake()
            except (trio.BrokenResourceError, ssl.SSLError, OSError):
                return False
            self.client, self.server = client, server
            return True
        return False

    async def _pump(self, way: _Direction, scope: trio.CancelScope) -> None:
        other = self.down if way is self.up else self.up
        source, target = (self.client, self.server) if way is self.up else (self.server, self.client)
        await self._pass_on(way, other, b"", source, target, scope)
        while True:
            data = await source.receive_some(_CHUNK_OCTETS)
            if not data:
                break
            await self._pass_on(way, other, bytes(data), source, target, scope)
        if way.held:
            held, way.held = way.held, b""
            await self._send(way, target, held)
        # one side has no more to say; the other may, as TCP allows
        if isinstance(target, trio.SocketStream):
            await target.send_eof()
        else:
            scope.cancel()

    async def _pass_on(
        self,
        way: _Direction,
        other: _Direction,
        data: bytes,
        source: trio.abc.Stream,
        target: trio.abc.Stream,
        scope: trio.CancelScope,
    ) -> None:
        data, way.held = way.held + data, b""
        ready = b""
        while (found := way.next_fault(data, other)) is not None:
            place, fault = found
            way.faults.remove(fault)
            self.connection.fired.append(fault)
            action, point = fault.action, fault.point
            ready, data = ready + data[:place], data[place:]
            way.note(ready[len(ready) - place :] if place else b"")
            if isinstance(action, Inject):
                ready += action.data
                continue
            if isinstance(action, Replace):
                assert point.before is not None
                ready, data = ready + action.data, data[len(point.before) :]
                continue
            await self._write(way, target, ready)
            ready = b""
            if isinstance(action, Answer):
                assert point.before is not None
                data = data[len(point.before) :]
                async with self.sending[other.name]:
                    await source.send_all(action.data)
            elif isinstance(action, Dribble):
                way.dribble, way.dribbled = action, 0
            elif isinstance(action, Stall):
                await trio.sleep(math.inf if action.seconds is None else action.seconds)
            elif isinstance(action, TakeOver):
                self.take_over = action
                scope.cancel()
                await trio.lowlevel.checkpoint()
            else:
                if isinstance(action, Reset):
                    for stream in self.raw:
                        _reset_on_close(stream)
                self.is_cut = isinstance(action, Cut)
                raise _EndError
        keep = way.hold_back(data)
        data, way.held = data[: len(data) - keep], data[len(data) - keep :]
        way.note(data)
        await self._write(way, target, ready + data)

    async def _send(self, way: _Direction, target: trio.abc.Stream, data: bytes) -> None:
        way.note(data)
        await self._write(way, target, data)

    async def _write(self, way: _Direction, target: trio.abc.Stream, data: bytes) -> None:
        while way.dribble is not None and data:
            piece, data = data[: way.dribble.octets], data[way.dribble.octets :]
            async with self.sending[way.name]:
                await target.send_all(piece)
            await trio.sleep(way.dribble.pause_s)
            way.dribbled += 1
            if way.dribbled >= way.dribble.count:
                way.dribble = None
        if data:
            async with self.sending[way.name]:
                await target.send_all(data)


def _reset_on_close(stream: trio.SocketStream) -> None:
    # a linger time of zero: close() sends RST and drops what was not sent
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

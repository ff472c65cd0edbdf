"""A mail server that accepts, defers, refuses, delays and drops as told, for tests, the demo and benchmarks.

Layer: adapter.  Spec: design.md "Command line"; engine/smtp/server.py has the dialogue.
Invariants: one task a connection and none a message; replies leave in the order of their commands, each not before its
time; a client that does not read, does not write or writes nonsense costs one bounded buffer until the idle
timeout.  What is counted as taken is kept, if it is to be kept, before its reply is sent; a message that cannot be
stored is answered with 452 and not counted.

One process: it takes in 100,000 messages a second in clear and 60,000 over TLS on one core (bench/claim_sink.py), which
is more than any sender on the other core gives it, so there is no option to run several on one port.

With `delay_s` a reply is due that long after its command came in, as on a slow network: replies to commands
that came together are due together, and the connection goes on reading meanwhile.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ..errors import StoreError, TlsPolicyError
from ..smtp.server import Action, Counts, Keep, Received, ServerOptions, SinkProtocol
from .sink_store import DuplicateTracker, MessageStore
from .stream import TlsStream, serve_tls
from .tcp import TcpStream, tune

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from OpenSSL import SSL

#: seconds; RFC 5321 §4.5.3.2.7 asks a server for 5 minutes
IDLE_TIMEOUT_S: Final = 300.0
#: seconds for a client to do its part of the TLS handshake
HANDSHAKE_TIMEOUT_S: Final = 30.0
#: seconds and octets given to a client that still sends after we have closed
LINGER_S: Final = 1.0
LINGER_OCTETS: Final = 1 << 20
#: replies that wait for their time before the connection stops reading
DELAYED_OCTETS: Final = 1 << 20
#: how long a reached idle deadline may be late; moving it at each read would cost more than it is worth
_DEADLINE_SLACK_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """How a sink listens and what it keeps; `server` has the rest.

    Attributes:
        host: address to listen on.
        port: 0 for any.
        server: the dialogue.
        tls: context of `engine.tls.context.server_context`, or None to offer no STARTTLS.
        store: directory for messages, made if needed; None to store none.
        keep_messages: how many messages `Sink.messages` keeps; further ones are counted only.
        track: look for duplicates by Message-ID and recipient.
        delay_s: seconds between a command and its reply.
        max_connections: at a time; more are answered 421.
        seed: makes what is deferred, refused and dropped repeatable, a connection at a time; None for chance.
        idle_timeout_s: seconds without a sign of the client after which it is dropped.
    """

    host: str = "127.0.0.1"
    port: int = 0
    server: ServerOptions = field(default_factory=ServerOptions)
    tls: SSL.Context | None = None
    store: Path | None = None
    keep_messages: int = 0
    track: bool = False
    delay_s: float = 0.0
    max_connections: int = 1000
    seed: int | None = None
    idle_timeout_s: float = IDLE_TIMEOUT_S


@dataclass(slots=True)
class SinkCounts(Counts):
    """What a sink has seen, connections included.

    Attributes:
        connections: accepted.
        tls_connections: that finished a TLS handshake.
        tls_failed: handshakes that failed.
        refused_connections: over the limit.
        store_errors: messages answered with 452 because they could not be stored.
        duplicates: pairs of Message-ID and recipient seen again (with `track`).
        unique: different pairs of Message-ID and recipient (with `track`).
        message_ids: different Message-IDs (with `track`).
        without_id: messages without a Message-ID (with `track`).
        untracked: pairs beyond what `track` can remember.
    """

    connections: int = 0
    tls_connections: int = 0
    tls_failed: int = 0
    refused_connections: int = 0
    store_errors: int = 0
    duplicates: int = 0
    unique: int = 0
    message_ids: int = 0
    without_id: int = 0
    untracked: int = 0

    def to_dict(self) -> dict[str, int]:
        """All counts by name."""
        return asdict(self)


class Sink:
    """A running sink; made by `open_sink`.

    Attributes:
        options: as given.
        counts: up to date whenever a reply has been sent.
        messages: the first `keep_messages` messages taken, in order.
        store_error: the first reason why a message could not be stored, or None.
    """

    def __init__(self, options: SinkOptions) -> None:
        self.options = options
        self.counts = SinkCounts()
        self.messages: list[Received] = []
        self.store_error: StoreError | None = None
        self._port = 0
        self._open_connections = 0
        self._seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(63)
        self._tracker = DuplicateTracker() if options.track else None
        self._store = MessageStore(options.store) if options.store is not None else None
        self._store_lock = trio.Lock()
        self._store_failed = trio.Event()
        if options.store or options.keep_messages:
            self._keeps = Keep.WHOLE
        else:
            self._keeps = Keep.HEADER if options.track else Keep.NOTHING
        self._changed: trio.Event | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.options.host, self._port

    async def wait_messages(self, count: int) -> None:
        """Wait until at least `count` messages have been taken; the caller sets the time limit."""
        while self.counts.messages < count:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()

    async def wait_store_error(self) -> StoreError:
        """Wait until a message could not be stored, and give the reason."""
        await self._store_failed.wait()
        assert self.store_error is not None
        return self.store_error

    # Serving

    async def _run(self, listeners: Sequence[trio.SocketListener]) -> None:
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self._serve, list(listeners), handler_nursery=nursery)

    async def _serve(self, socket_stream: trio.SocketStream) -> None:
        self.counts.connections += 1
        number = self.counts.connections
        tune(socket_stream.socket)
        stream = TcpStream(socket_stream)
        try:
            if self._open_connections >= self.options.max_connections:
                self.counts.refused_connections += 1
                await stream.send_all(b"421 4.7.0 Too many connections\r\n")
                return
            self._open_connections += 1
            try:
                await _Connection(self, stream, number).run()
            finally:
                self._open_connections -= 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except TlsPolicyError:
            self.counts.tls_failed += 1
        finally:
            await trio.aclose_forcefully(stream)

    # Messages

    def _on_counts(self, counts: tuple[int, ...]) -> None:
        self.counts.add(counts)
        if counts[0] and self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _keep(self, messages: list[Received]) -> list[Received]:
        """Keep messages as the options say; returns those that could not be."""
        refused: list[Received] = []
        if self._store is not None:
            async with self._store_lock:
                stored, error = await trio.to_thread.run_sync(self._store.write, messages)
            if error is not None:
                messages, refused = messages[:stored], messages[stored:]
                self.counts.store_errors += len(refused)
                self.store_error = self.store_error or error
                self._store_failed.set()
        room = self.options.keep_messages - len(self.messages)
        if room > 0:
            self.messages += messages[:room]
        tracker = self._tracker
        if tracker is not None:
            tracker.add(messages)
            counts = self.counts
            counts.duplicates, counts.unique = tracker.duplicates, tracker.unique
            counts.message_ids, counts.without_id = tracker.message_ids, tracker.without_id
            counts.untracked = tracker.untracked
        return refused


class _Connection:
    """One client."""

    def __init__(self, sink: Sink, stream: TcpStream, number: int) -> None:
        options = sink.options
        self._sink = sink
        self._options = options
        self._stream: TcpStream | TlsStream = stream
        self._needs_messages = sink._keeps is not Keep.NOTHING
        self._delayed: deque[tuple[float, bytes]] = deque()
        self._delayed_octets = 0
        source = random.Random(f"{sink._seed}/{number}")
        self._protocol = SinkProtocol(
            options.server,
            number=number,
            seed=source.getrandbits(63),
            tls_available=options.tls is not None,
            keep=sink._keeps,
            nonce=f"{random.SystemRandom().getrandbits(128):x}" if options.server.credentials else "",
        )

    async def run(self) -> None:
        """Serve until either side ends it."""
        with trio.CancelScope(deadline=trio.current_time() + self._options.idle_timeout_s) as scope:
            await self._send(self._protocol.greeting)
            while data := await self._receive():
                deadline = trio.current_time() + self._options.idle_timeout_s
                if deadline - scope.deadline > min(_DEADLINE_SLACK_S, self._options.idle_timeout_s / 4):
                    scope.deadline = deadline
                replies = self._protocol.receive(data)
                if self._needs_messages and (messages := self._protocol.take_messages()):
                    refused = await self._sink._keep(messages)
                    for message in refused:
                        self._sink.counts.subtract(message)
                    replies = self._protocol.refuse(replies, refused)
                self._sink._on_counts(self._protocol.take_counts())
                if replies:
                    await self._send(replies)
                if self._protocol.action is not Action.RECEIVE and not await self._act(replies):
                    return
            # A client that closed only its own direction still gets what it is owed.
            while self._delayed:
                await self._send_due()

    async def _act(self, replies: bytes) -> bool:
        """Do what the protocol wants after the replies; returns whether to go on."""
        while self._delayed:
            await self._send_due()
        match self._protocol.action:
            case Action.START_TLS:
                context = self._options.tls
                assert context is not None
                self._stream = await serve_tls(self._stream, context, timeout_s=HANDSHAKE_TIMEOUT_S)
                self._sink.counts.tls_connections += 1
                self._protocol.on_tls()
                return True
            case Action.CLOSE:
                await self._close(linger=not replies.endswith(b"221 2.0.0 Bye\r\n"))
        return False

    async def _receive(self) -> bytes:
        while self._delayed:
            if self._delayed_octets < DELAYED_OCTETS:
                with trio.CancelScope(deadline=self._delayed[0][0]) as scope:
                    return await self._stream.receive_some()
                assert scope.cancelled_caught
            await self._send_due()
        return await self._stream.receive_some()

    async def _send(self, replies: bytes) -> None:
        if not self._options.delay_s:
            await self._stream.send_all(replies)
            return
        self._delayed.append((trio.current_time() + self._options.delay_s, replies))
        self._delayed_octets += len(replies)

    async def _send_due(self) -> None:
        """Wait for the first reply that is due and send it with all others that are due by then."""
        await trio.sleep_until(self._delayed[0][0])
        now = trio.current_time()
        blob = bytearray()
        while self._delayed and self._delayed[0][0] <= now:
            blob += self._delayed.popleft()[1]
        self._delayed_octets -= len(blob)
        await self._stream.send_all(blob)

    async def _close(self, *, linger: bool) -> None:
        """Close in order.  A client that still sends would have its last replies destroyed by a reset, so listen on."""
        stream = self._stream
        if not linger:
            await stream.aclose()
            return
        with trio.move_on_after(LINGER_S):
            if isinstance(stream, TlsStream):
                await stream.send_close_notify()
                transport = stream.transport
            else:
                transport = stream
            if isinstance(transport, TcpStream):
                await transport.send_eof()
            octets = 0
            while octets < LINGER_OCTETS and (data := await transport.receive_some()):
                octets += len(data)


@contextlib.asynccontextmanager
async def open_sink(options: SinkOptions | None = None) -> AsyncIterator[Sink]:
    """Run a sink in this process while the block runs; its connections are dropped at the end.

    Raises:
        OSError: it cannot listen there.
        StoreError: `store` cannot be made or written to.
    """
    options = options or SinkOptions()
    sink = Sink(options)
    listeners = await trio.open_tcp_listeners(options.port, host=options.host, backlog=1024)
    if options.port == 0:
        # A name with two addresses would get two ports, and nobody could be told of the second.
        for listener in listeners[1:]:
            await listener.aclose()
        del listeners[1:]
    sink._port = listeners[0].socket.getsockname()[1]
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink._run, listeners)
            yield sink
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # What the block raised comes out of it as it went in.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__

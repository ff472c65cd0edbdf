"""Drive one SMTP connection that is open: send messages over it, close it.

Layer: adapter.  Spec: events-dane 8.1, 8.2, 11.1, 11.4; bulk-sending section 5; RFC 5321 §4.5.3.2 (timeouts).
The protocol is `smtp.client`; here are octets, deadlines and the errors of the system.

One task drives a session, and no task or cancel scope is made for a message: all that may be sent goes out in one
write, all replies that have come are read at once, and one deadline moves with the replies.  It moves when a reply is
complete, not when an octet arrives, so a server that dribbles is as dead as one that is silent.

A server may stop reading until we read its replies, so what it does not take within `PATIENCE_S` is sent with a reader
beside it.  What the reader finds is kept until the write is done, up to `EARLY_OCTETS`; a server that has more to say
than that does not get to say it, and runs into the deadline of the write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ..errors import LocalProtocolError
from ..smtp import commands
from ..smtp.failure import CANCELLED, TIMEOUT, Loss
from ..smtp.flight import MAX_FLIGHT_OCTETS
from ..tls.engine import WRITE_OCTETS
from .losses import is_readable, receive, send_loss
from .stream import TlsStream
from .tcp import MAX_PIECES, TcpStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from ..policy.mx import Host
    from ..policy.plan import Plan
    from ..smtp import Capabilities, HostMemory, Reply, Transaction, TransactionResult
    from ..smtp.client import Client
    from ..smtp.opening import OpeningStage
    from ..tls.facts import TlsFacts

#: octets handed to the stream at a time; each has `data_timeout_s`
BLOCK_OCTETS: Final = WRITE_OCTETS
#: by how much of itself a timeout may be longer than it is said to be
_SLACK: Final = 1 / 64
#: seconds for which a write waits without somebody who reads; arbitrary, it costs a task each time it is over
PATIENCE_S: Final = 0.1
#: octets of replies kept while a write is under way
EARLY_OCTETS: Final = 256 * 1024
#: seconds for what a server still says after 421, and for its answer to QUIT
PARTING_TIMEOUT_S: Final = 5.0


class Watch(Protocol):
    """Who wants to know what happens on one connection, step by step; each step waits until it was told."""

    async def on_connected(self, local_address: str) -> None:
        """TCP is connected; ``[ip]:port`` of our end."""

    async def on_reply(self, stage: OpeningStage, mechanism: str, reply: Reply) -> str:
        """A reply of the opening; the text of an error to end the connection with, or "" to go on.

        Only the reply to the connection itself, the banner, may be answered with a text.
        """

    async def examine(self, facts: TlsFacts, path: Callable[[], tuple[bytes, ...]]) -> TlsFacts:
        """See `tls.facts.Examine`."""

    async def on_closed(self) -> None:
        """The connection is closed; may be called more than once, and for one that was never made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What holds for a connection; made once a host.

    Attributes:
        helo_name: name for EHLO, without spaces and control characters.
        plan: what TLS must prove.
        window: transactions in flight at most; 0 keeps to one command at a time (hosts_avoid_pipelining).
        max_flight_octets: as in `engine.smtp.Client`.
        auth: (user name, password) to authenticate with if a mechanism is offered, or None.
        auth_required: no mail without authentication (hosts_require_auth): DeliveryError -42.
        choose_auth: gives these two where they depend on the connection, or None; called when TLS is done or done
            without, with our end of the connection, ``[ip]:port``, and the facts of TLS.  May raise DeliveryError.
        auth_mechanisms: in order of preference; of SCRAM-SHA-256, PLAIN, LOGIN.
        auth_in_clear: authenticate without TLS too.
        connect_timeout_s: TCP; command_timeout_s: each reply, and the TLS handshake; data_timeout_s: each block of
            content to be taken; final_timeout_s: the reply to the end of the content.
        interface: local address to bind to, or None.
    """

    helo_name: str
    plan: Plan
    window: int = 4
    max_flight_octets: int = MAX_FLIGHT_OCTETS
    auth: tuple[str, str] | None = None
    auth_required: bool = False
    choose_auth: Callable[[str, TlsFacts | None], Awaitable[tuple[tuple[str, str] | None, bool]]] | None = None
    auth_mechanisms: tuple[str, ...] = ("SCRAM-SHA-256", "PLAIN", "LOGIN")
    auth_in_clear: bool = False
    connect_timeout_s: float = 300.0
    command_timeout_s: float = 300.0
    data_timeout_s: float = 300.0
    final_timeout_s: float = 600.0
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is the same for every message of a session.

    Attributes:
        local_address: ``[ip]:port`` of our end, or "".
        tls: None in clear.
        authenticator: mechanism that succeeded, or "".
        greeting: text of the first line of the banner.
    """

    host: Host
    port: int
    local_address: str = ""
    tls: TlsFacts | None = None
    authenticator: str = ""
    greeting: str = ""


class Session:
    """One connection that is ready to send; made by `opener.open_session`.  Used by one task at a time.

    Attributes:
        facts: what is the same for every message.
        watch: who is told what happens.
        capabilities: what the last EHLO offered.
        memory: what is known of the host.
        is_usable: whether `run` may be called; once False it stays so.
        sent_count: transactions begun on this connection.
        is_closed: `aclose` or `quit` has come to its end.
        use_until: monotonic second after which its policy has to be looked up again (R46, R47); set by who opened it.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        client: Client,
        facts: SessionFacts,
        options: SessionOptions,
        watch: Watch | None = None,
    ) -> None:
        self.facts = facts
        self.watch = watch
        self.use_until = math.inf
        self.is_closed = False
        self._stream = stream
        self._start_send: Callable[..., bool] | None = None
        self._finish_send: Callable[..., Awaitable[bool]] | None = None
        self._is_lockstep = True
        if isinstance(stream, TcpStream | TlsStream):
            self._start_send, self._finish_send = stream.start_send, stream.finish_send
            stream.is_lockstep = self._is_lockstep
        self._client = client
        self._options = options
        self._is_broken = False
        self._running = False
        #: before the first run there is no news: the answer to EHLO, or to AUTH, has just come
        self._was_run = False
        #: replies that came while we were sending
        self._early: list[bytes] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._client.capabilities

    @property
    def memory(self) -> HostMemory:
        return self._client.memory

    @property
    def is_usable(self) -> bool:
        return not self._is_broken and not self._client.is_over

    @property
    def sent_count(self) -> int:
        return self._client.begun

    @property
    def max_messages(self) -> int | None:
        """Transactions that the host allows on this connection (MAILMAX of RFC 9422), or None."""
        return self._client.capabilities.mail_max

    @property
    def max_recipients(self) -> int | None:
        """Recipients to put in one transaction: RCPTMAX, or what a 452 has taught (RT-4); None if not known.

        Further recipients of a transaction come back in `TransactionResult.rest`.
        """
        return self._client.recipient_limit

    async def run(
        self,
        next_transaction: Callable[[], Transaction | None],
        on_results: Callable[[list[TransactionResult]], None],
        before_final: Callable[[list[Transaction]], None],
    ) -> None:
        """Send what `next_transaction` gives until it gives None and nothing is in flight.

        All three are called synchronously, in this task.  Results come in the order of the transactions.  It ends
        early and without an error when the host allows no more messages on the connection, or closed it between two, or
        after it had refused all that was in flight: then `is_usable` is False.  A transaction that was taken always
        gets its result, whatever happens.

        Args:
            next_transaction: called whenever one more may be started; None for "not now".  After a None it is
                asked again once some reply has come and before this returns.
            on_results: called with the results that came together; every transaction taken gets just one.
            before_final: called with the transactions whose last octet may be on the wire from now on, just before it
                is handed over.  If it raises, that octet is not sent, the session is over and the error goes on to
                the caller.

        Raises:
            DeliveryError: the connection is over.  The error is that of the oldest transaction in flight, so its scope
                may be MESSAGE (timeout or loss after the end of data: the host is not to blame) as well as
                HOST.  Every transaction in flight has had its result before.
            trio.Cancelled: the same, with results of scope LOCAL.
        """
        if self._running:
            raise LocalProtocolError("another task is using this session")
        self._running = True
        client = self._client
        try:
            if self._was_run:
                await self._look_for_news()
            self._was_run = True
            if not self.is_usable:
                return
            loss: Loss | None = TIMEOUT
            with trio.CancelScope() as scope:
                loss = await self._talk(scope, next_transaction, on_results, before_final)
            if loss is None:
                return
            self._is_broken = True
            results, error = client.on_lost(loss)
            if results:
                on_results(results)
        except BaseException:
            self._is_broken = True
            results = client.on_lost(CANCELLED)[0]
            if results:
                on_results(results)
            raise
        finally:
            self._running = False
        if error is not None:
            raise error

    async def wait_idle(self) -> None:
        """Return when the host has closed the connection or spoken though nobody asked; the session is over then.

        May be cancelled without harm: the session is as it was.
        """
        while self.is_usable:
            self._on_idle(await receive(self._stream))

    async def quit(self) -> None:
        """Say QUIT, wait a little for the answer, close.  Never raises but for cancellation; closes in any case."""
        if self._is_broken or self._client.in_flight or self._client.closing is not None:
            await self.aclose()
            return
        try:
            with trio.move_on_after(min(PARTING_TIMEOUT_S, self._options.command_timeout_s)):
                self._is_broken = True
                self._set_lockstep(True)
                stream = self._stream
                if isinstance(stream, TlsStream):
                    # our close_notify goes with it, as Exim's does: nothing else will be said
                    await stream.send_last(commands.QUIT)
                else:
                    await stream.send_all(commands.QUIT)
                octets = 0
                while octets < EARLY_OCTETS:
                    found = await receive(self._stream)
                    if isinstance(found, Loss) or b"\n" in found:
                        break
                    octets += len(found)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close at once, without QUIT."""
        self._is_broken = True
        await self._stream.aclose()
        if self.watch is not None:
            await self.watch.on_closed()
        self.is_closed = True

    # Inner works

    async def _talk(
        self,
        scope: trio.CancelScope,
        next_transaction: Callable[[], Transaction | None],
        on_results: Callable[[list[TransactionResult]], None],
        before_final: Callable[[list[Transaction]], None],
    ) -> Loss | None:
        """Send and receive until nothing is left; returns how the connection ended if it did."""
        client = self._client
        seen = -1
        while True:
            while client.can_begin:
                transaction = next_transaction()
                if transaction is None:
                    break
                refused = client.begin(transaction)
                if refused is not None:
                    on_results([refused])
            if client.has_output:
                failed = await self._send(scope, before_final)
                seen = -1
                early, self._early = self._early, []
                for octets in early:
                    results = client.receive(octets)
                    if results:
                        on_results(results)
                if failed is not None or client.failure is not None:
                    return client.failure or failed
                if early:
                    continue
            if not client.in_flight:
                return None
            if client.reply_count != seen:
                seen = client.reply_count
                _put_off(scope, self._reply_timeout_s())
            if (client.in_flight == 1) is not self._is_lockstep:
                self._set_lockstep(not self._is_lockstep)
            octets_or_loss = await receive(self._stream)
            if isinstance(octets_or_loss, Loss):
                return octets_or_loss
            results = client.receive(octets_or_loss)
            if results:
                on_results(results)
            if client.failure is not None:
                return client.failure

    def _set_lockstep(self, is_lockstep: bool) -> None:
        """Whether there can be anything to read before what was sent last is answered: replies to other flights."""
        self._is_lockstep = is_lockstep
        if isinstance(self._stream, TcpStream | TlsStream):
            self._stream.is_lockstep = is_lockstep

    def _reply_timeout_s(self) -> float:
        options = self._options
        timeout_s = options.final_timeout_s if self._client.awaits_final else options.command_timeout_s
        return timeout_s if self._client.closing is None else min(timeout_s, PARTING_TIMEOUT_S)

    async def _send(self, scope: trio.CancelScope, before_final: Callable[[list[Transaction]], None]) -> Loss | None:
        """Send what the client has; returns the loss if it could not be sent."""
        client = self._client
        client.written_octets = 0
        completing = client.completing
        # of several, or with the next envelope behind it, the last octet may be anywhere
        is_at_end = len(completing) == 1 and client.ends_with_final
        pieces = client.take_output()
        size = sum(map(len, pieces))
        blocks: Iterable[tuple[int, Sequence[bytes | memoryview]]]
        if size <= BLOCK_OCTETS and len(pieces) <= MAX_PIECES:
            blocks = ((size, pieces),)
        else:
            blocks = _blocks(pieces)
        timeout_s = self._options.data_timeout_s if completing else self._options.command_timeout_s
        try:
            for octets, block in blocks:
                if completing and (not is_at_end or client.written_octets + octets == size):
                    before_final(completing)
                    client.on_final_handed()
                    completing = []
                if self._start_send is None or not self._start_send(*block):
                    _put_off(scope, timeout_s)
                    if self._finish_send is None or not await self._finish_send(min(PATIENCE_S, timeout_s)):
                        await self._send_reading(block)
                client.written_octets += octets
        except trio.BrokenResourceError as error:
            await self._read_last_words()
            return send_loss(error)
        return None

    async def _send_reading(self, block: Sequence[bytes | memoryview]) -> None:
        """Send a block, or finish it, while somebody reads what the server says meanwhile."""
        failure: trio.BrokenResourceError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_early)
            try:
                if self._finish_send is not None:
                    await self._finish_send()
                else:
                    await self._stream.send_all(b"".join(block))
            except trio.BrokenResourceError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _read_early(self) -> None:
        while sum(map(len, self._early)) < EARLY_OCTETS:
            octets = await receive(self._stream)
            if isinstance(octets, Loss):
                # The write will notice.
                return
            self._early.append(octets)

    async def _read_last_words(self) -> None:
        """A server that refused may have said why before it closed."""
        with trio.move_on_after(PARTING_TIMEOUT_S):
            await self._read_early()

    async def _look_for_news(self) -> None:
        """Find out what the server said or did while nobody listened, without waiting."""
        if self.is_usable and is_readable(self._stream):
            with trio.move_on_after(0.05):
                self._on_idle(await receive(self._stream))

    def _on_idle(self, found: bytes | Loss) -> None:
        """The server closed, or spoke though it was not asked."""
        if isinstance(found, Loss):
            self._is_broken = True
            return
        self._client.receive(found)
        if self._client.failure is not None:
            self._client.memory.on_disorder()
            self._is_broken = True


def _put_off(scope: trio.CancelScope, seconds: float) -> None:
    """Let the scope last for so long, or a little more: to move its deadline costs as much as a message."""
    at = trio.current_time() + seconds
    latest = at + seconds * _SLACK
    if not at <= scope.deadline <= latest:
        scope.deadline = latest


def _blocks(pieces: list[bytes]) -> Iterator[tuple[int, list[bytes | memoryview]]]:
    """The same octets without a copy, in blocks of at most `BLOCK_OCTETS` and `MAX_PIECES`; and how many these are."""
    block: list[bytes | memoryview] = []
    room = BLOCK_OCTETS
    for piece in pieces:
        start = 0
        while start < len(piece):
            end = min(start + room, len(piece))
            block.append(piece if end - start == len(piece) else memoryview(piece)[start:end])
            room -= end - start
            start = end
            if not room or len(block) == MAX_PIECES:
                yield BLOCK_OCTETS - room, block
                block, room = [], BLOCK_OCTETS
    if block:
        yield BLOCK_OCTETS - room, block

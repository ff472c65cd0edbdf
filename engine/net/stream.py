"""TLS streams over trio that cost little a message.

Layer: adapter.  Spec: RFC 8446 §6.1 (close_notify), R41, R43; trio's Stream contract.

Facts.  The TLS library turns plaintext into records whose order on the wire must be the order in which they came out of
it, and it may want to send while it reads (key updates, alerts).

What it means.  As with `net.tcp`, every operation first tries and then waits; of operations in a row that did not wait
every `yield_every`-th is a checkpoint.  An operation does one blocking thing at a time: it sends what the library wants
sent, and only then waits for the peer.

Order.  Between taking ciphertext out of the library and either handing it to the kernel or queueing for the lock
there is no await, and trio's lock is first in, first out. Whoever fails or is cancelled with ciphertext in hand
breaks the stream for good: a hole in a TLS stream cannot be mended.

What we do not do.  No half-close: after `aclose` nothing is read.  No renegotiation.  The end of TCP without
close_notify is an error (`trio.BrokenResourceError`) unless the stream was told to take it for an end
(`ragged_eof_ok`): whoever cuts the connection could be anybody, and only a caller that has seen its last reply (221)
may shrug.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Final

import trio

from ..errors import TlsPolicyError
from ..tls.context import engine_for_server
from ..tls.engine import READ_OCTETS, WRITE_OCTETS, TlsEngine, tls_error
from .tcp import YIELD_EVERY, TcpStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from OpenSSL import SSL

    from ..policy.plan import Plan
    from ..tls.context import TlsContexts, TlsOptions
    from ..tls.facts import Decide, Examine, TlsFacts

#: seconds that `aclose` gives a peer that does not read to take our close_notify
CLOSE_TIMEOUT_S: Final = 0.5


class TlsStream(trio.abc.Stream):
    """One end of a TLS connection over a trio stream.

    Made by `start_tls` and `serve_tls`, which do the handshake.

    Attributes:
        facts: what the handshake showed and what was decided about it.
    """

    facts: TlsFacts

    def __init__(
        self,
        transport: trio.abc.Stream,
        engine: TlsEngine,
        *,
        ragged_eof_ok: bool = False,
        yield_every: int = YIELD_EVERY,
        keep_session: Callable[..., None] | None = None,
    ) -> None:
        if isinstance(transport, trio.SocketStream):
            transport = TcpStream(transport, yield_every=yield_every)
        self.transport = transport
        self._tcp = transport if isinstance(transport, TcpStream) else None
        self._engine = engine
        self._ragged_eof_ok = ragged_eof_ok
        self._keep_session = keep_session
        self._has_read = False
        self._yield_every = yield_every
        self._quick_count = 0
        self._transmit_lock = trio.Lock()
        self._sending = False
        self._receiving = False
        self._broken: BaseException | None = None
        self._closed = False
        #: what `start_send` left: plaintext, or nothing where it is ciphertext, for which the lock is held
        self._held = b""
        self._holds_lock = False

    @property
    def is_lockstep(self) -> bool:
        """As `TcpStream.is_lockstep`."""
        return self._tcp is not None and self._tcp.is_lockstep

    @is_lockstep.setter
    def is_lockstep(self, value: bool) -> None:
        if self._tcp is not None:
            self._tcp.is_lockstep = value

    def start_send(self, *pieces: bytes | memoryview) -> bool:
        """As `TcpStream.start_send`; `finish_send` must follow in the same task."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_usable()
        if self._tcp is None or self._transmit_lock.locked() or sum(map(len, pieces)) > WRITE_OCTETS:
            self._held = b"".join(pieces)
            self._sending = True
            return False
        ciphertext = self._encrypt(*pieces)
        try:
            if self._tcp.start_send(ciphertext):
                return True
        except BaseException as error:
            self._broken = error
            raise
        # The rest must go before anything else: take the lock without a gap.
        self._transmit_lock.acquire_nowait()
        self._sending = self._holds_lock = True
        return False

    async def finish_send(self, patience_s: float = math.inf) -> bool:
        """As `TcpStream.finish_send`; what was not even encrypted is not sent but without a limit to the patience."""
        if not self._holds_lock:
            if patience_s < math.inf:
                return False
            held, self._held = self._held, b""
            self._sending = False
            await self.send_all(held)
            return True
        assert self._tcp is not None
        is_over = True
        try:
            self._quick_count = 0
            is_over = await self._tcp.finish_send(patience_s)
        except BaseException as error:
            self._broken = self._broken or error
            raise
        finally:
            if is_over:
                self._transmit_lock.release()
                self._sending = self._holds_lock = False
        return is_over

    # What trio's Stream asks for

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send everything.

        A cancellation while it waits breaks the stream.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_usable()
        self._sending = True
        try:
            self._quick_count += 1
            if self._quick_count >= self._yield_every:
                await self._checkpoint()
                self._check_usable()
            if len(data) <= WRITE_OCTETS:
                await self._transmit(self._encrypt(data))
            else:
                with memoryview(data) as view:
                    for start in range(0, len(view), WRITE_OCTETS):
                        self._check_usable()
                        with view[start : start + WRITE_OCTETS] as part:
                            ciphertext = self._encrypt(part)
                        await self._transmit(ciphertext)
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Plaintext, at most `max_bytes`; by default everything that has arrived, up to 256 KiB.

        Empty once the peer has closed TLS in order.  A cancellation loses nothing.

        Raises:
            trio.BrokenResourceError: the transport or TLS is broken, or was cut without close_notify.
            trio.ClosedResourceError, trio.BusyResourceError, ValueError.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._check_usable()
        self._receiving = True
        try:
            self._quick_count += 1
            if self._quick_count >= self._yield_every:
                await self._checkpoint()
                self._check_usable()
            limit = READ_OCTETS if max_bytes is None else max_bytes
            while True:
                try:
                    data = self._engine.read(limit)
                except TlsPolicyError as error:
                    self._broken = error
                    raise trio.BrokenResourceError(error.message) from error
                if data is not None:
                    if not self._has_read:
                        self._has_read = True
                        if self._keep_session is not None:
                            # TLS 1.3 sends its tickets after the handshake: only now is there a session worth keeping.
                            self._keep_session()
                    return data
                # Exactly one of the two: send what the library wants sent, or wait for octets of the peer.
                output = self._engine.pending_output()
                if output:
                    await self._transmit(output)
                else:
                    await self._receive_ciphertext()
                self._check_usable()
        finally:
            self._receiving = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport would have room."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_usable()
        self._sending = True
        try:
            async with self._transmit_lock:
                self._check_usable()
                await self.transport.wait_send_all_might_not_block()
        finally:
            self._sending = False

    async def aclose(self) -> None:
        """Send close_notify if the peer takes it within `CLOSE_TIMEOUT_S`, keep the session, close the transport."""
        if self._closed:
            await self.transport.aclose()
            return
        self._closed = True
        try:
            if self._broken is None:
                await self._farewell(self._engine.shutdown())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._rest()
            await self.transport.aclose()

    async def send_close_notify(self) -> None:
        """Close our direction of TLS; nothing can be sent or received on this stream after it."""
        await self._transmit(self._engine.shutdown())

    async def send_last(self, data: bytes) -> None:
        """Send the last octets and close_notify with them; what the peer still says can be received.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_usable()
        self._sending = True
        try:
            await self._transmit(self._engine.write_last(data))
        except TlsPolicyError as error:
            self._broken = error
            raise trio.BrokenResourceError(error.message) from error
        finally:
            self._sending = False

    # For others in this room

    def abort(self) -> None:
        """Forget the connection without close_notify; follow it with `trio.aclose_forcefully`."""
        self._closed = True
        self._rest()

    async def do_handshake(self, *, leave_last: bool = False) -> None:
        """Complete the handshake; `leave_last`: see `start_tls`.

        Raises:
            TlsPolicyError: it failed; an alert was sent if there was one and the transport took it.
        """
        try:
            while True:
                try:
                    done = self._engine.handshake()
                except TlsPolicyError:
                    # The peer may be gone already; why it failed is what counts.
                    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await self._farewell(self._engine.pending_output())
                    raise
                if not (done and leave_last):
                    await self._transmit(self._engine.pending_output())
                if done:
                    return
                await self._receive_ciphertext()
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
            raise self._engine.error(text) from error

    # Inner works

    def _encrypt(self, *pieces: bytes | bytearray | memoryview) -> bytes:
        try:
            return self._engine.write(*pieces)
        except TlsPolicyError as error:
            self._broken = error
            raise trio.BrokenResourceError(error.message) from error

    async def _receive_ciphertext(self) -> None:
        self._quick_count = 0
        octets = await self.transport.receive_some(None)
        if octets:
            self._engine.feed(octets)
        elif self._ragged_eof_ok and self._engine.handshake_done:
            self._engine.feed_close()
        else:
            self._engine.feed_eof()

    async def _transmit(self, ciphertext: bytes) -> None:
        """Send ciphertext in the order of the calls.  No await stands before the choice between its two ways."""
        if not ciphertext:
            return
        try:
            sent = 0
            if self._tcp is not None and not self._transmit_lock.locked():
                sent = self._tcp._send_nowait(ciphertext)
                if sent == len(ciphertext):
                    return
                # The rest must go before anything else: take the lock without a gap.
                self._transmit_lock.acquire_nowait()
            else:
                await self._transmit_lock.acquire()
            try:
                if self._broken is not None:
                    raise trio.BrokenResourceError("this stream is broken") from self._broken
                self._quick_count = 0
                with memoryview(ciphertext) as view, view[sent:] as rest:
                    await self.transport.send_all(rest)
            finally:
                self._transmit_lock.release()
        except BaseException as error:
            self._broken = self._broken or error
            raise

    async def _farewell(self, ciphertext: bytes) -> None:
        """Send the last records, but do not wait long for it."""
        if not ciphertext:
            return
        if self._tcp is not None and not self._transmit_lock.locked():
            sent = self._tcp._send_nowait(ciphertext)
            if sent == len(ciphertext):
                return
            # Whoever does not take a hundred octets will not take the rest either.
            self._broken = trio.BrokenResourceError("the peer does not read")
            return
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            await self._transmit(ciphertext)

    async def _checkpoint(self) -> None:
        self._quick_count = 0
        await trio.lowlevel.checkpoint()

    def _check_usable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._broken is not None:
            raise trio.BrokenResourceError("this stream is broken") from self._broken

    def _rest(self) -> None:
        self._engine.rest()
        if self._keep_session is not None and self._broken is None and self._has_read:
            self._keep_session(is_end=True)
        self._keep_session = None


async def start_tls(
    stream: trio.abc.Stream,
    plan: Plan,
    contexts: TlsContexts,
    *,
    host_name: str,
    timeout_s: float | None,
    decide: Decide | None = None,
    options: TlsOptions | None = None,
    leave_last: bool = False,
    examine: Examine | None = None,
    endpoint: tuple[object, ...] | None = None,
) -> TlsStream:
    """Turn a connection on which STARTTLS was answered with 220 into a TLS stream.

    The caller has made sure that nothing was received after the 220 (TL-5).  `stream` belongs to the
    result; when this raises, or is cancelled, it has been closed, so nothing can be sent in clear on it (R43).

    Args:
        stream: the transport; fastest if it is a `trio.SocketStream` or a `TcpStream`.
        plan: what TLS must prove.
        contexts: contexts and sessions of the engine.
        host_name: the host as routing knows it.
        timeout_s: seconds for the handshake; None where the caller sees to it.
        decide: sees the chain after the handshake and before any octet of SMTP; required for a DANE plan.
        options: options of this host, None for those of `contexts`.
        leave_last: leave our last flight of the handshake to go out with what is sent next, or before anything is
            waited for: a packet and a system call less for who speaks first.
        examine: has the last word on a handshake that would do.
        endpoint: what tells servers of this name apart; None for the address and port of the peer.

    Raises:
        TlsPolicyError: the handshake failed or timed out, or the certificate does not prove what the plan demands.
        ConfigError: a file that the options name is not usable.
    """
    try:
        handshake = contexts.handshake(
            plan, host_name=host_name, endpoint=_endpoint(stream) if endpoint is None else endpoint, options=options
        )
        tls = TlsStream(stream, handshake.engine, keep_session=handshake.keep_session)
        try:
            if timeout_s is None:
                await tls.do_handshake(leave_last=leave_last)
            else:
                with trio.move_on_after(timeout_s) as scope:
                    await tls.do_handshake(leave_last=leave_last)
                if scope.cancelled_caught:
                    raise handshake.engine.error("timed out")
        except BaseException:
            handshake.fail()
            raise
        try:
            tls.facts = handshake.conclude(decide)
            if examine is not None:
                tls.facts = handshake.amend(await examine(tls.facts, handshake.engine.verified_chain))
        except TlsPolicyError:
            handshake.fail()
            # Be polite to the peer: it may log why.  There is no session to keep.
            tls._keep_session = None
            await tls.aclose()
            raise
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


async def serve_tls(stream: trio.abc.Stream, context: SSL.Context, *, timeout_s: float) -> TlsStream:
    """The server's end: complete a handshake that the peer starts.  `stream` belongs to the result.

    The end of TCP without close_notify is an ordinary end here: clients that have said QUIT owe nothing.

    Raises:
        TlsPolicyError: it failed or timed out; `stream` has been closed.
    """
    engine = engine_for_server(context)
    tls = TlsStream(stream, engine, ragged_eof_ok=True)
    try:
        with trio.move_on_after(timeout_s) as scope:
            await tls.do_handshake()
        if scope.cancelled_caught:
            raise tls_error("(SSL_accept): timed out")
        tls.facts = engine.facts()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


def _endpoint(stream: trio.abc.Stream) -> tuple[object, ...]:
    """Address and port of the peer, where the transport has such things."""
    if isinstance(stream, TcpStream | trio.SocketStream):
        try:
            return tuple(stream.socket.getpeername()[:2])
        except OSError:
            return ()
    return ()

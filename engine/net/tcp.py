"""TCP streams over trio that cost little an operation.

Layer: adapter.  Spec: trio's Stream contract.

Facts.  A trio socket call that need not wait still goes once round the scheduler, which costs more than the
system call.  An SMTP flight is one write, which nearly always fits the socket's buffer, and one read, which nearly
always has to wait for the peer.

What it means.  Every operation first tries the system call on the non-blocking descriptor, and waits only if the kernel
says so; but where one side speaks at a time (`is_lockstep`), what was sent has to be answered before anything can be
read, and a try would be for nothing.  Of operations in a row that did not wait every `yield_every`-th is a checkpoint,
and so is every wait: others get their turn, and a cancellation is noticed, by then.  `start_send` is the half of
`send_all` that does not wait: who must read while he writes needs a second task only if it says that something is left,
and `finish_send` that the peer does not take it.
Invariants: octets leave in the order in which they were given, none twice; a closed stream touches no descriptor, which
may be somebody else's by then; no operation goes on for ever without a checkpoint.
"""

from __future__ import annotations

import math
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

#: octets asked of the kernel at a time; four full flights of a window of 16 KiB messages
RECEIVE_OCTETS: Final = 256 * 1024
#: pieces that `start_send` takes; the kernel's limit is 1024
MAX_PIECES: Final = 512
#: operations in a row that may do without a turn of the scheduler; arbitrary, a flight is two
YIELD_EVERY: Final = 16
#: octets the kernel takes ahead of the wire; trio's 16 KiB would cut a window of messages into many writes
NOTSENT_LOWAT_OCTETS: Final = 256 * 1024
_NOTSENT_LOWAT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)


def tune(connection: socket.socket | trio.socket.SocketType) -> None:
    """Set the options of a connected TCP socket: no Nagle delay, room for a whole window of messages."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _NOTSENT_LOWAT is not None:
            connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, NOTSENT_LOWAT_OCTETS)
    except OSError:
        pass  # not a TCP socket, such as a socketpair in a test


class TcpStream(trio.abc.HalfCloseableStream):
    """A connected socket as a stream that tries before it waits; see the header.

    Args:
        connection: a non-blocking socket, or trio's stream over one; belongs to this object from now on.
        yield_every: operations in a row that may go without a turn of the scheduler; 1 keeps trio's strict rule.

    Attributes:
        socket: for what this class does not wrap; belongs to the stream.
        is_lockstep: the peer says nothing but answers: what is read first after something was sent has to be waited
            for.
    """

    def __init__(self, connection: socket.socket | trio.SocketStream, *, yield_every: int = YIELD_EVERY) -> None:
        self.socket: socket.socket | trio.socket.SocketType = (
            connection.socket if isinstance(connection, trio.SocketStream) else connection
        )
        #: -1 once closed
        self._fd = self.socket.fileno()
        self.is_lockstep = False
        self._yield_every = yield_every
        self._quick_count = 0
        self._sending = False
        self._receiving = False
        #: something was sent since the last read
        self._has_sent = True
        self._is_half_closed = False
        #: what `start_send` left
        self._held: list[bytes | memoryview] = []

    def start_send(self, *pieces: bytes | memoryview) -> bool:
        """Hand over what the kernel takes at once, of at most `MAX_PIECES`; no cancellation point.

        Returns:
            Whether that was everything.  If not, `finish_send` must follow; no piece must change before it is done.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        held = self._send_pieces(pieces)
        if not held:
            return True
        self._held = held
        self._sending = True
        return False

    async def finish_send(self, patience_s: float = math.inf) -> bool:
        """Send what `start_send` left; raises as `send_all` does.

        Returns:
            Whether that was everything.  If not, `patience_s` has gone by: call it again.
        """
        is_over = True
        try:
            self._quick_count = 0
            with trio.move_on_after(patience_s) as scope:
                while self._held:
                    await trio.lowlevel.wait_writable(self._fd)
                    self._held = self._send_pieces(self._held)
            is_over = not (scope.cancelled_caught and self._held)
        finally:
            if is_over:
                self._held = []
                self._sending = False
        return is_over

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything; trio's contract.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            self._quick_count += 1
            if self._quick_count >= self._yield_every:
                await self._checkpoint()
            sent = self._send_nowait(data)
            if sent < len(data):
                with memoryview(data) as view, view[sent:] as rest:
                    await self._send_rest(rest)
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Octets from the peer, at most `max_bytes`; empty at the end.  Trio's contract.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, ValueError.
        """
        size = RECEIVE_OCTETS if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            self._quick_count += 1
            if self._quick_count >= self._yield_every:
                await self._checkpoint()
            if self.is_lockstep and self._has_sent and self._fd != -1:
                self._quick_count = 0
                await trio.lowlevel.wait_readable(self._fd)
            self._has_sent = False
            while True:
                if self._fd == -1:
                    raise trio.ClosedResourceError("this stream was closed")
                try:
                    return os.read(self._fd, size)
                except BlockingIOError:
                    self._quick_count = 0
                    await trio.lowlevel.wait_readable(self._fd)
                except OSError as error:
                    raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
        finally:
            self._receiving = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` would have room."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._fd == -1:
            raise trio.ClosedResourceError("this stream was closed")
        self._sending = True
        try:
            await trio.lowlevel.wait_writable(self._fd)
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Close our direction only."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        if self._fd == -1:
            raise trio.ClosedResourceError("this stream was closed")
        if self._is_half_closed:
            return
        self._is_half_closed = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    async def aclose(self) -> None:
        """Close both directions at once."""
        if self._fd != -1:
            trio.lowlevel.notify_closing(self._fd)
            self._fd = -1
            self.socket.close()
        self._quick_count += 1
        if self._quick_count >= self._yield_every:
            await self._checkpoint()

    def _send_nowait(self, *pieces: bytes | bytearray | memoryview) -> int:
        """Hand the kernel what it takes at once and return how much that was."""
        if self._fd == -1:
            raise trio.ClosedResourceError("this stream was closed")
        if self._is_half_closed:
            raise trio.ClosedResourceError("this stream was half-closed")
        self._has_sent = True
        try:
            return os.write(self._fd, pieces[0]) if len(pieces) == 1 else os.writev(self._fd, pieces)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    def _send_pieces(self, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
        """The same; returns what is left of the pieces."""
        sent = self._send_nowait(*pieces)
        for index, piece in enumerate(pieces):
            if sent < len(piece):
                return [memoryview(piece)[sent:], *pieces[index + 1 :]]
            sent -= len(piece)
        return []

    async def _send_rest(self, rest: bytes | memoryview) -> None:
        """Send what the kernel did not take at once."""
        self._quick_count = 0
        with memoryview(rest) as view:
            sent = 0
            while sent < len(view):
                await trio.lowlevel.wait_writable(self._fd)
                with view[sent:] as part:
                    sent += self._send_nowait(part)

    async def _checkpoint(self) -> None:
        self._quick_count = 0
        await trio.lowlevel.checkpoint()

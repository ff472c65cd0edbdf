"""TCP streams over trio that cost little an operation.

Layer: adapter.  Spec: trio's Stream contract.

Facts.  A trio socket call that need not wait still goes once round the scheduler, which costs more than the
system call.  An SMTP flight is one write, which nearly always fits the socket's buffer, and one read, which nearly
always has to wait for the peer.

What it means.  Every operation first tries the system call on the non-blocking descriptor, and waits only
if the kernel says so; of operations in a row that did not wait every `yield_every`-th is a checkpoint, and so is every
wait: others get their turn, and a cancellation is noticed, by then.  `start_send` is the half of `send_all` that does
not wait: who must read while he writes needs a second task only if it says that something is left for `finish_send`.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import trio

#: octets asked of the kernel at a time; four full flights of a window of 16 KiB messages
RECEIVE_OCTETS: Final = 256 * 1024
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
    """

    def __init__(self, connection: socket.socket | trio.SocketStream, *, yield_every: int = YIELD_EVERY) -> None:
        self.socket: socket.socket | trio.socket.SocketType = (
            connection.socket if isinstance(connection, trio.SocketStream) else connection
        )
        #: -1 once closed
        self._fd = self.socket.fileno()
        self._yield_every = yield_every
        self._quick_count = 0
        self._sending = False
        self._receiving = False
        self._is_half_closed = False
        self._held: bytes | memoryview = b""

    def start_send(self, data: bytes | memoryview) -> bool:
        """Hand over what the kernel takes at once; no cancellation point.

        Returns:
            Whether that was everything.  If not, `finish_send` must follow; `data` must not change before it is done.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        sent = self._send_nowait(data)
        if sent == len(data):
            return True
        self._held = memoryview(data)[sent:]
        self._sending = True
        return False

    async def finish_send(self) -> None:
        """Send what `start_send` left; raises as `send_all` does."""
        try:
            await self._send_rest(self._held)
        finally:
            self._held = b""
            self._sending = False

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

    def _send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Hand the kernel what it takes at once and return how much that was."""
        if self._fd == -1:
            raise trio.ClosedResourceError("this stream was closed")
        if self._is_half_closed:
            raise trio.ClosedResourceError("this stream was half-closed")
        if not data:
            return 0
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

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

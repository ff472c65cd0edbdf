"""What a stream has to say of its peer: octets, how the connection ended, whether there is news.

Layer: adapter.  Spec: events-dane 11.1, 11.6.
Errors of the system and of TLS become `smtp.failure.Loss` here, and only here: a reset counts as closed, and so does
the end of TCP without close_notify.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

import trio

from ..errors import TlsPolicyError
from ..smtp.failure import CLOSED, ERRNO_CLOSED, Loss, LossKind
from .stream import TlsStream
from .tcp import TcpStream

if TYPE_CHECKING:
    import socket


async def receive(stream: trio.abc.Stream) -> bytes | Loss:
    """Octets of the peer, or how it ended."""
    try:
        octets = await stream.receive_some()
    except trio.BrokenResourceError as error:
        return _receive_loss(error)
    return bytes(octets) if octets else CLOSED


def _receive_loss(error: trio.BrokenResourceError) -> Loss:
    cause = error.__cause__
    if isinstance(cause, OSError):
        if cause.errno in (errno.ECONNRESET, errno.EPIPE):
            return CLOSED
        number = cause.errno or 0
        return Loss(LossKind.READ_FAILED, number, os.strerror(number) if number else str(cause))
    if isinstance(cause, TlsPolicyError) and "close_notify" not in cause.message:
        return Loss(LossKind.READ_FAILED, ERRNO_CLOSED, cause.message)
    return CLOSED


def send_loss(error: trio.BrokenResourceError) -> Loss:
    """How a write failed; a stream that does not know why is a broken pipe."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    if cause is None or not cause.errno:
        return Loss(LossKind.SEND_FAILED, errno.EPIPE, os.strerror(errno.EPIPE))
    return Loss(LossKind.SEND_FAILED, cause.errno, os.strerror(cause.errno))


def _socket_of(stream: trio.abc.Stream) -> socket.socket | trio.socket.SocketType | None:
    transport = stream.transport if isinstance(stream, TlsStream) else stream
    return transport.socket if isinstance(transport, TcpStream | trio.SocketStream) else None


def is_readable(stream: trio.abc.Stream) -> bool:
    """Whether the peer has sent something, or closed; False for a stream that is no socket."""
    connection = _socket_of(stream)
    if connection is None or connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def local_address(stream: trio.abc.Stream) -> str:
    """``[ip]:port`` of our end, or empty."""
    connection = _socket_of(stream)
    if connection is None:
        return ""
    try:
        address, port = connection.getsockname()[:2]
    except (OSError, ValueError):
        return ""
    return f"[{address}]:{port}"

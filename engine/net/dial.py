"""Connect to a mail server's address.

Layer: adapter.  Spec: behaviour specification 11.1 (RT-1), 11.3 (RT-7: error names), 11.6 (error numbers, flag 256).
Output: a tuned, connected stream, or one `DeliveryError` of scope HOST with the system's error number.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

import trio

from ..errors import DeliveryError, Scope
from .tcp import TcpStream, tune

#: flag in `more_errno`: it was the connect that timed out (11.6)
CONNECT_TIMEOUT_FLAG: Final = 256

#: error number -> name that retry rules match (RT-7); what is not here is matched by `*` only
_RETRY_NAMES: Final = {errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout_connect"}


async def dial(address: str, port: int, *, timeout_s: float, interface: str | None = None) -> TcpStream:
    """Open a TCP connection.

    Args:
        address: an IP address as text, IPv6 without brackets; with a zone (``%eth0``) if it needs one.
        port: 1 to 65535.
        timeout_s: seconds for the connect (connect_timeout).
        interface: local address to bind to, of the same family, or None.

    Raises:
        DeliveryError: scope HOST; `errno` is the system's (111 refused, 110 timed out, 113 no route, …), `message` its
            text, `more_errno` has 256 for a timeout, `retry_name` is ``refused``, ``timeout_connect`` or empty; scope
            LOCAL if this machine has run out of descriptors or memory.
        ValueError: `address` or `interface` is not an IP address, or they are of different families.
    """
    with trio.move_on_after(timeout_s):
        return await reach(address, port, interface=interface)
    raise timed_out()


async def reach(address: str, port: int, *, interface: str | None = None) -> TcpStream:
    """`dial` for who sees to the time limit himself; see `timed_out`."""
    family, target = _sockaddr(address, port)
    source = None
    if interface is not None:
        source_family, source = _sockaddr(interface, 0)
        if source_family != family:
            raise ValueError(f"interface {interface} and address {address} are of different families")
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _error(error, Scope.LOCAL) from error
    try:
        connection.setblocking(False)
        if source is not None:
            connection.bind(source)
        tune(connection)
        await trio.lowlevel.checkpoint_if_cancelled()
        code = connection.connect_ex(target)
        if code == errno.EINPROGRESS:
            # what is near may be there already, and then there is nothing to wait for
            code = connection.connect_ex(target)
        if code in (errno.EALREADY, errno.EINPROGRESS):
            await trio.lowlevel.wait_writable(connection)
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code and code != errno.EISCONN:
            raise OSError(code, os.strerror(code))
    except OSError as error:
        connection.close()
        raise _error(error, Scope.HOST) from error
    except BaseException:
        connection.close()
        raise
    return TcpStream(connection)


def timed_out() -> DeliveryError:
    """The error for a connection that was not made in time."""
    return _error(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), Scope.HOST)


def _sockaddr(address: str, port: int) -> tuple[int, tuple[object, ...]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except OSError:
            continue
        return family, (address, port)
    if "%" not in address:
        raise ValueError(f"{address} is not an IP address")
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        raise ValueError(f"{address} is not an IP address: {error.args[-1]}") from None
    return found[0][0], found[0][4]


def _error(error: OSError, scope: Scope) -> DeliveryError:
    number = error.errno or 0
    return DeliveryError(
        os.strerror(number) if number else str(error),
        scope=scope,
        errno=number,
        more_errno=CONNECT_TIMEOUT_FLAG if number == errno.ETIMEDOUT else 0,
        retry_name=_RETRY_NAMES.get(number, ""),
    )

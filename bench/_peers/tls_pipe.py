"""A bare pipe: blocks of octets over one connection, TLS 1.3 or clear, to a process that reads and drops them.

Nothing is parsed and nothing is answered but the end: what Python's `ssl`, OpenSSL and the loopback can do.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from bench._harness import Stopwatch, pin
from bench._peers import Missing
from bench._peers._stream import forked

try:
    import trustme
except ImportError:
    raise Missing("trustme is not installed") from None

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from bench._harness import Timing

label = "bare pipe"

_READ_OCTETS: Final = 1 << 18
_BLOCKS_OCTETS: Final = 1 << 27


def version() -> str:
    """That of OpenSSL."""
    return ssl.OPENSSL_VERSION


def run(data: tuple[int, int, bool, int]) -> Timing:
    """Send so many blocks of so many octets, over TLS or not, to a process on such a core."""
    count, octets, tls, core = data
    server_context = client_context = None
    if tls:
        server_context, client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority = trustme.CA()
        authority.issue_cert("127.0.0.1").configure_cert(server_context)
        authority.configure_trust(client_context)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        forked(_read, listener, server_context, core, count * octets) as reader,
    ):
        client: Any = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client_context is not None:
            client = client_context.wrap_socket(client, server_hostname="127.0.0.1")
        # as many as messages would be, so that they do not all lie in the processor's cache
        blocks = [os.urandom(octets) for _ in range(min(count, _BLOCKS_OCTETS // octets))]
        with client:
            assert reader.recv() == "ready"
            with Stopwatch() as watch:
                for number in range(count):
                    client.sendall(blocks[number % len(blocks)])
                found = reader.recv()
    assert found == count * octets, f"{found} octets of {count * octets} came"
    return watch.timing(count)


def _read(
    listener: socket.socket, context: ssl.SSLContext | None, core: int, wanted: int, connection: Connection
) -> None:
    pin(core)
    client: Any = listener.accept()[0]
    if context is not None:
        client = context.wrap_socket(client, server_side=True)
    room = bytearray(_READ_OCTETS)
    found = 0
    with client:
        connection.send("ready")
        while found < wanted and (got := client.recv_into(room)):
            found += got
        connection.send(found)

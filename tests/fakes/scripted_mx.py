"""A server that follows a script: says this, wants that, falls silent, cuts the connection.

A script is text, a step a line; white space at both ends of a line does not count:

    S: 220 mx.example           says it, with CRLF
    S| 250 no line end          says it as it stands; \\r, \\n, \\0 and \\xNN are understood
    C: MAIL FROM:               wants a line that begins so
    <data>                      wants content up to the final dot
    <octets 20>                 wants so many octets
    <chunk>                     wants a BDAT line and its octets
    <wait 5>                    says nothing for so many seconds
    <hold>                      says nothing until somebody sets `go_on`
    <stall>                     says nothing any more, reads nothing
    <deaf>                      says nothing any more, reads everything
    <cut>                       closes
    <reset>                     closes with a reset (sockets only)
    <tls>                       does a handshake as a server
    <flood 1000 250-x\\r\\n>     says it so many times

At the end of the script the connection is closed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import trio
import trio.testing

from engine.net.stream import serve_tls
from fakes.patience import PATIENCE_S

if TYPE_CHECKING:
    from OpenSSL import SSL

_ESCAPE = re.compile(rb"\\(r|n|0|\\|x[0-9a-f]{2})")
_ESCAPES = {b"r": b"\r", b"n": b"\n", b"0": b"\0", b"\\": b"\\"}


class ScriptError(AssertionError):
    """The client did something else than the script wants."""


def _unescape(text: str) -> bytes:
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[1]) or bytes.fromhex(match[1][1:].decode()), text.encode())


class ScriptedMx:
    """One connection.

    Attributes:
        heard: everything the client said, lines and content.
        done: the script was followed to its end.
        error: how the client departed from it, or None.
        go_on: to be set by whoever wants a `<hold>` to end.
    """

    def __init__(self, stream: trio.abc.Stream, script: str, tls: SSL.Context | None = None) -> None:
        self._stream = stream
        self._steps = [line.strip() for line in script.splitlines() if line.strip()]
        self._tls = tls
        self._buffer = b""
        self.heard: list[bytes] = []
        self.done = False
        self.error: ScriptError | None = None
        self.go_on = trio.Event()
        self._ended = trio.Event()

    async def wait_done(self) -> None:
        """Wait until the connection is over."""
        await self._ended.wait()

    async def run(self) -> None:
        """Follow the script.  Never raises: a client that hangs up early is the test's business."""
        try:
            for step in self._steps:
                await self._step(step)
            self.done = True
        except ScriptError as error:
            self.error = error
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            pass
        finally:
            self._ended.set()
            await trio.aclose_forcefully(self._stream)

    async def _step(self, step: str) -> None:
        kind, _, text = step.partition(" ")
        match kind:
            case "S:":
                await self._stream.send_all(text.encode() + b"\r\n")
            case "S|":
                await self._stream.send_all(_unescape(text))
            case "C:":
                line = await self._until(b"\r\n")
                if not line.startswith(text.encode()):
                    raise ScriptError(f"expected {text!r}, heard {line!r}")
            case "<data>":
                await self._until(b"\r\n.\r\n")
            case "<octets":
                await self._take(int(text.rstrip(">")))
            case "<chunk>":
                line = await self._until(b"\r\n")
                if not re.fullmatch(rb"BDAT \d+ LAST\r\n", line):
                    raise ScriptError(f"expected BDAT, heard {line!r}")
                await self._take(int(line.split()[1]))
            case "<wait":
                await trio.sleep(float(text.rstrip(">")))
            case "<hold>":
                await self.go_on.wait()
            case "<stall>":
                await trio.sleep_forever()
            case "<deaf>":
                while await self._stream.receive_some():
                    pass
            case "<cut>":
                await self._stream.aclose()
            case "<reset>":
                assert isinstance(self._stream, trio.SocketStream)
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await self._stream.aclose()
            case "<tls>":
                assert self._tls is not None
                self._stream = await serve_tls(self._stream, self._tls, timeout_s=PATIENCE_S)
                self._buffer = b""
            case "<flood":
                count, _, octets = text.rstrip(">").partition(" ")
                await self._stream.send_all(_unescape(octets) * int(count))
            case _:
                raise ValueError(f"no step of a script: {step}")

    async def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            await self._receive()
        at = self._buffer.index(end) + len(end)
        return await self._take(at)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._receive()
        octets, self._buffer = self._buffer[:count], self._buffer[count:]
        self.heard.append(octets)
        return octets

    async def _receive(self) -> None:
        octets = await self._stream.receive_some(65536)
        if not octets:
            raise EOFError
        self._buffer += octets


@contextlib.asynccontextmanager
async def in_memory(
    script: str, tls: SSL.Context | None = None, *, buffered: bool = True
) -> AsyncIterator[tuple[trio.abc.Stream, ScriptedMx]]:
    """The client's end of a connection in memory; virtual time may pass (`autojump_clock`).

    Without `buffered` a write is done only when the other side has read it.
    """
    client: trio.abc.Stream
    server: trio.abc.Stream
    if buffered:
        client, server = trio.testing.memory_stream_pair()
    else:
        client, server = trio.testing.lockstep_stream_pair()
    mx = ScriptedMx(server, script, tls)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mx.run)
        yield client, mx
        nursery.cancel_scope.cancel()
    if mx.error is not None:
        raise mx.error


@contextlib.asynccontextmanager
async def on_loopback(*scripts: str, tls: SSL.Context | None = None) -> AsyncIterator[tuple[int, list[ScriptedMx]]]:
    """A port on 127.0.0.1: each connection gets the next script."""
    left = list(scripts)
    connections: list[ScriptedMx] = []

    async def serve(stream: trio.SocketStream) -> None:
        mx = ScriptedMx(stream, left.pop(0), tls)
        connections.append(mx)
        await mx.run()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1], connections
        nursery.cancel_scope.cancel()
    for mx in connections:
        if mx.error is not None:
            raise mx.error

"""Scripts of mail servers for `fakes.scripted_mx`, and several of them as the host list of one site."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fakes.scripted_mx import ScriptedMx, on_loopback

GREET = "S: 220 mx.example ESMTP\nC: EHLO client.example\nS: 250 mx.example\n"
MAIL = "C: MAIL FROM:<news@sender.example>\nS: 250 ok\n"
RCPT = "C: RCPT TO:\nS: 250 ok\n"
DATA = "C: DATA\nS: 354 go on\n<data>\n"
STORED = "S: 250 2.0.0 stored\n"
QUIT = "C: QUIT\nS: 221 bye\n"
TAKES_ONE = GREET + MAIL + RCPT + DATA + STORED + QUIT


@contextlib.asynccontextmanager
async def servers(*scripts: list[str]) -> AsyncIterator[tuple[str, list[list[ScriptedMx]]]]:
    """A port for each list of scripts, as a host list; each connection gets the next script of its port."""
    async with contextlib.AsyncExitStack() as stack:
        started = [await stack.enter_async_context(on_loopback(*mine)) for mine in scripts]
        yield " : ".join(f"127.0.0.1:{port}" for port, _ in started), [connections for _, connections in started]

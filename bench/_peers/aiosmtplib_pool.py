"""aiosmtplib: as many connections as the load says, each a loop of `sendmail` over messages composed beforehand."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import ssl
from typing import TYPE_CHECKING, Any

from bench._harness import Stopwatch, Timing
from bench._mail import SENDER
from bench._peers import Missing

aiosmtplib: Any
try:
    aiosmtplib = importlib.import_module("aiosmtplib")
except ModuleNotFoundError:
    raise Missing("aiosmtplib is not installed") from None

if TYPE_CHECKING:
    from bench._mail import Load

label = "aiosmtplib"


def version() -> str:
    """That of aiosmtplib."""
    return importlib.metadata.version("aiosmtplib")


def run(load: Load) -> Timing:
    """Send each message to its recipient; connecting is left out."""
    return asyncio.run(_run(load))


async def _run(load: Load) -> Timing:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    clients = [
        aiosmtplib.SMTP(hostname="127.0.0.1", port=load.port, start_tls=load.tls, tls_context=context, timeout=60)
        for _ in range(load.connections)
    ]
    await asyncio.gather(*(client.connect() for client in clients))
    left = iter(load.messages())

    async def send(client: Any) -> None:
        for recipient, octets in left:
            await client.sendmail(SENDER, [recipient], octets)

    with Stopwatch() as watch:
        await asyncio.gather(*map(send, clients))
    await asyncio.gather(*(client.quit() for client in clients))
    return watch.timing(load.count)

"""Publish events to a NATS JetStream.

Layer: adapter.  Spec: issue text "Workers".
Each event is one message of JSON on ``SUBJECT.event.name`` (colons become dots), with the event's id as `Nats-Msg-Id`,
so that the server drops repetitions within its window.  A stream for the subject must be there: an event counts as
handled when JetStream has acknowledged it.
Invariants: every step has a timeout; after an error the connection is closed, and the next attempt makes a new one.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from typing import TYPE_CHECKING, Any, Final

from ...errors import ConfigError
from .form import json_line, only, required

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..api import Event

#: messages that wait for their acknowledgement at one time
_IN_FLIGHT: Final = 256
_SUBJECT: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class JetStream:
    """The handler.

    Args:
        client: the package nats.
        url: of the server.
        subject: what the subjects begin with.
    """

    def __init__(self, client: Any, url: str, subject: str, *, timeout_s: float = 30.0) -> None:
        self._nats = client
        self._url = url
        self._subject = subject
        self._timeout_s = timeout_s
        self._runner: asyncio.Runner | None = None
        self._connection: Any = None
        #: what the client has met with last
        self._trouble: Exception | None = None

    def handle(self, events: list[Event]) -> None:
        """Publish them, in order.  Raises what the client raises, TimeoutError included."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            self._runner.run(self._publish(events))
        except BaseException:
            self.close()
            raise

    async def _publish(self, events: list[Event]) -> None:
        async with asyncio.timeout(self._timeout_s):
            if self._connection is None:
                self._connection = await self._connect()
            stream = self._connection.jetstream(timeout=self._timeout_s)
            for start in range(0, len(events), _IN_FLIGHT):
                # gather starts them in order, and each is written before it waits
                await asyncio.gather(*[self._send(stream, event) for event in events[start : start + _IN_FLIGHT]])

    async def _connect(self) -> Any:
        # Left to itself the client tries sixty times, two seconds apart; meanwhile all other handlers would wait.
        try:
            return await self._nats.connect(
                self._url,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=self._timeout_s,
                error_cb=self._note,
            )
        except self._nats.errors.NoServersError as error:
            # it does not say why
            raise self._trouble or error from None

    async def _note(self, error: Exception) -> None:
        self._trouble = error

    async def _send(self, stream: Any, event: Event) -> None:
        subject = f"{self._subject}.{event.name.replace(':', '.')}"
        headers = {"Nats-Msg-Id": event.id.decode("ascii", "backslashreplace")} if event.id else None
        await stream.publish(subject, json_line(event).encode(), headers=headers)

    def close(self) -> None:
        """Close the connection."""
        runner, self._runner = self._runner, None
        connection, self._connection = self._connection, None
        if runner is None:
            return
        if connection is not None:
            runner.run(_close(connection, self._timeout_s))
        runner.close()


async def _close(connection: Any, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(min(timeout_s, 2.0)):
            await connection.close()
    except (TimeoutError, OSError):
        return


def build(name: str, options: Mapping[str, Any]) -> JetStream:
    """From `[handlers.NAME]`.  Raises ConfigError; ModuleNotFoundError if nats-py is not installed."""
    only(name, options, ("url", "subject"))
    client = importlib.import_module("nats")
    subject = required(name, options, "subject")
    if not _SUBJECT.fullmatch(subject):
        raise ConfigError(f"{subject!r} is no subject", key=f"handlers.{name}.subject")
    timeout_s = float(options.get("timeout") or 30)
    return JetStream(client, required(name, options, "url"), subject, timeout_s=timeout_s)

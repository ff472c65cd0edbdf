"""Add events to a Redis Stream.

Layer: adapter.  Spec: issue text "Workers".
Each event is an entry with the fields `event`, `id` and its values by name; what is None is left out.
Invariants: a batch is one transaction (MULTI), so that a repetition repeats all of it; the stream can be bounded
(`max_length`, about so many entries).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .form import only, required

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..api import Event


class RedisStream:
    """The handler.

    Args:
        client: of the package redis.
        stream: key of the stream.
        max_length: entries to keep, about; 0: all.
    """

    def __init__(self, client: Any, stream: str, max_length: int = 0) -> None:
        self._client = client
        self._stream = stream
        self._max_length = max_length

    def handle(self, events: list[Event]) -> None:
        """Add them.  Raises redis.RedisError."""
        with self._client.pipeline(transaction=True) as pipeline:
            for event in events:
                pipeline.xadd(
                    self._stream, _entry(event), maxlen=self._max_length or None, approximate=bool(self._max_length)
                )
            pipeline.execute()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _entry(event: Event) -> dict[str, Any]:
    entry: dict[str, Any] = {"event": event.name, "id": event.id}
    for name, value in event.to_dict().items():
        if isinstance(value, bool):
            entry[name] = int(value)
        elif value is not None:
            entry[name] = value
    return entry


def build(name: str, options: Mapping[str, Any]) -> RedisStream:
    """From `[handlers.NAME]`.  Raises ConfigError; ModuleNotFoundError if redis is not installed."""
    only(name, options, ("url", "stream", "max_length"))
    redis = importlib.import_module("redis")
    url = required(name, options, "url")
    timeout_s = float(options.get("timeout") or 30)
    try:
        # attempts are the desk's, with its pauses
        client = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry_on_timeout=False
        )
    except ValueError as error:
        raise ConfigError(str(error), key=f"handlers.{name}.url") from None
    return RedisStream(client, required(name, options, "stream"), int(options.get("max_length") or 0))

"""Handlers of events that need no code: `[handlers.NAME]` in the configuration, one module a driver.

Layer: adapter; blocking, in workers.  Spec: issue text "Workers".
A driver's module has ``build(name, options) -> Handler``: it checks the options and connects to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from ...errors import ConfigError
from ..api import Backoff, Patterns, Registration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..api import Worker
    from .form import Handler

#: driver -> its module
DRIVERS: Final = {
    "jsonl": "jsonl",
    "sql": "sql",
    "webhook": "webhook",
    "redis": "redis",
    "nats": "nats",
}


def build(name: str, options: Mapping[str, Any]) -> Handler:
    """Make a handler.

    Args:
        options: those of `engine.config.HandlerOptions`, by name; what is missing has its default.

    Raises:
        ConfigError: they are of no use, or a package of an extra is missing.
    """
    module = DRIVERS.get(str(options.get("driver")))
    if module is None:
        raise ConfigError(f"there is no driver {options.get('driver')!r}", key=f"handlers.{name}.driver")
    try:
        built: Handler = importlib.import_module(f".{module}", __package__).build(name, options)
    except ModuleNotFoundError as error:
        text = f"the package {error.name} is not installed (extra {options['driver']})"
        raise ConfigError(text, key=f"handlers.{name}.driver") from None
    return built


def register_all(worker: Worker, handlers: Mapping[str, Mapping[str, Any]]) -> None:
    """Build handlers and register them.  Raises ConfigError."""
    for name, options in handlers.items():
        built = build(name, options)
        events = options.get("events") or ("*",)
        patterns = (events,) if isinstance(events, str) else tuple(events)
        registration = Registration(
            name=name,
            patterns=Patterns(patterns),
            function=built.handle,
            batch=options.get("batch", 100),
            linger_s=options.get("linger_ms", 50) / 1000,
            attempts=options.get("attempts", 20),
            backoff=Backoff(),
            close=built.close,
        )
        try:
            worker.add(registration)
        except ValueError as error:
            raise ConfigError(str(error), key=f"handlers.{name}") from None

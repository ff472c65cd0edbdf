"""What built-in handlers share: their shape, how events become JSON, and how options are asked for.

Layer: adapter.
Invariants: octets that are no UTF-8 become backslash escapes, never an error: an event must not become a dead letter
for what a mail server said.  A certificate is its DER in base64.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..api import Event


_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
#: the field that is a certificate
CERTIFICATE: Final = "tls_out_peercert"


class Handler(Protocol):
    """A built-in handler; it belongs to the thread that calls it."""

    def handle(self, events: list[Event]) -> None:
        """Do it for all, or raise, having done it for as few as can be."""

    def close(self) -> None:
        """Let go of connections."""


def shown(value: Any) -> Any:
    """A value for JSON, or for a parameter: octets as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def record(event: Event) -> dict[str, Any]:
    """An event as a JSON object: `event`, `id`, and its values by name."""
    found = {
        "event": event.name,
        "id": shown(event.id) or None,
        **{
            name: value.decode("utf-8", "backslashreplace") if type(value) is bytes else shown(value)
            for name, value in event.to_dict().items()
        },
    }
    if (der := event.get(CERTIFICATE)) is not None:
        found[CERTIFICATE] = base64.b64encode(der).decode()
    return found


def json_line(event: Event) -> str:
    """An event as one line of JSON, without its end."""
    return _encode(record(event))


def required(name: str, options: Mapping[str, Any], key: str) -> str:
    """A text option that must be there.  Raises ConfigError."""
    value = options.get(key)
    if not value or not isinstance(value, str):
        raise ConfigError(f"{key} is missing", key=f"handlers.{name}")
    return value


def only(name: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """See that no option is set that this driver does not have.  Raises ConfigError."""
    common = {"driver", "events", "batch", "linger_ms", "attempts"}
    for key, value in options.items():
        if value and key not in common and key not in allowed and key not in _WITH_DEFAULTS:
            raise ConfigError(f"{key} does not belong to the driver {options['driver']}", key=f"handlers.{name}.{key}")


#: options that have a value whether they were set or not
_WITH_DEFAULTS = {"timeout"}

"""What built-in handlers share: their shape, how events become JSON, and how options are asked for.

Layer: adapter.
Invariants: octets that are no UTF-8 become backslash escapes, never an error: an event must not become a dead letter
for what a mail server said.  A certificate is its DER in base64.
"""

from __future__ import annotations

import base64
import json
import math
from json.encoder import encode_basestring
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
    """An event as one line of JSON, without its end: what `record` gives, at half the cost."""
    lines = _lines.get(event.name)
    if lines is None or lines.fields != event.fields:
        if len(_lines) >= _MAX_LINES:
            _lines.clear()
        lines = _lines[event.name] = _Lines(event.name, event.fields)
    return lines.line(event)


class _Lines:
    """Writes the events of one name.  What comes before `event_time` tells of the connection, and is seldom new."""

    def __init__(self, name: str, fields: tuple[str, ...]) -> None:
        self.fields = fields
        self._is_plain = CERTIFICATE not in fields and not {"event", "id"} & set(fields)
        self._start = f'{{"event":{_encode(name)},"id":'
        self._keys = [f",{_encode(field)}:" for field in fields]
        self._first = fields.index("event_time") if "event_time" in fields else 0
        self._last_keys = self._keys[self._first :]
        self._kept: dict[object, str] = {}

    def line(self, event: Event) -> str:
        if not self._is_plain:
            return _encode(record(event))
        place, rest = event.split(self._first)
        begin = self._kept.get(place)
        if begin is None:
            if len(self._kept) >= _MAX_LINES:
                self._kept.clear()
            first = tuple(event.to_dict().values())[: self._first]
            begin = self._kept[place] = "".join(map(_member, self._keys, first))
        parts = [self._start, _text(event.id) if event.id else "null", begin]
        for key, value in zip(self._last_keys, rest, strict=True):
            # for nearly every value of all: no call of ours
            if type(value) is bytes:
                parts.append(key + encode_basestring(value.decode("utf-8", "backslashreplace")))
            else:
                parts.append(key + _text(value))
        parts.append("}")
        return "".join(parts)


#: name of the event -> what writes it
_lines: Final[dict[str, _Lines]] = {}
_MAX_LINES: Final = 1000


def _member(key: str, value: object) -> str:
    return key + _text(value)


def _text(value: object) -> str:
    if type(value) is bytes:
        return encode_basestring(value.decode("utf-8", "backslashreplace"))
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)
    return _encode(shown(value))


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

"""Append events to a file as JSON lines.

Layer: adapter.  Spec: issue text "Workers".
Invariants: a batch is written whole or not at all, as far as the file system can: what was written of a batch that
failed is cut off again; several workers may have the same file (flock); a file that is moved away is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .form import json_line, only, required

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..api import Event


class JsonLines:
    """The handler.

    Args:
        path: absolute.
        sync: whether each batch is on disk before it is acknowledged.
    """

    def __init__(self, path: str, *, sync: bool = False) -> None:
        self._path = path
        self._sync = sync

    def handle(self, events: list[Event]) -> None:
        """Append.  Raises OSError."""
        octets = "".join(json_line(event) + "\n" for event in events).encode()
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = os.fstat(fd).st_size
            try:
                rest = memoryview(octets)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                if self._sync:
                    os.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):  # a device or a pipe; what is told is why it takes nothing
                    os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing is open between batches."""


def build(name: str, options: Mapping[str, Any]) -> JsonLines:
    """From `[handlers.NAME]`.  Raises ConfigError."""
    only(name, options, ("file", "sync"))
    path = required(name, options, "file")
    if not path.startswith("/"):
        raise ConfigError("must be an absolute path", key=f"handlers.{name}.file")
    return JsonLines(path, sync=bool(options.get("sync")))

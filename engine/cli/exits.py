"""Exit codes of every command, from BSD sysexits, and how errors become them.

Layer: command line.  Spec: design.md "Command line".
"""

from __future__ import annotations

import contextlib
import enum
import sys
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError, EngineError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Exit(enum.IntEnum):
    OK = 0
    #: EX_USAGE: the command line is wrong
    USAGE = 64
    #: EX_DATAERR: the message, the recipients or another input is wrong; nothing was queued
    DATA = 65
    #: EX_UNAVAILABLE: some recipients failed for good
    UNAVAILABLE = 69
    #: EX_TEMPFAIL: some recipients are still deferred, or the queue cannot be used now
    TEMPORARY = 75
    #: EX_CONFIG: the configuration cannot be used
    CONFIG = 78


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Tell an error of the engine on standard error and leave with its exit code."""
    try:
        yield
    except EngineError as error:
        print(f"outrider: {error}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None


def exit_code(error: EngineError) -> Exit:
    """The exit code that tells of `error`."""
    if isinstance(error, ConfigError):
        return Exit.CONFIG
    if isinstance(error, DataError):
        return Exit.DATA
    if isinstance(error, StoreError):
        return Exit.TEMPORARY
    return Exit.UNAVAILABLE

"""Exit codes of every command, from BSD sysexits, and how errors become them.

Layer: command line.  Spec: design.md "Command line".
"""

from __future__ import annotations

import contextlib
import enum
import sys
from typing import TYPE_CHECKING, NoReturn

from ..errors import ConfigError, DataError, EngineError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Exit(enum.IntEnum):
    OK = 0
    #: EX_USAGE: the command line is wrong
    USAGE = 64
    #: EX_DATAERR: the message, the recipients or another input is wrong; nothing was queued
    DATA = 65
    #: EX_UNAVAILABLE: some recipients failed for good, or were taken back
    UNAVAILABLE = 69
    #: EX_IOERR: what was to be printed cannot be
    OUTPUT = 74
    #: EX_TEMPFAIL: some recipients are still deferred, or the queue cannot be used now
    TEMPORARY = 75
    #: EX_CONFIG: the configuration cannot be used
    CONFIG = 78
    #: ended by Ctrl-C before it could end well, as shells count it (128 + SIGINT)
    INTERRUPTED = 130


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Tell an error of the engine on standard error and leave with its exit code.

    An error that left a nursery comes in an exception group.  A group that holds nothing but errors of the engine (and
    orders to leave) is told error by error; one that holds anything else is a bug, and goes on as it is.
    """
    try:
        yield
    except EngineError as error:
        _leave([error])
    except BaseExceptionGroup as group:
        errors, rest = group.split(EngineError)
        leaving, rest = rest.split(SystemExit) if rest is not None else (None, None)
        if rest is not None:
            raise
        if leaving is not None:
            raise next(_leaves(leaving)) from None
        assert errors is not None, "an exception group is never empty"
        _leave([error for error in _leaves(errors) if isinstance(error, EngineError)])


def _leave(errors: list[EngineError]) -> NoReturn:
    for text in dict.fromkeys(str(error) for error in errors):
        print(f"outrider: {text}", file=sys.stderr)
    raise SystemExit(exit_code(errors[0])) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def exit_code(error: EngineError) -> Exit:
    """The exit code that tells of `error`."""
    if isinstance(error, ConfigError):
        return Exit.CONFIG
    if isinstance(error, DataError):
        return Exit.DATA
    if isinstance(error, StoreError):
        return Exit.TEMPORARY
    return Exit.UNAVAILABLE

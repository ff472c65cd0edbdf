"""Append rendered lines to log files.

Layer: adapter.  Spec: events-dane section 10; design.md "Speed": log lines are batched.
Input: batches of facts.  Output: one `write` a file and batch, O_APPEND, so that several engines can share a file; to a
pipe (standard error) lines go in pieces that it takes as one.
Invariants: a file that was renamed (log rotation) is reopened before the next batch; a log that cannot be written
never stops delivery: the lines go to standard error and the trouble is told once; a line that a full disk cut short
never runs into the next one; any thread may write.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .facts import spread
from .records import record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .facts import Fact
    from .mainlog import MainLogFormat


class LogFile:
    """One append-only file; "" means standard error.

    Raises:
        ConfigError: on construction, when the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._told = False
        #: of two threads that follow one rotation the second would close a descriptor that is somebody else's by then
        self._lock = threading.Lock()
        #: a write ended inside a line; the next one begins with a newline
        self._is_torn = False
        self._fd = sys.stderr.fileno() if not path else -1
        if path:
            try:
                self._reopen()
            except OSError as error:
                raise ConfigError(f"log file {path!r} cannot be opened: {error.strerror}") from None

    def write(self, text: str) -> None:
        """Append `text`, which ends in a newline.  Never raises."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            try:
                if self._path:
                    self._follow_rotation()
                self._append(b"\n" + data if self._is_torn else data)
                self._told = False
            except OSError as error:
                self._complain(data, error)

    def close(self) -> None:
        if self._path and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        # what other processes write to the same pipe must not end up inside a line of ours
        for part in (data,) if self._path else _pieces(data):
            view = memoryview(part)
            while view:
                written = os.write(self._fd, view)
                self._is_torn = part[len(part) - len(view) + written - 1] != 0x0A
                view = view[written:]

    def _follow_rotation(self) -> None:
        try:
            named = os.stat(self._path)
            opened = os.fstat(self._fd)
            if (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino):
                return
        except OSError:
            pass
        self._reopen()

    def _reopen(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._is_torn = False

    def _complain(self, data: bytes, error: OSError) -> None:
        try:
            if not self._told:
                _write_all(2, f"cannot write log file {self._path}: {error.strerror}\n".encode())
                self._told = True
            _write_all(2, data)
        except OSError:
            pass  # nowhere left to tell it


class LogWriter:
    """Writes batches of facts to the main log and, if wanted, to a JSON file and a panic log."""

    def __init__(
        self,
        main_format: MainLogFormat,
        main: LogFile | None,
        records: LogFile | None,
        panic: LogFile | None = None,
    ) -> None:
        self._format = main_format
        self._main = main
        self._records = records
        self._panic = panic

    def write(self, facts: Sequence[Fact]) -> None:
        """Write the lines of `facts` in order.  Blocks on the disk; never raises."""
        if self._main is not None:
            lines = self._format.lines(facts)
            if lines:
                self._main.write("\n".join(lines) + "\n")
        if self._records is not None and facts:
            self._records.write("\n".join(map(record, spread(facts))) + "\n")
        if self._panic is not None:
            lines = [self._format.line(fact) for fact in facts if fact.is_panic]
            if lines:
                self._panic.write("\n".join(lines) + "\n")

    def close(self) -> None:
        for file in (self._main, self._records, self._panic):
            if file is not None:
                file.close()


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines in pieces that a pipe takes as one, as far as the lines are short enough."""
    begin = 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + select.PIPE_BUF) + 1 or data.find(b"\n", begin) + 1 or len(data)
        yield data[begin:end]
        begin = end


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

"""Work of a test that takes long and is done by other processes: begun when the tests are collected, beside the first.

A suite that waits for one thing after the other leaves cores idle.  A test that is marked ``beside(chore=function)``
finds in its fixture `beside` what the function has returned, and fails with its error.  The function gets a directory
of its own and the test's parameters; it must not touch what other tests look at.

Invariants: one chore at a time, in the order of the tests; none is begun twice; nothing is left behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Chores:
    """What was begun and what came of it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "chores")
        self._place = tempfile.TemporaryDirectory(prefix="outrider-chores-")
        self._begun: dict[str, Future[Any]] = {}

    def begin(self, name: str, function: Callable[..., Any], **parameters: Any) -> None:
        """Have it done, unless it is already.

        Args:
            name: tells it from others.
        """
        if name not in self._begun:
            directory = Path(self._place.name, str(len(self._begun)))
            directory.mkdir()
            self._begun[name] = self._pool.submit(function, directory, **parameters)

    def result(self, name: str) -> Any:
        """What came of it, once it is done; its error is raised here."""
        return self._begun[name].result()

    def end(self) -> None:
        """Wait for what runs, do nothing more, and delete what was made."""
        self._pool.shutdown(cancel_futures=True)
        self._place.cleanup()

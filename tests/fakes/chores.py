"""Work of a test that takes long and needs nobody else's turn: begun when the tests are collected, beside the first.

A suite that waits for one thing after the other leaves cores idle.  A test that is marked ``beside(chore=function)``
finds in its fixture `beside` what the function has returned, and fails with its error.  The function gets a directory
of its own and the test's parameters; both ways these travel by pickle.

All chores are done by one process, so that tests may count the descriptors, threads and limits of theirs.
Invariants: one chore at a time, in the order of the tests; none is begun twice; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from fakes.patience import wait_for

_PROJECT: Final = Path(__file__).resolve().parents[2]
#: seconds for all chores together; a hang ends with the time of the test that waits for it
_PATIENCE_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Chore:
    """A function of a test module, and its arguments.

    Attributes:
        name: tells it from others.
    """

    name: str
    file: str
    function: str
    parameters: dict[str, Any]


class Chores:
    """A process that does them, and what came of each."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="outrider-chores-"))
        self._numbers = {chore.name: number for number, chore in enumerate(chores)}
        (self._place / "chores").write_bytes(pickle.dumps(list(chores)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_PROJECT / "tests"), str(_PROJECT)])}
        with (self._place / "output").open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "fakes.chores", str(self._place)],
                cwd=_PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def result(self, name: str) -> Any:
        """What came of it, once it is done; what it raised fails or skips the test."""
        path = self._place / str(self._numbers[name]) / "result"

        def is_there() -> bool:
            ended = self._popen.poll() is not None
            assert path.exists() or not ended, (self._place / "output").read_text(errors="replace")[-5000:]
            return path.exists()

        wait_for(is_there, "the chore does not end", patience_s=_PATIENCE_S)
        outcome, value = pickle.loads(path.read_bytes())
        if outcome == "skipped":
            pytest.skip(value)
        if outcome == "failed":
            pytest.fail(value, pytrace=False)
        return value

    def end(self) -> None:
        """End the process with all that it has started, and delete what was made."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        shutil.rmtree(self._place, ignore_errors=True)


def _function_of(chore: Chore) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(Path(chore.file).stem, chore.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, chore.function)
    return function


def _outcome(chore: Chore, directory: Path) -> tuple[str, Any]:
    try:
        return "done", _function_of(chore)(directory, **chore.parameters)
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped)
    except pytest.fail.Exception as failed:
        return "failed", str(failed)
    except Exception:
        return "failed", traceback.format_exc()


def main() -> None:
    """Do all of them."""
    place = Path(sys.argv[1])
    for number, chore in enumerate(pickle.loads((place / "chores").read_bytes())):
        directory = place / str(number)
        directory.mkdir()
        (directory / "part").write_bytes(pickle.dumps(_outcome(chore, directory)))
        (directory / "part").rename(directory / "result")


if __name__ == "__main__":
    # what is pickled must not be of `__main__`
    from fakes import chores

    chores.main()

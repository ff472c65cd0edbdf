"""The sink as a process of its own, started as a person would: `outrider sink --json …`.

Used as a context manager; `stop` ends it with a signal and gives the counts it prints.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from typing import Any, Self

from fakes.patience import PATIENCE_S

# The command alone, so that a fault in another command does not hide this one.
_PROGRAM = """
import sys, typer
from engine.cli.sink import sink
app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(sink)
app(prog_name="outrider sink")
"""


class SinkProcess:
    """A running sink.

    Args:
        arguments: further options of the command.
        as_json: whether it is asked for JSON.

    Attributes:
        first: what it printed first, read as JSON; with `as_json` False, the text.
    """

    def __init__(self, *arguments: str, as_json: bool = True) -> None:
        command = [sys.executable, "-c", _PROGRAM, *(["--json"] if as_json else []), *arguments]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._as_json = as_json
        assert self._popen.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self._popen.kill)
        watchdog.start()
        line = self._popen.stdout.readline()
        watchdog.cancel()
        if not line:
            _, error = self._popen.communicate(timeout=PATIENCE_S)
            raise RuntimeError(f"the sink did not start (exit status {self._popen.returncode}): {error}")
        self.first: Any = json.loads(line) if as_json else line.rstrip("\n")
        self.error_text = ""

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def port(self) -> int:
        return int(self.first["port"])

    def close_stdout(self) -> None:
        """Read nothing more, as `head -1` does."""
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        self._popen.stdout = None

    def stop(self, number: int = signal.SIGTERM) -> Any:
        """End it; returns the counts it prints, or the text without JSON.  Its stderr is in `error_text` then."""
        self._popen.send_signal(number)
        output, self.error_text = self._popen.communicate(timeout=PATIENCE_S)
        assert self._popen.returncode == 0, self.error_text
        return json.loads(output) if self._as_json and output else output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


def run_sink(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for options that it refuses."""
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

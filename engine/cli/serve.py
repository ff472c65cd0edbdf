"""What an engine starts as a worker of its own: ``python -m engine.cli.serve --control-fd N``.

Layer: command line.  Spec: issue text "Workers".
Not a command of `outrider`, and without what those need: a worker starts in a third of the time.
"""

from __future__ import annotations

import argparse
import gc
import signal
import socket

from ..actions.api import Worker
from ..actions.worker import run
from ..errors import ActionError
from .exits import exit_on_error


def main(arguments: list[str] | None = None) -> None:
    """Be a worker of the engine that started this process."""
    parser = argparse.ArgumentParser(prog="engine.cli.serve")
    parser.add_argument("--control-fd", type=int, required=True, help="socket to the engine that started this")
    control_fd: int = parser.parse_args(arguments).control_fd
    with exit_on_error():
        try:
            control = socket.socket(fileno=control_fd)
        except OSError as error:
            raise ActionError(f"descriptor {control_fd} is no socket: {error.strerror}") from None
        # an event makes some dozens of objects and no cycle
        gc.set_threshold(20_000, 20, 50)
        # the engine tells when it is enough; Ctrl-C is not for us
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run(Worker(), control)


if __name__ == "__main__":
    main()

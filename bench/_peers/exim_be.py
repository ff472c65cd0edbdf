"""Exim: `exim -be`, which expands one line of its standard input after the other."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from bench._harness import Timing
from bench._peers._real import missing_if_skipped
from fakes.peer_exim import EximOracle

if TYPE_CHECKING:
    from collections.abc import Sequence

label = "exim -be"


def _expand(lines: Sequence[bytes]) -> tuple[float, bytes]:
    """Seconds from start to end, and what was printed."""
    with EximOracle() as oracle, tempfile.TemporaryFile() as feed, tempfile.TemporaryFile() as out:
        feed.write(b"\n".join(lines) + b"\n")
        feed.seek(0)
        command = [str(oracle._binary), "-C", str(oracle._configuration), "-be"]
        start = time.perf_counter()
        subprocess.run(command, stdin=feed, stdout=out, check=True, env=oracle.place.environment, cwd="/")
        wall_s = time.perf_counter() - start
        out.seek(0)
        return wall_s, out.read()


def version() -> str:
    """That of Exim."""
    with missing_if_skipped():
        printed = _expand([b"$version_number"])[1]
    return re.sub(rb"[^0-9.]", b"", printed).decode()


def run(data: list[bytes]) -> Timing:
    """Expand every line; the time that a run with one line takes is taken off."""
    start_up_s = min(_expand(data[:1])[0] for _ in range(3))
    wall_s, printed = _expand(data)
    values = [line.removeprefix(b"> ") for line in printed.split(b"\n")][: len(data)]
    return Timing(len(data), wall_s - start_up_s, check=hashlib.sha256(b"\n".join(values)).hexdigest())

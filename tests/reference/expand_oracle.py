"""Ask the real Exim what lines expand to: many lines to one `exim -be`, with a mark between them.

An input that crashes Exim (4.96 has some) is found by halving and answered with `CRASH`.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: what is answered for a line that kills Exim
CRASH: Final = b"<crash>"
_MARK: Final = b"=-=-%d-=-="


class EximOracle:
    """Runs `exim -be`.

    Args:
        command: program and arguments up to and with ``-be``.
        env: the environment it runs in.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.command = list(command)
        self.env = dict(env)

    def expand(self, lines: Sequence[bytes], *, before: Sequence[bytes] = ()) -> list[bytes]:
        """The answer to each line, ``Failed: …`` included.

        Args:
            lines: expressions, each without a line end.
            before: lines that are fed first in every process, `set` assignments and macros.
        """
        answers = self._run(lines, before)
        if answers is not None:
            return answers
        if len(lines) == 1:
            return [CRASH]
        half = len(lines) // 2
        return self.expand(lines[:half], before=before) + self.expand(lines[half:], before=before)

    def _run(self, lines: Sequence[bytes], before: Sequence[bytes]) -> list[bytes] | None:
        feed = b"".join(line + b"\n" for line in before)
        for number, line in enumerate(lines):
            feed += line + b"\n" + _MARK % number + b"\n"
        done = subprocess.run(
            self.command, input=feed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.env, timeout=60
        )
        if done.returncode < 0:
            return None
        rest = done.stdout
        for _ in before:
            rest = rest.partition(b"\n")[2] if rest.startswith(b"> \n") else rest
        answers = []
        for number in range(len(lines)):
            answer, found, rest = rest.partition(b"> " + _MARK % number + b"\n")
            if not found:
                return None
            answers.append(answer.removeprefix(b"> ").removesuffix(b"\n"))
        return answers

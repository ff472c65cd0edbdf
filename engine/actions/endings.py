"""How the process of a worker ended, and whether that was its own doing or somebody else's.

Layer: adapter; no trio.  Spec: issue text "Guarantees".

Facts.  Code that crashes ends its process by a signal (SIGSEGV, SIGABRT …) or an exit; who stops a worker from outside
sends SIGTERM, SIGINT or SIGKILL.  The kernel sends SIGKILL, too, to what takes too much memory, and counts that.  Only
the parent of a process is told how it ended: for workers of the engine's own that is the engine, for those of
`outrider worker run` it is that command, which says it on the control socket of the process that has ended.

What it means.  An event may be blamed for an end of the first kind, and never for one of the second: an operator may
kill a worker as often as he likes.  SIGKILL is the worker's own doing only if the kernel has killed something for want
of memory meanwhile.  Where nobody tells how a worker ended, nothing is blamed.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Final

#: signals that the code of a process brings upon itself
_FAULTS: Final = frozenset(
    [
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP),
        *(signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ),
    ]
)
#: an `Ending` as text, which is how it is told on a control socket
_TEXT: Final = re.compile(r"(signal|exit status) ([0-9]{1,3})")
_VMSTAT: Final = "/proc/vmstat"


@dataclass(frozen=True, slots=True)
class Ending:
    """An end, by a signal or, if that is 0, with an exit status."""

    signal: int = 0
    status: int = 0

    @classmethod
    def of(cls, returncode: int) -> Ending:
        """From what `subprocess` and `multiprocessing` say."""
        return cls(signal=-returncode) if returncode < 0 else cls(status=returncode)

    @classmethod
    def told_untrusted(cls, octets: bytes) -> Ending | None:
        """What was told on a control socket; None if that is no ending."""
        found = _TEXT.fullmatch(octets.decode("ascii", "replace"))
        if found is None:
            return None
        number = int(found[2])
        return cls(signal=number) if found[1] == "signal" else cls(status=number)

    def is_own_fault(self, *, memory_ran_out: bool) -> bool:
        """Whether the code of the process ended it; `memory_ran_out`: see `oom_kills`."""
        if self.signal == signal.SIGKILL:
            return memory_ran_out
        return self.signal in _FAULTS or not self.signal

    def __str__(self) -> str:
        return f"signal {self.signal}" if self.signal else f"exit status {self.status}"


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory, in containers too; None where it does not say."""
    try:
        with open(_VMSTAT, "rb") as file:
            found = re.search(rb"^oom_kill ([0-9]+)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None

"""Where the CPU time of a run goes: a profile of all threads by sampling, told by the subject of the code.

    with Profile() as profile:
        …
    print(profile.table(count))

A timer of the process's CPU time interrupts the main thread every millisecond of CPU that any thread used; what the
main thread used since the last time, by its own clock, is put down to the function that it is in now.  That takes about
1 % of the time.  A function belongs to the subject of its file; what is no part of the project (OpenSSL, trio, msgpack)
to that of its caller, unless it has a row of its own.
Other threads cannot be told by samples, since whoever samples holds the interpreter: they seem to be where they give it
up.  So their clocks are read before and after some functions, which run once a batch; the rest of what they used is the
queue's.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: seconds of CPU time between two samples
INTERVAL_S: Final = 0.001
#: (part of a path, function or "" for all of the file, subject); the first that fits decides, and the innermost frame
#: that fits anything, unless an outer one is in `_WHOLE`
_SUBJECTS: Final = (
    ("/engine/delivery/events.py", "", "event"),
    ("/engine/delivery/outbox.py", "", "event"),
    ("/engine/delivery/raised.py", "", "event"),
    ("/engine/delivery/stored.py", "", "event"),
    ("/engine/events/", "", "event"),
    ("/engine/actions/", "", "event"),
    ("/engine/expand/", "", "event"),
    ("/engine/queue/_outbox.py", "", "event"),
    ("/engine/delivery/settlement.py", "completed_fact", "log"),
    ("/engine/delivery/core.py", "fact", "log"),
    ("/engine/delivery/core.py", "completed", "log"),
    ("/engine/delivery/core.py", "on_settled", "queue"),
    ("/engine/logs/", "", "log"),
    ("/engine/queue/journal.py", "", "journal"),
    ("/engine/delivery/settlement.py", "", "queue"),
    ("/engine/queue/", "", "queue"),
    ("/engine/compose/ids.py", "", "schedule"),
    ("/engine/compose/", "", "compose"),
    ("/jinja2/", "", "compose"),
    ("/engine/net/stream.py", "", "TLS"),
    ("/engine/net/tcp.py", "", "TLS"),
    ("/engine/net/losses.py", "", "TLS"),
    ("/engine/tls/", "", "TLS"),
    ("/OpenSSL/", "", "TLS"),
    ("/engine/smtp/", "", "SMTP"),
    ("/engine/net/session.py", "", "SMTP"),
    ("/engine/delivery/carrier.py", "", "SMTP"),
    ("/engine/delivery/outcome.py", "", "SMTP"),
    ("/engine/", "", "schedule"),
    ("/trio/", "", "trio"),
)
#: functions all of whose work, by whomever it is done, is of one subject
_WHOLE: Final = (("/engine/delivery/connect.py", "connect", "new connections"),)
_OTHERS: Final = "others"


class Profile:
    """Samples while the block runs; in the main thread.

    Args:
        timed: class, name of a method, subject: what is timed in other threads.
    """

    def __init__(self, *timed: tuple[type, str, str]) -> None:
        self._timed = timed
        self._before: list[Callable[..., Any]] = []
        #: (subject, whether in the main thread) -> seconds
        self.seconds: defaultdict[tuple[str, bool], float] = defaultdict(float)
        self.functions: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._clocks: dict[int, float] = {}
        self._main = threading.main_thread().ident

    def __enter__(self) -> Self:
        self._clocks = {ident: _cpu_s(ident) for ident in sys._current_frames()}
        self._before = [getattr(owner, name) for owner, name, _ in self._timed]
        for (owner, name, subject), function in zip(self._timed, self._before, strict=True):
            setattr(owner, name, self._timing(function, subject))
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        for (owner, name, _subject), function in zip(self._timed, self._before, strict=True):
            setattr(owner, name, function)

    def _timing(self, function: Callable[..., Any], subject: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == self._main:
                return function(*arguments, **options)
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                used = time.thread_time() - began
                self.seconds[subject, False] += used
                self.seconds["queue", False] -= used
                self.functions[subject, f"{function.__qualname__} (in a thread)"] += used

        return run

    def _sample(self, _: int, interrupted: FrameType | None) -> None:
        for ident in sys._current_frames():
            now = _cpu_s(ident)
            used = now - self._clocks.get(ident, 0.0)
            self._clocks[ident] = now
            if ident == self._main:
                subject, function = _subject(interrupted)
                self.seconds[subject, True] += used
                self.functions[subject, function] += used
            else:
                self.seconds["queue", False] += used

    def table(self, count: int, workers_s: float = 0.0) -> str:
        """Markdown: microseconds a piece of work by subject, the largest first.

        Args:
            count: pieces of work done; workers_s: CPU time of other processes that did a part of it.
        """
        subjects = {subject for subject, _ in self.seconds}
        rows = {subject: (self.seconds[subject, True], self.seconds[subject, False]) for subject in subjects}
        lines = ["| part | µs a delivery | of these in the queue's thread |", "|---|---:|---:|"]
        for subject, (main, other) in sorted(rows.items(), key=lambda row: -sum(row[1])):
            lines.append(f"| {subject} | {1e6 * (main + other) / count:.1f} | {1e6 * other / count:.1f} |")
        if workers_s:
            lines.append(f"| workers | {1e6 * workers_s / count:.1f} | |")
        total = sum(self.seconds.values()) + workers_s
        lines.append(f"| all | {1e6 * total / count:.1f} | {1e6 * sum(row[1] for row in rows.values()) / count:.1f} |")
        return "\n".join(lines)

    def dearest(self, count: int, number: int = 40) -> str:
        """The functions that took most by themselves, or in what they call outside of the project."""
        dearest = sorted(self.functions.items(), key=lambda row: -row[1])
        return "\n".join(
            f"{1e6 * seconds / count:6.2f} µs  {subject:<16}{function}"
            for (subject, function), seconds in dearest[:number]
        )


def _cpu_s(ident: int) -> float:
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(ident))
    except OSError:  # it has ended
        return 0.0


def _subject(frame: FrameType | None) -> tuple[str, str]:
    """Subject of the innermost frame that has one, and its function."""
    found: tuple[str, str] | None = None
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        for part, function, subject in _WHOLE:
            if name == function and part in path:
                return subject, name
        if found is None:
            for part, function, subject in _SUBJECTS:
                if part in path and function in ("", name):
                    found = subject, f"{path.rpartition('/')[2]}:{frame.f_code.co_qualname}"
                    break
        frame = frame.f_back
    return found or (_OTHERS, "")

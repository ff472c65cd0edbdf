"""What the mail servers among the peers share: they take a load, hold it, and relay it to the sink when told.

The servers are those of the tests (tests/fakes), unpacked and never installed.  A run starts the server new, gives it
all messages over SMTP in clear with its delivery held back, and ends it.  Then it is let go, with files really synced
(the tests run it without, which nobody would with mail that he wants to keep), and taken are the time until the sink
has everything, and the CPU time of all of the server's processes until its queue is empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import smtplib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from bench._harness import Timing
from bench._mail import SENDER
from bench._peers import _real as _real  # before `fakes`, which it makes importable
from bench._sink import wait_for_mail
from fakes.peers import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench._mail import Load

Server = TypeVar("Server", bound=Receiver)

_PR_SET_CHILD_SUBREAPER: Final = 36
#: connections over which a load is given to a server
_INJECTORS: Final = 8
#: seconds in which a server must have dropped everything that the sink has from its queue
_EMPTY_S: Final = 60.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Relay(Generic[Server]):
    """A server that relays.

    Attributes:
        make: starts it, so that it takes and holds everything.
        prepare: what need not be timed, before the server ends.
        release: relays what is held: starts the server again, or a process of its own; may return before all is done.
        left: how many messages are in its queue.
        is_started_again: by `release`; what an idle start takes is no delivery's.
    """

    make: Callable[[], Server]
    prepare: Callable[[Server], None]
    release: Callable[[Server], None]
    left: Callable[[Server], int]
    is_started_again: bool = True

    def run(self, load: Load) -> Timing:
        """Relay a load."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        cpu_s = tree_cpu_s()
        with self.make() as server:
            start_cpu_s = tree_cpu_s() - cpu_s if self.is_started_again else 0.0
            inject(server.port, load)
            self.prepare(server)
            server.stop()
            server.sync_files()
            held = self.left(server)
            assert held == load.count, f"{server.name} holds {held} of {load.count} messages"
            cpu_s, began = tree_cpu_s(), time.monotonic()
            self.release(server)
            arrived = wait_for_mail(load.control_port, load.count)
            deadline = time.monotonic() + _EMPTY_S
            while left := self.left(server):
                assert time.monotonic() < deadline, f"{server.name} keeps {left} messages: {server.log_text()[-2000:]}"
                time.sleep(_POLL_S)
            timing = Timing(load.count, arrived.at - began, tree_cpu_s() - cpu_s - start_cpu_s)
        _reap()
        return timing


# --- CPU time ---------------------------------------------------------------------------------------------------------


def tree_cpu_s() -> float:
    """CPU time, in seconds, of everything that descends from this process: what lives, and what has ended.

    Orphans become children of this process (`relay` says so) and are counted among them, ended or not.
    """
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    parents = dict(_processes())
    mine = {os.getpid()}
    grew = True
    while grew:
        more = {pid for pid, fields in parents.items() if fields[0] in mine and pid not in mine}
        grew = bool(more)
        mine |= more
    mine.discard(os.getpid())
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return usage.ru_utime + usage.ru_stime + sum(_own_cpu_s(pid) + parents[pid][1] * tick_s for pid in mine)


def _processes() -> Iterator[tuple[int, tuple[int, int]]]:
    """Each process: its parent, and the ticks of those of its children that it waited for."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                yield int(name), (int(fields[1]), int(fields[13]) + int(fields[14]))


def _own_cpu_s(pid: int) -> float:
    """CPU time of a process's threads, in nanoseconds' resolution, which `stat` has not."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(path.read_text().split()[0])
    return total / 1e9


def _reap() -> None:
    """Wait for the orphans that have ended, so that they do not stay until this process ends."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# --- giving a server its load -----------------------------------------------------------------------------------------


def inject(port: int, load: Load) -> None:
    """Give all messages to the server at `port`, over SMTP in clear, and have each accepted.

    Raises:
        AssertionError: one was not.
    """
    messages = load.messages()
    errors: list[BaseException] = []

    def give(share: Sequence[tuple[str, bytes]]) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", port, timeout=60, local_hostname="injector.bench.test") as client:
                for recipient, octets in share:
                    client.sendmail(SENDER, [recipient], octets)
        except (OSError, smtplib.SMTPException) as error:
            errors.append(error)

    threads = [threading.Thread(target=give, args=(messages[number::_INJECTORS],)) for number in range(_INJECTORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, f"the server at {port} did not take its load: {errors[0]!r}"

"""A million recipients cost no more each than a thousand, in 250 MB, and the first has his mail within two seconds.

How: `outrider send --start-early`, as a person would type it, in a process of its own that is pinned to one core: it
reads a CSV file with merge data, queues, composes a personalised 4 KiB message for each recipient and delivers them
over TLS with DANE to `bench._sink` on the other core, which is the name server, too: each domain is asked for its MX
records, all of which name the sink. From a thousand recipients to a hundred thousand (a million with --full), and over
1 to 10,000 domains (100,000 with --full). Told are the CPU time of the process for a recipient, with that of a send to
one recipient taken off (the start of Python, imports), the time from the start of the process to the first message at
the sink, and the greatest resident size of the process. Right: the sink has every message once, and `send` says that
all are delivered.

What would falsify it: more than 1.2 times the CPU for a recipient of the longest list than for one of ten thousand,
more than 1.2 times for the most domains than for one domain; over 250 MB; a first message later than two seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._engine import FOLDER, Work, configuration_text, recipients, template
from ._env import PROJECT
from ._harness import CPU_US, RATE, Contender, Metric, Timing, pin
from ._mail import SENDER
from ._sink import Sink

if TYPE_CHECKING:
    from ._harness import Harness

FIRST_S: Final = Metric("first delivery", "s", False, lambda timing: timing.more["first_s"])
PEAK_MB: Final = Metric("peak memory", "MB", False, lambda timing: timing.more["peak_mb"])
#: a list that is neither so short that connecting shows nor so long that it takes long
_BASE: Final = 10_000
_LIMIT: Final = 1.2
#: seconds that the longest list may take
_TIMEOUT_S: Final = 1500.0


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    by_count, by_domains = _lists(bench)
    cores = sorted(os.sched_getaffinity(0))
    with Sink(core=cores[-1]) as sink, tempfile.TemporaryDirectory(prefix="outrider-bench-", dir=FOLDER) as folder:
        bench.note(f"queue in {folder}")
        send = _Send(sink, Path(folder), cores[0])
        start_s = min(send.run(Work(1, domains=1)).cpu_s for _ in range(bench.size(3, 1)))
        bench.note(f"the start takes {start_s:.2f} s of CPU, which is taken off")
        timings = {}
        for work in dict.fromkeys(by_count + by_domains):
            timing = send.run(work)
            timings[work] = replace(timing, cpu_s=max(timing.cpu_s - start_s, 1e-6))
            _tell(bench, work, timings[work])
    longest = by_count[-1]
    base = next((work for work in by_count if work.count == _BASE), longest)
    what = f"CPU for one of {longest.count:,} / of {base.count:,}"
    _judge(bench, what, _ratio(timings[longest], timings[base]), is_figure=True)
    for most in by_domains[2:]:
        what = f"CPU for one of {most.count:,} over {most.domains:,} domains / of {by_domains[0].count:,} over one"
        _judge(bench, what, _ratio(timings[most], timings[by_domains[0]]))
    done, what = _done(timings[longest]), f"send to {longest.count:,}"
    bench.measure(what, done, metric=FIRST_S, runs=1, warm_up=False, at_most=2)
    largest = _done(max(timings.values(), key=PEAK_MB.of))
    bench.measure("the largest of all of them", largest, metric=PEAK_MB, runs=1, warm_up=False, at_most=250)


def _lists(bench: Harness) -> tuple[list[Work], list[Work]]:
    """Lists of more and more recipients, and lists over more and more domains."""
    if bench.quick:
        return [Work(100)], [Work(100, domains=1), Work(100)]
    longest = 1_000_000 if bench.full else 100_000
    by_count = [Work(count) for count in (1_000, _BASE, 100_000, 1_000_000) if count <= longest]
    by_domains = [Work(100_000, domains=number) for number in (1, 100, 10_000)]
    if bench.full:
        by_domains.append(Work(1_000_000, domains=100_000))
    return by_count, by_domains


def _tell(bench: Harness, work: Work, timing: Timing) -> None:
    at = {"count": float(work.count), "domains": float(work.domains)}
    what = f"send to {work.count:,} over {work.domains:,} domains"
    others = (RATE, FIRST_S, PEAK_MB)
    bench.measure(what, _done(timing), metric=CPU_US, also=others, runs=1, warm_up=False, at=at)


def _judge(bench: Harness, what: str, ratio: float, *, is_figure: bool = False) -> None:
    metric = Metric("ratio", "×", False, lambda _: ratio)
    done = _done(Timing(1, 0.0))
    bench.measure(what, done, metric=metric, runs=1, warm_up=False, at_most=_LIMIT, is_figure=is_figure)


def _done(timing: Timing) -> Contender:
    return Contender("outrider", lambda: timing)


def _ratio(one: Timing, other: Timing) -> float:
    return (one.cpu_s / one.count) / (other.cpu_s / other.count)


class _Send:
    """`outrider send` to a sink, with everything it needs in a directory."""

    def __init__(self, sink: Sink, folder: Path, core: int) -> None:
        self._sink = sink
        self._folder = folder
        self._core = core
        self._number = 0

    def run(self, work: Work) -> Timing:
        """Send to everybody; the CPU time is that of the whole process."""
        self._number += 1
        place = self._folder / str(self._number)
        place.mkdir()
        (place / "outrider.toml").write_text(configuration_text(self._sink, work, str(place)))
        (place / "message.eml").write_bytes(template(work.octets))
        with (place / "recipients.csv").open("w") as rows:
            rows.write("email,name,number\n")
            for recipient in recipients(work):
                merge = recipient.merge or {}
                rows.write(f"{recipient.address},{merge['name']},{merge['number']}\n")
        command = [sys.executable, "-m", "engine", "send", "--json", "--template", "--from", SENDER]
        command += ["--config", f"{place}/outrider.toml", "--message", f"{place}/message.eml"]
        command += ["--recipients", f"{place}/recipients.csv", "--start-early", "--skip-invalid"]
        self._sink.mark()
        first: list[float] = []
        watch = threading.Thread(
            target=lambda: first.append(self._sink.arrived(1, timeout_s=_TIMEOUT_S).at), daemon=True
        )
        watch.start()
        began = time.monotonic()
        with (place / "output").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, preexec_fn=lambda: pin(self._core)
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - began
        text = (place / "output").read_text()
        assert process.returncode == 0, text[-2000:]
        delivered = json.loads(text.splitlines()[-1])["queue"]["delivered"]
        found = self._sink.arrived(work.count)
        assert (delivered, found.messages, found.duplicates) == (work.count, work.count, 0), f"{delivered}, {found}"
        watch.join()
        more = {"first_s": first[0] - began, "peak_mb": usage.ru_maxrss / 1000}
        return Timing(work.count, wall_s, usage.ru_utime + usage.ru_stime, more=more)

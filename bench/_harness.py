"""Measure contenders against one another in turns, and tell the figures.

A claim is a file `claim_NAME.py` whose docstring says what is claimed, how it is measured and what would falsify it,
and whose `run(bench)` does it:

    def run(bench: Harness) -> None:
        ours = Contender("outrider", evaluate)            # evaluate(data) is one timed run and gives a Timing
        with peer("exim_be", bench.note) as exim:         # in a process of its own; None if it is missing here
            bench.compare("mixed corpus", ours, exim, data=…, metric=RATE, at_least=5, is_figure=True)

Runs are taken in turns (A B A B …) so that a machine that changes its speed changes it for both; a ratio is made from
each pair and told by its median, least and greatest.  A run checks that what it did was right, or its time means
nothing: `Timing.check` must be the same for all contenders of a comparison.
Everything that is printed is made from the objects that `--json` writes, one line each:
{"claim","what","variant","version","metric","unit","n","at","runs","median","min","max","ratio","target","met","quick","figure","env"}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import statistics
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ._env import environment
from ._peers import Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: pairs of a full run, after the warm-up; an odd number has a middle
PAIRS: Final = 7
#: seconds that one run of a peer in its own process may take
PEER_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed run.

    Attributes:
        count: operations done; wall_s, cpu_s: what they took, set-up left out (CPU: user and system, children that
            ended included).
        check: what shows that the work was right, such as a count or a digest of the results.
        more: what else the run tells, by name, for the metrics of its claim.
    """

    count: int
    wall_s: float
    cpu_s: float = 0.0
    check: object = None
    more: dict[str, float] = field(default_factory=dict)


class Stopwatch:
    """Takes the time of a block: ``with Stopwatch() as watch: …``, then ``watch.timing(count)``."""

    def __enter__(self) -> Stopwatch:
        self._cpu = _cpu_s()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._wall
        self.cpu_s = _cpu_s() - self._cpu

    def timing(self, count: int, check: object = None) -> Timing:
        """What the block took, for `count` operations."""
        return Timing(count, self.wall_s, self.cpu_s, check)


def pin(core: int | None) -> None:
    """Keep this thread, and what it starts from now on, on one core; nothing happens where there is no such core.

    It may be another than that of who started this process, to which `sched_getaffinity` is narrowed by then.
    """
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """`pin` while the block runs."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    pin(core)
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


def _cpu_s() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is made of a timing.

    Attributes:
        name, unit: for people; is_rate: more is better.
        of: the value of one run.
    """

    name: str
    unit: str
    is_rate: bool
    of: Callable[[Timing], float]


RATE: Final = Metric("rate", "1/s", True, lambda timing: timing.count / timing.wall_s)
WALL_NS: Final = Metric("time each", "ns", False, lambda timing: 1e9 * timing.wall_s / timing.count)
WALL_US: Final = Metric("time each", "µs", False, lambda timing: 1e6 * timing.wall_s / timing.count)
CPU_US: Final = Metric("CPU each", "µs", False, lambda timing: 1e6 * timing.cpu_s / timing.count)


@dataclass(slots=True)
class Contender:
    """Somebody who is measured: each call of `run` is one timed run of the same work.

    Attributes:
        run: called with `data` if the comparison gives some, otherwise without arguments.
    """

    label: str
    run: Callable[..., Timing]
    version: str = ""


@dataclass(slots=True)
class Measurement:
    """The runs of one contender, and how they stand to those of another in the same pairs."""

    claim: str
    what: str
    variant: str
    version: str
    metric: str
    unit: str
    n: int
    runs: list[float]
    ratio_vs: str = ""
    ratios: list[float] = field(default_factory=list)
    at_least: float | None = None
    at_most: float | None = None
    is_quick: bool = False
    is_figure: bool = False
    #: where in a grid it stands, for plots: such as the window and the round-trip time
    at: dict[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> float:
        """The number that the target is about: the ratio, or the value where there is no peer."""
        return statistics.median(self.ratios or self.runs)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, and in quick runs, which are too short to tell."""
        if self.is_quick or (self.at_least is None and self.at_most is None):
            return None
        return (self.at_least is None or self.judged >= self.at_least) and (
            self.at_most is None or self.judged <= self.at_most
        )

    @property
    def target(self) -> str:
        """The target in words, or ""."""
        words = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        if self.at_most is not None:
            words.append(f"at most {self.at_most:g}")
        return " and ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this measurement."""
        return {
            "claim": self.claim,
            "what": self.what,
            "variant": self.variant,
            "version": self.version,
            "metric": self.metric,
            "unit": self.unit,
            "n": self.n,
            "at": self.at,
            "runs": self.runs,
            "median": statistics.median(self.runs),
            "min": min(self.runs),
            "max": max(self.runs),
            "ratio": {
                "vs": self.ratio_vs,
                "median": statistics.median(self.ratios),
                "min": min(self.ratios),
                "max": max(self.ratios),
            }
            if self.ratios
            else None,
            "target": self.target or None,
            "met": self.met,
            "quick": self.is_quick,
            "figure": self.is_figure,
            "env": environment(),
        }


class Harness:
    """Takes the measurements of one claim.

    Args:
        claim: its name; quick: one short pair, enough to see that everything still works; full: also what takes long.
        emit: called with each measurement as it is made; note: called with each remark.
    """

    def __init__(
        self,
        claim: str,
        *,
        quick: bool = False,
        full: bool = False,
        emit: Callable[[Measurement], None] = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.claim = claim
        self.quick = quick
        self.full = full
        self.note = note
        self.measurements: list[Measurement] = []
        self._emit = emit

    def size(self, full: int, quick: int) -> int:
        """How much work a run does: `full`, or `quick` in a quick run."""
        return quick if self.quick else full

    def measure(
        self,
        what: str,
        contender: Contender,
        *,
        data: object = None,
        metric: Metric = RATE,
        also: Sequence[Metric] = (),
        runs: int = PAIRS,
        warm_up: bool = True,
        at: dict[str, float] | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
        is_figure: bool = False,
    ) -> Measurement:
        """Measure one contender alone; the target is about the value itself.

        Args:
            also: what else is told of the same runs.
            warm_up: throw the first run away (never in quick runs).
            at: where in a grid this stands, for plots.

        Raises:
            AssertionError: two runs differ in `check`.
        """
        timings = self._in_turns([contender], data, runs, warm_up=warm_up)[0]
        made = self._measurement(what, contender, metric, timings, at_least, at_most, at=at, is_figure=is_figure)
        found = self._add(made, timings)
        for other in also:
            self._add(self._measurement(what, contender, other, timings, None, None, at=at), timings)
        return found

    def compare(
        self,
        what: str,
        ours: Contender,
        *peers: Contender | None,
        data: object = None,
        metric: Metric = RATE,
        also: Sequence[Metric] = (),
        pairs: int = PAIRS,
        warm_up: bool = True,
        at: dict[str, float] | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
        is_figure: bool = False,
    ) -> list[Measurement]:
        """Measure `ours` and `peers` in turns; a ratio is our value over the peer's in the same turn.

        Args:
            peers: None (a peer that is missing) is left out; the target and `is_figure` are about the first one given.
            data: the work, the same for all.
            also: what else is told of the same runs, without a ratio.
            warm_up: throw the first turn away (never in quick runs).
            at: where in a grid this stands, for plots.

        Raises:
            AssertionError: the contenders, or two runs of one, differ in `check`.
        """
        others = [contender for contender in peers if contender is not None]
        rows = self._in_turns([ours, *others], data, pairs, warm_up=warm_up)
        found = [self._add(self._measurement(what, ours, metric, rows[0], None, None, at=at), rows[0])]
        for contender, timings in zip(others, rows[1:], strict=True):
            found.append(self._add(self._measurement(what, contender, metric, timings, None, None, at=at), timings))
            is_first = contender is peers[0]
            versus = self._measurement(
                what,
                ours,
                metric,
                rows[0],
                at_least if is_first else None,
                at_most if is_first else None,
                at=at,
                is_figure=is_figure and is_first,
            )
            versus.ratio_vs = contender.label
            versus.ratios = [metric.of(a) / metric.of(b) for a, b in zip(rows[0], timings, strict=True)]
            found.append(self._add(versus, rows[0]))
        for other in also:
            for contender, timings in zip([ours, *others], rows, strict=True):
                found.append(self._add(self._measurement(what, contender, other, timings, None, None, at=at), timings))
        return found

    def _in_turns(
        self, contenders: Sequence[Contender], data: object, turns: int, *, warm_up: bool = True
    ) -> list[list[Timing]]:
        """The timings of each contender; the first turn of a full run warms up and is thrown away."""
        arguments = () if data is None else (data,)
        rows: list[list[Timing]] = [[] for _ in contenders]
        thrown_away = 1 if warm_up and not self.quick else 0
        for turn in range(thrown_away + (1 if self.quick else turns)):
            for contender, row in zip(contenders, rows, strict=True):
                gc.collect()
                timing = contender.run(*arguments)
                if turn >= thrown_away:
                    row.append(timing)
        checks = [
            (contender.label, timing.check) for contender, row in zip(contenders, rows, strict=True) for timing in row
        ]
        for label, check in checks[1:]:
            if check != checks[0][1]:
                raise AssertionError(f"{label} did other work than {checks[0][0]}: {check!r} against {checks[0][1]!r}")
        return rows

    def _measurement(
        self,
        what: str,
        contender: Contender,
        metric: Metric,
        timings: Sequence[Timing],
        at_least: float | None,
        at_most: float | None,
        *,
        at: dict[str, float] | None = None,
        is_figure: bool = False,
    ) -> Measurement:
        return Measurement(
            claim=self.claim,
            what=what,
            variant=contender.label,
            version=contender.version,
            metric=metric.name,
            unit=metric.unit,
            n=timings[0].count,
            runs=[metric.of(timing) for timing in timings],
            at_least=at_least,
            at_most=at_most,
            is_quick=self.quick,
            is_figure=is_figure,
            at=at or {},
        )

    def _add(self, measurement: Measurement, timings: Sequence[Timing]) -> Measurement:
        if any(not timing.count for timing in timings):
            raise AssertionError(f"{measurement.variant} did nothing for {measurement.what!r}")
        self.measurements.append(measurement)
        self._emit(measurement)
        return measurement


# --- peers ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peer(name: str, note: Callable[[str], None], *, core: int | None = None) -> Iterator[Contender | None]:
    """Run the peer `bench/_peers/NAME.py` in a process of its own; yields None, and says why, if it is missing here.

    Args:
        core: to pin that process and all that it starts to; None for no pinning.

    Raises:
        RuntimeError: in `Contender.run`, when the peer's process fails; the text has its traceback.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_peer, args=(name, there, core), daemon=True)
    process.start()
    there.close()
    try:
        first = _receive(here, name)
        if isinstance(first, Missing):
            note(f"skipped: {name}: {first}")
            yield None
            return
        label, version = first

        def run(*arguments: object) -> Timing:
            here.send(arguments)
            timing: Timing = _receive(here, name)
            return timing

        yield Contender(label, run, version)
    finally:
        with contextlib.suppress(OSError):
            here.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        here.close()


def _receive(connection: multiprocessing.connection.Connection, name: str) -> Any:
    if not connection.poll(PEER_TIMEOUT_S):
        raise RuntimeError(f"peer {name} did not answer within {PEER_TIMEOUT_S:.0f} s")
    try:
        answer = connection.recv()
    except EOFError:
        raise RuntimeError(f"peer {name} ended") from None
    if isinstance(answer, str):
        raise RuntimeError(f"peer {name} failed:\n{answer}")
    return answer


def _serve_peer(name: str, connection: multiprocessing.connection.Connection, core: int | None) -> None:
    """In the peer's process: import it, tell who it is, then run what is asked for until None comes."""
    pin(core)
    try:
        module = importlib.import_module(f"bench._peers.{name}")
        connection.send((module.label, module.version()))
        while (arguments := connection.recv()) is not None:
            connection.send(module.run(*arguments))
    except Missing as reason:
        connection.send(reason)
    except EOFError:
        return
    except BaseException:
        connection.send(traceback.format_exc())
        raise


# --- telling ----------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """One row of the table, from the JSON object of a measurement."""
    ratio = row["ratio"]
    if ratio:
        text = f"  {row['variant']} / {ratio['vs']}"
        text = f"{text:<44}{ratio['median']:>14.3g} ×    ({ratio['min']:.3g} to {ratio['max']:.3g})"
    else:
        text = f"  {row['variant']}" + (f" {row['version']}" if row["version"] else "")
        text = f"{text:<44}{_number(row['median']):>14} {row['unit']:<4} "
        text += f"({_number(row['min'])} to {_number(row['max'])})"
    return f"{text}{_verdict(row)}"


def figure(claim: str, rows: Sequence[dict[str, Any]]) -> str:
    """The last line of a claim: the number that it names, from the JSON objects of its measurements."""
    if not rows:
        return f"{claim}: nothing was measured"
    row = next((row for row in rows if row["figure"]), rows[-1])
    ratio = row["ratio"]
    number = f"{ratio['median']:.3g} × {ratio['vs']}" if ratio else f"{_number(row['median'])} {row['unit']}"
    return f"{claim}: {row['what']}, {row['metric']}: {number}{_verdict(row)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _verdict(row: dict[str, Any]) -> str:
    if not row["target"]:
        return ""
    verdict = {True: "met", False: "MISSED", None: "not judged in a quick run"}[row["met"]]
    return f"  target {row['target']}: {verdict}"

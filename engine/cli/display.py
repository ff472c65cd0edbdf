"""Show how a run goes on, and sum it up at the end.

Layer: command line.  Spec: issue "First mail out", "Telling".  Reads `Progress` and knows nothing else.

    async with show(progress, total=2000, title="newsletter.eml"):
        ...                                   # the engine counts in `progress`
    tell_summary(progress)                    # a table on a terminal, plain text otherwise, or JSON

On a terminal the display is live and is gone when the block ends; elsewhere it is one line every few seconds.
The display runs in a thread of its own and writes to the file descriptor itself: a terminal that is stopped (Ctrl-S),
slow or gone never holds up the engine, and nothing is left half written in a buffer when the process ends.
Invariants: at most `REFRESH_HZ` drawings a second; the block's own errors come out as they are; a stream that cannot be
written ends the display and nothing else; after the block nothing is written any more, unless the terminal was stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, cast

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..delivery.progress import SiteCounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from rich.console import RenderableType

    from ..delivery.progress import Progress

#: drawings a second on a terminal
REFRESH_HZ: Final = 8
#: seconds between two plain lines
PLAIN_INTERVAL_S: Final = 5.0
#: sites with a row of their own in the printed summary; JSON has all of them
MAX_SHOWN_SITES: Final = 12
#: seconds that the end of the display may take when the terminal takes no output
_LAST_WRITE_S: Final = 0.5
#: seconds that actions may be behind without being told of
BEHIND_S: Final = 2.0
#: columns below which the display has no bar
_NARROW: Final = 70


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The numbers of one drawing; `absent`: groups of action workers that events wait for, and nobody is there."""

    title: str
    phase: str
    total: int
    done: int
    loaded: int
    delivered: int
    waiting: int
    failed: int
    in_doubt: int
    events: int
    events_behind_s: float
    absent: str
    connections: int
    rate: float
    elapsed_s: float
    left_s: float | None

    @property
    def is_loading(self) -> bool:
        """Recipients are being queued and nothing is sent yet."""
        return bool(self.phase) and not self.total and not self.connections and not self.done

    @classmethod
    def take(cls, progress: Progress, title: str, now: float) -> Snapshot:
        """What `progress` says at `now`."""
        rate = progress.rate(now)
        return cls(
            title=title,
            phase=progress.phase,
            total=progress.total,
            done=progress.earlier + progress.settled,
            loaded=progress.loaded,
            delivered=progress.delivered,
            waiting=progress.waiting,
            failed=progress.failed,
            in_doubt=progress.in_doubt,
            events=progress.events,
            events_behind_s=progress.events_behind_s,
            absent=_absent(progress),
            connections=progress.connections,
            rate=rate,
            elapsed_s=progress.elapsed_s(now),
            left_s=progress.time_left_s(rate),
        )


def _absent(progress: Progress) -> str:
    groups = dict(progress.actions).items()
    return ", ".join(name for name, counts in groups if counts.get("waiting") and not counts.get("workers"))


@contextlib.asynccontextmanager
async def show(
    progress: Progress,
    *,
    total: int | None = None,
    title: str = "",
    stream: IO[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    interactive: bool | None = None,
    interval_s: float | None = None,
) -> AsyncIterator[None]:
    """Show `progress` while the block runs.

    Args:
        progress: what the engine counts in; its start is set if it has none.
        total: sets `progress.total` where the caller knows it.
        title: what is being sent, such as the name of the job.
        stream: where to write; standard error by default, since standard output is for results.
        clock: seconds that never go back; called in the display's thread.
        interactive: live or plain; by default live if `stream` is a terminal that can move its cursor.
        interval_s: seconds between two drawings or lines, if not the usual.
    """
    if total is not None:
        progress.total = total
    progress.start(clock())
    target = stream if stream is not None else sys.stderr
    live = is_live(target) if interactive is None else interactive
    display = _Live(target) if live else _Plain(target)
    interval = interval_s or (1 / REFRESH_HZ if live else PLAIN_INTERVAL_S)
    stop = threading.Event()

    def run() -> None:
        try:
            while not stop.wait(interval):
                display.draw(Snapshot.take(progress, title, clock()))
        except (OSError, ValueError):
            return  # the terminal is gone, or the stream was closed
        finally:
            with contextlib.suppress(OSError, ValueError):
                display.close()

    thread = threading.Thread(target=run, name="outrider-display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join, _LAST_WRITE_S)


def is_live(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal on which the display can move the cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in {"", "dumb", "unknown"}


# --- the two displays -------------------------------------------------------------------------------------------------


class _Direct:
    """The part of a text file that rich needs, written at once and without a buffer of Python's."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._parts: list[str] = []
        try:
            self._fd: int | None = stream.fileno()
            stream.flush()
        except (OSError, ValueError):
            self._fd = None
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._parts.append(text)
        return len(text)

    def flush(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()
        if self._fd is None:
            self._stream.write(text)
            return
        view = memoryview(text.encode(self.encoding, "replace"))
        while view:
            view = view[os.write(self._fd, view) :]

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class _Live:
    def __init__(self, stream: IO[str]) -> None:
        console = Console(file=cast("IO[str]", _Direct(stream)), force_terminal=True, highlight=False)
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._console = console

    def draw(self, snapshot: Snapshot) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(picture(snapshot, self._console.width), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _Plain:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = _Direct(stream)

    def draw(self, snapshot: Snapshot) -> None:
        self._stream.write(plain_line(snapshot) + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


def picture(snapshot: Snapshot, width: int) -> RenderableType:
    """What the live display shows: a bar where the total is known, and a line of counts."""
    head = Table.grid(padding=(0, 2), expand=True)
    title = " ".join(part for part in (snapshot.title, f"({snapshot.phase})" if snapshot.phase else "") if part)
    cells: list[RenderableType] = []
    if title:
        head.add_column(no_wrap=True, max_width=max(10, width // 3))
        cells.append(Text(title, style="bold", overflow="ellipsis"))
    if snapshot.total:
        if width >= _NARROW:
            head.add_column(ratio=1)
            cells.append(ProgressBar(total=snapshot.total, completed=snapshot.done, finished_style="green"))
        head.add_column(no_wrap=True, justify="right")
        percent = 100 * snapshot.done / snapshot.total
        cells.append(Text(f"{percent:.0f} %  {snapshot.done:,} of {snapshot.total:,}"))
        head.add_column(no_wrap=True, justify="right")
        cells.append(Text(_left(snapshot)))
    else:
        head.add_column(ratio=1)
        cells.append(Text(f"{snapshot.loaded:,} recipients" if snapshot.loaded else ""))
        head.add_column(no_wrap=True, justify="right")
        cells.append(Text(duration(snapshot.elapsed_s), style="dim"))
    head.add_row(*cells)
    if snapshot.is_loading:
        return head
    counts = Text(no_wrap=True, overflow="ellipsis")
    for word, number, style in _counts(snapshot):
        counts.append(word, style="dim").append(f" {number:,}   ", style=style if number else "dim")
    counts.append(f"{snapshot.rate:,.0f}", style="bold").append("/s   ", style="dim")
    counts.append(f"{snapshot.connections:,}").append(f" {_plural('connection', snapshot.connections)}", style="dim")
    return Group(head, counts)


def plain_line(snapshot: Snapshot) -> str:
    """One line for a log, a pipe or a terminal that cannot do more."""
    if snapshot.is_loading:
        line = f"{snapshot.phase} {snapshot.loaded:,} recipients"
        return f"{snapshot.title}: {line}" if snapshot.title else line
    parts = [f"{word} {number:,}" for word, number, _ in _counts(snapshot)]
    if snapshot.total:
        parts.insert(0, f"{snapshot.done:,} of {snapshot.total:,}")
    if snapshot.phase:
        parts.insert(0, snapshot.phase)
    parts.append(f"{snapshot.rate:,.0f}/s")
    parts.append(f"{snapshot.connections:,} {_plural('connection', snapshot.connections)}")
    if snapshot.left_s is not None:
        parts.append(_left(snapshot))
    line = ", ".join(parts)
    return f"{snapshot.title}: {line}" if snapshot.title else line


def _left(snapshot: Snapshot) -> str:
    if snapshot.left_s is None:
        return ""
    return f"{duration(max(1, round(snapshot.left_s)))} left"


def _counts(snapshot: Snapshot) -> list[tuple[str, int, str]]:
    rows = [
        ("sent", snapshot.delivered, "bold green"),
        ("deferred", snapshot.waiting, "bold yellow"),
        ("failed", snapshot.failed, "bold red"),
    ]
    if snapshot.in_doubt:
        rows.append(("in doubt", snapshot.in_doubt, "bold yellow"))
    if snapshot.events and snapshot.events_behind_s >= BEHIND_S:
        # some always wait for a moment; what is told is that actions are behind
        who = f" (no worker of {snapshot.absent})" if snapshot.absent else ""
        rows.append((f"events {duration(snapshot.events_behind_s)} behind{who}", snapshot.events, "bold yellow"))
    return rows


# --- the summary ------------------------------------------------------------------------------------------------------


def summary(progress: Progress, now: float) -> dict[str, object]:
    """The outcome of a run as JSON has it; every site has its entry."""
    elapsed = progress.elapsed_s(now)
    return {
        "total": progress.total,
        "earlier": progress.earlier,
        "delivered": progress.delivered,
        "deferred": progress.waiting,
        "failed": progress.failed,
        "cancelled": progress.cancelled,
        "elsewhere": progress.elsewhere,
        "left": progress.left,
        "deferrals": progress.deferred,
        "in_doubt": progress.in_doubt,
        "events_waiting": progress.events,
        "events_behind": round(progress.events_behind_s, 3),
        "dead_letters": progress.dead,
        "actions": progress.actions,
        "connections": progress.opened,
        "tls_connections": progress.tls,
        "seconds": round(elapsed, 3),
        "per_second": round(progress.average(now), 1),
        "sites": {
            label: {
                "delivered": counts.delivered,
                "deferrals": counts.deferred,
                "failed": counts.failed,
                "in_doubt": counts.in_doubt,
            }
            for label, counts in _by_size(progress.sites.items())
        },
    }


def summary_text(progress: Progress, now: float) -> str:
    """The summary in plain text: aligned columns, no colour."""
    lines = [f"{name:<14}{count:>12,}{share:>9}  {note}".rstrip() for name, count, share, note in _outcomes(progress)]
    rows = _sites(progress)
    if rows:
        width = max(len(label) for label, _ in rows)
        lines.append("")
        lines.append(f"{'site':<{width}}{'delivered':>12}{'deferrals':>12}{'failed':>12}")
        lines += [
            f"{label:<{width}}{counts.delivered:>12,}{counts.deferred:>12,}{counts.failed:>12,}"
            for label, counts in rows
        ]
    return "\n".join([*lines, "", _closing(progress, now)]) + "\n"


def summary_picture(progress: Progress, now: float) -> RenderableType:
    """The summary as tables for a terminal."""
    outcomes = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "right", "left"):
        outcomes.add_column(justify=justify)
    styles = {"delivered": "green", "deferred": "yellow", "failed": "red", "in doubt": "yellow"}
    for name, count, share, note in _outcomes(progress):
        style = styles.get(name, "") if count else "dim"
        outcomes.add_row(name, Text(f"{count:,}", style=style), Text(share, style="dim"), Text(note, style="dim"))
    parts: list[RenderableType] = [outcomes]
    rows = _sites(progress)
    if rows:
        sites = Table(box=None, pad_edge=False, header_style="bold")
        sites.add_column("site", overflow="ellipsis", no_wrap=True)
        for title in ("delivered", "deferrals", "failed"):
            sites.add_column(title, justify="right")
        for label, counts in rows:
            sites.add_row(
                Text(label),
                Text(f"{counts.delivered:,}", style="" if counts.delivered else "dim"),
                Text(f"{counts.deferred:,}", style="yellow" if counts.deferred else "dim"),
                Text(f"{counts.failed:,}", style="red" if counts.failed else "dim"),
            )
        parts += ["", sites]
    return Group(*parts, "", Text(_closing(progress, now)))


def tell_summary(
    progress: Progress,
    *,
    as_json: bool = False,
    stream: IO[str] | None = None,
    now: float | None = None,
) -> None:
    """Print the summary on standard output or `stream`: JSON if asked, tables on a terminal, plain text elsewhere."""
    target = stream if stream is not None else sys.stdout
    at = time.monotonic() if now is None else now
    if as_json:
        target.write(json.dumps(summary(progress, at), ensure_ascii=False) + "\n")
    elif is_live(target):
        Console(file=target, highlight=False).print(summary_picture(progress, at))
    else:
        target.write(summary_text(progress, at))
    target.flush()


def _outcomes(progress: Progress) -> list[tuple[str, int, str, str]]:
    """(name, recipients, share, note) in the order in which they are told."""
    whole = progress.total or progress.settled + progress.waiting
    deferrals = f"{progress.deferred:,} {_plural('deferral', progress.deferred)} in all" if progress.deferred else ""
    rows = [
        ("delivered", progress.delivered, ""),
        ("deferred", progress.waiting, deferrals),
        ("failed", progress.failed, ""),
    ]
    if progress.in_doubt:
        rows.append(("in doubt", progress.in_doubt, "of the deferrals: may have arrived, and will be tried again"))
    untried = progress.left - progress.waiting if progress.total else 0
    if untried > 0:
        rows.append(("not tried", untried, "still in the queue"))
    if progress.cancelled:
        rows.append(("cancelled", progress.cancelled, ""))
    if progress.elsewhere:
        rows.append(("elsewhere", progress.elsewhere, "settled by other engines"))
    if progress.earlier:
        rows.append(("earlier", progress.earlier, "settled by earlier runs"))
    of_recipients = [(name, count, _share(count, whole), note) for name, count, note in rows]
    return [*of_recipients, *((name, count, "", note) for name, count, note in _events(progress) if count)]


def _events(progress: Progress) -> list[tuple[str, int, str]]:
    lag = duration(progress.events_behind_s)
    return [
        ("events", progress.events, f"wait for their actions, the oldest for {lag}"),
        ("dead letters", progress.dead, "see outrider events dead list"),
    ]


def _share(count: int, whole: int) -> str:
    percent = 100 * count / whole if whole else 0.0
    return "" if not count else "<0.1 %" if percent < 0.1 else f"{percent:.1f} %"


def _sites(progress: Progress) -> list[tuple[str, SiteCounts]]:
    ranked = _by_size(progress.sites.items())
    if len(ranked) <= MAX_SHOWN_SITES:
        return ranked
    shown, rest = ranked[: MAX_SHOWN_SITES - 1], ranked[MAX_SHOWN_SITES - 1 :]
    sums = SiteCounts(
        delivered=sum(counts.delivered for _, counts in rest),
        deferred=sum(counts.deferred for _, counts in rest),
        failed=sum(counts.failed for _, counts in rest),
        in_doubt=sum(counts.in_doubt for _, counts in rest),
    )
    return [*shown, (f"({len(rest):,} more sites)", sums)]


def _by_size(sites: Iterable[tuple[str, SiteCounts]]) -> list[tuple[str, SiteCounts]]:
    return sorted(sites, key=lambda row: (-(row[1].delivered + row[1].failed + row[1].deferred), row[0]))


def _closing(progress: Progress, now: float) -> str:
    tried = progress.settled + progress.waiting
    text = f"{tried:,} {_plural('recipient', tried)} in {duration(progress.elapsed_s(now))}"
    if progress.settled:
        text += f", {progress.average(now):,.0f} a second"
    if progress.opened:
        kind = "all with TLS" if progress.tls == progress.opened else f"{progress.tls:,} with TLS"
        text += f", over {progress.opened:,} {_plural('connection', progress.opened)} ({kind})"
    return text


def duration(seconds: float | None) -> str:
    """`seconds` in words of at most two units: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``5 h 2 min``."""
    if seconds is None:
        return ""
    if seconds < 10 and isinstance(seconds, float):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"

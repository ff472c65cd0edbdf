"""The progress display and the summary: what they say, on a terminal and elsewhere, and that they hold up nobody."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import threading
from collections.abc import Iterator
from typing import IO

import pytest
import trio
from rich.console import Console, RenderableType

from engine.cli import display
from engine.cli.display import (
    MAX_SHOWN_SITES,
    Snapshot,
    duration,
    is_live,
    picture,
    plain_line,
    show,
    summary,
    summary_picture,
    summary_text,
    tell_summary,
)
from engine.delivery.progress import Progress
from engine.errors import DataError
from engine.queue.model import OutcomeKind
from fakes.patience import until
from fakes.peers import require

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def run_of(delivered: int = 0, deferred: int = 0, failed: int = 0, total: int = 0, earlier: int = 0) -> Progress:
    progress = Progress(total=total, earlier=earlier)
    progress.start(0.0)
    for kind, number in (
        (OutcomeKind.DELIVERED, delivered),
        (OutcomeKind.DEFERRED, deferred),
        (OutcomeKind.FAILED, failed),
    ):
        for _ in range(number):
            progress.count(kind, "mx.example")
    return progress


def snapshot(progress: Progress, title: str = "letter.eml", now: float = 2.0) -> Snapshot:
    delivered, progress.delivered = progress.delivered, 0
    progress.rate(0.0)
    progress.delivered = delivered
    return Snapshot.take(progress, title, now)


def drawn(what: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


# --- one drawing ------------------------------------------------------------------------------------------------------


def test_the_picture_has_everything_that_was_asked_for() -> None:
    progress = Progress(total=2000, earlier=100)
    progress.start(0.0)
    progress.rate(0.0)
    for _ in range(1000):
        progress.count(OutcomeKind.DELIVERED, "mx")
    progress.count(OutcomeKind.DEFERRED, "mx")
    progress.count(OutcomeKind.FAILED, "mx")
    progress.connections = 20
    text = drawn(picture(Snapshot.take(progress, "letter.eml", 10.0), 100))
    assert "letter.eml" in text
    assert "55 %  1,101 of 2,000" in text
    assert "━" in text
    assert "sent 1,000" in text
    assert "deferred 1 " in text
    assert "failed 1 " in text
    assert "100/s" in text
    assert "20 connections" in text
    assert "9 s left" in text
    assert "in doubt" not in text


def test_actions_that_are_behind_are_told() -> None:
    progress = Progress(total=10, events=1234, events_behind_s=0.5, dead=2)
    assert "events" not in plain_line(snapshot(progress)), "some always wait for a moment"
    progress.events_behind_s = 75.0
    assert "events 1 min 15 s behind 1,234" in plain_line(snapshot(progress))
    progress.actions = {
        "crm": {"workers": 0, "waiting": 7},
        "erp": {"workers": 0, "waiting": 0},
        "main": {"workers": 1},
    }
    assert "events 1 min 15 s behind (no worker of crm) 1,234" in plain_line(snapshot(progress))
    lines = summary_text(progress, 2.0).splitlines()
    assert "events               1,234           wait for their actions, the oldest for 1 min 15 s" in lines
    assert "dead letters             2           see outrider events dead list" in lines
    found = summary(progress, 2.0)
    assert [found[name] for name in ("events_waiting", "events_behind", "dead_letters")] == [1234, 75.0, 2]
    assert "events" not in summary_text(Progress(total=10), 2.0)


def test_in_doubt_and_a_phase_are_told_where_there_are_any() -> None:
    progress = Progress(total=10, phase="stopping", in_doubt=2)
    text = drawn(picture(snapshot(progress), 100))
    assert "letter.eml (stopping)" in text
    assert "in doubt 2" in text


def test_without_a_total_there_is_no_bar() -> None:
    text = drawn(picture(snapshot(Progress(loaded=120_000, phase="queueing")), 100))
    assert "120,000 recipients" in text
    assert "%" not in text
    assert "━" not in text


@pytest.mark.parametrize("width", [20, 40, 69, 70, 80, 200])
def test_the_picture_is_two_lines_that_fit(width: int) -> None:
    progress = Progress(total=1_000_000, earlier=5, in_doubt=3)
    progress.delivered = 987_654
    text = drawn(picture(snapshot(progress, "a title that is really much too long for what it is" * 2), width), width)
    lines = text.splitlines()
    assert len(lines) == 2
    assert all(len(line.rstrip()) <= width for line in lines)


def test_a_title_is_text_and_no_markup() -> None:
    assert "[red]x[/red]" in drawn(picture(snapshot(Progress(total=1), "[red]x[/red]"), 100))


def test_a_plain_line_says_the_same() -> None:
    progress = Progress(total=50)
    progress.delivered = 20
    progress.connections = 1
    assert plain_line(snapshot(progress)) == (
        "letter.eml: 20 of 50, sent 20, deferred 0, failed 0, 10/s, 1 connection, 3 s left"
    )
    assert plain_line(snapshot(Progress(), "")) == "sent 0, deferred 0, failed 0, 0/s, 0 connections"
    assert plain_line(snapshot(Progress(phase="stopping", connections=2), "")).startswith("stopping, sent 0, ")


def test_while_recipients_are_queued_nothing_is_told_of_sending() -> None:
    loading = Progress(loaded=1_007, phase="queueing")
    assert plain_line(snapshot(loading)) == "letter.eml: queueing 1,007 recipients"
    assert plain_line(snapshot(loading, "")) == "queueing 1,007 recipients"
    assert len(drawn(picture(snapshot(loading), 100)).splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0, "0.0 s"), (3.14, "3.1 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (200.0, "3 min 20 s"),
     (3600.0, "1 h 0 min"), (90_061.0, "25 h 1 min"), (7, "7 s")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


# --- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_by_outcome_and_by_site() -> None:
    progress = run_of(delivered=7, deferred=2, failed=1, total=12, earlier=1)
    progress.opened, progress.tls = 3, 3
    text = summary_text(progress, 2.0)
    assert re.search(r"^delivered +7 +58\.3 %$", text, re.MULTILINE)
    assert re.search(r"^deferred +2 +16\.7 %  2 deferrals in all$", text, re.MULTILINE)
    assert re.search(r"^failed +1 +8\.3 %$", text, re.MULTILINE)
    assert re.search(r"^not tried +1 .*still in the queue$", text, re.MULTILINE)
    assert re.search(r"^earlier +1 ", text, re.MULTILINE)
    assert re.search(r"^mx\.example +7 +2 +1$", text, re.MULTILINE)
    assert text.endswith("\n10 recipients in 2.0 s, 4 a second, over 3 connections (all with TLS)\n")


def test_what_was_cancelled_or_settled_elsewhere_is_not_said_to_wait() -> None:
    """A run that ends finds in the queue what became of those that it has not settled."""
    progress = run_of(delivered=3, deferred=2, failed=0, total=10)
    progress.reconcile(unsettled=1, cancelled=4)
    assert (progress.cancelled, progress.elsewhere, progress.left, progress.waiting) == (4, 2, 1, 1)
    text = summary_text(progress, 1.0)
    assert re.search(r"^cancelled +4 +40\.0 %$", text, re.MULTILINE)
    assert re.search(r"^elsewhere +2 +20\.0 %  settled by other engines$", text, re.MULTILINE)
    assert "not tried" not in text


def test_the_picture_of_the_summary_says_what_the_text_says() -> None:
    progress = run_of(delivered=7, deferred=2, failed=1, total=10)
    progress.in_doubt, progress.opened, progress.tls = 1, 2, 1
    told = drawn(summary_picture(progress, 2.0)).split()
    assert told == summary_text(progress, 2.0).split()
    assert "(1 with TLS)" in summary_text(progress, 2.0)


def test_many_sites_are_told_by_the_largest_and_the_rest_in_one_row() -> None:
    progress = Progress()
    for number in range(40):
        for _ in range(number + 1):
            progress.count(OutcomeKind.DELIVERED, f"mx{number:02}.example")
    lines = summary_text(progress, 1.0).splitlines()
    rows = [line for line in lines if line.startswith(("mx", "("))]
    assert len(rows) == MAX_SHOWN_SITES
    assert rows[0].split()[:2] == ["mx39.example", "40"]
    rest = 40 - MAX_SHOWN_SITES + 1
    assert rows[-1].startswith(f"({rest} more sites)")
    assert rows[-1].split()[3] == str(sum(range(1, rest + 1)))


def test_json_has_every_site() -> None:
    progress = run_of(delivered=3, failed=1, total=4)
    for number in range(30):
        progress.site(f"mx{number}").delivered += 1
    row = summary(progress, 2.0)
    assert json.loads(json.dumps(row)) == row
    assert (row["total"], row["delivered"], row["failed"], row["deferred"], row["left"]) == (4, 3, 1, 0, 0)
    assert (row["seconds"], row["per_second"]) == (2.0, 2.0)
    sites = row["sites"]
    assert isinstance(sites, dict)
    assert len(sites) == 31
    assert sites["mx.example"] == {"delivered": 3, "deferrals": 0, "failed": 1, "in_doubt": 0}


def test_nothing_done_is_a_summary_too() -> None:
    assert "0 recipients in 0.0 s" in summary_text(Progress(), 1.0)
    assert "0 recipients" in drawn(summary_picture(Progress(), 1.0))
    assert summary(Progress(), 1.0)["per_second"] == 0.0


def test_tell_summary_chooses_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = run_of(delivered=1, total=1)
    plain, as_json = io.StringIO(), io.StringIO()
    tell_summary(progress, stream=plain, now=1.0)
    tell_summary(progress, stream=as_json, now=1.0, as_json=True)
    assert plain.getvalue() == summary_text(progress, 1.0)
    assert json.loads(as_json.getvalue())["delivered"] == 1
    monkeypatch.setattr(display, "is_live", lambda _: True)
    table = io.StringIO()
    tell_summary(progress, stream=table, now=1.0)
    assert "mx.example" in table.getvalue()


# --- the display while a run goes on ----------------------------------------------------------------------------------


async def test_elsewhere_a_line_comes_now_and_then() -> None:
    out, progress = io.StringIO(), Progress()
    async with show(progress, total=10, title="letter.eml", stream=out, interval_s=0.01):
        progress.delivered = 5
        await until(lambda: out.getvalue().count("sent 5") >= 2)
    told = out.getvalue()
    assert progress.total == 10
    assert progress.started_at is not None
    assert "\x1b" not in told
    assert all(line.startswith("letter.eml: ") for line in told.splitlines())
    await trio.sleep(0.05)
    assert out.getvalue() == told, "it wrote after the block"


async def test_errors_of_the_block_come_out_as_they_are() -> None:
    with pytest.raises(DataError, match="a bad row"):
        async with show(Progress(), stream=io.StringIO(), interval_s=0.01):
            raise DataError("a bad row")


async def test_a_block_that_is_cancelled_ends() -> None:
    before = threading.active_count()
    with trio.move_on_after(0.05) as scope:
        async with show(Progress(), stream=io.StringIO(), interval_s=0.01):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not any(thread.name == "outrider-display" for thread in threading.enumerate()), before


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


async def test_a_stream_that_cannot_be_written_ends_the_display_only() -> None:
    async with show(Progress(), stream=Broken(), interval_s=0.01):
        await until(lambda: not [one for one in threading.enumerate() if one.name == "outrider-display"])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[IO[str], int]]:
    """A pseudo-terminal: the file of the program's end, and the descriptor of the other one."""
    monkeypatch.setenv("TERM", "xterm")
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        require(False, f"no pseudo-terminal to be had: {error}")
        raise
    try:
        with os.fdopen(theirs, "w") as stream:
            yield stream, ours
    finally:
        os.close(ours)


async def test_on_a_terminal_it_is_live_and_leaves_nothing_behind(terminal: tuple[IO[str], int]) -> None:
    stream, other_end = terminal
    os.set_blocking(other_end, False)
    seen = bytearray()

    def text() -> str:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(other_end, 1 << 20))
        return seen.decode()

    assert is_live(stream)
    progress = Progress(total=100)
    async with show(progress, title="letter.eml", stream=stream, interval_s=0.01):
        progress.delivered = 40
        await until(lambda: "40 of 100" in ANSI.sub("", text()))
    end = text()
    assert "\x1b[?25l" in end, "the cursor was hidden"
    assert end.rindex("\x1b[?25h") > end.rindex("\x1b[?25l"), "and is back"
    assert end.rstrip().endswith("\x1b[2K"), "the picture was erased"


async def test_a_terminal_that_is_stopped_holds_up_nobody(
    terminal: tuple[IO[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-S: nobody reads, the buffer of the terminal is full, every write waits."""
    monkeypatch.setattr(display, "_LAST_WRITE_S", 0.05)
    stream, other_end = terminal
    progress = Progress(total=10**6)
    async with show(progress, title="x" * 50, stream=stream, interval_s=0.0005):
        # each turn is one of the event loop; the terminal is full long before the last
        for _ in range(400):
            progress.delivered += 1
            await trio.sleep(0.001)
    # let the thread go, so that it does not outlive its terminal
    os.set_blocking(other_end, False)
    while any(thread.name == "outrider-display" for thread in threading.enumerate()):
        with contextlib.suppress(BlockingIOError):
            os.read(other_end, 1 << 16)
        await trio.sleep(0.001)


def test_what_cannot_move_its_cursor_is_not_live(
    terminal: tuple[IO[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_live(io.StringIO())
    assert is_live(terminal[0])
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(terminal[0])

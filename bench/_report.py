"""What is made of the JSON lines of a run: plots, a table of everything, and the table of figures in the README.

python -m bench --full --json run.jsonl
python -m bench --report run.jsonl           # writes bench/results/ and the part of bench/README.md between the marks
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from . import _svg
from ._env import PROJECT
from ._harness import line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: the part of the README that is written
BEGIN: Final = "<!-- results: written by python -m bench --report -->"
END: Final = "<!-- end of results -->"
#: connections of claim_deliver_rtt
_CONNECTIONS: Final = 20
_OURS: Final = "outrider"
_RESULTS: Final = PROJECT / "bench/results"
_README: Final = PROJECT / "bench/README.md"

Row = dict[str, Any]


def report(json_file: Path, folder: Path = _RESULTS, readme: Path = _README) -> list[Path]:
    """Write everything that can be made of these rows; gives the files.

    Raises:
        ValueError: the README has no marks, or the file no rows.
    """
    rows = [json.loads(text) for text in json_file.read_text().splitlines()]
    if not rows:
        raise ValueError(f"{json_file} has no measurements")
    folder.mkdir(exist_ok=True)
    plots = {"cpu.svg": cpu_plot(rows), "rtt.svg": rtt_plot(rows)}
    written = []
    for name, text in {**plots, "results.md": "\n".join(everything(rows))}.items():
        if text:
            (folder / name).write_text(text)
            written.append(folder / name)
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has not both {BEGIN!r} and {END!r}")
    readme.write_text("\n".join([before + BEGIN, *figures(rows), END]) + after)
    return [*written, readme]


def figures(rows: Sequence[Row]) -> Iterator[str]:
    """The Markdown of what has a target: claim, what, figure, spread, target, and whether it is met."""
    yield ""
    yield machine(rows)
    yield ""
    yield "| claim | what | figure | spread | target | |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        if row["target"]:
            figure, spread = _figure(row)
            verdict = {True: "met", False: "**missed**", None: "quick"}[row["met"]]
            what = f"{row['what']}: {row['metric']}"
            yield f"| `{row['claim']}` | {what} | {figure} | {spread} | {row['target']} | {verdict} |"
    yield ""


def everything(rows: Sequence[Row]) -> Iterator[str]:
    """The Markdown of all measurements."""
    yield "# All measurements of one run"
    yield ""
    yield machine(rows)
    heading = ("", "", "")
    for row in rows:
        if heading[0] != row["claim"]:
            yield from ([] if not heading[0] else ["```"])
            yield from ("", f"## {row['claim']}", "", "```")
            heading = (row["claim"], "", "")
        if heading[1:] != (row["what"], row["metric"]):
            heading = (row["claim"], row["what"], row["metric"])
            yield f"{row['what']} ({row['metric']}, {row['n']:,} a run)"
        yield line(row)
    yield "```"
    yield ""


def machine(rows: Sequence[Row]) -> str:
    """What the run was made with, in a sentence."""
    env = rows[0]["env"]
    commits = ", ".join(dict.fromkeys(row["env"]["commit"] for row in rows))
    return (
        f"{env['cpu']}, {env['cores']} cores, {env['system']}, {env['python']}, {env['openssl']}, trio {env['trio']}, "
        f"pyOpenSSL {env['pyopenssl']}; commit {commits}."
    )


def _figure(row: Row) -> tuple[str, str]:
    ratio = row["ratio"]
    if ratio:
        return f"{ratio['median']:.3g} × {ratio['vs']}", f"{ratio['min']:.3g} to {ratio['max']:.3g}"
    return f"{row['median']:,.4g} {row['unit']}", f"{row['min']:,.4g} to {row['max']:,.4g}"


# --- plots ------------------------------------------------------------------------------------------------------------


def cpu_plot(rows: Sequence[Row]) -> str:
    """CPU of a delivery, ours beside the peers': the least median of each, with warm connections and without."""
    found: dict[str, float] = {}
    for row in rows:
        if row["claim"] in ("deliver_peers", "deliver_cold") and row["metric"] == "CPU each" and not row["ratio"]:
            is_cold = row["claim"] == "deliver_cold"
            if is_cold and not row["what"].startswith("one host"):
                continue
            suffix = ", a connection each" if is_cold and row["variant"] in (_OURS, "bare loop") else ""
            label = row["variant"] + suffix
            found[label] = min(found.get(label, row["median"]), row["median"])
    if not found:
        return ""
    ordered = sorted(found.items(), key=lambda item: item[1])
    bars = [(label, value, label.startswith(_OURS)) for label, value in ordered]
    return _svg.bars("CPU of one delivery, 4 KiB, same sink (less is better)", bars, "µs")


def rtt_plot(rows: Sequence[Row]) -> str:
    """Rate against round-trip time and window, a panel for each share of deferred recipients."""
    cells = [row for row in rows if row["claim"] == "deliver_rtt" and row["at"] and row["metric"] == "rate"]
    if not cells:
        return ""
    delays = _values(cells, "delay_ms")
    places = {delay: place for place, delay in enumerate(delays)}
    allowed = {places[delay]: _CONNECTIONS / (2 * delay / 1000) for delay in delays if delay}
    panels = []
    for defer in _values(cells, "defer"):
        here = [row for row in cells if row["at"]["defer"] == defer]
        series = [
            _svg.Series(f"window {window:g}", _points(here, places, _OURS, window), colour)
            for window, colour in zip(
                reversed(_values([row for row in here if row["variant"] == _OURS], "window")),
                _svg.COLOURS,
                strict=False,
            )
        ]
        series.append(_svg.Series("two round trips a message", allowed, dashed=True))
        others = dict.fromkeys(row["variant"] for row in here if row["variant"] != _OURS)
        for name, colour in zip(others, ("#000000", "#666666", "#aaaaaa"), strict=False):
            series.append(_svg.Series(name, _points(here, places, name, 0), colour, alone=True))
        panels.append(_svg.Panel(f"{100 * defer:.0f} % deferred", series))
    title = f"Deliveries a second over {_CONNECTIONS} connections"
    return _svg.lines(title, panels, [f"{delay:g} ms" for delay in delays], "round-trip time", "deliveries a second")


def _values(rows: Iterable[Row], name: str) -> list[float]:
    return sorted({row["at"][name] for row in rows})


def _points(rows: Iterable[Row], places: dict[float, int], variant: str, window: float) -> dict[int, float]:
    return {
        places[row["at"]["delay_ms"]]: row["median"]
        for row in rows
        if row["variant"] == variant and row["at"]["window"] == window
    }

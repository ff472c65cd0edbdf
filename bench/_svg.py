"""Two kinds of plots as SVG, by hand: bars over a logarithmic axis, and lines over named places, panel by panel."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: colours that can be told apart without seeing red and green, after Okabe and Ito; the first is ours
COLOURS: Final = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_OURS, _THEIRS, _INK, _GRID = COLOURS[0], "#8a94a0", "#222222", "#dddddd"
_WIDTH: Final = 900
_LEGEND_COLUMNS: Final = 4


@dataclass(frozen=True, slots=True)
class Series:
    """A line, or points alone.

    Attributes:
        points: place on the x axis (0 is the first) -> value.
        dashed: a calculated line; alone: points without a line.
    """

    label: str
    points: dict[int, float]
    colour: str = _INK
    dashed: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several plots with the same axes."""

    title: str
    series: list[Series] = field(default_factory=list)


def bars(title: str, rows: Sequence[tuple[str, float, bool]], unit: str) -> str:
    """A bar for each row: label, value, whether it is ours.  The axis is logarithmic."""
    low, high = _decades([value for _, value, _ in rows])
    left, right, top, step = 250, _WIDTH - 90, 54, 26
    bottom = top + step * len(rows)

    def x_of(value: float) -> float:
        return left + (right - left) * (math.log10(value) - low) / (high - low)

    shapes = [_text(12, 26, title, size=16)]
    for decade in range(low, high + 1):
        x = x_of(10**decade)
        shapes += [_line(x, top - 6, x, bottom), _text(x, bottom + 18, f"{10**decade:,g} {unit}", anchor="middle")]
    for number, (label, value, is_ours) in enumerate(rows):
        y = top + step * number
        shapes.append(
            f'<rect x="{left}" y="{y:.0f}" width="{x_of(value) - left:.1f}" height="{step - 8}" '
            f'fill="{_OURS if is_ours else _THEIRS}"/>'
        )
        shapes.append(_text(left - 8, y + 13, label, anchor="end", bold=is_ours))
        shapes.append(_text(x_of(value) + 6, y + 13, f"{value:,.0f} {unit}", bold=is_ours))
    return _document(bottom + 32, shapes)


def lines(title: str, panels: Sequence[Panel], places: Sequence[str], x_title: str, y_title: str) -> str:
    """Panels side by side over the same places; the values' axis is logarithmic."""
    values = [value for panel in panels for series in panel.series for value in series.points.values()]
    low, high = _decades(values)
    top, bottom, left = 84, 360, 66
    width = (_WIDTH - left) / len(panels)

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(value) - low) / (high - low)

    shapes = [_text(12, 26, title, size=16), _text(12, 52, y_title)]
    for decade in range(low, high + 1):
        shapes.append(_text(left - 8, y_of(10**decade) + 4, f"{10**decade:,g}", anchor="end"))
    for number, panel in enumerate(panels):
        begin = left + width * number
        steps = (width - 66) / max(len(places) - 1, 1)
        for decade in range(low, high + 1):
            shapes.append(_line(begin, y_of(10**decade), begin + width - 26, y_of(10**decade)))
        shapes.append(_text(begin + width / 2 - 13, top - 10, panel.title, anchor="middle"))
        for place, label in enumerate(places):
            shapes.append(_text(begin + 20 + steps * place, bottom + 18, label, anchor="middle"))
        for series in panel.series:
            at = [(begin + 20 + steps * place, y_of(value)) for place, value in sorted(series.points.items())]
            shapes += _drawn(series, at)
    shapes.append(_text(left + (_WIDTH - left) / 2, bottom + 38, x_title, anchor="middle"))
    legend = {series.label: series for panel in panels for series in panel.series}
    shapes += _legend(legend, bottom + 62)
    return _document(bottom + 52 + 20 * math.ceil(len(legend) / _LEGEND_COLUMNS), shapes)


def _legend(series: dict[str, Series], y: float) -> Iterator[str]:
    for number, one in enumerate(series.values()):
        x, line_y = 24 + 218 * (number % _LEGEND_COLUMNS), y + 20 * (number // _LEGEND_COLUMNS)
        at = [(x, line_y - 4), (x + 24, line_y - 4)]
        yield from _drawn(one, at[:1] if one.alone else at)
        yield _text(x + 32, line_y, one.label)


def _drawn(series: Series, at: Sequence[tuple[float, float]]) -> Iterator[str]:
    if len(at) > 1 and not series.alone:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        dashes = ' stroke-dasharray="5 4"' if series.dashed else ""
        yield f'<polyline points="{path}" fill="none" stroke="{series.colour}" stroke-width="2"{dashes}/>'
    if not series.dashed:
        for x, y in at:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{series.colour}"/>'


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{_INK}"{weight}>'
        f"{html.escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>'


def _document(height: float, shapes: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>", ""])

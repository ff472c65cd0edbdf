"""What the bench makes of the JSON lines of a run: the README's table, the list of everything, and the plots."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import _svg
from bench._harness import CPU_US, RATE, Contender, Harness, Measurement, Timing
from bench._report import BEGIN, END, cpu_plot, figures, report, rtt_plot


def fixed(label: str, cpu_s: float = 0.001, wall_s: float = 1.0) -> Contender:
    return Contender(label, lambda: Timing(10, wall_s, cpu_s, "right"), "1.0")


def rows_of(bench: Harness) -> list[dict[str, object]]:
    return [json.loads(json.dumps(one.to_dict())) for one in bench.measurements]


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run with warm and cold deliveries and a grid, as JSON lines."""
    peers, cold, grid = Harness("deliver_peers"), Harness("deliver_cold"), Harness("deliver_rtt")
    peers.compare("4 KiB", fixed("outrider"), fixed("Exim", 0.07), metric=CPU_US, at_most=0.1, is_figure=True)
    cold.compare("one host, each", fixed("outrider", 0.01), fixed("bare loop", 0.008), metric=CPU_US, at_most=1.2)
    for delay_ms in (0, 30):
        for window in (1, 8):
            at = {"delay_ms": delay_ms, "window": window, "defer": 0.0}
            grid.measure("cell", fixed("outrider"), metric=RATE, runs=1, at=at)
    beside = {"delay_ms": 30.0, "window": 0.0, "defer": 0.0}
    grid.measure("beside", fixed("<slow> & co"), metric=RATE, runs=1, at=beside)
    file = tmp_path / "run.jsonl"
    lines = [json.dumps(one.to_dict()) for bench in (peers, cold, grid) for one in bench.measurements]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_the_readme_gets_the_figures_between_the_marks(run_file: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    written = report(run_file, tmp_path / "results", readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "stale" not in text
    assert "| `deliver_peers` | 4 KiB: CPU each | 0.0143 × Exim | 0.0143 to 0.0143 | at most 0.1 | met |" in text
    assert (
        "| `deliver_cold` | one host, each: CPU each | 1.25 × bare loop | 1.25 to 1.25 | at most 1.2 | **missed** |"
        in text
    )
    assert {path.name for path in written} == {"cpu.svg", "rtt.svg", "results.md", "README.md"}
    everything = (tmp_path / "results/results.md").read_text()
    assert everything.count("```") == 6
    assert "  outrider / Exim" in everything
    assert report(run_file, tmp_path / "results", readme)
    assert readme.read_text() == text


def test_a_readme_without_marks_and_an_empty_run_are_errors(run_file: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n")
    with pytest.raises(ValueError, match="has not both"):
        report(run_file, tmp_path / "results", readme)
    run_file.write_text("")
    with pytest.raises(ValueError, match="no measurements"):
        report(run_file, tmp_path / "results", readme)


def test_the_plots_are_svg_with_everything_in_them(run_file: Path) -> None:
    rows = [json.loads(text) for text in run_file.read_text().splitlines()]
    cpu = "".join(ElementTree.fromstring(cpu_plot(rows)).itertext())
    assert all(label in cpu for label in ("outrider", "outrider, a connection each", "bare loop", "Exim", "7,000 µs"))
    rtt = ElementTree.fromstring(rtt_plot(rows))
    words = "".join(rtt.itertext())
    assert all(label in words for label in ("window 8", "window 1", "two round trips", "<slow> & co", "30 ms"))


def test_there_is_no_plot_of_what_was_not_measured() -> None:
    bench = Harness("queue")
    bench.measure("work", fixed("outrider"), runs=1)
    assert cpu_plot(rows_of(bench)) == rtt_plot(rows_of(bench)) == ""
    assert len(list(figures(rows_of(bench)))) == 6


def test_a_bar_is_as_long_as_its_logarithm() -> None:
    text = _svg.bars("title", [("a", 10.0, True), ("b", 100.0, False), ("c", 1000.0, False)], "µs")
    widths = [
        float(rect.get("width") or 0)
        for rect in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("x")
    ]
    assert widths[0] == 0.0
    assert widths[2] == pytest.approx(2 * widths[1])


def test_a_measurement_keeps_its_place_and_tells_more_than_one_metric() -> None:
    told: list[Measurement] = []
    bench = Harness("toy", emit=told.append)
    at = {"delay_ms": 30.0}
    bench.compare("work", fixed("a"), fixed("b", 0.002), metric=CPU_US, also=(RATE,), at=at, pairs=1, warm_up=False)
    assert [(one.variant, one.metric, one.ratio_vs) for one in told] == [
        ("a", "CPU each", ""),
        ("b", "CPU each", ""),
        ("a", "CPU each", "b"),
        ("a", "rate", ""),
        ("b", "rate", ""),
    ]
    assert all(one.to_dict()["at"] == at for one in told)

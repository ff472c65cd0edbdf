"""The benchmark harness: turns, ratios, checks, peers; and a quick run of every claim, so that none can rot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.__main__ import claims
from bench._env import environment
from bench._harness import RATE, WALL_US, Contender, Harness, Measurement, Stopwatch, Timing, figure, line, peer
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT


def steady(label: str, seconds: float, order: list[str], check: object = "right") -> Contender:
    def run() -> Timing:
        order.append(label)
        return Timing(10, seconds, seconds, check)

    return Contender(label, run, "1.0")


def test_contenders_take_turns_and_the_first_turn_is_thrown_away() -> None:
    order: list[str] = []
    told: list[Measurement] = []
    bench = Harness("toy", emit=told.append)
    bench.compare("work", steady("a", 1.0, order), steady("b", 2.0, order), pairs=3, at_least=1.5, is_figure=True)
    assert order == ["a", "b"] * 4
    assert told == bench.measurements
    assert [(one.variant, one.ratio_vs, len(one.runs)) for one in told] == [("a", "", 3), ("b", "", 3), ("a", "b", 3)]
    assert told[2].ratios == [2.0, 2.0, 2.0]
    assert told[2].met is True
    assert figure("toy", [one.to_dict() for one in told]) == "toy: work, rate: 2 × b  target at least 1.5: met"


@pytest.mark.parametrize(
    ("at_least", "at_most", "met"), [(5.0, None, True), (11.0, None, False), (None, 9.0, False), (9.0, 11.0, True)]
)
def test_a_target_is_met_or_missed(at_least: float | None, at_most: float | None, met: bool) -> None:
    bench = Harness("toy")
    found = bench.measure("work", steady("a", 1.0, []), runs=3, at_least=at_least, at_most=at_most)
    assert found.judged == 10.0
    assert found.met is met
    assert ("MISSED" in line(found.to_dict())) is not met


def test_a_cost_is_seconds_by_operation() -> None:
    found = Harness("toy").measure("work", steady("a", 0.001, []), metric=WALL_US)
    assert found.judged == pytest.approx(100.0)


def test_a_quick_run_is_one_turn_and_is_not_judged() -> None:
    order: list[str] = []
    bench = Harness("toy", quick=True)
    found = bench.measure("work", steady("a", 1.0, order), at_least=1000)
    assert order == ["a"]
    assert found.met is None
    assert bench.size(1000, 10) == 10
    assert "not judged" in line(found.to_dict())


def test_other_work_is_an_error_and_not_a_figure() -> None:
    order: list[str] = []
    with pytest.raises(AssertionError, match="b did other work than a"):
        Harness("toy").compare("work", steady("a", 1.0, order), steady("b", 1.0, order, "wrong"))


def test_no_work_is_an_error() -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)):
        Harness("toy").measure("work", Contender("a", lambda: Timing(0, 1.0)))


def test_a_missing_peer_is_left_out_and_takes_the_target_with_it() -> None:
    bench = Harness("toy")
    bench.compare("work", steady("a", 1.0, []), None, steady("b", 1.0, []), at_least=5, is_figure=True)
    assert [one.target for one in bench.measurements] == ["", "", ""]


def test_the_stopwatch_times_the_block() -> None:
    with Stopwatch() as watch:
        sum(range(1000))
    timing = watch.timing(1000, check=499_500)
    assert timing.wall_s > 0
    assert (timing.count, timing.check) == (1000, 499_500)


def test_a_measurement_is_json_with_its_environment() -> None:
    bench = Harness("toy")
    bench.compare("work", steady("a", 1.0, []), steady("b", 2.0, []), metric=RATE)
    row = json.loads(json.dumps(bench.measurements[-1].to_dict()))
    assert row["ratio"] == {"vs": "b", "median": 2.0, "min": 2.0, "max": 2.0}
    assert (row["n"], row["median"], row["unit"]) == (10, 10.0, "1/s")
    assert set(row["env"]) >= {"commit", "python", "cython", "openssl", "trio", "cpu", "cores", "compiler"}
    assert environment()["python"].startswith("CPython")


# --- peers in their own process ---------------------------------------------------------------------------------------


@pytest.fixture
def toy_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """Make a peer module that a child process finds, from its text; gives its name."""

    def make(text: str) -> str:
        folder = tmp_path / "bench" / "_peers"
        folder.mkdir(parents=True)
        head = "from bench._peers import Missing\nfrom bench._harness import Stopwatch, Timing\nlabel = 'toy'\n"
        (folder / "toy.py").write_text(head + text)
        # the child sees the project's own bench package, and this folder as one more place for its peers
        (tmp_path / "sitecustomize.py").write_text(
            f"import sys\nsys.path.append({str(PROJECT)!r})\nimport bench._peers\n"
            f"bench._peers.__path__.append({str(folder)!r})\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "toy"

    return make


@pytest.mark.slow
def test_a_peer_runs_elsewhere_and_answers(toy_peer: Callable[[str], str]) -> None:
    name = toy_peer(
        "import os\ndef version(): return '7'\n"
        "def run(data):\n    with Stopwatch() as watch:\n        found = sum(data)\n"
        "    return watch.timing(len(data), (found, os.getpid()))\n"
    )
    notes: list[str] = []
    with peer(name, notes.append) as contender:
        assert contender is not None
        assert (contender.label, contender.version) == ("toy", "7")
        first, second = contender.run([1, 2, 3]), contender.run([4])
    assert first.count == 3
    assert isinstance(first.check, tuple)
    assert isinstance(second.check, tuple)
    assert (first.check[0], second.check[0]) == (6, 4)
    assert first.check[1] == second.check[1]
    assert notes == []


@pytest.mark.slow
def test_a_missing_peer_is_named(toy_peer: Callable[[str], str]) -> None:
    notes: list[str] = []
    with peer(toy_peer("def version(): raise Missing('no toy on this machine')\n"), notes.append) as contender:
        assert contender is None
    assert notes == ["skipped: toy: no toy on this machine"]


@pytest.mark.slow
def test_a_peer_that_fails_ends_the_run(toy_peer: Callable[[str], str], capfd: pytest.CaptureFixture[str]) -> None:
    name = toy_peer("def version(): return ''\ndef run(data): raise ValueError('toy is broken')\n")
    with peer(name, print) as contender:
        assert contender is not None
        with pytest.raises(RuntimeError, match="toy is broken"):
            contender.run(1)
    capfd.readouterr()


# --- the claims -------------------------------------------------------------------------------------------------------


def test_a_wrong_claim_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "bench", "no-such-claim"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 2
    assert "no claim 'no-such-claim'" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("claim", claims())
def test_the_claim_runs(claim: str, tmp_path: Path) -> None:
    lines = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "bench", claim, "--quick", "--json", str(lines)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(row) for row in lines.read_text().splitlines()]
    assert rows, "nothing was measured"
    assert all(row["claim"] == claim and row["runs"] for row in rows)
    assert result.stdout.splitlines()[-1] == figure(claim, rows)


@pytest.mark.parametrize("claim", claims())
def test_the_claim_is_in_the_table(claim: str) -> None:
    assert f"\n| `{claim}` | " in (PROJECT / "bench/README.md").read_text()


@pytest.mark.parametrize("claim", claims())
def test_the_claim_says_what_would_falsify_it(claim: str) -> None:
    header = (PROJECT / f"bench/claim_{claim}.py").read_text()
    assert "falsif" in header[:4000].lower(), "its docstring does not say what would falsify it"

"""Run the benchmarks: python -m bench [claim …] [--quick] [--full] [--json FILE] [--where], or write what a run found.

Each claim runs in a process of its own, so that none leaves the next one a warm cache or a large heap.
Exit status: 0 if everything ran and did right work, 1 if something failed, 2 for a wrong command line.  A target that
is missed is printed as missed and changes nothing: a figure is a figure.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ._env import PROJECT, environment, is_debug_build, load_average
from ._harness import Harness, Measurement, figure, line
from ._report import report


def claims() -> dict[str, str]:
    """Name of each claim -> its module."""
    return {
        path.stem.removeprefix("claim_"): f"bench.{path.stem}"
        for path in sorted((PROJECT / "bench").glob("claim_*.py"))
    }


def main() -> int:
    """Entry point; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what Outrider claims.")
    parser.add_argument("claim", nargs="*", help="claims to measure; all of them by default")
    parser.add_argument("--quick", action="store_true", help="one short pair each: shows that everything still works")
    parser.add_argument("--full", action="store_true", help="also what takes long, such as a million recipients")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object a measurement; - for standard output")
    parser.add_argument("--report", metavar="FILE", help="write README and plots from such JSON lines, and end")
    parser.add_argument("--where", action="store_true", help="tell where the time of one claim goes (deliver_warm)")
    parser.add_argument("--versions", action="store_true", help="print what a measurement is made with, and end")
    parser.add_argument("--list", action="store_true", help="print the claims, and end")
    options = parser.parse_args()
    known = claims()
    if options.versions:
        print("\n".join(f"{name}: {value}" for name, value in environment().items()))
        return 0
    if options.report:
        print("\n".join(str(path) for path in report(Path(options.report))))
        return 0
    if options.list:
        for name, module in known.items():
            header = (importlib.import_module(module).__doc__ or "").partition("\n")[0]
            print(f"{name:<12}{header}")
        return 0
    wanted = options.claim or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        parser.error(f"no claim {unknown[0]!r}; there are {', '.join(known) or 'none yet'}")
    if options.json and options.json != "-":
        Path(options.json).write_text("")
    if options.where:
        claim = importlib.import_module(known[wanted[0]])
        if len(wanted) != 1 or not hasattr(claim, "where"):
            parser.error("--where goes with one claim that can tell it, such as deliver_warm")
        print(claim.where(quick=options.quick))
        return 0
    if len(wanted) == 1:
        return _measure(wanted[0], known[wanted[0]], options)
    return _measure_each(wanted, options)


def _measure(name: str, module: str, options: argparse.Namespace) -> int:
    """Measure one claim in this process; what goes wrong comes out as it is."""
    json_file: str | None = options.json
    # the table makes way for the JSON lines when both would go to standard output
    human = sys.stderr if json_file == "-" else sys.stdout
    heading = ("", "")

    def note(text: str) -> None:
        print(f"  {text}", file=human, flush=True)

    def emit(measurement: Measurement) -> None:
        nonlocal heading
        row = measurement.to_dict()
        if heading != (row["what"], row["metric"]):
            heading = (row["what"], row["metric"])
            print(f"\n{row['what']} ({row['metric']}, {row['n']:,} a run)", file=human)
        print(line(row), file=human, flush=True)
        text = json.dumps(row, ensure_ascii=False) + "\n"
        if json_file == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        elif json_file:
            with open(json_file, "a") as out:
                out.write(text)

    env = environment()
    print(f"=== {name}: {env['cpu']}, {env['cores']} cores, {env['python']}, {env['commit']}", file=human, flush=True)
    if load_average() > int(env["cores"]):
        note(f"the machine is busy (load {load_average():.1f}): the spread will tell")
    if is_debug_build():
        note("this is a debug build of Python: the figures mean nothing")
    harness = Harness(name, quick=options.quick, full=options.full, emit=emit, note=note)
    began = time.perf_counter()
    importlib.import_module(module).run(harness)
    rows = [measurement.to_dict() for measurement in harness.measurements]
    print(f"\n{time.perf_counter() - began:.1f} s\n{figure(name, rows)}", file=human)
    return 0


def _measure_each(names: list[str], options: argparse.Namespace) -> int:
    """Measure several claims, each in a process of its own, and end with the figure of each."""
    json_file: str | None = options.json
    flags = [flag for flag in ("--quick", "--full") if getattr(options, flag[2:])]
    human = sys.stderr if json_file == "-" else sys.stdout
    failed, figures = False, []
    for name in names:
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as scratch:
            command = [sys.executable, "-m", "bench", name, "--json", scratch.name, *flags]
            child = subprocess.run(command, cwd=PROJECT, stdout=human, check=False)
            text = scratch.read()
        if json_file == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        elif json_file:
            with open(json_file, "a") as out:
                out.write(text)
        if child.returncode:
            failed = True
            figures.append(f"{name}: FAILED (exit status {child.returncode})")
        else:
            figures.append(figure(name, [json.loads(row) for row in text.splitlines()]))
        print(file=human, flush=True)
    print("\n".join(figures), file=human)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

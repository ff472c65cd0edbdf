"""The kernels' own tests once more, with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

The evaluator of expansions, the matcher of certificates and the rings have fuzzers for it: tests/expand/test_fuzz.py,
tests/tls/test_certmatch_fuzz.py and tests/actions/test_ring_fuzz.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.peers import PROJECT
from fakes.sanitized import build_kernel, sanitized_environment

#: says whether the build that is loaded is the one that was made
_WHICH = "import fakes.other_kernel, sys; sys.exit(sys.modules[sys.argv[1]].__file__ != sys.argv[2])"


def run(kernel: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = f"{PROJECT / 'tests'}{os.pathsep}{PROJECT}"
    more = {"KERNEL": str(kernel), "KERNEL_MODULE": module, "PYTHONMALLOC": "malloc", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env={**os.environ, **sanitized_environment(**more)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def build_and_test(directory: Path, module: str, source: str, tests: str) -> list[subprocess.CompletedProcess[str]]:
    """Build a kernel, run its tests with it, and ask whether it is this build that is loaded."""
    kernel = build_kernel(module, PROJECT / "_speedups" / source, directory)
    tested = run(kernel, module, "-m", "pytest", "-q", "-p", "fakes.other_kernel", tests)
    return [tested, run(kernel, module, "-c", _WHICH, module, str(kernel))]


@pytest.mark.slow
@pytest.mark.beside(chore=build_and_test)
@pytest.mark.parametrize(
    ("module", "source", "tests"),
    [
        ("engine.compose._stencil", "stencil.pyx", "tests/compose/test_stencil.py"),
        ("engine.tls._records", "records.pyx", "tests/tls/test_records.py"),
        ("engine.smtp._sink", "sink.pyx", "tests/smtp/test_sink_scanner.py"),
        ("engine.smtp._wire", "wire.pyx", "tests/smtp/test_wire.py"),
        ("engine.smtp._flight", "flight.pyx", "tests/smtp/test_flight.py"),
        ("engine.queue._journal", "journal.pyx", "tests/queue/test_journal_records.py"),
        ("engine.net._dnswire", "dnswire.pyx", "tests/net/test_dnswire.py"),
    ],
)
def test_they_pass_and_the_sanitizer_finds_nothing(
    beside: list[subprocess.CompletedProcess[str]], module: str, source: str, tests: str
) -> None:
    tested, which = beside
    assert tested.returncode == 0, tested.stdout[-5000:] + tested.stderr[-5000:]
    assert " passed" in tested.stdout
    assert which.returncode == 0, "another build ran"

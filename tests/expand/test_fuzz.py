"""Rubbish in, values or errors out: the language under AddressSanitizer, in a process of its own."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from fakes.peers import PROJECT, in_ci, require

_SCRIPT = PROJECT / "tests" / "isolated" / "fuzz_expand.py"
#: how long the fuzzer runs under the sanitizer, in seconds
_SECONDS = 50 if in_ci() else 5


def _run(environment: dict[str, str], *, timeout_s: float) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_SCRIPT)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    counts: dict[str, Any] = ast.literal_eval(done.stdout)
    return counts


def test_rubbish_ends_as_a_value_or_an_error() -> None:
    counts = _run({"SECONDS": "4", "SEED": "3"}, timeout_s=50)
    assert counts["values"] > 50
    assert counts["errors"] > 500
    assert counts["programs"] > 100


def _sanitizer_library() -> str | None:
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    path = Path(found.stdout.strip())
    return str(path) if path.is_absolute() and path.exists() else None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rubbish_does_no_harm_under_address_sanitizer(tmp_path: Path) -> None:
    """The evaluator is built once more with the sanitizer, into a copy of the package that only this test sees."""
    library = _sanitizer_library()
    require(library, "no AddressSanitizer for gcc here")
    assert library is not None
    shutil.copytree(PROJECT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    source, built = tmp_path / "_evaluate.c", tmp_path / "engine" / "expand" / "_evaluate"
    for old in built.parent.glob("_evaluate*.so"):
        old.unlink()
    pyx = PROJECT / "_speedups" / "expand.pyx"
    cython = [
        sys.executable,
        "-m",
        "cython",
        "-3",
        "--module-name",
        "engine.expand._evaluate",
        str(pyx),
        "-o",
        str(source),
    ]
    subprocess.run(cython, check=True, capture_output=True, timeout=120)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    flags = ["-shared", "-fPIC", "-g", "-O1", "-UNDEBUG", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    include = f"-I{sysconfig.get_path('include')}"
    compile_it = ["gcc", *flags, "-w", include, str(source), "-o", f"{built}{suffix}"]
    subprocess.run(compile_it, check=True, capture_output=True, timeout=200)
    counts = _run(
        {
            "PYTHONPATH": str(tmp_path),
            "LD_PRELOAD": library,
            # Python itself leaks at exit on purpose; what is kept back after it was freed is no growth
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=0:quarantine_size_mb=32",
            "UBSAN_OPTIONS": "halt_on_error=1",
            "SECONDS": str(_SECONDS),
        },
        timeout_s=_SECONDS + 60,
    )
    assert str(counts["kernel"]).startswith(str(tmp_path)), "the evaluator that ran is not the one that was built"
    assert counts["values"] > 10
    assert counts["programs"] > 10

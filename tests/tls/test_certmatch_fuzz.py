"""Rubbish for certificates and records: the matcher under AddressSanitizer, in a process of its own."""

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

SCRIPT = PROJECT / "tests" / "isolated" / "fuzz_certmatch.py"
#: how long the fuzzer runs under the sanitizer, in seconds
SECONDS = 6 if in_ci() else 4


def fuzz(environment: dict[str, str], *, timeout_s: float) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    counts: dict[str, Any] = ast.literal_eval(done.stdout)
    return counts


def sanitizer_library() -> str | None:
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    path = Path(found.stdout.strip())
    return str(path) if path.is_absolute() and path.exists() else None


def build(directory: Path) -> Path:
    """The matcher once more, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    source = directory / "_certmatch.c"
    name = ["--module-name", "engine.tls._certmatch"]
    cython = [sys.executable, "-m", "cython", "-3", *name, str(PROJECT / "_speedups/certmatch.pyx"), "-o", str(source)]
    subprocess.run(cython, check=True, capture_output=True, timeout=60)
    built = directory / f"_certmatch{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-shared", "-fPIC", "-g", "-O1", "-UNDEBUG", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    flags += ["-fno-sanitize-recover=undefined", "-w", f"-I{sysconfig.get_path('include')}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(built)], check=True, capture_output=True, timeout=120)
    return built


def test_rubbish_is_judged_as_the_reference_has_it() -> None:
    counts = fuzz({"SECONDS": "3", "SEED": "7"}, timeout_s=50)
    assert counts["rounds"] > 100
    assert counts["keys"] > 50
    assert counts["matches"] > 20
    assert {"match", "no-match", "unusable"} <= set(counts)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_rubbish_does_no_harm_under_address_sanitizer(tmp_path: Path) -> None:
    library = sanitizer_library()
    require(library, "no AddressSanitizer for gcc here")
    built = build(tmp_path)
    environment = {
        "KERNEL": str(built),
        "LD_PRELOAD": str(library),
        # every bytes object is then an allocation of its own, with forbidden octets on both sides
        "PYTHONMALLOC": "malloc",
        # Python itself leaks at exit on purpose; what was freed is kept for a while, and must not look like growth
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SECONDS": str(SECONDS),
    }
    counts = fuzz(environment, timeout_s=SECONDS + 60)
    assert counts["kernel"] == str(built), "the matcher that ran is not the one that was built"
    assert counts["rounds"] > 20
    assert counts["matches"] > 5


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_sanitizer_would_see_a_read_beyond_the_end(tmp_path: Path) -> None:
    """Without this the test above could pass because nobody looks."""
    library = sanitizer_library()
    require(library, "no AddressSanitizer for gcc here")
    broken = (PROJECT / "_speedups/certmatch.pyx").read_text()
    check = "    if length > limit - start:\n        return False\n"
    assert broken.count(check) == 1
    source = tmp_path / "broken.pyx"
    source.write_text(broken.replace(check, ""))
    cython = [sys.executable, "-m", "cython", "-3", "--module-name", "engine.tls._certmatch", str(source)]
    subprocess.run([*cython, "-o", str(tmp_path / "broken.c")], check=True, capture_output=True, timeout=60)
    built = tmp_path / f"_certmatch{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-shared", "-fPIC", "-O1", "-fsanitize=address", "-w", f"-I{sysconfig.get_path('include')}"]
    subprocess.run(
        ["gcc", *flags, str(tmp_path / "broken.c"), "-o", str(built)], check=True, capture_output=True, timeout=120
    )
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={
            **os.environ,
            "KERNEL": str(built),
            "LD_PRELOAD": str(library),
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0",
            "SECONDS": "10",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr or "AssertionError" in done.stderr

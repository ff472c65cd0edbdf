"""Kernels built once more with AddressSanitizer, and fuzzers that run in a process of their own."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakes.peers import PROJECT, require

#: what every kernel is built with; what is wrong ends the process at once
_FLAGS = (
    "-shared",
    "-fPIC",
    "-g",
    "-O1",
    "-UNDEBUG",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=undefined",
    "-w",
)
#: seconds for Cython and for the compiler; the largest kernel takes 60 on a busy machine
_BUILD_S = 500
#: seconds after which a fuzzer hangs
_FUZZ_S = 400


def sanitizer_library() -> str:
    """The run-time library of gcc's AddressSanitizer; skips the test, or fails it in CI, where there is none."""
    compiler = shutil.which("gcc")
    found = None
    if compiler is not None:
        said = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
        path = Path(said.stdout.strip())
        found = str(path) if path.is_absolute() and path.exists() else None
    require(found, "no AddressSanitizer for gcc here")
    assert found is not None
    return found


def build_kernel(module: str, source: Path, directory: Path) -> Path:
    """Build the kernel `module` (``engine.tls._certmatch``) from `source` into `directory`; the path of the library."""
    name = module.rpartition(".")[2]
    c_file, built = directory / f"{name}.c", directory / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    cython = [sys.executable, "-m", "cython", "-3", "--module-name", module, str(source), "-o", str(c_file)]
    subprocess.run(cython, check=True, capture_output=True, timeout=_BUILD_S)
    include = f"-I{sysconfig.get_path('include')}"
    compile_it = ["gcc", *_FLAGS, "-fsanitize=address,undefined", include, str(c_file), "-o", str(built)]
    subprocess.run(compile_it, check=True, capture_output=True, timeout=_BUILD_S)
    return built


def sanitized_environment(**more: str) -> dict[str, str]:
    """What a process needs that loads a kernel of `build_kernel`."""
    return {
        "LD_PRELOAD": sanitizer_library(),
        # Python itself leaks at exit on purpose; what was freed is kept for a while, and must not look like growth
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=0:quarantine_size_mb=32",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        **more,
    }


def start_fuzzer(name: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``tests/isolated/NAME`` to its end: for $SECONDS seconds, and for $ROUNDS rounds however slow the machine."""
    return subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "isolated" / name)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=_FUZZ_S,
        check=False,
    )


def fuzz(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a fuzzer, which has to end well; what it counted."""
    done = start_fuzzer(name, environment)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    counts: dict[str, Any] = ast.literal_eval(done.stdout)
    return counts

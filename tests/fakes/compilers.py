"""Programs in C, for tests of what other languages see."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fakes.patience import PATIENCE_S
from fakes.peers import require

_FLAGS = ("-O1", "-Wall", "-Wextra", "-Werror", "-std=c11", "-D_GNU_SOURCE", "-x", "c")


def compile_c(source: Path, program: Path) -> Path:
    """Compile one file; skips the test, or fails it in CI, where there is no compiler."""
    compiler = shutil.which("cc")
    require(compiler, "no C compiler")
    subprocess.run([str(compiler), *_FLAGS, str(source), "-o", str(program)], check=True, timeout=PATIENCE_S)
    return program

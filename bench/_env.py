"""What a measurement was made with: commit, versions, machine.  Printed with --versions and kept in every JSON line."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from OpenSSL import SSL

PROJECT = Path(__file__).resolve().parents[1]

_PACKAGES = ("cython", "trio", "pyOpenSSL", "cryptography", "dnspython", "msgpack", "jinja2")


@functools.cache
def environment() -> dict[str, str]:
    """Name -> value of everything that a figure depends on beside the code; the same for the whole run."""
    found = {
        "commit": _commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "compiler": _first_line("cc", "--version"),
        "flags": str(sysconfig.get_config_var("OPT") or ""),
    }
    for name in _PACKAGES:
        try:
            found[name.lower()] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name.lower()] = "not here"
    return found


def _commit() -> str:
    if not (PROJECT / ".git").exists():
        return "not a git checkout"
    commit = _first_line("git", "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if changed else commit


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=10, check=False)
    return next(iter(result.stdout.splitlines()), "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def load_average() -> float:
    """Processes that wanted a core in the last minute; over the number of cores, a figure means little."""
    return os.getloadavg()[0]


def is_debug_build() -> bool:
    """Whether the interpreter is a debug build, whose figures mean nothing."""
    return hasattr(sys, "gettotalrefcount")

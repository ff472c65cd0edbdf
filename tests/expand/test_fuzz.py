"""Rubbish in, values or errors out: the language under AddressSanitizer, in a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fakes.peers import PROJECT, in_ci
from fakes.sanitized import build_kernel, fuzz, sanitized_environment

FUZZER = "fuzz_expand.py"
#: how long the fuzzer runs under the sanitizer, in seconds
SECONDS = 50 if in_ci() else 5


def test_rubbish_ends_as_a_value_or_an_error() -> None:
    counts = fuzz(FUZZER, {"SECONDS": "4", "ROUNDS": "1500", "SEED": "3"})
    assert counts["values"] > 50
    assert counts["errors"] > 500
    assert counts["programs"] > 100


def fuzz_under_sanitizer(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The evaluator is built once more with the sanitizer, into a copy of the package that nobody else sees."""
    environment = sanitized_environment(PYTHONPATH=str(directory), SECONDS=str(SECONDS), ROUNDS="500")
    shutil.copytree(PROJECT / "engine", directory / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    package = directory / "engine" / "expand"
    for old in package.glob("_evaluate*.so"):
        old.unlink()
    build_kernel("engine.expand._evaluate", PROJECT / "_speedups/expand.pyx", package)
    return directory, fuzz(FUZZER, environment)


@pytest.mark.slow
@pytest.mark.beside(chore=fuzz_under_sanitizer)
def test_rubbish_does_no_harm_under_address_sanitizer(beside: tuple[Path, dict[str, Any]]) -> None:
    directory, counts = beside
    assert str(counts["kernel"]).startswith(str(directory)), "the evaluator that ran is not the one that was built"
    assert counts["values"] > 10
    assert counts["programs"] > 10

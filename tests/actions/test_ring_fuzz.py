"""Rubbish in a ring, also while it is read: the compiled ends under AddressSanitizer, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.peers import PROJECT
from fakes.sanitized import build_kernel, fuzz, sanitized_environment

FUZZER = "fuzz_ring.py"
MODULE = "engine.actions._ring"
SOURCE = PROJECT / "_speedups/ring.pyx"
#: how long the fuzzer runs under the sanitizer, in seconds
SECONDS = 3


def test_rubbish_is_read_as_the_reference_reads_it() -> None:
    counts = fuzz(FUZZER, {"SECONDS": "1", "ROUNDS": "100", "SEED": "7"})
    assert counts["rounds"] >= 100
    assert counts["frames"] > 100
    assert counts["errors"] > 10
    assert counts["raced_errors"] > 10


def fuzz_under_sanitizer(directory: Path) -> tuple[Path, dict[str, Any]]:
    # every buffer is then an allocation of its own, with forbidden octets on both sides
    environment = sanitized_environment(PYTHONMALLOC="malloc", SECONDS=str(SECONDS), ROUNDS="100")
    built = build_kernel(MODULE, SOURCE, directory)
    return built, fuzz(FUZZER, {"KERNEL": str(built), "KERNEL_MODULE": MODULE, **environment})


@pytest.mark.slow
@pytest.mark.beside(chore=fuzz_under_sanitizer)
def test_rubbish_does_no_harm_under_address_sanitizer(beside: tuple[Path, dict[str, Any]]) -> None:
    built, counts = beside
    assert counts["kernel"] == str(built), "the rings that ran are not those that were built"
    assert counts["rounds"] >= 100
    assert counts["raced_errors"] > 10

"""Rubbish for certificates and records: the matcher under AddressSanitizer, in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fakes.peers import PROJECT, in_ci
from fakes.sanitized import build_kernel, fuzz, sanitized_environment, start_fuzzer

FUZZER = "fuzz_certmatch.py"
MODULE = "engine.tls._certmatch"
SOURCE = PROJECT / "_speedups/certmatch.pyx"
#: how long the fuzzer runs under the sanitizer, in seconds
SECONDS = 6 if in_ci() else 4
#: every bytes object is then an allocation of its own, with forbidden octets on both sides
OWN_ALLOCATIONS = "malloc"


def test_rubbish_is_judged_as_the_reference_has_it() -> None:
    counts = fuzz(FUZZER, {"SECONDS": "3", "ROUNDS": "500", "SEED": "7"})
    assert counts["rounds"] > 100
    assert counts["keys"] > 50
    assert counts["matches"] > 20
    assert {"match", "no-match", "unusable"} <= set(counts)


def fuzz_under_sanitizer(directory: Path) -> tuple[Path, dict[str, Any]]:
    environment = sanitized_environment(PYTHONMALLOC=OWN_ALLOCATIONS, SECONDS=str(SECONDS), ROUNDS="100")
    built = build_kernel(MODULE, SOURCE, directory)
    return built, fuzz(FUZZER, {"KERNEL": str(built), "KERNEL_MODULE": MODULE, **environment})


@pytest.mark.slow
@pytest.mark.beside(chore=fuzz_under_sanitizer)
def test_rubbish_does_no_harm_under_address_sanitizer(beside: tuple[Path, dict[str, Any]]) -> None:
    built, counts = beside
    assert counts["kernel"] == str(built), "the matcher that ran is not the one that was built"
    assert counts["rounds"] > 20
    assert counts["matches"] > 5


def fuzz_what_is_broken(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = sanitized_environment(PYTHONMALLOC=OWN_ALLOCATIONS, SECONDS="10", ROUNDS="2000")
    whole = SOURCE.read_text()
    check = "    if length > limit - start:\n        return False\n"
    assert whole.count(check) == 1
    broken = directory / "broken.pyx"
    broken.write_text(whole.replace(check, ""))
    built = build_kernel(MODULE, broken, directory)
    return start_fuzzer(FUZZER, {"KERNEL": str(built), "KERNEL_MODULE": MODULE, **environment})


@pytest.mark.slow
@pytest.mark.beside(chore=fuzz_what_is_broken)
def test_the_sanitizer_would_see_a_read_beyond_the_end(beside: subprocess.CompletedProcess[str]) -> None:
    """Without this the test above could pass because nobody looks."""
    assert beside.returncode != 0
    assert "AddressSanitizer" in beside.stderr or "AssertionError" in beside.stderr

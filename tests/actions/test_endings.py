"""How a worker ended, and whose doing that was."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engine.actions import endings
from engine.actions.endings import Ending, oom_kills


@pytest.mark.parametrize(
    "returncode",
    [0, 1, 70, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE, -signal.SIGXCPU],
)
@pytest.mark.parametrize("memory_ran_out", [False, True])
def test_what_code_brings_upon_itself(returncode: int, memory_ran_out: bool) -> None:
    assert Ending.of(returncode).is_own_fault(memory_ran_out=memory_ran_out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
@pytest.mark.parametrize("memory_ran_out", [False, True])
def test_what_comes_from_outside(number: int, memory_ran_out: bool) -> None:
    assert not Ending.of(-number).is_own_fault(memory_ran_out=memory_ran_out)


def test_a_kill_is_from_outside_unless_memory_ran_out() -> None:
    assert not Ending.of(-signal.SIGKILL).is_own_fault(memory_ran_out=False)
    assert Ending.of(-signal.SIGKILL).is_own_fault(memory_ran_out=True)


@pytest.mark.parametrize("returncode", [0, 3, 255, -9, -11, -64])
def test_an_ending_can_be_told(returncode: int) -> None:
    ending = Ending.of(returncode)
    assert Ending.told_untrusted(str(ending).encode()) == ending


@pytest.mark.parametrize(
    "said", [b"", b"signal", b"signal 11\n", b"signal -1", b"signal 1111", b"exit status x", b"\xff"]
)
def test_what_is_no_ending_is_none(said: bytes) -> None:
    assert Ending.told_untrusted(said) is None


def test_kills_for_want_of_memory_are_counted_where_the_kernel_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "vmstat"
    monkeypatch.setattr(endings, "_VMSTAT", str(place))
    assert oom_kills() is None
    place.write_text("nr_free_pages 5\noom_kill_disable 3\noom_kill 17\n")
    assert oom_kills() == 17
    place.write_text("nr_free_pages 5\n")
    assert oom_kills() is None

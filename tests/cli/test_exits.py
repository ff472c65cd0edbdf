"""Exit codes: which error gives which, and errors that come out of a nursery."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from engine.cli.exits import Exit, exit_code, exit_on_error
from engine.errors import ConfigError, DataError, EngineError, RemoteProtocolError, StoreError
from engine.queue.store import QueueLocked


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad", file="f.toml", key="main.queue"), Exit.CONFIG),
        (DataError("bad", line=7), Exit.DATA),
        (StoreError("full"), Exit.TEMPORARY),
        (QueueLocked("locked"), Exit.TEMPORARY),
        (RemoteProtocolError("nonsense"), Exit.UNAVAILABLE),
    ],
)
def test_each_kind_of_error_has_its_code(error: EngineError, code: Exit, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(error) is code
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr().err == f"outrider: {error}\n"


def test_the_codes_are_those_of_sysexits() -> None:
    assert [int(code) for code in Exit] == [0, 64, 65, 69, 74, 75, 78, 130]


def test_nothing_wrong_is_nothing_told(capsys: pytest.CaptureFixture[str]) -> None:
    with exit_on_error():
        pass
    assert capsys.readouterr().err == ""


def test_errors_of_nested_nurseries_are_told_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = StoreError("disk full"), StoreError("disk full")
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise BaseExceptionGroup("out", [BaseExceptionGroup("in", [first]), second, DataError("and more")])
    assert caught.value.code == Exit.TEMPORARY
    assert capsys.readouterr().err == "outrider: disk full\noutrider: and more\n"


async def test_an_error_out_of_a_real_nursery(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise StoreError("the queue is damaged")

    with pytest.raises(SystemExit) as caught, exit_on_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
    assert caught.value.code == Exit.TEMPORARY
    assert "damaged" in capsys.readouterr().err


def test_an_order_to_leave_wins_over_errors() -> None:
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise BaseExceptionGroup("out", [StoreError("late"), BaseExceptionGroup("in", [SystemExit(130)])])
    assert caught.value.code == 130


def _bug() -> BaseException:
    return ValueError("a bug")


def _bug_beside_an_error() -> BaseException:
    return BaseExceptionGroup("out", [StoreError("full"), ValueError("a bug")])


@pytest.mark.parametrize("make", [_bug, _bug_beside_an_error])
def test_a_bug_goes_on_as_it_is(make: Callable[[], BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    error = make()
    with pytest.raises(BaseException, match=r"a bug|out") as caught, exit_on_error():
        raise error
    assert caught.value is error
    assert capsys.readouterr().err == ""

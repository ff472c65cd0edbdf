"""The `outrider` command: what it offers, usage errors, a reader that goes away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine import __version__
from engine.cli.main import COMMANDS, main
from fakes.patience import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Result:
    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def outrider(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command in this process."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["outrider", *arguments])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr()
        return Result(caught.value.code or 0, told.out, told.err)

    return run


def test_the_version(outrider: Callable[..., Result]) -> None:
    result = outrider("--version")
    assert (result.returncode, result.stdout) == (0, f"outrider {__version__}\n")


def test_help_names_every_command(outrider: Callable[..., Result]) -> None:
    result = outrider("--help")
    assert result.returncode == 0
    assert all(f" {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, outrider: Callable[..., Result]) -> None:
    result = outrider(command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"outrider {command}" in result.stdout
    assert "--install-completion" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Usage: outrider"),
        (("nonsense",), "No such command 'nonsense'"),
        (("--nonsense",), "--nonsense"),
        (("sink", "--fail", "3"), "--fail"),
        (("sink", "--fail", "much"), "--fail"),
        (("queue",), "Usage: outrider queue"),
        (("queue", "why"), "RECIPIENT"),
        (("send",), "Missing option"),
        (("config", "shwo"), "show"),
    ],
)
def test_a_wrong_command_line_ends_with_64_and_says_why(
    arguments: tuple[str, ...], words: str, outrider: Callable[..., Result]
) -> None:
    result = outrider(*arguments)
    assert result.returncode == 64
    assert words in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    command = [sys.executable, "-m", "engine", "config", "options", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.slow
def test_an_output_without_room_gets_no_traceback() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "engine", "config", "options", "--json"]
    with full.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (74, "outrider: the output cannot be written: No space left on device\n")


@pytest.mark.slow
def test_the_console_script_is_the_same_command() -> None:
    script = (
        "import importlib.metadata as m; (e,) = m.entry_points(group='console_scripts', name='outrider'); e.load()()"
    )
    command = [sys.executable, "-c", script, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (result.returncode, result.stdout) == (0, f"outrider {__version__}\n"), result.stderr

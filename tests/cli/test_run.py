"""`outrider run`: what it does with its arguments and its configuration; its signals are in e2e/test_daemon.py."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.cli.main import cli
from fakes.outrider import MESSAGE, Outrider
from fakes.peers import free_port

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outrider]:
    """A configuration whose mail goes nowhere: nothing listens at its port."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGHUP)
    yield Outrider(tmp_path, free_port(), retry="F,2h,15m")
    signal.signal(signal.SIGHUP, before)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; its exit status, standard output and standard error."""
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    status = done.exit_code if done.exception is not None else done.return_value
    return int(status), done.stdout, done.stderr


def test_an_empty_queue_is_drained_at_once(user: Outrider) -> None:
    status, out, _ = run("run", "--config", "outrider.toml", "--drain", "--json")
    assert status == 0
    assert json.loads(out.strip().splitlines()[-1])["delivered"] == 0
    assert not list(user.directory.glob("queue.db-inflight-*"))


def test_what_is_deferred_ends_a_drain(user: Outrider) -> None:
    user.recipients(3)
    user.message(MESSAGE)
    status, out, _ = run(*user.send_arguments("recipients.csv", "message.eml", "--queue-only", "--json"))
    assert (status, json.loads(out)) == (0, {"job": 1})
    status, out, _ = run("run", "--config", "outrider.toml", "--drain", "--json")
    assert status == 0
    assert json.loads(out.strip().splitlines()[-1])["deferrals"] == 3
    assert user.states() == {0: 3}


def test_another_queue(user: Outrider, tmp_path: Path) -> None:
    status, _, _ = run("run", "--config", "outrider.toml", "--queue", f"sqlite://{tmp_path}/other.db", "--drain")
    assert status == 0
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "queue.db").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[main", "TOML"),
        ('[main]\nqueu = "x"', "did you mean 'queue'"),
        ('[main]\nqueue = "ftp://x"\nlog_file = "x.log"', "sqlite://"),
        ('[main]\nqueue = "sqlite:///tmp/x.db"\nlog_file = "/no/such/directory/main.log"', "log_file|cannot be opened"),
        ('[transports.remote_smtp]\ndriver = "smtp"\ninterface = "eth0"', "interface"),
    ],
)
def test_a_configuration_of_no_use(user: Outrider, text: str, said: str) -> None:
    user.config.write_text(text + "\n")
    status, _, error = run("run", "--config", "outrider.toml", "--drain")
    assert status == 78, error
    assert any(word in error for word in said.split("|"))


def test_a_hangup_after_the_end_does_not_spoil_the_exit_status(user: Outrider) -> None:
    assert run("run", "--config", "outrider.toml", "--drain")[0] == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

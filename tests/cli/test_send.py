"""`outrider send`: bad input ends in a clear error before anything is queued, and nothing is sent."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from engine.cli import send as module
from engine.cli.main import cli
from engine.delivery.jobs import JobOptions
from engine.errors import DataError
from engine.policy.wishes import Wish
from engine.queue.sqlite import SqliteStore
from fakes.outrider import MESSAGE, TEMPLATE, Outrider
from fakes.peers import free_port

Send = Callable[..., tuple[int, str]]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outrider:
    """A configuration whose mail goes nowhere: nothing listens at its port."""
    monkeypatch.chdir(tmp_path)
    return Outrider(tmp_path, free_port(), retry="F,2h,15m")


@pytest.fixture
def send(user: Outrider) -> Send:
    """Run a send in this process; its exit status and what it said on standard error."""

    def run(
        recipients: str | bytes = "email\na@d.example\n",
        message: str | bytes = MESSAGE,
        *more: str,
        sender: str = "news@sender.example",
    ) -> tuple[int, str]:
        path = user.directory / "recipients"
        path.write_bytes(recipients if isinstance(recipients, bytes) else recipients.encode())
        arguments = user.send_arguments("recipients", user.message(message), *more)
        arguments[arguments.index("--from") + 1] = sender
        done = CliRunner().invoke(cli, arguments, standalone_mode=False)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        status = done.exit_code if done.exception is not None else done.return_value
        return int(status), done.stderr

    return run


def queued(user: Outrider) -> int:
    """Recipients in the queue, of whatever job."""
    path = user.directory / "queue.db"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        (jobs,) = database.execute("SELECT count(*) FROM jobs").fetchone()
        (recipients,) = database.execute("SELECT count(*) FROM recipients").fetchone()
        return int(jobs) + int(recipients)


@pytest.mark.parametrize(
    ("recipients", "said"),
    [
        ("name\nAda\n", "email"),
        ("email,name\na@d.example,Ada\nnot an address,Bob\n", "line 3"),
        ("email,name\na@d.example,Ada\nb@d.example\n", "line 3"),
        ('{"email": "a@d.example"}\n{"email": \n', "line 2"),
        ('{"email": "a@d.example"}\n["b@d.example"]\n', "line 2"),
        ("a@d.example\nb@@d.example\n", "line 2"),
        ("a@d.example\nb\r\nRCPT TO:<x@y.example>@d.example\n", "line 2"),
        (b"email\n\xff\xfe@d.example\n", "line 2"),
        ("email\n", "no recipient"),
        ("", ""),
    ],
)
def test_a_bad_list_queues_nothing(send: Send, user: Outrider, recipients: str | bytes, said: str) -> None:
    status, error = send(recipients)
    assert status == 65, error
    assert error.startswith("outrider: ")
    assert said in error
    assert "Traceback" not in error
    assert queued(user) == 0


@pytest.mark.parametrize(
    ("message", "more", "said"),
    [
        ("Subject: no sender\n\nbody\n", (), "From"),
        ("this is no header\n\nbody\n", (), "line 1"),
        ("", (), ""),
        (TEMPLATE.replace("{{ number }}", "{{ nmae }}"), ("--template",), "nmae"),
        (TEMPLATE.replace("{{ number }}", "{{ number"), ("--template",), ""),
        (TEMPLATE.replace("{{ number }}", "{{ name.__class__ }}"), ("--template",), ""),
    ],
)
def test_a_bad_message_queues_nothing(
    send: Send, user: Outrider, message: str, more: tuple[str, ...], said: str
) -> None:
    status, error = send("email,name,number\na@d.example,Ada,1\n", message, *more)
    assert status == 65, error
    assert said in error
    assert "Traceback" not in error
    assert queued(user) == 0


def test_a_name_that_the_list_lacks_is_found_before_anything_is_queued(send: Send, user: Outrider) -> None:
    status, error = send("email,nmae,number\na@d.example,Ada,1\n", TEMPLATE, "--template")
    assert status == 65
    assert "name" in error
    assert "nmae" in error  # the nearest column
    assert queued(user) == 0


@pytest.mark.parametrize("sender", ["nobody", "a@b@c", "a b@c.example", "a@-x.example"])
def test_a_bad_sender(send: Send, user: Outrider, sender: str) -> None:
    status, error = send(sender=sender)
    assert status == 65
    assert "--from" in error
    assert queued(user) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[main]\nqueu = "sqlite:///tmp/q.db"', "did you mean 'queue'"),
        ('[[retry]]\npattern = "*"\nrule = "F,2h"', "retry"),
        ('[[retry]]\npattern = "*"\nrule = "X,2h,3m"', "F, G or H"),
        ('[transports.remote_smtp]\ndriver = "smtp"\nhosts_require_tls = "+nosuchlist"', "nosuchlist"),
        ('[transports.remote_smtp]\ndriver = "smtp"\nhelo_data = "${nosuch:x}"', "nosuch"),
        ("[main", "TOML"),
    ],
)
def test_a_bad_configuration(send: Send, user: Outrider, line: str, said: str) -> None:
    user.config.write_text(line + "\n")
    status, error = send()
    assert status == 78, error
    assert "outrider.toml" in error
    assert said in error
    assert queued(user) == 0


def test_skip_invalid_queues_the_rest_and_writes_the_bad_rows(send: Send, user: Outrider) -> None:
    rows = "email,name\na@d.example,Ada\nnot an address,Bob\nc@d.example,Cyd\nd@d.example\n"
    status, error = send(rows, MESSAGE, "--skip-invalid", "--rejects", "bad.jsonl", "--queue-only")
    assert status == 0, error
    assert "2 recipients queued as job 1, 2 bad rows skipped (see bad.jsonl)" in error
    records = [json.loads(line) for line in (user.directory / "bad.jsonl").read_text().splitlines()]
    assert [record["line"] for record in records] == [3, 5]
    assert all(record["reason"] for record in records)
    assert "not an address,Bob" in records[0]["row"]


def test_without_bad_rows_there_is_no_rejects_file(send: Send, user: Outrider) -> None:
    status, _ = send("email\na@d.example\n", MESSAGE, "--skip-invalid", "--rejects", "bad.jsonl", "--queue-only")
    assert status == 0
    assert not (user.directory / "bad.jsonl").exists()


def test_a_host_that_refuses_leaves_everybody_deferred(send: Send, user: Outrider) -> None:
    status, error = send("email\na@d.example\nb@d.example\n")
    assert status == 75
    assert "2 still queued" in error
    assert [(line.mark, line.rest) for line in user.log()] == [
        ("==", "R=smart T=remote_smtp defer (111): Connection refused H=127.0.0.1 [127.0.0.1]"),
    ] * 2
    assert "H=127.0.0.1 [127.0.0.1] Connection refused\n" in user.log_text()


def test_files_that_are_not_there(user: Outrider) -> None:
    for recipients, message in (("nothing.csv", user.message()), ("outrider.toml", "nothing.eml")):
        done = CliRunner().invoke(cli, user.send_arguments(recipients, message), standalone_mode=False)
        assert isinstance(done.exception, SystemExit)
        assert done.exception.code == 65
        assert "No such file" in done.stderr


def test_a_queue_that_is_none(send: Send, user: Outrider) -> None:
    (user.directory / "queue.db").write_bytes(b"this is no database" * 1000)
    status, error = send()
    assert status == 75
    assert "queue.db" in error


def test_dsn_options_reach_the_queue(send: Send, user: Outrider) -> None:
    status, error = send(
        "email\na@d.example\n", MESSAGE, "--dsn-notify", "failure,delay", "--dsn-ret", "hdrs", "--queue-only"
    )
    assert status == 0, error
    with contextlib.closing(SqliteStore(str(user.directory / "queue.db"), read_only=True)) as store:
        (job,) = store.jobs(10)
    options = JobOptions.from_mapping(job.options)
    assert (options.notify, options.ret, options.envid) == (("FAILURE", "DELAY"), "HDRS", None)


@pytest.mark.parametrize(
    ("message", "more", "expected"),
    [
        (MESSAGE, (), Wish.USUAL),
        (MESSAGE, ("--require-tls",), Wish.REQUIRE),
        ("TLS-Required: No\n" + MESSAGE, (), Wish.OPTIONAL),
        ("TLS-Required: No\n" + MESSAGE, ("--require-tls",), Wish.REQUIRE),
    ],
)
def test_what_a_message_asks_of_tls_reaches_the_queue(
    send: Send, user: Outrider, message: str, more: tuple[str, ...], expected: Wish
) -> None:
    """R51: REQUIRETLS beats TLS-Required."""
    status, error = send("email\na@d.example\n", message, *more, "--queue-only")
    assert status == 0, error
    with contextlib.closing(SqliteStore(str(user.directory / "queue.db"), read_only=True)) as store:
        (job,) = store.jobs(10)
    assert JobOptions.from_mapping(job.options).wish is expected


def test_a_message_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a pipe says nothing of its size before it is read."""
    monkeypatch.setattr(module, "MAX_MESSAGE_OCTETS", 1000)
    with pytest.raises(DataError, match="is larger than 1,000 octets"):
        module._read_message(Path("/dev/zero"))


@pytest.mark.parametrize(
    "more",
    [
        ("--dsn-notify", "sometimes"),
        ("--dsn-notify", "never,failure"),
        ("--dsn-ret", "some"),
        ("--dsn-envid", "a\tb"),
        ("--expires", "soon"),
    ],
)
def test_an_option_that_makes_no_sense(user: Outrider, more: tuple[str, str]) -> None:
    user.recipients(1)
    arguments = user.send_arguments("recipients.csv", user.message(), *more)
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert isinstance(done.exception, typer.BadParameter)
    assert more[0] in str(done.exception)
    assert queued(user) == 0

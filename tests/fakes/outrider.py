"""Run the real `outrider` command in a directory of its own: configuration, sends, sinks, logs, the queue.

Everything a user would type, with nothing of the engine in this process: what these tests show is what a user gets.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import sink_process
from fakes.patience import PATIENCE_S

MESSAGE = """\
From: News <news@sender.example>
To: Readers <readers@sender.example>
Subject: To all

The same for everybody.
"""

TEMPLATE = """\
From: News <news@sender.example>
To: {{ name }} <{{ email }}>
Subject: Number {{ number }}

Dear {{ name }}, your number is {{ number }}.
.a line that begins with a dot
"""

#: recipients that a main log tells of, by mark
_LINE = re.compile(r"^\S+ \S+ (?:(\S{6}-\S{6,11}-\S{2,4}) )?(=>|->|==|\*\*) (\S+) (.*)$")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the main log about a recipient."""

    message_id: str
    mark: str
    address: str
    rest: str


class Outrider:
    """A directory with a configuration, and the command.

    Args:
        directory: empty; the test's own.
        port: where everything is sent, at 127.0.0.1.
        main, transport: further lines of those tables.
        retry: the rule for everything.
        shutdown: how long the end of a run waits for what is in flight, and for actions; short where they cannot run.
        config: the whole configuration instead.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        *,
        main: str = "",
        transport: str = 'hosts_require_tls = "*"',
        retry: str = "F,1h,1s",
        shutdown: str = "60s",
        config: str | None = None,
    ) -> None:
        self.directory = directory
        text = config or (
            f'[main]\nprimary_hostname = "client.example"\nqueue = "sqlite://{directory}/queue.db"\n'
            f'log_file = "{directory}/main.log"\njson_log_file = "{directory}/main.jsonl"\n'
            f'shutdown_timeout = "{shutdown}"\nin_doubt_delay = "1s"\n{main}\n'
            f'[[routers]]\nname = "smart"\ndriver = "manualroute"\nroute_list = ["* 127.0.0.1:{port}"]\n'
            f'self = "send"\ntransport = "remote_smtp"\n'
            f'[transports.remote_smtp]\ndriver = "smtp"\n{transport}\n'
            f'[[retry]]\npattern = "*"\nrule = "{retry}"\n'
        )
        self.config = directory / "outrider.toml"
        self.config.write_text(text)

    # what a user writes

    def message(self, text: str | bytes = MESSAGE, name: str = "message.eml") -> str:
        """Write a message; its name."""
        octets = text.encode() if isinstance(text, str) else text
        (self.directory / name).write_bytes(octets)
        return name

    def recipients(self, count: int, *, domains: int = 1, name: str = "recipients.csv") -> str:
        """Write a CSV with `count` recipients, merge data `name` and `number`; its name."""
        with (self.directory / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["email", "name", "number"])
            for number in range(count):
                writer.writerow([f"user{number}@d{number % domains}.example", f"Name {number}", number])
        return name

    # what a user types

    def command(self, *arguments: str) -> list[str]:
        """The command line of `outrider` with these arguments."""
        return [sys.executable, "-m", "engine", *arguments]

    def run(
        self, *arguments: str, input: bytes | None = None, timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output as text."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            input=input,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def send_arguments(self, recipients: str, message: str, *more: str) -> list[str]:
        """The arguments of a send."""
        return [
            *("send", "--config", "outrider.toml", "--from", "news@sender.example"),
            *("--recipients", recipients, "--message", message, *more),
        ]

    def send(
        self,
        recipients: str,
        message: str,
        *more: str,
        input: bytes | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Send a message to its end."""
        return self.run(*self.send_arguments(recipients, message, *more), input=input, timeout_s=timeout_s)

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs while the block does; killed after it if it still does."""
        with (self.directory / "output").open("ab") as output:
            process = subprocess.Popen(
                self.command(*arguments), cwd=self.directory, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait(PATIENCE_S)

    # who works for it

    def workers_of(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The process ids of the action workers that a command has started, as far as they live."""
        try:
            # they are listed with the thread that started them
            lists = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
            pids = [int(pid) for pid in " ".join(lists).split()]
            words = {pid: set(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")) for pid in pids}
            return [pid for pid in pids if words[pid] & {b"engine.cli.serve", b"worker"}]
        except FileNotFoundError:
            return []

    # what a user looks at

    def log(self) -> list[LogLine]:
        """The lines of the main log about recipients."""
        lines = []
        for line in self.log_text().splitlines():
            found = _LINE.match(line)
            if found:
                lines.append(LogLine(found[1] or "", found[2], found[3], found[4]))
        return lines

    def log_text(self) -> str:
        """The main log."""
        path = self.directory / "main.log"
        return path.read_text() if path.exists() else ""

    def delivered(self) -> Counter[str]:
        """Address -> how often the log says it was delivered."""
        return Counter(line.address for line in self.log() if line.mark in ("=>", "->"))

    def states(self) -> Counter[int]:
        """State -> recipients, straight from the queue file (2 delivered, 3 failed)."""
        with contextlib.closing(sqlite3.connect(self.directory / "queue.db")) as database:
            return Counter(state for (state,) in database.execute("SELECT state FROM recipients"))

    def engine_numbers(self) -> set[int]:
        """The numbers of the engines that are registered; one that reads its configuration again gets a new one."""
        with contextlib.closing(sqlite3.connect(self.directory / "queue.db")) as database:
            return {number for (number,) in database.execute("SELECT id FROM engines")}

    def states_or_none(self) -> Counter[int]:
        """As `states`; nothing while there is no queue yet."""
        try:
            return self.states()
        except sqlite3.OperationalError:
            return Counter()


class SinkProcess(sink_process.SinkProcess):
    """A running `outrider sink` that counts duplicates by Message-ID and recipient."""

    def __init__(self, *arguments: str) -> None:
        super().__init__("--track", *arguments)


def stored(directory: Path) -> list[bytes]:
    """The messages that a sink stored."""
    return [path.read_bytes() for path in sorted(directory.rglob("*.eml"))]


def header(octets: bytes, name: str) -> str:
    """A header of a message, unfolded; "" if it is not there."""
    head = octets.partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")
    for line in head.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        if colon and key.strip().lower() == name.lower().encode():
            return value.strip().decode("utf-8", "replace")
    return ""


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` printed."""
    summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return summary


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Rows as CSV text."""
    return "".join(",".join(str(value) for value in row) + "\n" for row in rows)

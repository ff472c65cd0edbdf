"""`outrider demo`: a real send of personalised messages over TLS, on one machine, with no configuration.

Layer: command line.  Spec: design.md "Command line".
It writes a template, a list of recipients and a configuration into a directory, starts a sink with a certificate of its
own in a process of its own, and runs the very `outrider send` that a user would run: hosts are found by MX, and every
connection must be proved by DANE (the sink's own DNS says of its answers that they are signed).  In the end the sink's
own count must agree with the engine's.
"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from ..actions.supervisor import own_command
from .exits import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

#: seconds that the sink may take to say where it listens, and to end
SINK_TIMEOUT_S: Final = 30.0

TEMPLATE: Final = """\
From: Outrider demo <demo@sender.example>
To: {{ name }} <{{ email }}>
Subject: Hello {{ name }}, you are number {{ number }}

Dear {{ name }},

this message was made for you alone and came over a TLS connection.
{% if city %}
How is the weather in {{ city }}?
{% endif %}
Yours,
the engine
"""

CONFIGURATION: Final = """\
[main]
primary_hostname = "sender.example"
queue = "sqlite://{directory}/queue.db"
log_file = "{directory}/main.log"
json_log_file = "{directory}/main.jsonl"
in_doubt_delay = "2s"

[dns]
nameservers = ["{dns}"]                  # the sink's: every domain has the sink for its mail host

[[routers]]
name = "dnslookup"
driver = "dnslookup"
self = "send"                            # the sink is on this machine
transport = "remote_smtp"

[transports.remote_smtp]
driver = "smtp"
port = {port}
hosts_require_dane = "*"                 # no message without a certificate that a TLSA record names

[[retry]]
pattern = "*"
rule = "F,1h,1s"
"""

_NAMES: Final = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Zoë", "Søren", "Łukasz", "Βασιλική")
_CITIES: Final = ("Oslo", "Kraków", "Zürich", "Porto", "Αθήνα", "Reykjavík", "")


def demo(
    count: Annotated[int, typer.Option(help="Recipients.", min=1, max=1_000_000)] = 2000,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep everything in this directory.")] = None,
) -> int:
    """See it work: a TLS sink, a template, a list of recipients, and a send that delivers to all of them."""
    with _directory(keep) as directory:
        _write_recipients(directory / "recipients.csv", count)
        (directory / "message.eml").write_text(TEMPLATE, encoding="utf-8")
        sink_command = [*own_command(), "sink", "--listen", "127.0.0.1:0", "--dns", "127.0.0.1:0"]
        sink_command += ["--host-name", "mx.sink.example", "--require-tls", "--track", "--json"]
        _say(f"a sink that takes mail over TLS only:  outrider {shlex.join(sink_command[3:])}")
        with subprocess.Popen(sink_command, stdout=subprocess.PIPE, text=True) as sink:
            try:
                first = _first_line(sink)
                text = CONFIGURATION.format(directory=directory, port=first["port"], dns=first["dns"])
                (directory / "outrider.toml").write_text(text, encoding="utf-8")
                status = _send(directory)
            finally:
                sink.send_signal(signal.SIGTERM)
            counts = _last_line(sink)
        proved = _count_proved(directory / "main.log")
    return _verdict(status, counts, proved, count, directory if keep else None)


def _send(directory: Path) -> int:
    arguments = ["send", "--config", "outrider.toml", "--from", "demo@sender.example", "--recipients", "recipients.csv"]
    arguments += ["--message", "message.eml", "--template"]
    _say(f"the send:  outrider {shlex.join(arguments)}")
    return subprocess.run([*own_command(), *arguments, "--wait"], cwd=directory, check=False).returncode


def _count_proved(log: Path) -> int:
    """Deliveries whose line in the main log says that DANE proved the host."""
    if not log.exists():
        return 0
    with log.open(encoding="utf-8") as lines:
        return sum(" => " in line and " CV=dane " in line for line in lines)


def _verdict(status: int, counts: dict[str, Any], proved: int, count: int, kept: Path | None) -> int:
    print()
    _say(
        f"the sink counted {counts['messages']:,} messages for {counts['unique']:,} recipients over"
        f" {counts['tls_connections']:,} TLS connections, {counts['duplicates']:,} of them twice"
    )
    if kept is not None:
        _say(f"all of it is in {kept}: the queue, the main log, the same as JSON, the configuration")
    agree = counts["messages"] == counts["unique"] == proved == count and counts["duplicates"] == 0
    if status == Exit.OK and agree:
        _say(f"both sides agree: {count:,} recipients, each delivered once, to a host that DANE proved")
        return Exit.OK
    _say(f"the two sides do not agree: {count:,} were to be delivered, and the send ended with status {status}")
    return status or Exit.UNAVAILABLE


def _say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def _write_recipients(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["email", "name", "city", "number"])
        for number in range(1, count + 1):
            name, city = _NAMES[number % len(_NAMES)], _CITIES[number % len(_CITIES)]
            writer.writerow([f"user{number}@d{number % 50}.example", name, city, number])


def _first_line(sink: subprocess.Popen[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(_output(sink).readline() or "{}")
    if "port" not in line:
        raise SystemExit(Exit.UNAVAILABLE)
    return line


def _last_line(sink: subprocess.Popen[str]) -> dict[str, Any]:
    rest = _output(sink).read()
    sink.wait(SINK_TIMEOUT_S)
    counts: dict[str, Any] = json.loads(rest.strip().splitlines()[-1])
    return counts


def _output(sink: subprocess.Popen[str]) -> IO[str]:
    assert sink.stdout is not None
    return sink.stdout


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    path = Path(tempfile.mkdtemp(prefix="outrider-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

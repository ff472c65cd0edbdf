"""Our main log beside that of a real Exim: the same happening, told of by both, line by line (LG-1 to LG-6).

A real Exim delivers to a server that answers as scripted.  From what it wrote come the facts; our format must make the
same line of them, all but the time.
"""

from __future__ import annotations

import re
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from engine.logs.facts import ConnectionFacts, Fact, FactKind
from engine.logs.mainlog import SELECTORS, MainLogFormat, parse_selector
from fakes.patience import PATIENCE_S
from fakes.peer_exim import Exim
from fakes.peers import PeerTls, Place, peer_path

_CONFIGURATION = """\
primary_hostname = shape.test
spool_directory = {spool}
log_file_path = {spool}/%slog
keep_environment =
exim_path = {binary}
tls_advertise_hosts =
log_selector = {selector}
begin routers
r1:
  driver = manualroute
  transport = t1
  domains = *.routed.test
  route_list = * 127.0.0.1::{port} byname
  self = send
begin transports
t1:
  driver = smtp
  hosts_try_dane =
begin retry
* * F,1h,1m
"""

#: our selectors, as Exim has them; nothing else is on
_ALL = " ".join(f"+{name}" for name in SELECTORS if name != "dnssec") + " +incoming_interface"
_NONE = "-all"


class _Scripted(socketserver.StreamRequestHandler):
    """Answers each command as `replies` says, by its first word, or by a local part inside it."""

    replies: Mapping[bytes, bytes] = {}

    def handle(self) -> None:
        self._say(self.replies.get(b"banner", b"220 scripted"))
        in_data = False
        for line in self.rfile:
            word = line[:4].upper()
            if in_data:
                in_data = line != b".\r\n"
                if not in_data:
                    self._say(self.replies.get(b".", b"250 ok"))
            elif word == b"EHLO":
                self._say(b"250-scripted\r\n250 PIPELINING")
            elif word == b"QUIT":
                self._say(b"221 bye")
                return
            else:
                special = next((reply for key, reply in self.replies.items() if key + b"@" in line), b"")
                reply = special or self.replies.get(word, b"354 go on" if word == b"DATA" else b"250 ok")
                in_data = word == b"DATA" and reply.startswith(b"3")
                self._say(reply)

    def _say(self, text: bytes) -> None:
        self.wfile.write(text + b"\r\n")
        self.wfile.flush()


@pytest.fixture
def scripted() -> Iterator[Callable[[Mapping[bytes, bytes]], int]]:
    """Start a server with these replies; gives its port."""
    servers: list[socketserver.ThreadingTCPServer] = []

    def start(replies: Mapping[bytes, bytes]) -> int:
        handler = type("Handler", (_Scripted,), {"replies": replies})
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        port: int = server.server_address[1]
        return port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def exim_log() -> Iterator[Callable[..., list[str]]]:
    """Let Exim deliver one message to `recipients`; gives the lines of its main log about deliveries."""
    places: list[Place] = []
    binary = peer_path("exim", "usr/sbin/exim4")

    def deliver(port: int, *recipients: str, selector: str) -> list[str]:
        place = Place(["Debian-exim"])
        places.append(place)
        spool = place.directory("spool", owner="Debian-exim")
        text = _CONFIGURATION.format(spool=spool, binary=binary, selector=selector, port=port)
        configuration = place.file("exim.conf", text)

        def run(*arguments: str) -> None:
            subprocess.run(
                [str(binary), "-C", str(configuration), *arguments],
                input=b"Subject: shape\n\nhello\n",
                env=place.environment,
                cwd="/",
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )

        run("-odq", "-f", "s@from.test", "--", *recipients)
        run("-qf")
        log = Path(spool, "mainlog").read_text(errors="surrogateescape")
        return [line for line in log.splitlines() if re.search(r"^\S+ \S+ \S+ (=>|->|==|\*\*|H=|Completed)", line)]

    yield deliver
    for place in places:
        place.remove()


def optional(line: str, pattern: str) -> str:
    """The first group of `pattern` in `line`, or ""."""
    match = re.search(pattern, line)
    return match[1] if match else ""


def facts_of(line: str) -> Fact:
    """What a line of Exim tells, as our value; the times are read, the rest is taken apart by its marks."""
    message_id, rest = line.split(" ", 3)[2:]
    mark, _, rest = rest.partition(" ")
    kind = {
        "=>": FactKind.DELIVERED, "->": FactKind.DELIVERED, "==": FactKind.DEFERRED, "**": FactKind.FAILED,
        "Completed": FactKind.COMPLETED,
    }.get(mark, FactKind.HOST)  # fmt: skip
    if kind is FactKind.HOST:
        rest = f"{mark} {rest}"
    connection = None
    host = re.search(r"H=(\S+) \[([^]]*)\](?::(\d+))?", rest)
    if host:
        connection = ConnectionFacts(
            host=host[1],
            address=host[2],
            port=int(host[3] or 25),
            local_address=optional(rest, r" I=(\S+:\d+)"),
            tls_version=optional(rest, r" X=([^:]*):"),
            cipher=optional(rest, r" X=[^:]*:([^:]*):"),
            bits=int(optional(rest, r" X=[^:]*:[^:]*:(\d+)") or 0),
            verified=optional(rest, r" CV=(\w+)"),
            peer_dn=optional(rest, r' DN="([^"]*)"'),
        )
    text = optional(rest, r"((?:SMTP error|Unrouteable|Remote host|retry time).*?)(?: DT=\S+s)?$")
    if kind is FactKind.DELIVERED:
        text = optional(rest, r' C="((?:[^"\\]|\\.)*)"').replace('\\"', '"').replace("\\\\", "\\")
    return Fact(
        kind=kind,
        at=0.0,
        message_id=message_id,
        address=rest.split(" ")[0].rstrip(":"),
        sender="s@from.test",
        router=optional(rest, r" R=([^ :]+)"),
        transport=optional(rest, r" T=([^ :]+)"),
        connection=connection,
        text=text,
        errno=111 if rest.endswith("Connection refused") else int(optional(rest, r" defer \((-?\d+)\)") or 0),
        size_octets=int(optional(rest, r" S=(\d+)") or 0),
        first=mark != "->",
        pipelined=" L " in f"{rest} ",
        chunked=" K " in f"{rest} ",
        with_host=host is not None,
        queue_time_s=float(optional(rest, r" ?QT=([\d.]+)s") or 0),
        deliver_time_s=float(optional(rest, r" DT=([\d.]+)s") or 0),
    )


def ours(line: str, selector: str) -> str:
    """The line that we write about what `line` tells, with the time of Exim's."""
    log = MainLogFormat(parse_selector(_ALL.replace("+incoming_interface", "") if selector == _ALL else "-all"))
    written = log.line(facts_of(line))
    stamp = " ".join(line.split(" ")[:2])
    return f"{stamp} {written.split(' ', 2)[2]}"


@pytest.mark.parametrize("selector", [_ALL, _NONE], ids=["all", "none"])
def test_outcomes_by_recipient(selector: str, scripted: Callable[..., int], exim_log: Callable[..., list[str]]) -> None:
    port = scripted({
        b"fail": b'550 5.1.1 no "such" \\ user', b"defer": b"451-4.2.2 later\r\n451 4.2.2 \x1b[31mred",
        b".": b'250 2.0.0 taken "as" \\7',
    })  # fmt: skip
    lines = exim_log(
        port, "a@x.routed.test", "b@x.routed.test", "fail@x.routed.test", "defer@x.routed.test", "c@nowhere.test",
        selector=selector,
    )  # fmt: skip
    assert sorted(line.split(" ")[3] for line in lines) == ["**", "**", "->", "==", "=>"]
    assert [ours(line, selector) for line in lines] == lines


@pytest.mark.parametrize("selector", [_ALL, _NONE], ids=["all", "none"])
@pytest.mark.parametrize(
    "replies",
    [
        {},
        {b"banner": b"554 go away"},
        {b"banner": b"421 not now"},
        {b"MAIL": b"451 not now"},
        {b"MAIL": b"550 never"},
        {b"DATA": b"451 not now"},
        {b".": b"451 not now"},
        {b".": b"554 spam"},
    ],
    ids=str,
)
def test_outcomes_of_a_message_and_a_host(
    replies: Mapping[bytes, bytes], selector: str, scripted: Callable[..., int], exim_log: Callable[..., list[str]]
) -> None:
    lines = exim_log(scripted(replies), "a@x.routed.test", selector=selector)
    assert lines
    assert [ours(line, selector) for line in lines] == lines


@pytest.mark.parametrize("selector", [_ALL, _NONE], ids=["all", "none"])
def test_a_refused_connection(selector: str, exim_log: Callable[..., list[str]]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else gets the port
        lines = exim_log(nobody.getsockname()[1], "a@x.routed.test", selector=selector)
    assert [line.split(" ")[3].partition("=")[0] for line in lines] == ["H", ""]
    assert [ours(line, selector) for line in lines] == lines


@pytest.mark.parametrize("selector", [_ALL, _NONE], ids=["all", "none"])
def test_a_delivery_over_tls(selector: str, real_exim: Callable[..., Exim], exim_log: Callable[..., list[str]]) -> None:
    receiver = real_exim(tls=PeerTls.issue("receiver.test"))
    lines = exim_log(receiver.port, "a@x.routed.test", "b@x.routed.test", selector=selector)
    assert [line.split(" ")[3] for line in lines] == ["=>", "->", "Completed"]
    if selector == _ALL:
        assert " X=TLS1" in lines[0]
        assert " CV=no DN=" in lines[0]
    assert [ours(line, selector) for line in lines] == lines

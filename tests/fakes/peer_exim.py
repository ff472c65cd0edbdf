"""Exim: as a receiver that queues everything, and as the oracle for string expansion.

Run as `exim -C FILE -bdf`, with `queue_only`: each accepted message is a pair of spool files, ``ID-H`` (envelope and
header) and ``ID-D`` (body), whose layout is the chapter "Format of spool files" of Exim's specification.  Runs as root
(dropping to a made-up Debian-exim) or as a normal user.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fakes.patience import PATIENCE_S
from fakes.peers import (
    PeerTls,
    Place,
    Process,
    Receiver,
    StoredMessage,
    crlf,
    natural_files,
    peer_path,
    split_trace,
    start_with_retries,
    wait_for_smtp,
)

_USER = "Debian-exim"

_CONFIGURATION = """\
primary_hostname = {hostname}
spool_directory = {spool}
log_file_path = {spool}/%slog
pid_file_path = {spool}/exim.pid
notifier_socket =
# where it finds itself, its libraries and its users when it starts itself again, as another user
exim_path = {binary}
keep_environment = LD_LIBRARY_PATH : LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
local_interfaces = <; {host}
daemon_smtp_ports = {port}

# keep what arrives, and deliver none of it
queue_only
queue_only_override = false
split_spool_directory
message_logs = false
check_spool_space = 0
check_spool_inodes = 0

# no question to anybody
host_lookup =
rfc1413_hosts =
rfc1413_query_timeout = 0s
helo_allow_chars = _

# no limit that a bulk sender could meet by accident
smtp_accept_max = 0
smtp_accept_max_per_connection = 100000000
smtp_accept_queue = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 256
smtp_reserve_hosts =
recipients_max = 100000
message_size_limit = 200M

# but every rule of the protocol
smtp_enforce_sync
smtputf8_advertise_hosts = *
pipelining_advertise_hosts = *
chunking_advertise_hosts = *
dsn_advertise_hosts = *
log_selector = {log_selector}
{tls}
acl_smtp_rcpt = accept
acl_smtp_data = accept
{extra}
"""


class Exim(Receiver):
    """A real Exim; see `Receiver`."""

    name = "exim"
    log_selector = "+all -arguments -pid"
    complaint_marks = (
        "synchronization error",
        "protocol violation",
        "SMTP syntax error",
        "SMTP protocol error",
        "unexpected disconnection",
        "lost while reading message data",
        "TLS error",
        "rejected",
        "too many",
    )

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        hostname: str = "exim.test",
        tls: PeerTls | None = None,
        extra: str = "",
    ) -> None:
        super().__init__(host=host, port=port, hostname=hostname, tls=tls, extra=extra)
        package = peer_path("exim", "usr/sbin/exim4")
        self._place = Place([_USER])
        # without the set-user-ID bit, with which the loader would not look at our libraries
        self._binary = self._place.file("exim4", package.read_bytes(), mode=0o755)
        self.spool = self._place.directory("spool", owner=_USER)
        start_with_retries(self, fixed_port=port != 0)

    @property
    def place(self) -> Place:
        return self._place

    def start(self) -> None:
        tls = "tls_advertise_hosts ="
        if self.tls is not None:
            chain = self._place.file("chain.pem", self.tls.chain_pem)
            key = self._place.file("key.pem", self.tls.key_pem, owner=_USER, mode=0o600)
            tls = f"tls_advertise_hosts = *\ntls_certificate = {chain}\ntls_privatekey = {key}"
        text = _CONFIGURATION.format(
            hostname=self.hostname,
            binary=self._binary,
            spool=self.spool,
            host=self.host,
            port=self.port,
            tls=tls,
            log_selector=self.log_selector,
            extra=self.extra,
        )
        self._configuration = self._place.file("exim.conf", text)
        self.process = Process(
            [self._binary, "-C", self._configuration, "-bdf"], self._place.environment, self._place.path / "output"
        )
        wait_for_smtp(self.host, self.port, self.process, "Exim")

    def run_queue(self, how: str) -> None:
        """Deliver what it keeps, in a process that ends with that; `how` is ``-qf``, ``-qqf`` …"""
        command = [str(self._binary), "-C", str(self._configuration), how]
        with (self._place.path / "output").open("ab") as output:
            subprocess.run(
                command, env=self._place.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True
            )

    def log_text(self) -> str:
        return "".join(
            path.read_text(errors="replace")
            for path in (self.spool / "mainlog", self.spool / "rejectlog", self.spool / "paniclog")
            if path.exists()
        )

    def count(self) -> int:
        return sum(1 for _ in natural_files(self.spool / "input", "-H"))

    def messages(self) -> list[StoredMessage]:
        found = [_read_spool(path) for path in natural_files(self.spool / "input", "-H")]
        return sorted(found, key=lambda message: message.id)


def _read_spool(header_file: Path) -> StoredMessage:
    """Read one message from its -H and -D files.

    Raises:
        ValueError: a file is not of the documented format.
    """
    text = header_file.read_bytes()
    data = header_file.with_name(header_file.name[:-1] + "D").read_bytes()
    message_id, _, rest = text.partition(b"\n")
    if message_id != header_file.name.encode() or not data.startswith(message_id[:-1] + b"D\n"):
        raise ValueError(f"{header_file}: not a spool file of its name")
    lines, _, header = rest.partition(b"\n\n")
    envelope = lines.split(b"\n")
    sender = envelope[1].removeprefix(b"<").removesuffix(b">")
    # Options, one a line, start with "-"; then comes the tree of those done ("XX": nobody), the count, the recipients.
    tree = envelope.index(b"XX")
    count = int(envelope[tree + 1])
    recipients = [_recipient(line) for line in envelope[tree + 2 :]]
    if len(recipients) != count:
        raise ValueError(f"{header_file}: {len(recipients)} recipients where {count} are announced")
    fields = bytearray()
    position = 0
    while position < len(header):
        # "NNNF text": octets of the text, then a flag; "*" marks a field that was deleted.
        digits, flag = header[position : position + 3], header[position + 3 : position + 4]
        size = int(digits)
        position += 5
        if flag != b"*":
            fields += header[position : position + size]
        position += size
    body = data[len(message_id) + 1 :]
    added, octets = split_trace(crlf(bytes(fields)) + b"\r\n" + crlf(body))
    return StoredMessage(message_id[:-2].decode(), sender, tuple(recipients), added, octets)


def _recipient(line: bytes) -> bytes:
    """The address of a recipient line, which may carry DSN parameters and lengths behind it: "… #3" and "#1"."""
    address, separator, tail = line.rpartition(b"#")
    if not separator or not tail.isdigit():
        return line
    words = address.rstrip().split(b" ")
    return words[0]


class EximOracle:
    """`exim -be`: what Exim makes of a string.

    Args:
        configuration: main section and whatever follows it, such as named lists, macros or ACLs.
        files: name -> content, written before Exim starts; `{dir}` in `configuration` and in the expressions given to
            `expand` stands for their directory.
        message: a message file for ``-bem`` instead of ``-be``: header and body, LF line ends.
    """

    def __init__(
        self,
        configuration: str = "",
        *,
        files: Mapping[str, str | bytes] | None = None,
        message: bytes | None = None,
    ) -> None:
        self._binary = peer_path("exim", "usr/sbin/exim4")
        self.place = Place([_USER])
        self.directory = self.place.directory("files", owner=_USER)
        spool = self.place.directory("spool", owner=_USER)
        for name, content in (files or {}).items():
            self.place.file(f"files/{name}", content)
        head = f"spool_directory = {spool}\nlog_file_path = {spool}/%slog\nkeep_environment =\n"
        if "primary_hostname" not in configuration:
            head += "primary_hostname = oracle.test\n"
        self._configuration = self.place.file("exim.conf", head + configuration.replace("{dir}", str(self.directory)))
        self._message = self.place.file("message", message) if message is not None else None

    def expand(self, expressions: Sequence[str | bytes], *, timeout_s: float = 60.0) -> list[bytes]:
        """Expand each expression, in one run, in order.

        An expression is one line for Exim: it must hold no newline, nor end with a backslash, which would join it to
        the next.  A result may hold newlines.  A failure is the text that Exim prints: ``Failed: …``.

        Raises:
            ValueError: an expression is not one line.
            RuntimeError: Exim did not give one result for each expression; the text has its output.
        """
        lines: list[bytes] = []
        for number, expression in enumerate(expressions):
            line = expression.encode() if isinstance(expression, str) else expression
            if b"\n" in line or line.endswith(b"\\"):
                raise ValueError(f"not one line: {line!r}")
            lines += [line.replace(b"{dir}", str(self.directory).encode()), _marker(number)]
        command: list[str | Path] = [self._binary, "-C", self._configuration]
        command += ["-bem", self._message] if self._message else ["-be"]
        result = subprocess.run(
            [str(word) for word in command],
            env=self.place.environment,
            input=b"\n".join(lines) + b"\n",
            capture_output=True,
            timeout=timeout_s,
            cwd="/",
            check=False,
        )
        outputs: list[bytes] = []
        rest = result.stdout
        for number in range(len(expressions)):
            # Standard input is no terminal, and Exim still prompts: "> " in front of each result.
            before, found, rest = rest.partition(b"> " + _marker(number) + b"\n")
            if not found:
                raise RuntimeError(
                    f"exim -be gave no result {number} for {expressions[number]!r} (status {result.returncode}):"
                    f" {before[-500:]!r} {result.stderr[-500:]!r}"
                )
            outputs.append(before.removeprefix(b"> ").removesuffix(b"\n"))
        return outputs

    def answer(self, *arguments: str) -> str:
        """What Exim prints for other arguments, such as ``-brt``, both streams in one text."""
        result = subprocess.run(
            [str(self._binary), "-C", str(self._configuration), *arguments],
            env=self.place.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE_S,
            cwd="/",
            check=False,
        )
        return result.stdout

    def close(self) -> None:
        """Delete its files."""
        self.place.remove()

    def __enter__(self) -> EximOracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _marker(number: int) -> bytes:
    return f"=-=-{os.getpid()}-{number}-=-=".encode()

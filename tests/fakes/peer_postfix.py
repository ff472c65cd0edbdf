"""Postfix as a receiver that holds everything.

Run as `master -s` from the unpacked package (its own `daemon_directory`, `shlib_directory` and library path) with a
main.cf and master.cf made here; only root can run it.  Every message gets the action HOLD, so each accepted one is a
complete file in the hold queue, read here by the record format of Postfix's ``src/global/rec_type.h`` (a type octet, a
length in base-128 with the low group first, the data).  Postfix keeps addresses in internal form: a recipient
``"a b"@example.test`` is read back as ``a b@example.test``.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

from fakes.patience import PATIENCE_S
from fakes.peers import (
    PeerTls,
    Place,
    Process,
    Receiver,
    StoredMessage,
    natural_files,
    peer_path,
    require,
    split_trace,
    start_with_retries,
    wait_for_smtp,
)

_MAIN = """\
compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
daemon_directory = {package}/usr/lib/postfix/sbin
command_directory = {package}/usr/sbin
shlib_directory = {package}/usr/lib/postfix
meta_directory = {place}
mail_owner = postfix
setgid_group = postdrop
default_privs = nobody
import_environment = MAIL_CONFIG TZ LC_ALL PATH LD_LIBRARY_PATH LD_PRELOAD
    NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP POSTLOG_SERVICE POSTLOG_HOSTNAME
maillog_file = {place}/log
maillog_file_prefixes = {place}
myhostname = {hostname}
inet_interfaces = {host}
inet_protocols = all
default_database_type = static

# keep what arrives, and deliver none of it
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_recipient_restrictions = check_client_access static:HOLD, permit
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 0.0.0.0/0 [::]/0
enable_long_queue_ids = yes
in_flow_delay = 0
queue_minfree = 0

# change nothing
local_header_rewrite_clients =
message_drop_headers =
disable_mime_input_processing = yes
header_size_limit = 10000000

# no question to anybody
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
notify_classes =

# no limit that a bulk sender could meet by accident
default_process_limit = 100
smtpd_recipient_limit = 100000
message_size_limit = 209715200
smtpd_junk_command_limit = 1000000
max_use = 1000000

# but every rule of the protocol
smtpd_forbid_unauth_pipelining = yes
smtpd_forbid_bare_newline = yes
smtpd_forbid_bare_newline_exclusions =
smtpd_helo_required = yes
strict_rfc821_envelopes = yes
smtputf8_enable = yes
smtpd_tls_loglevel = 1
{tls}
{extra}
"""

_MASTER = """\
{host}:{port} inet n - n - 100 smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
smtp unix - - n - - smtp
retry unix - - n - - error
error unix - - n - - error
tlsmgr unix - - n 1000? 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
scache unix - - n - 1 scache
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_QUEUES = (
    "incoming", "active", "deferred", "bounce", "defer", "flush", "hold", "corrupt", "saved", "trace",
)  # fmt: skip


class Postfix(Receiver):
    """A real Postfix; see `Receiver`.  `extra` is lines of main.cf."""

    name = "postfix"
    complaint_marks = (
        "improper command pipelining",
        "warning:",
        "error:",
        "fatal:",
        "panic:",
        "lost connection",
        "timeout after",
        "too many errors",
        "reject:",
        "non-SMTP command",
        "bare <LF>",
        "NUL character",
        "SSL_accept error",
    )

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        hostname: str = "postfix.test",
        tls: PeerTls | None = None,
        extra: str = "",
    ) -> None:
        super().__init__(host=host, port=port, hostname=hostname, tls=tls, extra=extra)
        self._binary = peer_path("postfix", "usr/lib/postfix/sbin/master")
        require(os.geteuid() == 0, "Postfix runs only as root")
        self._package = self._binary.parents[4]
        self._place = Place(["postfix"], ["postdrop"], [self._package / "usr/lib/postfix"])
        self._queue = self._place.directory("queue")
        for name in _QUEUES:
            self._place.directory(f"queue/{name}", owner="postfix", mode=0o700)
        self._place.directory("queue/pid")
        self._place.directory("queue/private", owner="postfix", mode=0o700)
        self._place.directory("queue/public", owner="postfix", group="postdrop", mode=0o710)
        self._place.directory("queue/maildrop", owner="postfix", group="postdrop", mode=0o730)
        self._place.directory("data", owner="postfix", mode=0o700)
        start_with_retries(self, fixed_port=port != 0)

    @property
    def place(self) -> Place:
        return self._place

    def start(self) -> None:
        tls = "smtpd_tls_security_level = none"
        if self.tls is not None:
            chain = self._place.file("chain.pem", self.tls.key_pem + b"\n" + self.tls.chain_pem, mode=0o600)
            tls = f"smtpd_tls_security_level = may\nsmtpd_tls_chain_files = {chain}"
        main = _MAIN.format(
            place=self._place.path,
            package=self._package,
            hostname=self.hostname,
            host=self.host,
            tls=tls,
            extra=self.extra,
        )
        master = _MASTER.format(host=self.host, port=self.port)
        for path in (self._place.file("main.cf", main), self._place.file("master.cf", master)):
            # Postfix reads a file of the last two seconds again and again, in case somebody is still writing it
            os.utime(path, (time.time() - 60, time.time() - 60))
        self.process = Process(
            [self._binary, "-s", "-c", self._place.path], self._environment(), self._place.path / "output"
        )
        wait_for_smtp(self.host, self.port, self.process, "Postfix")

    def _environment(self) -> dict[str, str]:
        return {**self._place.environment, "MAIL_CONFIG": str(self._place.path)}

    def control(self, name: str, *words: str) -> str:
        """What one of its commands (`postsuper`, `postqueue` …) prints.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        command = [str(self._package / "usr/sbin" / name), *words]
        return subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=True, cwd="/"
        ).stdout

    def queued(self, *queues: str) -> int:
        """How many files are in these of its queues, such as ``hold``."""
        return sum(1 for queue in queues for _ in natural_files(self._queue / queue))

    def log_text(self) -> str:
        log = self._place.path / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def count(self) -> int:
        return len(self._held())

    def messages(self) -> list[StoredMessage]:
        return [_read_queue_file(path) for path in self._held()]

    def _held(self) -> list[Path]:
        # cleanup sets the execute bit when a file is complete, just before it answers
        return sorted(path for path in natural_files(self._queue / "hold") if path.stat().st_mode & stat.S_IXUSR)


def _read_queue_file(path: Path) -> StoredMessage:
    """Read one message from its queue file.

    Raises:
        ValueError: the file is not of the documented format.
    """
    data = path.read_bytes()
    sender: bytes | None = None
    recipients: list[bytes] = []
    content = bytearray()
    in_content = False
    position = 0
    while position < len(data):
        kind = data[position : position + 1]
        position += 1
        size = shift = 0
        while True:
            octet = data[position]
            position += 1
            size |= (octet & 0x7F) << shift
            shift += 7
            if not octet & 0x80:
                break
        value = data[position : position + size]
        if len(value) != size:
            raise ValueError(f"{path}: a record of {size} octets ends early")
        position += size
        if kind == b"M":
            in_content = True
        elif kind == b"X":
            in_content = False
        elif kind == b"N" and in_content:
            content += value + b"\r\n"
        elif kind == b"L" and in_content:
            content += value
        elif kind == b"S":
            sender = value
        elif kind == b"R":
            recipients.append(value)
        elif kind == b"E":
            break
    else:
        raise ValueError(f"{path}: no end record")
    if sender is None or not recipients:
        raise ValueError(f"{path}: no envelope")
    added, octets = split_trace(bytes(content))
    return StoredMessage(path.name, sender, tuple(recipients), added, octets)

"""Run real servers for the tests: where they are, who they run as, how they start and end.

The servers come from Debian's packages, unpacked by `.ci/install-peers` into `.peers/` (or `$OUTRIDER_PEERS`); tests
never call apt.  Each one runs from its folder with a configuration that the test wrote, in a temporary directory and on
a loopback port of its own, with made-up users (nss_wrapper) and without fsync (libeatmydata).  One file a peer:
`peer_exim`, `peer_postfix`, `peer_opensmtpd`; name servers are in `dnssec`.

Invariants: what a test started is ended by its own process handle, with everything that shares its session; no wait is
without a bound; a missing server skips the test on a user's machine and fails it where CI=true.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import trustme

from fakes.patience import PATIENCE_S

PROJECT = Path(__file__).resolve().parents[2]

#: how long a server may take to end after SIGTERM before it gets SIGKILL, in seconds
STOP_S = 5.0
#: the first ports of blocks for `free_port`; arbitrary, below the 32,768 at which Linux begins to hand out ports
_BLOCKS = range(10_000, 32_000, 200)
#: made-up uid of the first service user; far above any that a Debian machine hands out by itself
FIRST_UID = 61_001


def in_ci() -> bool:
    """True where a missing server is an error: the environment says CI=true."""
    return os.environ.get("CI", "").lower() in {"true", "1"}


def require(condition: object, reason: str) -> None:
    """Go on only if `condition` holds: otherwise skip the test, or fail it where CI=true.

    Args:
        condition: anything; its truth counts.
        reason: what is missing and how to get it; shown to the user.
    """
    if condition:
        return
    if in_ci():
        pytest.fail(f"required in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def require_service(host: str, port: int, name: str) -> None:
    """Go on only if something accepts connections at `host`:`port` (PostgreSQL, MariaDB, Redis, NATS …)."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError as error:
        require(False, f"no {name} at {host}:{port} ({error})")


# --- where the servers are --------------------------------------------------------------------------------------------


def peers_directory() -> Path:
    """The folder that `.ci/install-peers` fills."""
    return Path(os.environ.get("OUTRIDER_PEERS") or PROJECT / ".peers")


def peer_path(folder: str, relative: str) -> Path:
    """The path of a peer's file, such as ``peer_path("exim", "usr/sbin/exim4")``; skips or fails if it is missing."""
    path = peers_directory() / folder / relative
    require(path.exists(), f"{folder} is not here: run .ci/install-peers (Debian) to unpack the real servers")
    return path


def _library_folders() -> list[str]:
    root = peers_directory() / "lib"
    return [
        str(path) for pattern in ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib") for path in root.glob(pattern)
    ]


def _preload(name: str) -> str:
    return next((str(path) for path in (peers_directory() / "lib").glob(f"usr/lib/*/{name}")), "")


@dataclass(frozen=True, slots=True)
class User:
    """A made-up account.  For a test run that is not root it is the caller under another name."""

    name: str
    uid: int
    gid: int


class Place:
    """A temporary directory for one server, and the environment that its processes get.

    It lies directly in the system's temporary directory, open to all, since servers give up root and pytest's own
    directories are closed to other users.  Its path is short: names of Unix sockets end at 107 octets.
    """

    def __init__(
        self, users: Sequence[str] = (), groups: Sequence[str] = (), extra_libraries: Sequence[Path] = ()
    ) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="outrider-"))
        self.path.chmod(0o755)
        is_root = os.geteuid() == 0
        self.users: dict[str, User] = {}
        for number, name in enumerate(users):
            uid = FIRST_UID + number if is_root else os.getuid()
            self.users[name] = User(name, uid, uid if is_root else os.getgid())
        self.groups = {name: FIRST_UID + 100 + number if is_root else os.getgid() for number, name in enumerate(groups)}
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": ":".join([str(path) for path in extra_libraries] + _library_folders()),
        }
        preload = [_preload("libeatmydata.so")]
        if users or groups:
            self._write_accounts()
            preload.append(_preload("libnss_wrapper.so"))
        self.environment["LD_PRELOAD"] = " ".join(path for path in preload if path)

    def _write_accounts(self) -> None:
        caller = [] if os.geteuid() == 0 else [f"caller:x:{os.getuid()}:{os.getgid()}:::/bin/false"]
        passwd = ["root:x:0:0::/root:/bin/sh", "nobody:x:65534:65534::/:/bin/false"]
        passwd += [f"{user.name}:x:{user.uid}:{user.gid}::/nonexistent:/bin/false" for user in self.users.values()]
        group = ["root:x:0:", "mail:x:8:", "nogroup:x:65534:"]
        group += [f"{user.name}:x:{user.gid}:" for user in self.users.values()]
        group += [f"{name}:x:{gid}:" for name, gid in self.groups.items()]
        (self.path / "passwd").write_text("\n".join(passwd + caller) + "\n")
        (self.path / "group").write_text("\n".join(group) + "\n")
        self.environment["NSS_WRAPPER_PASSWD"] = str(self.path / "passwd")
        self.environment["NSS_WRAPPER_GROUP"] = str(self.path / "group")

    def directory(self, name: str, *, owner: str | None = None, group: str | None = None, mode: int = 0o755) -> Path:
        """Make the directory `name` below the place, for `owner` (a name given as user), with `mode`."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        self.own(path, owner, group)
        path.chmod(mode)
        return path

    def file(self, name: str, content: str | bytes, *, owner: str | None = None, mode: int = 0o644) -> Path:
        """Write the file `name` below the place."""
        path = self.path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.own(path, owner)
        path.chmod(mode)
        return path

    def own(self, path: Path, owner: str | None, group: str | None = None) -> None:
        """Give `path` to a made-up user or group; nothing happens without root, where all of them are the caller."""
        if os.geteuid() == 0 and (owner or group):
            os.chown(
                path,
                self.users[owner].uid if owner else -1,
                self.groups[group] if group else self.users[owner].gid if owner else -1,
            )

    def remove(self) -> None:
        """Delete everything; a process that is just ending may still write, so it is tried more than once."""
        for _ in range(20):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
            time.sleep(0.05)


# --- processes --------------------------------------------------------------------------------------------------------


@functools.cache
def _own_ports() -> Iterator[int]:
    """Ports that no other test process takes, again and again from the first.

    They lie below those that the kernel hands out: a port of its choice may be anybody's between the moment at which it
    is found and the one at which a server listens on it.  A process has a block of them for as long as it holds the
    block's first one.
    """
    for first in random.sample(_BLOCKS, len(_BLOCKS)):
        holder = socket.socket()
        try:
            holder.bind(("127.0.0.1", first))
        except OSError:
            holder.close()
            continue
        holder.detach()  # open until the process ends
        return itertools.cycle(range(first + 1, first + _BLOCKS.step))
    raise RuntimeError("no block of free ports")


def free_port(host: str = "127.0.0.1") -> int:
    """A port for TCP and UDP on which nobody listens, and which nobody else gets by chance."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in itertools.islice(_own_ports(), _BLOCKS.step):
        with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class Process:
    """A server process that leads its own session, so that whatever it forks ends with it."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], output: Path) -> None:
        self.output = output
        self.command = [str(word) for word in command]
        with output.open("ab") as sink:
            self._popen = subprocess.Popen(
                self.command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                cwd="/",
            )

    @property
    def pid(self) -> int:
        """The process id, which is the id of its session and process group as well."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._popen.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def stop(self, *, first_signal: int = signal.SIGTERM) -> None:
        """End the process and all of its session."""
        if self._popen.poll() is None:
            self._popen.send_signal(first_signal)
            try:
                self._popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
        # The group outlives its leader while a child is left; the id cannot be another's as long as it does.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(PATIENCE_S)


def wait_for_smtp(host: str, port: int, process: Process, what: str) -> None:
    """Wait until a server greets with 220, and leave politely.

    Raises:
        RuntimeError: it ended, or did not greet within `PATIENCE_S`; the text has its output.
    """
    deadline = time.monotonic() + PATIENCE_S
    error: Exception | None = None
    while time.monotonic() < deadline and process.returncode is None:
        try:
            with smtplib.SMTP(host, port, timeout=PATIENCE_S, local_hostname="readiness.test"):
                return
        except (OSError, smtplib.SMTPException) as exception:
            error = exception
            time.sleep(0.02)
    output = process.output.read_text(errors="replace")[-4000:] if process.output.exists() else ""
    status = process.returncode
    process.stop()
    raise RuntimeError(f"{what} did not start (exit status {status}, {error!r}):\n{output}")


# --- certificates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerTls:
    """What a peer shows in STARTTLS.

    Attributes:
        chain_pem: certificates, leaf first, exactly as they are to be sent.
        key_pem: the private key of the leaf.
        root_pem: the certificate that a client would trust; empty if nobody should.
    """

    chain_pem: bytes
    key_pem: bytes
    root_pem: bytes = b""

    @classmethod
    def issue(
        cls, *names: str, authority: trustme.CA | None = None, key_type: trustme.KeyType = trustme.KeyType.ECDSA
    ) -> Self:
        """A certificate for `names` (domain names or addresses) of a new authority, or of `authority`."""
        ca = authority or trustme.CA()
        leaf = ca.issue_cert(*(names or ("localhost", "127.0.0.1")), key_type=key_type)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return cls(chain, leaf.private_key_pem.bytes(), ca.cert_pem.bytes())


# --- receivers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as a receiver keeps it, one for each transaction that the receiver accepted.

    Attributes:
        id: the receiver's own name for it.
        sender: reverse-path without brackets; empty for ``<>``.
        recipients: forward-paths without brackets, in the order of the receiver.
        added: what the receiver put in front: its ``Received:`` field, with CRLF line ends.
        octets: the message as it was sent, with CRLF line ends and without dot-stuffing.
    """

    id: str
    sender: bytes
    recipients: tuple[bytes, ...]
    added: bytes
    octets: bytes

    @property
    def raw(self) -> bytes:
        """Everything that the receiver keeps."""
        return self.added + self.octets


def split_trace(raw: bytes) -> tuple[bytes, bytes]:
    """Split a kept message into the ``Received:`` field that the receiver put first, and what it was sent.

    Raises:
        ValueError: it does not start with such a field.
    """
    if raw[:9].lower() != b"received:":
        raise ValueError(f"no Received: field in front of {raw[:200]!r}")
    end = raw.find(b"\r\n") + 2
    while raw[end : end + 1] in {b" ", b"\t"}:
        end = raw.find(b"\r\n", end) + 2
    return raw[:end], raw[end:]


class Receiver(abc.ABC):
    """A real mail server that accepts everything and keeps it in its queue, where the test reads it.

    Nothing is ever delivered further: a message in the queue is what the server has answered 250 to, the file is there
    before that answer, and there is exactly one a transaction, with its envelope.  That is also by far the cheapest
    way to keep 10,000 messages.
    """

    #: the product, such as "exim"
    name: str = ""
    #: log lines that contain one of these tell of a client that does something wrong
    complaint_marks: tuple[str, ...] = ()

    def __init__(self, *, host: str, port: int, hostname: str, tls: PeerTls | None, extra: str) -> None:
        self.host = host
        self.port = port or free_port(host)
        self.hostname = hostname
        self.tls = tls
        self.extra = extra
        self.process: Process | None = None

    @property
    @abc.abstractmethod
    def place(self) -> Place:
        """Where its files are."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it, on the same port each time, and wait until it greets."""

    @abc.abstractmethod
    def count(self) -> int:
        """How many messages it has accepted."""

    @abc.abstractmethod
    def messages(self) -> list[StoredMessage]:
        """Every message that it has accepted and still keeps, in order of arrival as far as it knows one."""

    @abc.abstractmethod
    def log_text(self) -> str:
        """Everything that it has logged so far."""

    def complaints(self) -> list[str]:
        """The log lines that tell of a client that does something wrong; none is what a test wants."""
        return [line for line in self.log_text().splitlines() if any(mark in line for mark in self.complaint_marks)]

    def sync_files(self) -> None:
        """Let it really sync its files from its next start on."""
        libraries = self.place.environment["LD_PRELOAD"].split()
        self.place.environment["LD_PRELOAD"] = " ".join(path for path in libraries if "eatmydata" not in path)

    def stop(self) -> None:
        """End it; what it keeps stays until `close`."""
        if self.process is not None:
            self.process.stop()
            self.process = None
            # what was killed may keep the socket for a moment
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                try:
                    socket.create_connection((self.host, self.port), timeout=1.0).close()
                except ConnectionRefusedError:
                    return
                except OSError:
                    pass
                time.sleep(0.005)

    def close(self) -> None:
        """End it and delete its files."""
        self.stop()
        self.place.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_with_retries(receiver: Receiver, *, fixed_port: bool, tries: int = 3) -> None:
    """Start a receiver; if another process took its ephemeral port meanwhile, take another one.

    Raises:
        RuntimeError: it does not start.
    """
    for left in reversed(range(tries)):
        try:
            receiver.start()
            return
        except RuntimeError as error:
            if fixed_port or not left:
                error.add_note(f"its log: {receiver.log_text()[-4000:]}")
                receiver.close()
                raise
            receiver.port = free_port(receiver.host)


def crlf(lines: bytes) -> bytes:
    """Turn LF line ends into CRLF, leaving those that are CRLF already."""
    return lines.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def natural_files(directory: Path, suffix: str = "") -> Iterator[Path]:
    """Every file below `directory`, ignoring what vanishes while it is looked at."""
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.endswith(suffix):
                yield Path(folder, name)

"""Hand the worker's end of a transport over: a Unix socket, the descriptors, and whether the other side may have them.

Layer: adapter.  Spec: issue text "Workers": credentials checked, permission bits, one group a socket.
The worker connects (or was started with the socket); the engine sends sixteen octets, `MAGIC` and the kind of the
transport, with the descriptors beside them (SCM_RIGHTS).  From then on the socket says nothing: that it closes means
that the other side is gone, however it went.  Whoever is told how the process of a worker ended may have kept a copy of
its socket, and says so there before he closes it: ``signal 11`` or ``exit status 1``, in one write (endings.py).
Invariants: only the engine's own user, root and those that are named get a transport; a socket that another engine
listens on is left alone, one that a dead engine left is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import ActionError, FrameError
from .transport import DESCRIPTORS, open_end

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .transport import Transport

MAGIC: Final = b"OUTRIDER"
_GREETING: Final = struct.Struct("<8sII")
_LAYOUT: Final = 1
_CREDENTIALS: Final = struct.Struct("iII")
#: engines of one configuration that can listen for workers of one group
MAX_ENGINES: Final = 64
#: connections that wait to be accepted
_BACKLOG: Final = 64


class SocketInUse(ActionError):
    """Another engine listens there."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who is at the other end of a Unix socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


def credentials(sock: socket.socket) -> Credentials | None:
    """Who connected; None on a system that cannot tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return Credentials(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)))


def may_attach(who: Credentials | None, uids: Collection[int] = ()) -> bool:
    """Whether a worker of this user may have a transport; without credentials the permission bits have decided."""
    return who is None or who.uid in (0, os.geteuid()) or who.uid in uids


def listen(path: str, *, mode: int = 0o600, gid: int = -1) -> socket.socket:
    """A listening socket at `path`, replacing one that a dead engine left.

    Args:
        mode: permission bits; the socket cannot be connected to before it has them.
        gid: its group, -1 to leave that.

    Raises:
        SocketInUse: another engine listens there.
        ActionError: the path cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        os.chmod(path, mode)
        if gid != -1:
            os.chown(path, -1, gid)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ActionError(f"cannot listen on {path}: {error.strerror or error}") from None
    except ActionError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ActionError(f"cannot listen on {path}: it is there and no socket")
        if is_used(path):
            raise SocketInUse(f"cannot listen on {path}: another engine does")
        os.unlink(path)


def listen_free(path: str, *, mode: int = 0o600, gid: int = -1) -> tuple[socket.socket, str]:
    """As `listen`, at the first of ``path``, ``path.1``, ``path.2`` … where no other engine does; with that path."""
    for number in range(MAX_ENGINES):
        place = f"{path}.{number}" if number else path
        with contextlib.suppress(SocketInUse):
            return listen(place, mode=mode, gid=gid), place
    raise ActionError(f"cannot listen on {path}: {MAX_ENGINES} other engines do")


def is_used(path: str) -> bool:
    """Whether somebody listens at `path`, as far as we may know."""
    # of another type: who listens is not disturbed
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def paths(path: str) -> list[str]:
    """Where engines of one configuration may listen, as far as there is something: see `listen_free`."""
    places = (f"{path}.{number}" if number else path for number in range(MAX_ENGINES))
    return [place for place in places if os.path.exists(place)]


def hand_over(sock: socket.socket, kind: int, descriptors: Sequence[int]) -> None:
    """Send a transport, and close our copies of its descriptors.  Raises ActionError if the other side is gone."""
    try:
        # a socket that has said nothing yet takes so little at once
        socket.send_fds(sock, [_GREETING.pack(MAGIC, _LAYOUT, kind)], list(descriptors))
    except OSError as error:
        raise ActionError(f"the worker went before it had its transport: {error.strerror or error}") from None
    finally:
        for fd in descriptors:
            os.close(fd)


def receive(sock: socket.socket, *, timeout_s: float = 30.0) -> Transport:
    """What a worker does: take a transport from the engine.

    Raises:
        ActionError: nothing came, or nothing of this version.
        FrameError: what came is no transport.
    """
    sock.settimeout(timeout_s)
    try:
        octets, descriptors, _, _ = socket.recv_fds(sock, _GREETING.size, 8)
    except OSError as error:
        raise ActionError(f"the engine gave no transport: {error.strerror or error}") from None
    for fd in descriptors:
        os.set_inheritable(fd, False)
    if not octets:
        raise ActionError("the engine refused this worker")
    if len(octets) != _GREETING.size:
        return _refuse(descriptors, "the engine's greeting is cut off")
    magic, layout, kind = _GREETING.unpack(octets)
    if magic != MAGIC or layout != _LAYOUT or kind not in DESCRIPTORS:
        return _refuse(descriptors, "the engine speaks another version")
    return open_end(kind, descriptors)


def _refuse(descriptors: Sequence[int], problem: str) -> Transport:
    for fd in descriptors:
        os.close(fd)
    raise FrameError(problem)


def connect(path: str) -> socket.socket:
    """Connect to an engine.  Raises ActionError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise ActionError(f"no engine at {path}: {error.strerror or error}") from None
    return sock

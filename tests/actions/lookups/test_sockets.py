"""Sockets that give up in time."""

from __future__ import annotations

import select
import socket
import time
from pathlib import Path

import pytest

from engine.actions.lookups.sockets import BoundedSocket, connect, is_quiet, wait_for
from fakes.peers import free_port


def pair() -> tuple[BoundedSocket, socket.socket]:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        ours = connect("127.0.0.1", listener.getsockname()[1], "", 5.0)
        theirs, _ = listener.accept()
    return ours, theirs


def test_a_read_ends_at_the_deadline_whatever_the_library_sets() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.limit(0.05, 100)
        ours.settimeout(None)
        with pytest.raises(TimeoutError):
            ours.recv(10)
        assert ours.is_late
        theirs.sendall(b"too late")
        with pytest.raises(TimeoutError):
            ours.recv_into(bytearray(10))
        with pytest.raises(TimeoutError):
            ours.sendall(b"x")
        ours.limit(5.0, 100)
        assert ours.recv(3) == b"too"


def test_octets_are_counted_over_all_reads() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.limit(5.0, 10)
        theirs.sendall(b"x" * 11)
        buffer = bytearray(4)
        assert ours.recv_into(buffer) == 4
        assert ours.recv(6) == b"x" * 6
        assert not ours.is_exhausted
        with pytest.raises(OSError, match="more than may be sent"):
            ours.recv(1)
        assert ours.is_exhausted


def test_the_limits_hold_through_a_file_object() -> None:
    ours, theirs = pair()
    with ours, theirs, ours.makefile("rb") as file:
        ours.limit(5.0, 100_000)
        theirs.sendall(b"line\n" + b"x" * 20)
        assert file.readline() == b"line\n"
        ours.limit(0.05, 100)
        with pytest.raises(TimeoutError):
            file.read(100)


def test_a_full_peer_ends_a_write_at_the_deadline() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.limit(0.05, 0)
        with pytest.raises(TimeoutError):
            ours.sendall(b"x" * 50_000_000)


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        connect("127.0.0.1", free_port(), "", 5.0)
    with pytest.raises(FileNotFoundError):
        connect("", 0, str(tmp_path / "none"), 5.0)
    with pytest.raises(socket.gaierror, match="Name or service not known"):
        connect("name.invalid..", 80, "", 5.0)


def test_a_server_whose_queue_is_full_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with connect("", 0, path, 5.0), pytest.raises((TimeoutError, BlockingIOError)):
            connect("", 0, path, 0.05).close()


def test_waiting_and_quiet() -> None:
    ours, theirs = pair()
    with ours, theirs:
        assert is_quiet(ours.fileno())
        assert not wait_for(ours.fileno(), select.POLLIN, time.monotonic() + 0.01)
        theirs.sendall(b"x")
        assert wait_for(ours.fileno(), select.POLLIN, time.monotonic() + 5)
        assert not is_quiet(ours.fileno())
        ours.limit(5.0, 10)
        ours.recv(1)
        theirs.close()
        assert wait_for(ours.fileno(), select.POLLIN, time.monotonic() + 5)
        assert not is_quiet(ours.fileno())

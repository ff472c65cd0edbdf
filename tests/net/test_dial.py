"""Connecting: engine/net/dial.py.  Loopback only."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
import trio

from engine.errors import DeliveryError, Scope
from engine.net.dial import CONNECT_TIMEOUT_FLAG, dial
from fakes.patience import PATIENCE_S


def listening(address: str = "127.0.0.1", backlog: int = 8) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.bind((address, 0))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    try:
        made = listening(request.param)
    except OSError as error:
        pytest.skip(f"{request.param} cannot be used here: {error}")
    with made:
        yield made


async def test_a_connection_is_tuned_and_knows_its_ends(listener: socket.socket) -> None:
    address, port = listener.getsockname()[:2]
    stream = await dial(address, port, timeout_s=PATIENCE_S)
    async with stream:
        assert stream.socket.getpeername()[:2] == (address, port)
        assert stream.socket.getsockname()[0] == address
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 hello\r\n")
            assert await stream.receive_some() == b"220 hello\r\n"


async def test_an_interface_is_bound_to() -> None:
    with listening() as listener:
        port = listener.getsockname()[1]
        # the whole of 127/8 is this machine
        async with await dial("127.0.0.1", port, timeout_s=PATIENCE_S, interface="127.0.0.3") as stream:
            assert stream.socket.getsockname()[0] == "127.0.0.3"


async def test_an_interface_that_is_not_ours_is_an_error_of_the_host() -> None:
    with listening() as listener, pytest.raises(DeliveryError) as caught:
        await dial("127.0.0.1", listener.getsockname()[1], timeout_s=PATIENCE_S, interface="192.0.2.1")
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_a_refused_connection() -> None:
    with listening() as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DeliveryError) as caught:
        await dial("127.0.0.1", port, timeout_s=PATIENCE_S)
    error = caught.value
    assert (error.message, error.errno, error.more_errno) == ("Connection refused", errno.ECONNREFUSED, 0)
    assert (error.retry_name, error.scope, error.permanent) == ("refused", Scope.HOST, False)


async def test_a_connection_that_takes_too_long() -> None:
    # A listener whose queue is full answers nothing.
    with listening(backlog=0) as listener:
        target = listener.getsockname()
        fillers = []
        try:
            for _ in range(20):
                filler = socket.socket()
                filler.setblocking(False)
                fillers.append(filler)
                filler.connect_ex(target)
            with pytest.raises(DeliveryError) as caught:
                await dial(*target, timeout_s=0.2)
        finally:
            for filler in fillers:
                filler.close()
    error = caught.value
    assert (error.message, error.errno) == ("Connection timed out", errno.ETIMEDOUT)
    assert (error.more_errno, error.retry_name) == (CONNECT_TIMEOUT_FLAG, "timeout_connect")


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("localhost", None),
        ("mx.example.org", None),
        ("", None),
        ("127.0.0.1 ", None),
        ("127.0.0.1:25", None),
        ("[::1]", None),
        ("::1", "127.0.0.1"),
        ("127.0.0.1", "::1"),
        ("127.0.0.1", "eth0"),
        ("fe80::1%no-such-interface", None),
        ("%", None),
    ],
)
async def test_what_is_not_an_address_is_no_name_either(address: str, interface: str | None) -> None:
    # No lookup happens here: routing has done all of them, with their DNSSEC status.
    with pytest.raises(ValueError, match=r"not an IP address|different families"):
        await dial(address, 25, timeout_s=1, interface=interface)


async def test_a_cancelled_dial_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    real = socket.socket

    def remember(*arguments: int) -> socket.socket:
        made.append(real(*arguments))
        return made[-1]

    with listening() as listener:
        monkeypatch.setattr(socket, "socket", remember)
        with trio.CancelScope() as scope:
            scope.cancel()
            await dial("127.0.0.1", listener.getsockname()[1], timeout_s=PATIENCE_S)
        monkeypatch.undo()
    assert scope.cancelled_caught
    assert [connection.fileno() for connection in made] == [-1]


async def test_no_descriptors_left_is_an_error_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(DeliveryError) as caught:
        await dial("127.0.0.1", 25, timeout_s=PATIENCE_S)
    monkeypatch.undo()
    assert (caught.value.scope, caught.value.errno) == (Scope.LOCAL, errno.EMFILE)

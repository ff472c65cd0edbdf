"""Errors of streams as losses of a connection."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from engine.net.losses import is_readable, local_address, receive, send_loss
from engine.net.tcp import TcpStream
from engine.smtp.failure import CLOSED, Loss, LossKind, loss_error
from engine.tls.engine import tls_error
from fakes.patience import PATIENCE_S
from fakes.tls_pairs import socket_pair


class Broken(trio.abc.ReceiveStream):
    """Raises what a stream raises."""

    def __init__(self, cause: BaseException | None) -> None:
        self.cause = cause

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise trio.BrokenResourceError("broken") from self.cause

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("cause", "loss"),
    [
        (ConnectionResetError(104, "reset"), CLOSED),
        (BrokenPipeError(32, "pipe"), CLOSED),
        (None, CLOSED),
        (tls_error("the peer closed the connection without close_notify"), CLOSED),
        (TimeoutError(110, "x"), Loss(LossKind.READ_FAILED, 110, "Connection timed out")),
        (OSError(113, "x"), Loss(LossKind.READ_FAILED, 113, "No route to host")),
        (tls_error("bad record mac"), Loss(LossKind.READ_FAILED, -18, "TLS session: bad record mac")),
    ],
)
async def test_what_ended_a_read(cause: BaseException | None, loss: Loss) -> None:
    found = await receive(Broken(cause))  # type: ignore[arg-type]
    assert found == loss


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (Loss(LossKind.READ_FAILED, 110, "Connection timed out"), "timeout"),
        (Loss(LossKind.READ_FAILED, -18, "TLS"), "lost_connection"),
        (Loss(LossKind.READ_FAILED, 113, "No route to host"), ""),
        (Loss(LossKind.SEND_FAILED, 104, "Connection reset by peer"), "lost_connection"),
    ],
)
def test_names_for_retry_rules(loss: Loss, name: str) -> None:
    assert loss_error(loss, "DATA", "mx [192.0.2.1]").retry_name == name


def test_what_ended_a_write() -> None:
    def failed(cause: BaseException | None) -> Loss:
        error = trio.BrokenResourceError("broken")
        error.__cause__ = cause
        return send_loss(error)

    assert failed(ConnectionResetError(104, "x")) == Loss(LossKind.SEND_FAILED, 104, "Connection reset by peer")
    assert failed(None) == Loss(LossKind.SEND_FAILED, 32, "Broken pipe")
    inner = trio.BrokenResourceError("inner")
    inner.__cause__ = OSError(113, "x")
    assert failed(inner) == Loss(LossKind.SEND_FAILED, 113, "No route to host")


async def test_octets_and_the_end() -> None:
    left, right = trio.testing.memory_stream_pair()
    await left.send_all(bytearray(b"x"))
    assert await receive(right) == b"x"
    await left.aclose()
    assert await receive(right) is CLOSED
    assert not is_readable(right)
    assert local_address(right) == ""


async def test_news_of_a_socket() -> None:
    left, right = await socket_pair()
    stream = TcpStream(left)
    assert local_address(stream).startswith("[127.0.0.1]:")
    assert not is_readable(stream)
    await right.send_all(b"x")
    with trio.fail_after(PATIENCE_S):
        await trio.lowlevel.wait_readable(left.socket)
    assert is_readable(stream)
    await right.aclose()
    await stream.aclose()
    assert not is_readable(stream)
    assert local_address(stream) == ""

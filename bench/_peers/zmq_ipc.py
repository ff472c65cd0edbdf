"""ZeroMQ over ipc, PUSH to PULL, each event packed by msgpack."""

from __future__ import annotations

import importlib
import os
import tempfile
from typing import TYPE_CHECKING, Any

import msgpack

from . import Missing
from ._stream import EVENTS, Check, one_way

zmq: Any
try:
    zmq = importlib.import_module("zmq")
except ModuleNotFoundError:
    zmq = None

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .._harness import Timing

label = "ZeroMQ ipc, msgpack"


def version() -> str:
    if zmq is None:
        raise Missing("pyzmq is not installed")
    return f"{zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"


def run(count: int) -> Timing:
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{os.path.join(folder, 'events')}"

        def produce(count: int) -> None:
            # made here, since a context must not be carried over a fork
            with zmq.Context() as context, context.socket(zmq.PUSH) as sender:
                sender.set_hwm(10_000)
                sender.connect(address)
                pack = msgpack.Packer().pack
                for number in range(count):
                    sender.send(pack(EVENTS[number & 1023]))

        return one_way(count, _consume, produce, address)


def _consume(address: str, count: int, done: Connection) -> None:
    check = Check()
    with zmq.Context() as context, context.socket(zmq.PULL) as receiver:
        receiver.set_hwm(10_000)
        receiver.bind(address)
        done.send("ready")
        while check.count < count:
            check.add([msgpack.unpackb(receiver.recv(), use_list=False)])
        done.send(check.result)

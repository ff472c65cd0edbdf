"""A Unix socket with a stream of msgpack, written in batches of 64 KiB and read as they come."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgpack

from ._stream import EVENTS, Check, one_way

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .._harness import Timing

label = "Unix socket, msgpack in batches"

_BATCH = 65536


def version() -> str:
    return f"msgpack {'.'.join(map(str, msgpack.version))}"


def run(count: int) -> Timing:
    ours, theirs = socket.socketpair()

    def produce(count: int) -> None:
        packer = msgpack.Packer(autoreset=False)
        for number in range(count):
            packer.pack(EVENTS[number & 1023])
            # the buffer is asked for its length now and then, which copies nothing
            if number % 160 == 159:
                ours.sendall(packer.getbuffer())
                packer.reset()
        ours.sendall(packer.getbuffer())

    with ours, theirs:
        return one_way(count, _consume, produce, theirs)


def _consume(sock: socket.socket, count: int, done: Connection) -> None:
    check = Check()
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=1 << 24)
    done.send("ready")
    while check.count < count:
        unpacker.feed(sock.recv(1 << 18))
        check.add(list(unpacker))
    done.send(check.result)

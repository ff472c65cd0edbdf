"""What the peers of `claim_channel` share: the events, the check, and a consumer in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import operator
import os
import traceback
from typing import TYPE_CHECKING, Any, Final

from .._harness import Stopwatch, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

#: values of an event: 16, with the kinds and lengths of a `msg:delivery`; a frame of them is 400 octets
VALUES: Final = (
    b"recipient.of.the.list",
    b"receiver.example.com",
    b"mx1.receiver.example.com",
    b"192.0.2.25",
    25,
    b"dnslookup",
    b"remote_smtp",
    b"250 2.0.0 Ok: queued as 4B7C1D2E3F; thank you, and have a very nice day",
    b"newsletter-bounces@sender.example.org",
    b"sender.example.org",
    b"1vNabC-000000000Ab-0000",
    0,
    b"TLS1.3:TLS_AES_256_GCM_SHA384:256",
    b"CN=mx1.receiver.example.com,O=Receiver",
    b"yes",
    True,
)


def event(number: int) -> tuple[Any, ...]:
    """An event, with its number and its id."""
    return (4, number, 3, b"1vNabC-000000000Ab-0000.%d.1.d" % number, VALUES, None)


#: what is sent, over and over; made beforehand, since making them is not the channel's work
EVENTS: Final = [event(number) for number in range(1024)]


_NUMBER: Final = operator.itemgetter(1)


class Check:
    """What a consumer has seen: the number of every event, and now and then a value."""

    def __init__(self) -> None:
        self.count = 0
        self.numbers = 0
        self.octets = 0

    def add(self, frames: list[Any]) -> None:
        """Look at some events."""
        self.count += len(frames)
        self.numbers += sum(map(_NUMBER, frames))
        # one a batch: looking is the consumer's work, not the channel's
        self.octets |= len(frames[0][4][7])

    @property
    def result(self) -> tuple[int, int, int]:
        return self.count, self.numbers, self.octets


@contextlib.contextmanager
def forked(function: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """Run a function in a process of its own; yields a connection to it, the other end of which is its last argument.

    Not by multiprocessing, which gives the daemons that peers are no children.
    """
    here, there = multiprocessing.Pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function(*arguments, there)
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    there.close()
    try:
        yield here
    finally:
        here.close()
        os.waitpid(pid, 0)


def one_way(count: int, consume: Callable[..., None], produce: Callable[[int], None], *shared: Any) -> Timing:
    """Time `produce(count)` until the consumer has seen the last event.

    Args:
        consume: called in a process of its own with `shared`, the count and a connection, on which it says that it is
            ready, and at the end what its `Check` has.
    """
    with forked(consume, *shared, count) as connection:
        assert connection.recv() == "ready"
        with Stopwatch() as watch:
            produce(count)
            found = connection.recv()
        return watch.timing(count, found)

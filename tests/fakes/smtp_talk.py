"""A `Client` and the server in the test's head: say what goes out, say what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.smtp import Content, HostMemory, Reply, Rung, Transaction, TransactionResult
from engine.smtp.capabilities import parse_capabilities
from engine.smtp.client import Client
from engine.smtp.flight import MAX_FLIGHT_OCTETS

PEER = "mx.example [192.0.2.1]"
CONTENT = Content(b"Subject: x\r\n\r\n.dot\r\n")
STUFFED = b"Subject: x\r\n\r\n..dot\r\n.\r\n"
BDAT = b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT.octets


def transaction(*recipients: bytes, sender: bytes = b"a@b", content: Content = CONTENT, **options: Any) -> Transaction:
    return Transaction(sender, recipients or (b"c@d",), content, **options)


class Talk:
    """A connection that is ready.

    Args:
        keywords: what EHLO offered.
        rung: where the ladder stands; None for a fresh memory.
        finished: whether a transaction has been finished on the connection, so that it may be windowed.
        kind: of the client.
    """

    def __init__(
        self,
        *keywords: str,
        rung: Rung | None = None,
        window: int = 4,
        max_flight_octets: int = MAX_FLIGHT_OCTETS,
        swallows: bool | None = True,
        finished: bool = False,
        kind: type[Client] = Client,
    ) -> None:
        self.memory = HostMemory(swallows=swallows)
        if rung is not None:
            self.memory.rung = rung
        offered = "\n".join(f"250-{line}" for line in ("mx", *keywords)).encode()
        self.client = kind(
            parse_capabilities(Reply(250, offered)),
            self.memory,
            window=window,
            max_flight_octets=max_flight_octets,
            peer=PEER,
        )
        self.results: list[TransactionResult] = []
        self.handed: list[Transaction] = []
        if finished:
            self.client._finished = 1

    def begin(self, *recipients: bytes, **options: Any) -> Transaction:
        """Begin a transaction that the host can have."""
        given = transaction(*recipients, **options)
        assert self.client.begin(given) is None
        return given

    def sends(self, *lines: bytes) -> Talk:
        """What goes out now is exactly this."""
        completing = self.client.completing
        output = b"".join(self.client.take_output())
        assert output == b"".join(line if line.endswith(b"\r\n") else line + b"\r\n" for line in lines), output
        self.handed += completing
        self.client.on_final_handed()
        return self

    def hears(self, *replies: str | bytes) -> Talk:
        """The server says this, in one piece."""
        octets = b"".join(reply if isinstance(reply, bytes) else reply.encode() + b"\r\n" for reply in replies)
        self.results += self.client.receive(octets)
        return self

    @property
    def result(self) -> TransactionResult:
        """The only result so far."""
        (result,) = self.results
        return result

    def clean(self, count: int = 1) -> Talk:
        """So many transactions that go through, one at a time, whatever their style; their results are forgotten."""
        for _ in range(count):
            self.begin()
            before = len(self.results)
            while len(self.results) == before:
                output = b"".join(self.client.take_output())
                self.client.on_final_handed()
                for line in _commands(output):
                    self.hears("354 go" if line == b"DATA" else "250 ok")
        self.results.clear()
        return self


def _commands(output: bytes) -> list[bytes]:
    """The commands in an output; content counts with the BDAT before it or as the dot that ends it."""
    found: list[bytes] = []
    if output.endswith(b"\r\n.\r\n"):
        return [b"."]
    while output:
        line, _, output = output.partition(b"\r\n")
        found.append(line)
        if line.startswith(b"BDAT "):
            output = output[int(line.split()[1]) :]
    return found


def codes(result: TransactionResult) -> list[int | str | None]:
    """The answer to each recipient: a code, the scope of an error, or None."""
    return [
        None if answer is None else answer.code if isinstance(answer, Reply) else answer.scope.value
        for answer in result.recipients
    ]


def texts(results: Sequence[TransactionResult]) -> list[str | None]:
    return [None if result.error is None else result.error.message for result in results]

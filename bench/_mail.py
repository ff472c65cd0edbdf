"""What senders are given to send: the same personalised messages for all of them, composed beforehand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

SENDER: Final = "news@sender.example"
#: recipients are spread over so many domains
DOMAINS: Final = 50

_HEADER = (
    "Message-ID: <{token}.{number}@sender.example>\r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\n"
    "From: News <news@sender.example>\r\nTo: Name {number} <{recipient}>\r\nSubject: Number {number}\r\n"
    "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nDear Name {number},\r\n"
)
_LINE = "a line of text that is the same for everybody who gets this, and it is long\r\n"


@dataclass(frozen=True, slots=True)
class Load:
    """Work for a sender.

    Attributes:
        port: of the sink, at 127.0.0.1; control_port: where the sink answers questions (`bench._sink`).
        count: messages, each to one recipient.
        octets: of a message, header included, to the line.
        connections: at a time, at most.
        tls: STARTTLS, or clear text.
    """

    port: int
    control_port: int
    count: int
    octets: int = 4096
    connections: int = 20
    tls: bool = True

    def messages(self) -> list[tuple[str, bytes]]:
        """Recipient and message (CRLF line ends) of each; the Message-IDs are others each time."""
        token = os.urandom(8).hex()
        body = _LINE * max((self.octets - len(_HEADER)) // len(_LINE), 0)
        found = []
        for number in range(self.count):
            recipient = f"user{number}@d{number % DOMAINS}.example"
            head = _HEADER.format(token=token, number=number, recipient=recipient)
            found.append((recipient, (head + body).encode()))
        return found

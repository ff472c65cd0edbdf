"""Replies as values, and the words in which the log tells of them.

Layer: sans-I/O.  Spec: RFC 5321 §4.2, RFC 2034 and RFC 3463 §2 (enhanced codes); events-dane RT-5 and 11.5 (texts).
Invariants: a reply is immutable; its octets are bounded by the parser (`_wire.ReplyParser`), its text by
`MAX_TEXT_CHARACTERS`; text that a server sent is made printable where it is rendered, not here.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: characters of a reply that `Reply.text` gives; arbitrary, twice what a log line keeps of a confirmation (LG-1)
MAX_TEXT_CHARACTERS: Final = 2048

_ENHANCED: Final = re.compile(rb"[0-9]{3}[ -]([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.])")


class Reply(NamedTuple):
    """One reply of a server.

    Attributes:
        code: 0 to 999; a code that no RFC knows is a temporary failure (RT-5).
        raw: its lines with their codes, without line ends, joined by LF: ``250-first\\n250 second``.
    """

    code: int
    raw: bytes

    @property
    def is_success(self) -> bool:
        """2xx: done."""
        return 200 <= self.code <= 299

    @property
    def is_intermediate(self) -> bool:
        """3xx: go on, as 354 to DATA or 334 to AUTH."""
        return 300 <= self.code <= 399

    @property
    def is_permanent(self) -> bool:
        """5xx: do not come again with this."""
        return 500 <= self.code <= 599

    @property
    def is_temporary(self) -> bool:
        """4xx, and every code that is none of 2xx, 3xx and 5xx (RT-5)."""
        return not 200 <= self.code <= 399 and not self.is_permanent

    @property
    def text(self) -> str:
        """The whole reply with its codes, lines joined by LF, for the log; octets that are not UTF-8 as ``\\xNN``."""
        raw = self.raw
        if len(raw) <= MAX_TEXT_CHARACTERS and raw.isascii():
            return raw.decode("ascii")
        return raw[: 4 * MAX_TEXT_CHARACTERS].decode("utf-8", "backslashreplace")[:MAX_TEXT_CHARACTERS]

    @property
    def lines(self) -> tuple[bytes, ...]:
        """What follows code and separator in each line."""
        return tuple(line[4:] for line in self.raw.split(b"\n"))

    @property
    def enhanced(self) -> str:
        """The enhanced status code of the first line, such as ``5.1.1``, or empty."""
        found = _ENHANCED.match(self.raw)
        return found[1].decode("ascii") if found else ""

    @property
    def more_errno(self) -> int:
        """Second and third digit as they go into `more_errno` of a 4xx (11.6)."""
        return self.code % 100 << 8


#: commands that are called "pipelined" in texts (11.5); never for the code of a RCPT
INITIAL_CONNECTION: Final = "initial connection"
END_OF_DATA: Final = "end of data"
DATA_BLOCK: Final = "sending data block"


def error_text(command: str, reply: Reply, *, pipelined: bool = False) -> str:
    """``SMTP error from remote mail server after …`` (11.5)."""
    return f"SMTP error from remote mail server after {_after(command, pipelined)}: {reply.text}"


def timeout_text(command: str, *, pipelined: bool = False, written_octets: int = 0) -> str:
    """``SMTP timeout after …``; `written_octets` of message content are told of if there are any."""
    written = f" ({written_octets} bytes written)" if written_octets else ""
    return f"SMTP timeout after {_after(command, pipelined)}{written}"


def closed_text(command: str, *, pipelined: bool = False, ehlo_reply: Reply | None = None) -> str:
    """``Remote host closed connection in response to …``; for HELO with what had been said to EHLO."""
    ehlo = f" (EHLO response was: {ehlo_reply.text})" if ehlo_reply is not None else ""
    return f"Remote host closed connection in response to {_after(command, pipelined)}{ehlo}"


def malformed_text(command: str, evidence: bytes, *, pipelined: bool = False) -> str:
    """``Malformed SMTP reply in response to …`` with the line that is malformed, or the note that it is empty."""
    empty = "" if evidence else "(an empty line) "
    shown = evidence[:512].decode("utf-8", "backslashreplace")
    return f"Malformed SMTP reply {empty}in response to {_after(command, pipelined)}{': ' + shown if shown else ''}"


def _after(command: str, pipelined: bool) -> str:
    return f"pipelined {command}" if pipelined else command

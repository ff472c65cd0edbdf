"""What `engine.smtp._wire` does, said slowly."""

from __future__ import annotations

import re

from engine.errors import DataError, LocalProtocolError
from engine.smtp.replies import Reply

MAX_LINE_OCTETS = 4096
MAX_REPLY_OCTETS = 65536
MAX_REPLY_LINES = 512

_LINE = re.compile(rb"([0-9]{3})(?:([ -]).*)?", re.DOTALL)


class ReplyParser:
    def __init__(self) -> None:
        self.line = b""
        self.lines: list[bytes] = []
        self.problem: str | None = None
        self.evidence = b""

    @property
    def is_clean(self) -> bool:
        return self.problem is None and not self.line and not self.lines

    @property
    def buffered(self) -> bytes:
        if self.problem is not None:
            return self.evidence
        return self.line or b"".join(self.lines[-1:])

    def receive(self, data: bytes) -> list[Reply]:
        found: list[Reply] = []
        for octet in data:
            if self.problem is not None:
                break
            self.line += bytes([octet])
            if octet == ord("\n"):
                line, self.line = self.line, b""
                self._on_line(line, found)
            elif len(self.line) >= MAX_LINE_OCTETS:
                self._fail("line too long", self.line)
        return found

    def _on_line(self, whole: bytes, found: list[Reply]) -> None:
        line = whole.rstrip(b" \t\r\n")
        match = _LINE.fullmatch(line)
        if len(whole) > MAX_LINE_OCTETS:
            self._fail("line too long", whole[:-1])
        elif b"\0" in line:
            self._fail("NUL", line)
        elif not line:
            self._fail("empty line", line)
        elif match is None:
            self._fail("bad syntax", line)
        elif self.lines and match[1] != self.lines[0][:3]:
            self._fail("different codes in one reply", line)
        elif not self.lines and match[2] != b"-":
            found.append(Reply(int(match[1]), line))
        elif (
            len(self.lines) == MAX_REPLY_LINES or sum(len(each) + 1 for each in [*self.lines, line]) > MAX_REPLY_OCTETS
        ):
            self._fail("reply too long", line)
        else:
            self.lines.append(line)
            if match[2] != b"-":
                found.append(Reply(int(match[1]), b"\n".join(self.lines)))
                self.lines = []

    def _fail(self, problem: str, evidence: bytes) -> None:
        self.problem = problem
        self.evidence = evidence[:512]


_QUOTED = rb'"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"'
_PATH = re.compile(rb"(?:[^\"<> \x00-\x1f\x7f]|" + _QUOTED + rb")*")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def _is_path(address: bytes, utf8: bool) -> bool:
    return (utf8 or address.isascii()) and _PATH.fullmatch(address) is not None


def build_group(
    first: bytes,
    sender: bytes,
    mail_parameters: bytes,
    recipients: tuple[bytes, ...],
    rcpt_parameters: tuple[bytes, ...] | None,
    rcpt_suffix: bytes,
    last: bytes,
    content: bytes,
    utf8: bool = False,
) -> bytes:
    if rcpt_parameters is not None and len(rcpt_parameters) != len(recipients):
        raise LocalProtocolError("parameters for another number of recipients")
    paths_ok = _is_path(sender, utf8) and all(each and _is_path(each, utf8) for each in recipients)
    if not paths_ok or any(_CONTROL.search(each) for each in (mail_parameters, rcpt_suffix, *(rcpt_parameters or ()))):
        raise LocalProtocolError("unfit")
    group = first + b"MAIL FROM:<" + sender + b">" + mail_parameters + b"\r\n"
    for index, recipient in enumerate(recipients):
        own = rcpt_parameters[index] if rcpt_parameters is not None else b""
        group += b"RCPT TO:<" + recipient + b">" + own + rcpt_suffix + b"\r\n"
    return group + last + content


def inspect(content: bytes) -> int:
    if re.search(rb"\r(?!\n)|(?<!\r)\n", content) or (content and not content.endswith(b"\r\n")):
        raise DataError("unfit")
    return sum(line.startswith(b".") for line in content.split(b"\r\n"))


def stuff(content: bytes) -> bytes:
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in content.split(b"\r\n"))

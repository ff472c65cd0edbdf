"""The scanner of the sink as short, obvious Python: the specification of the compiled `engine.smtp._sink`.

Layer: reference.  Spec: RFC 5321 §4.1.1 and §4.5.2, RFC 2920 §3.2, RFC 3030 §2, RFC 1870 §4, RFC 9422.
"""

from __future__ import annotations

import re

NEED_DATA, COMMAND, CLOSE, DROP = range(4)
KEEP_NOTHING, KEEP_WHOLE, KEEP_HEADER = range(3)
MAX_HEADER_OCTETS = 65536
MAX_LINE_OCTETS = 12288
MAX_ERRORS = 50
MAX_CHUNK_OCTETS = 1 << 40

#: bits of `Scanner.offered`: the extensions that EHLO told of
(
    OFFERED_SIZE,
    OFFERED_BODY,
    OFFERED_SMTPUTF8,
    OFFERED_DSN,
    OFFERED_CHUNKING,
    OFFERED_AUTH,
    OFFERED_PIPELINING,
    OFFERED_REQUIRETLS,
    OFFERED_PRIORITY,
    OFFERED_DELIVERBY,
    OFFERED_RRVS,
) = (1 << bit for bit in range(11))

#: a parameter and the extension that brings it
_MAIL_PARAMETERS = {
    b"SIZE": OFFERED_SIZE,
    b"BODY": OFFERED_BODY,
    b"SMTPUTF8": OFFERED_SMTPUTF8,
    b"RET": OFFERED_DSN,
    b"ENVID": OFFERED_DSN,
    b"AUTH": OFFERED_AUTH,
    b"REQUIRETLS": OFFERED_REQUIRETLS,
    b"MT-PRIORITY": OFFERED_PRIORITY,
    b"BY": OFFERED_DELIVERBY,
}
_RCPT_PARAMETERS = {b"NOTIFY": OFFERED_DSN, b"ORCPT": OFFERED_DSN, b"RRVS": OFFERED_RRVS}


class Scanner:
    """Eats what a client sends, in any split, and returns the replies.

    Args:
        max_size_octets: largest message taken. max_messages: messages taken on the connection, 0 for any number.
        max_recipients: recipients of one message. thresholds: of 2**32: a recipient deferred; deferred or failed; the
        same two at the end of a message; a transaction
            that drops the connection.
        seed: of the random numbers, any integer.
        prefix: what the identifier in the reply to a message begins with.
        keep: what of a message `take_messages` gives: nothing, all of it, or its header with the empty line behind it.
    """

    def __init__(
        self,
        max_size_octets: int,
        max_messages: int,
        max_recipients: int,
        thresholds: tuple[int, int, int, int, int],
        seed: int,
        prefix: bytes,
        keep: int,
    ) -> None:
        self.max_size = max_size_octets
        self.max_messages = max_messages
        self.max_recipients = max_recipients
        self.rcpt_defer, self.rcpt_fail, self.end_defer, self.end_fail, self.drop_threshold = thresholds
        self.random = seed % 2**64 or 1
        self.prefix = prefix[:32]
        self.keep = keep
        self.greeted = False
        self.offered = 0
        self.raw_lines = False
        self.refusal = b""
        self.pause = NEED_DATA
        self.line = b""
        self.buffer = bytearray()
        self.replies = bytearray()
        self.counts = [0] * 7
        self.kept: list[tuple[bytes, tuple[bytes, ...], bytes, bytes]] = []
        self.message_number = 0
        self.mail_number = 0
        self.errors = 0
        self.skipping = False
        self.mode = "command"
        self.reset()

    # Interface

    def receive(self, data: bytes) -> bytes:
        """Go on with `data` until more is needed or `pause` says something else."""
        self.pause = NEED_DATA
        self.buffer += data
        while self.pause == NEED_DATA and self.buffer:
            if self.mode == "data":
                self.scan_data()
            elif self.mode == "bdat":
                self.scan_bdat()
            elif not self.scan_line():
                break
        replies = bytes(self.replies)
        self.replies.clear()
        return replies

    def reset(self) -> None:
        """Forget the transaction."""
        self.in_transaction = False
        self.sender = b""
        self.recipients: list[bytes] = []
        self.accepted = 0
        self.refused = 0
        self.size = 0
        self.utf8 = False
        self.chunks = False
        self.failed = False
        self.drop_point = -1
        self.body = bytearray()

    def discard(self) -> int:
        """Throw away what was received and not scanned; return how much it was."""
        size = len(self.buffer)
        self.buffer.clear()
        return size

    @property
    def buffered_octets(self) -> int:
        """Octets received and not scanned."""
        return len(self.buffer)

    def on_error(self, text: bytes) -> bytes:
        """Count an error that the caller found; returns the reply to give, and `pause` may have become CLOSE."""
        self.errors += 1
        if self.errors > MAX_ERRORS:
            self.pause = CLOSE
            return b"421 4.7.0 Too many errors\r\n"
        return text

    def take_counts(self) -> tuple[int, ...]:
        """Messages, recipients, octets, deferred, failed, dropped, sync errors since the last call."""
        counts = tuple(self.counts)
        self.counts = [0] * 7
        return counts

    def take_messages(self) -> list[tuple[bytes, tuple[bytes, ...], bytes, bytes]]:
        """MAIL argument, RCPT arguments, octets and final reply of the messages taken since the last call, if kept."""
        kept, self.kept = self.kept, []
        return kept

    # Lines

    def scan_line(self) -> bool:
        end = self.buffer.find(b"\n")
        if end < 0:
            if len(self.buffer) > MAX_LINE_OCTETS:
                self.buffer.clear()
                self.skipping = True
            return False
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        if self.skipping or len(line) > MAX_LINE_OCTETS:
            self.skipping = False
            self.error(b"500 5.5.6 Line too long\r\n")
        elif not line.endswith(b"\r"):
            self.error(b"500 5.5.2 Lines end with CR LF\r\n")
        elif self.raw_lines:
            self.line = line[:-1]
            self.pause = COMMAND
        else:
            self.command(line[:-1])
        return True

    def command(self, line: bytes) -> None:
        verb = line[:4].upper()
        rest = line[4:]
        if self.buffer and verb != b"BDAT":
            # RFC 2920 §3.1: what may have more behind it
            groups = (b"MAIL", b"RCPT", b"RSET") if self.offered & OFFERED_PIPELINING else ()
            self.counts[6] += verb not in groups
        known = (b"MAIL", b"RCPT", b"BDAT") if self.offered & OFFERED_CHUNKING else (b"MAIL", b"RCPT")
        if verb in known and rest[:1] == b" ":
            {b"MAIL": self.mail, b"RCPT": self.rcpt, b"BDAT": self.bdat}[verb](rest[1:])
        elif verb == b"DATA" and not rest:
            self.data()
        elif verb == b"RSET" and not rest:
            self.reset()
            self.reply(b"250 2.0.0 Ok\r\n")
        elif verb == b"NOOP" and rest[:1] in (b"", b" "):
            self.reply(b"250 2.0.0 Ok\r\n")
        elif verb == b"QUIT" and not rest:
            self.reply(b"221 2.0.0 Bye\r\n")
            self.pause = CLOSE
        else:
            self.line = line
            self.pause = COMMAND

    def mail(self, argument: bytes) -> None:
        if not self.greeted:
            return self.error(b"503 5.5.1 Say EHLO first\r\n")
        if self.in_transaction:
            return self.error(b"503 5.5.1 Nested MAIL command\r\n")
        if self.refusal:
            return self.error(self.refusal)
        if self.max_messages and self.mail_number >= self.max_messages:
            self.reply(b"421 4.7.0 Too many messages on this connection\r\n")
            self.pause = CLOSE
            return None
        self.mail_number += 1
        found = self.path(argument, b"FROM:", _MAIL_PARAMETERS, may_be_empty=True)
        if isinstance(found, bytes):
            return self.error(found)
        path, parameters = found
        utf8 = b"SMTPUTF8" in parameters
        if not utf8 and not path.isascii():
            return self.error(b"553 5.6.7 Address needs SMTPUTF8\r\n")
        size = parameters.get(b"SIZE", b"0")
        if not re.fullmatch(rb"[0-9]{1,19}", size):
            return self.error(b"501 5.5.4 Bad SIZE\r\n")
        if int(size) > self.max_size:
            return self.reply(b"552 5.3.4 Message too big\r\n")
        self.reset()
        self.in_transaction = True
        self.utf8 = utf8
        if self.keep:
            self.sender = argument[5:].lstrip(b" ")
        if self.drop_threshold and self.draw() < self.drop_threshold:
            self.drop_point = self.draw() % 6
        if self.drop_point == 0:
            return self.drop()
        return self.reply(b"250 2.1.0 Ok\r\n")

    def rcpt(self, argument: bytes) -> None:
        if not self.in_transaction or self.chunks:
            return self.error(b"503 5.5.1 Need MAIL command\r\n")
        found = self.path(argument, b"TO:", _RCPT_PARAMETERS, may_be_empty=False)
        if isinstance(found, bytes):
            return self.error(found)
        if not self.utf8 and not found[0].isascii():
            return self.error(b"553 5.6.7 Address needs SMTPUTF8\r\n")
        if self.drop_point == 1:
            return self.drop()
        if self.accepted >= self.max_recipients:
            return self.reply(b"452 4.5.3 Too many recipients\r\n")
        if self.rcpt_fail:
            number = self.draw()
            if number < self.rcpt_defer:
                self.counts[3] += 1
                return self.reply(b"450 4.2.1 Mailbox busy, try again later\r\n")
            if number < self.rcpt_fail:
                self.counts[4] += 1
                return self.reply(b"550 5.1.1 No such user here\r\n")
        self.accepted += 1
        if self.keep:
            self.recipients.append(argument[3:].lstrip(b" "))
        return self.reply(b"250 2.1.5 Ok\r\n")

    def path(
        self, argument: bytes, keyword: bytes, known: dict[bytes, int], *, may_be_empty: bool
    ) -> tuple[bytes, dict[bytes, bytes]] | bytes:
        if argument[: len(keyword)].upper() != keyword:
            return b"501 5.5.4 Syntax error\r\n"
        rest = argument[len(keyword) :].lstrip(b" ")
        if any(octet < 0x20 or octet == 0x7F for octet in rest):
            return b"501 5.5.4 Syntax error\r\n"
        match = re.match(rb'<((?:[^<>"\\ ]|"(?:[^"\\]|\\.)*")*)>(?= |\Z)', rest, re.DOTALL)
        if not match or len(match[1]) > 1024:
            return b"501 5.1.7 Bad address\r\n"
        path = match[1]
        if not path:
            if not may_be_empty:
                return b"501 5.1.3 Bad address\r\n"
        elif b"@" not in path and path.upper() != b"POSTMASTER":
            return b"501 5.1.3 Bad address\r\n"
        parameters = {}
        for word in rest[match.end() :].split(b" "):
            if word:
                name, _, value = word.partition(b"=")
                if not known.get(name.upper(), 0) & self.offered:
                    return b"555 5.5.4 Unknown parameter\r\n"
                parameters[name.upper()] = value
        return path, parameters

    def data(self) -> None:
        if not self.in_transaction or self.chunks:
            return self.error(b"503 5.5.1 Bad sequence of commands\r\n")
        if self.drop_point == 2:
            return self.drop()
        if not self.accepted:
            return self.reply(b"554 5.5.1 No valid recipients\r\n")
        self.mode = "data"
        self.line_state = 2
        return self.reply(b"354 End data with <CR><LF>.<CR><LF>\r\n")

    def bdat(self, argument: bytes) -> None:
        match = re.fullmatch(rb"([0-9]{1,19})( +LAST)? *", argument, re.IGNORECASE)
        if not match or int(match[1]) > MAX_CHUNK_OCTETS:
            self.reply(b"501 5.5.4 Syntax error, closing connection\r\n")
            self.pause = CLOSE
            return
        if self.in_transaction and self.drop_point == 2:
            self.drop()
            return
        self.chunk_size = self.chunk_left = int(match[1])
        self.chunk_last = match[2] is not None
        self.chunk_reply = b""
        if not self.in_transaction or self.failed:
            self.chunk_reply = b"503 5.5.1 Bad sequence of commands\r\n"
        elif not self.accepted:
            self.chunk_reply = b"554 5.5.1 No valid recipients\r\n"
        elif self.size + self.chunk_size > self.max_size:
            self.chunk_reply = b"552 5.3.4 Message too big\r\n"
        self.chunks = self.in_transaction
        self.mode = "bdat"
        if not self.chunk_left:
            self.end_chunk()

    # Bodies

    def emit(self, octet: int) -> None:
        self.size += 1
        if self.keep and self.size <= self.max_size:
            self.body.append(octet)

    def scan_data(self) -> None:
        for index, octet in enumerate(self.buffer):
            if self.line_state == 3 and octet == 0x0D:
                self.line_state = 4
                continue
            if self.line_state == 4:
                if octet == 0x0A:
                    del self.buffer[: index + 1]
                    self.mode = "command"
                    self.end_message(too_big=self.size > self.max_size)
                    return
                self.emit(0x0D)
            if self.line_state == 2 and octet == 0x2E:
                self.line_state = 3
                continue
            self.emit(octet)
            if octet == 0x0D:
                self.line_state = 1
            elif self.line_state == 1 and octet == 0x0A:
                self.line_state = 2
            else:
                self.line_state = 0
        self.buffer.clear()

    def scan_bdat(self) -> None:
        part = self.buffer[: self.chunk_left]
        del self.buffer[: self.chunk_left]
        self.chunk_left -= len(part)
        if not self.chunk_reply:
            self.size += len(part)
            if self.keep:
                self.body += part
        if not self.chunk_left:
            self.end_chunk()

    def end_chunk(self) -> None:
        self.mode = "command"
        if self.chunk_reply:
            if self.in_transaction and self.chunk_last and self.drop_point >= 3:
                return self.drop()
            self.failed = self.in_transaction
            self.reply(self.chunk_reply)
            if self.chunk_last:
                self.reset()
            return None
        if self.chunk_last:
            return self.end_message(too_big=False)
        return self.reply(b"250 2.0.0 %d octets received\r\n" % self.chunk_size)

    def end_message(self, *, too_big: bool) -> None:
        drop_point = self.drop_point
        if drop_point == 3:
            return self.drop()
        reply = b""
        if too_big:
            reply = b"552 5.3.4 Message too big\r\n"
        elif self.end_fail and drop_point != 4:
            number = self.draw()
            if number < self.end_defer:
                self.counts[3] += self.accepted
                reply = b"451 4.3.0 Try again later\r\n"
            elif number < self.end_fail:
                self.counts[4] += self.accepted
                reply = b"554 5.6.0 Message refused\r\n"
        if not reply:
            self.message_number += 1
            self.counts[0] += 1
            self.counts[1] += self.accepted
            self.counts[2] += self.size
            reply = b"250 2.0.0 Ok: queued as %s-%d\r\n" % (self.prefix, self.message_number)
            if self.keep:
                octets = bytes(self.body)
                if self.keep == KEEP_HEADER:
                    end = octets.find(b"\r\n\r\n")
                    octets = octets[: MAX_HEADER_OCTETS if end < 0 else min(end + 4, MAX_HEADER_OCTETS)]
                self.kept.append((self.sender, tuple(self.recipients), octets, reply))
        self.reset()
        if drop_point != 4:
            self.reply(reply)
        if drop_point >= 4:
            self.drop()
        return None

    # Small things

    def reply(self, text: bytes) -> None:
        self.replies += text

    def error(self, text: bytes) -> None:
        self.reply(self.on_error(text))

    def drop(self) -> None:
        self.counts[5] += 1
        self.reset()
        self.pause = DROP

    def draw(self) -> int:
        """The next of xorshift64*'s numbers, its upper 32 bits (Vigna, 2016)."""
        number = self.random
        number ^= number >> 12
        number ^= number << 25 & 0xFFFFFFFFFFFFFFFF
        number ^= number >> 27
        self.random = number
        return (number * 0x2545F4914F6CDD1D & 0xFFFFFFFFFFFFFFFF) >> 32

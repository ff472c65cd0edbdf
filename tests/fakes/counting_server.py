"""A mail server that counts what limits are about: sessions open at one time, and when each was begun and used.

A session counts from its acceptance until its QUIT is answered or its end is noticed: for as long as the client, which
keeps the limit, can take it for open or longer ago.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Seen:
    """What a server has seen; times are monotonic seconds.

    Attributes:
        most: sessions open at one time, at most.
        begun: when each session was accepted.
        mails: when each MAIL came, in order of their coming.
        recipients: each recipient of a message that was taken.
    """

    most: int = 0
    begun: list[float] = field(default_factory=list)
    mails: list[float] = field(default_factory=list)
    recipients: list[bytes] = field(default_factory=list)
    now: int = 0


class CountingServer:
    """Listens on a loopback port while the block runs; speaks lock-step SMTP with DATA, a thread a session.

    Args:
        delay_s: before the answer to a message.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.seen = Seen()
        self.lock = threading.Lock()
        self.delay_s = delay_s
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.counts = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100
    counts: CountingServer


class _Session(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        counts = self.server.counts
        with counts.lock:
            seen = counts.seen
            seen.begun.append(time.monotonic())
            seen.now += 1
            seen.most = max(seen.most, seen.now)
        self._is_open = True
        try:
            with contextlib.suppress(OSError):
                self._talk(counts)
        finally:
            self._end(counts)

    def _end(self, counts: CountingServer) -> None:
        with counts.lock:
            counts.seen.now -= self._is_open
            self._is_open = False

    def _talk(self, counts: CountingServer) -> None:
        self._say(b"220 counting.example ESMTP")
        recipients: list[bytes] = []
        while line := self.rfile.readline():
            word = line.split(b" ", 1)[0].strip().upper()
            if word == b"MAIL":
                with counts.lock:
                    counts.seen.mails.append(time.monotonic())
                recipients = []
            elif word == b"RCPT":
                recipients.append(line.partition(b"<")[2].partition(b">")[0])
            elif word == b"DATA":
                self._say(b"354 go")
                while (line := self.rfile.readline()) and line != b".\r\n":
                    pass
                time.sleep(counts.delay_s)
                with counts.lock:
                    counts.seen.recipients += recipients
            elif word == b"QUIT":
                self._end(counts)
                self._say(b"221 bye")
                return
            self._say(b"250 ok")

    def _say(self, text: bytes) -> None:
        self.wfile.write(text + b"\r\n")

"""What a sink keeps of the messages it takes: files in a directory, and which Message-IDs reached which recipients.

Layer: adapter.  Spec: design.md "Command line" (`sink --store`, `--track`).
Invariants: a file's name is a number that this module counts, never anything a client sent; a message is either whole
in its file with its line in ``envelopes.jsonl``, or not there at all; memory is bounded by `TRACK_LIMIT`. Files are
not synced to disk: a sink answers for nothing after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import TYPE_CHECKING, Final

from ..errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..smtp.server import Received

#: pairs of Message-ID and recipient remembered; 100 octets each or so
TRACK_LIMIT: Final = 5_000_000
#: octets at the start of a message in which its Message-ID is looked for; a sink that only tracks keeps no more
_HEADER_OCTETS: Final = 65_536

_MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r\n[ \t]+)?([^\r\n]+)", re.IGNORECASE | re.MULTILINE)


class MessageStore:
    """Messages as ``00000001.eml`` and so on in a directory, with one line of JSON a message in ``envelopes.jsonl``.

    Numbers go on where the directory ends.

    Raises:
        StoreError: the directory cannot be made, read or written to.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._envelopes = directory / "envelopes.jsonl"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            names = (os.path.splitext(entry.name) for entry in os.scandir(directory))
            self._number = max(
                (int(stem) for stem, suffix in names if suffix == ".eml" and stem.isascii() and stem.isdecimal()),
                default=0,
            )
            self._envelopes.open("ab").close()
        except OSError as error:
            raise self._error(error) from error

    def write(self, messages: Sequence[Received]) -> tuple[int, StoreError | None]:
        """Store messages in order until one cannot be.  Blocks; call it from one thread at a time.

        Returns:
            How many are stored, and why the next is not.
        """
        stored = 0
        try:
            with self._envelopes.open("ab", buffering=0) as envelopes:
                for message in messages:
                    self._write(message, envelopes.fileno())
                    stored += 1
        except OSError as error:
            return stored, self._error(error)
        return stored, None

    def _write(self, message: Received, envelopes: int) -> None:
        while True:
            self._number += 1
            path = self._directory / f"{self._number:08d}.eml"
            try:
                file = path.open("xb", buffering=0)
                break
            except FileExistsError:
                continue  # another sink keeps its messages here too
        end = os.fstat(envelopes).st_size
        try:
            with file:
                _write_all(file.fileno(), message.octets)
            _write_all(envelopes, json.dumps(_envelope(path.name, message)).encode() + b"\n")
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            with contextlib.suppress(OSError):
                os.truncate(envelopes, end)
            raise

    def _error(self, error: OSError) -> StoreError:
        return StoreError(f"cannot store messages in {self._directory}: {error.strerror}")


class DuplicateTracker:
    """Remembers which recipient got which Message-ID.

    Attributes:
        unique: different pairs seen.
        duplicates: pairs seen again.
        without_id: messages without a Message-ID.
        untracked: pairs that came when `limit` pairs were remembered, and were not among them.
    """

    def __init__(self, limit: int = TRACK_LIMIT) -> None:
        self._limit = limit
        # 64 bits of Python's keyed hash: for five million pairs the chance of a false duplicate is one in a million.
        self._pairs: set[int] = set()
        self._ids: set[int] = set()
        self.duplicates = 0
        self.without_id = 0
        self.untracked = 0

    @property
    def unique(self) -> int:
        return len(self._pairs)

    @property
    def message_ids(self) -> int:
        """Different Message-IDs seen."""
        return len(self._ids)

    def add(self, messages: Sequence[Received]) -> None:
        """Note messages that were taken."""
        pairs = self._pairs
        for message in messages:
            octets = message.octets
            end = octets.find(b"\r\n\r\n", 0, _HEADER_OCTETS)
            found = _MESSAGE_ID.search(octets, 0, _HEADER_OCTETS if end < 0 else end)
            if found is None:
                self.without_id += 1
                continue
            message_id = found[1].strip()
            for recipient in message.recipients:
                pair = hash((message_id, recipient))
                if pair in pairs:
                    self.duplicates += 1
                elif len(pairs) >= self._limit:
                    self.untracked += 1
                else:
                    pairs.add(pair)
                    self._ids.add(hash(message_id))


def _write_all(descriptor: int, octets: bytes) -> None:
    with memoryview(octets) as view:
        sent = 0
        while sent < len(view):
            sent += os.write(descriptor, view[sent:])


def _envelope(name: str, message: Received) -> dict[str, object]:
    def text(octets: bytes) -> str:
        return octets.decode("utf-8", "surrogateescape")

    return {
        "file": name,
        "sender": text(message.sender),
        "recipients": [text(recipient) for recipient in message.recipients],
        "mail_parameters": [text(word) for word in message.mail_parameters],
        "rcpt_parameters": [[text(word) for word in words] for words in message.rcpt_parameters],
        "helo": text(message.helo),
        "tls": message.tls,
        "user": message.user,
        "size_octets": len(message.octets),
        "received_at": time.time(),
    }

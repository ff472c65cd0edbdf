"""What the sink keeps: engine/net/sink_store.py."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import StoreError
from engine.net.sink import SinkOptions, open_sink
from engine.net.sink_store import DuplicateTracker, MessageStore
from engine.smtp.server import Received
from fakes.patience import PATIENCE_S


def message(octets: bytes = b"Subject: x\r\n\r\nbody\r\n", **values: object) -> Received:
    fields: dict[str, object] = {"sender": b"a@b", "recipients": (b"c@d",), "rcpt_parameters": ((),), **values}
    return Received(octets=octets, **fields)  # type: ignore[arg-type]


def envelopes(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "envelopes.jsonl").read_text("ascii").splitlines()]


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Files


def test_a_message_a_file_and_a_line_for_each(tmp_path: Path) -> None:
    store = MessageStore(tmp_path / "deep" / "mail")
    octets = bytes(range(256)) * 3
    assert store.write([message(octets), message(b"")]) == (2, None)
    assert files(tmp_path / "deep" / "mail") == ["00000001.eml", "00000002.eml", "envelopes.jsonl"]
    assert (tmp_path / "deep" / "mail" / "00000001.eml").read_bytes() == octets
    first, second = envelopes(tmp_path / "deep" / "mail")
    assert (first["file"], second["file"]) == ("00000001.eml", "00000002.eml")
    assert (first["sender"], first["recipients"], first["size_octets"]) == ("a@b", ["c@d"], 768)


def test_numbers_go_on_where_the_directory_ends(tmp_path: Path) -> None:
    (tmp_path / "00000041.eml").touch()
    (tmp_path / "notes.eml").touch()
    (tmp_path / "00000099.txt").touch()
    store, other = MessageStore(tmp_path), MessageStore(tmp_path)
    store.write([message()])
    other.write([message()])  # two sinks on one directory do not meet
    store.write([message()])
    assert [line["file"] for line in envelopes(tmp_path)] == ["00000042.eml", "00000043.eml", "00000044.eml"]


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.text(max_size=10))
def test_nothing_a_client_says_becomes_a_path(
    tmp_path_factory: pytest.TempPathFactory, sender: bytes, recipient: bytes, helo: bytes, user: str
) -> None:
    top = tmp_path_factory.mktemp("top")
    evil = b"../../" + recipient
    store = MessageStore(top / "mail")
    kept = message(sender=sender, recipients=(evil, b"/etc/x\0y"), helo=b"../" + helo, user=user)
    assert store.write([kept]) == (1, None)
    assert files(top) == ["mail"]
    assert files(top / "mail") == ["00000001.eml", "envelopes.jsonl"]
    (line,) = envelopes(top / "mail")
    assert isinstance(line["sender"], str)
    assert line["sender"].encode("utf-8", "surrogateescape") == sender
    assert isinstance(line["recipients"], list)
    assert line["recipients"][0].encode("utf-8", "surrogateescape") == evil


def test_a_directory_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot store messages in .*file: "):
        MessageStore(tmp_path / "file")
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "envelopes.jsonl").mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        MessageStore(tmp_path / "mail")


def full_after(monkeypatch: pytest.MonkeyPatch, octets: int) -> None:
    """The disk takes so many octets more, the last write only in part, and is full then."""
    room = octets
    real: Callable[[int, memoryview], int] = os.write

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return real(descriptor, data)
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sent = real(descriptor, data[:room])
        room -= sent
        return sent

    monkeypatch.setattr("engine.net.sink_store.os.write", write)


@pytest.mark.parametrize("room", [0, 10, 25, 200, 420, 430, 445, 600])
def test_a_full_disk_leaves_whole_messages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    store = MessageStore(tmp_path)
    with monkeypatch.context() as patch:
        full_after(patch, room)
        stored, error = store.write([message()] * 5)
    assert stored < 5
    assert str(error) == f"cannot store messages in {tmp_path}: No space left on device"
    lines = envelopes(tmp_path)
    assert len(lines) == stored
    assert files(tmp_path) == [*(str(line["file"]) for line in lines), "envelopes.jsonl"]
    assert {path.read_bytes() for path in tmp_path.glob("*.eml")} <= {message().octets}
    # there is room again
    assert store.write([message()]) == (1, None)
    assert len(envelopes(tmp_path)) == stored + 1


# A whole sink


async def talk(sink_address: tuple[str, int], octets: bytes) -> bytes:
    async with await trio.open_tcp_stream(*sink_address) as stream:
        await stream.send_all(octets)
        replies = b""
        with trio.fail_after(PATIENCE_S):
            while data := await stream.receive_some():
                replies += data
    return replies


FLIGHT = b"MAIL FROM:<a@b>\r\nRCPT TO:<../../etc/passwd@d>\r\nBDAT 16 LAST\r\nSubject: x\r\n\r\nx\r"


async def test_a_sink_stores_before_it_answers(tmp_path: Path) -> None:
    async with open_sink(SinkOptions(store=tmp_path / "mail")) as sink:
        replies = await talk(sink.address, b"EHLO a\r\n" + FLIGHT * 3 + b"QUIT\r\n")
        assert replies.count(b"queued as") == 3
        assert sink.counts.messages == 3
    assert len(files(tmp_path / "mail")) == 4
    assert envelopes(tmp_path / "mail")[0]["recipients"] == ["../../etc/passwd@d"]


async def test_what_cannot_be_stored_is_answered_452_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_sink(SinkOptions(store=tmp_path / "mail", track=True)) as sink:
        with monkeypatch.context() as patch:
            full_after(patch, 500)
            replies = await talk(sink.address, b"EHLO a\r\n" + FLIGHT * 5 + b"QUIT\r\n")
        stored = replies.count(b"queued as")
        assert replies.count(b"452 4.3.1 ") == 5 - stored > 0
        assert stored > 0
        assert (sink.counts.messages, sink.counts.recipients, sink.counts.octets) == (stored, stored, 16 * stored)
        assert sink.counts.store_errors == 5 - stored
        assert sink.counts.without_id == stored
        with trio.fail_after(PATIENCE_S):
            assert "No space left" in str(await sink.wait_store_error())
        assert (await talk(sink.address, b"EHLO a\r\n" + FLIGHT + b"QUIT\r\n")).count(b"queued as") == 1
    assert len(envelopes(tmp_path / "mail")) == stored + 1


async def test_a_sink_does_not_start_without_its_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        async with open_sink(SinkOptions(store=tmp_path / "file")):
            pass


# Duplicates


def mail(message_id: bytes, *recipients: bytes) -> Received:
    return message(b"Message-ID: " + message_id + b"\r\n\r\nx", recipients=recipients)


def test_pairs_beyond_the_limit_are_counted_as_such() -> None:
    tracker = DuplicateTracker(limit=2)
    tracker.add([mail(b"<1@x>", b"a", b"b", b"c"), mail(b"<1@x>", b"a", b"d"), mail(b"<2@x>", b"a")])
    assert (tracker.unique, tracker.duplicates, tracker.untracked, tracker.message_ids) == (2, 1, 3, 1)


def test_a_long_header_is_not_searched_for_ever() -> None:
    tracker = DuplicateTracker()
    tracker.add([message(b"X: y\r\n" * 20_000 + b"Message-ID: <1@x>\r\n\r\n"), message(b"Message-ID: <1@x>")])
    assert (tracker.unique, tracker.without_id) == (1, 1)


@given(st.lists(st.tuples(st.sampled_from([b"<1@x>", b"<2@x>", b"<3@x>"]), st.sampled_from([b"a", b"b"]))))
def test_every_recipient_is_unique_or_a_duplicate(pairs: list[tuple[bytes, bytes]]) -> None:
    tracker = DuplicateTracker()
    tracker.add([mail(message_id, recipient) for message_id, recipient in pairs])
    assert tracker.unique == len(set(pairs))
    assert tracker.unique + tracker.duplicates == len(pairs)

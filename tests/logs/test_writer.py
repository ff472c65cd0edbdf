"""Log files: batches, rotation, a disk that refuses."""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.logs.facts import Fact, FactKind
from engine.logs.mainlog import MainLogFormat, parse_selector
from engine.logs.writer import LogFile, LogWriter


def note(text: str) -> Fact:
    return Fact(FactKind.NOTE, 0.0, text=text)


def test_a_batch_goes_to_both_files(tmp_path: Path) -> None:
    main, records = tmp_path / "main.log", tmp_path / "log.jsonl"
    writer = LogWriter(MainLogFormat(parse_selector("")), LogFile(str(main)), LogFile(str(records)))
    writer.write([note("one"), note("two")])
    writer.write([])
    writer.close()
    assert [line[20:] for line in main.read_text().splitlines()] == ["one", "two"]
    assert len(records.read_text().splitlines()) == 2


def test_what_calls_for_a_person_goes_to_the_panic_log_too(tmp_path: Path) -> None:
    main, panic = tmp_path / "main.log", tmp_path / "panic.log"
    writer = LogWriter(MainLogFormat(parse_selector("")), LogFile(str(main)), None, LogFile(str(panic)))
    writer.write([note("one"), Fact(FactKind.NOTE, 0.0, text="two", is_panic=True)])
    writer.close()
    assert [line[20:] for line in main.read_text().splitlines()] == ["one", "two"]
    assert [line[20:] for line in panic.read_text().splitlines()] == ["two"]


def test_a_rotated_file_is_reopened(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    file = LogFile(str(path))
    file.write("one\n")
    path.rename(tmp_path / "main.log.1")
    file.write("two\n")
    file.close()
    assert path.read_text() == "two\n"
    assert (tmp_path / "main.log.1").read_text() == "one\n"


def test_a_file_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        LogFile(str(tmp_path / "no" / "main.log"))


def test_a_full_disk_sends_the_lines_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here, which stands for a full disk")
    file = LogFile("/dev/full")
    file.write("one\n")
    file.write("two\n")
    file.close()
    told = capfd.readouterr().err
    assert told.count("cannot write log file") == 1
    assert "one\n" in told
    assert "two\n" in told


def test_a_line_cut_short_by_a_full_disk_does_not_run_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = LogFile(str(tmp_path / "main.log"))
    real_write, room = os.write, [3]

    def write(fd: int, data: memoryview) -> int:
        if fd == 2:
            return real_write(fd, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = data[: room[0]]
        room[0] -= len(part)
        return real_write(fd, part)

    monkeypatch.setattr("engine.logs.writer.os.write", write)
    file.write("first\n")
    room[0] = 100
    file.write("second\n")
    file.write("third\n")
    monkeypatch.undo()
    file.close()
    assert (tmp_path / "main.log").read_text() == "fir\nsecond\nthird\n"
    assert "first\n" in capfd.readouterr().err


def test_a_removed_file_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    file = LogFile(str(path))
    path.unlink()
    file.write("one\n")
    file.close()
    file.close()
    assert path.read_text() == "one\n"


def test_a_directory_that_went_away_costs_no_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    file = LogFile(str(folder / "main.log"))
    (folder / "main.log").unlink()
    folder.rmdir()
    file.write("one\n")
    assert capfd.readouterr().err.endswith("one\n")
    folder.mkdir()
    file.write("two\n")
    file.close()
    assert (folder / "main.log").read_text() == "two\n"


def test_two_writers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    first, second = LogFile(str(path)), LogFile(str(path))
    for number in range(50):
        first.write(f"a{number}\n")
        second.write(f"b{number}\n")
    first.close()
    second.close()
    assert sorted(path.read_text().split()) == sorted(f"{who}{number}" for who in "ab" for number in range(50))


def test_any_text_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    file = LogFile(str(path))
    file.write("\ud800 \udcff ä\n")
    file.close()
    assert path.read_bytes() == b"\\ud800 \\udcff \xc3\xa4\n"


def test_lines_that_selectors_leave_out_are_not_written(tmp_path: Path) -> None:
    main, records = tmp_path / "main.log", tmp_path / "log.jsonl"
    writer = LogWriter(MainLogFormat(parse_selector("-retry_defer")), LogFile(str(main)), LogFile(str(records)))
    writer.write([Fact(FactKind.DEFERRED, 0.0, "id", "a@b", errno=-54, text="retry time not reached")])
    writer.close()
    assert main.read_text() == ""
    assert len(records.read_text().splitlines()) == 1, "the records have no selectors"


def test_no_log_is_no_trouble() -> None:
    writer = LogWriter(MainLogFormat(parse_selector("")), None, None)
    writer.write([note("one")])
    writer.close()


def test_standard_error_gets_whole_lines_in_pieces_that_a_pipe_takes_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several engines may share it."""
    written: list[bytes] = []

    def write(fd: int, data: memoryview) -> int:
        assert fd == sys.stderr.fileno()
        written.append(bytes(data))
        return len(data)

    lines = [f"{number} {'x' * (number * 37 % 900)}\n" for number in range(100)]
    lines[50] = "y" * 10_000 + "\n"
    with monkeypatch.context() as patch:
        patch.setattr("engine.logs.writer.os.write", write)
        LogFile("").write("".join(lines))
    assert b"".join(written).decode() == "".join(lines)
    assert all(piece.endswith(b"\n") for piece in written)
    assert [len(piece) for piece in written if len(piece) > select.PIPE_BUF] == [10_001]
    assert len(written) < 25


def test_two_threads_that_follow_one_rotation_close_the_old_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second close would hit whatever has the number by then: a connection, for one."""
    path = tmp_path / "main.log"
    file = LogFile(str(path))
    file.write("before\n")
    path.rename(tmp_path / "main.log.1")
    closed: list[int] = []
    other = threading.Thread(target=file.write, args=("two\n",))
    close = os.close

    def note_close(fd: int) -> None:
        closed.append(fd)
        if len(closed) == 1:
            other.start()
            other.join(0.1)
        close(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", note_close)
        file.write("one\n")
        other.join()
    file.close()
    assert len(closed) == 1
    assert sorted(path.read_text().splitlines()) == ["one", "two"]

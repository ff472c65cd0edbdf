"""Files for lookups: which are opened, and when what was parsed is good for another lookup."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from engine.actions.lookups import files
from engine.actions.lookups.driver import Failure
from engine.actions.lookups.files import ParsedFiles, open_regular


class Parser:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, file: BinaryIO) -> bytes:
        self.calls += 1
        return file.read()


def write(path: Path, text: str, *, age_s: int = 100) -> bytes:
    """Write a file that was last changed a while ago."""
    path.write_text(text)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - age_s * 10**9))
    return bytes(path)


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    # the time of the last change of an inode cannot be set, so the clock is
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 10 * 10**9)


def test_a_file_is_parsed_once_while_it_stays_the_same(tmp_path: Path) -> None:
    parser = Parser()
    parsed = ParsedFiles(parser, "test", "test")
    path = write(tmp_path / "a", "one")
    assert [parsed.get(path), parsed.get(path)] == [b"one", b"one"]
    assert parser.calls == 1


def test_a_change_is_seen(tmp_path: Path) -> None:
    parsed = ParsedFiles(Parser(), "test", "test")
    path = write(tmp_path / "a", "one")
    assert parsed.get(path) == b"one"
    write(tmp_path / "a", "two", age_s=99)
    assert parsed.get(path) == b"two"


def test_a_file_put_in_its_place_is_seen(tmp_path: Path) -> None:
    parsed = ParsedFiles(Parser(), "test", "test")
    path = write(tmp_path / "a", "one")
    status = (tmp_path / "a").stat()
    parsed.get(path)
    (tmp_path / "b").write_text("two")
    os.utime(tmp_path / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "b").rename(tmp_path / "a")
    assert parsed.get(path) == b"two"


def test_a_file_that_was_just_written_is_not_trusted_to_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of the clock of the file system leave the same size and times."""
    parser = Parser()
    parsed = ParsedFiles(parser, "test", "test")
    path = write(tmp_path / "a", "one", age_s=0)
    changed_ns = (tmp_path / "a").stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed_ns + 10**8)
    parsed.get(path)
    parsed.get(path)
    assert parser.calls == 2


def test_a_file_that_went_away_is_a_failure_although_it_was_kept(tmp_path: Path) -> None:
    parsed = ParsedFiles(Parser(), "test search", "test")
    path = write(tmp_path / "a", "one")
    parsed.get(path)
    (tmp_path / "a").unlink()
    with pytest.raises(Failure, match=r"^failed to open .*/a for test search: No such file or directory$"):
        parsed.get(path)


def test_the_number_of_kept_files_is_bounded(tmp_path: Path) -> None:
    parser = Parser()
    parsed = ParsedFiles(parser, "test", "test")
    paths = [write(tmp_path / str(number), "x") for number in range(files.MAX_KEPT_FILES + 1)]
    for path in paths:
        parsed.get(path)
    parsed.get(paths[-1])
    assert parser.calls == len(paths)
    parsed.get(paths[0])
    assert parser.calls == len(paths) + 1


def test_the_octets_of_kept_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_KEPT_OCTETS", 10)
    monkeypatch.setattr(files, "MAX_TOTAL_OCTETS", 15)
    parser = Parser()
    parsed = ParsedFiles(parser, "test", "test")
    first, second = write(tmp_path / "a", "x" * 10), write(tmp_path / "b", "x" * 10)
    large = write(tmp_path / "large", "x" * 11)
    for path in (first, second, second, first, large, large):
        parsed.get(path)
    assert parser.calls == 5


@pytest.mark.parametrize("path", [b"relative", b"", b"./a", b"/etc/passwd\0.db"])
def test_a_path_that_is_not_absolute_is_not_there(path: bytes) -> None:
    with pytest.raises(Failure, match="No such file or directory"):
        open_regular(path, "test", "test")


def test_only_regular_files_are_opened_and_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(Failure, match=r"^/.* is not a regular file \(test lookup\)$"):
            open_regular(bytes(path), "test", "test")


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    with open_regular(bytes(tmp_path / "link"), "test", "test") as file:
        assert file.read() == b"x"

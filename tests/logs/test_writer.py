"""Log files: batches, rotation, a disk that refuses."""

from __future__ import annotations

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

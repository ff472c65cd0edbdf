"""dsearch: names in a directory, and no way out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.actions.lookups import LookupRegistry
from fakes.searching import failure, look


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("secret")
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "file").touch()
    (inside / "sub" / "below").touch()
    (inside / "link").symlink_to("file")
    (inside / "dangling").symlink_to("nowhere")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", "file sub link dangling pipe . .."),
        (",filter=file", "file"),
        (",filter=dir", "sub . .."),
        (",filter=subdir", "sub"),
    ],
)
def test_filters(registry: LookupRegistry, directory: Path, options: str, found: str) -> None:
    for name in ["file", "sub", "link", "dangling", "pipe", ".", "..", "none", "file2", "FILE"]:
        expected = name.encode() if name in found.split() else None
        assert look(registry, f"dsearch{options}", str(directory), name) == expected, name


def test_ret_full_is_the_path(registry: LookupRegistry, directory: Path) -> None:
    assert look(registry, "dsearch,ret=full", str(directory), "file") == bytes(directory / "file")


@pytest.mark.parametrize("key", ["sub/below", "../outside", "/etc/passwd", "sub/", "/"])
def test_a_slash_is_refused(registry: LookupRegistry, directory: Path, key: str) -> None:
    message = failure(registry, "dsearch", str(directory), key)
    assert message == f'lookup of "{key}" gave DEFER: key for dsearch lookup contains a slash: {key}'


def test_key_path_allows_what_is_below(registry: LookupRegistry, directory: Path) -> None:
    """Newer than Exim 4.96."""
    assert look(registry, "dsearch,key=path", str(directory), "sub/below") == b"sub/below"
    assert look(registry, "dsearch,key=path,filter=file", str(directory), "sub") is None
    assert look(registry, "dsearch,key=path,ret=full", str(directory), "sub/below") == bytes(directory / "sub/below")
    assert look(registry, "dsearch,key=path", str(directory), "sub/none") is None
    assert look(registry, "dsearch,key=path", str(directory), "file/x") is None
    # an absolute path is one below the directory
    assert look(registry, "dsearch,key=path", str(directory), "/etc/passwd") is None


@pytest.mark.parametrize("key", ["..", "../outside", "sub/../../outside", "sub/..", "/../outside", "sub/../file"])
def test_key_path_never_leads_out(registry: LookupRegistry, directory: Path, key: str) -> None:
    message = failure(registry, "dsearch,key=path", str(directory), key)
    assert message == f'lookup of "{key}" gave DEFER: key for dsearch lookup contains bad component: {key}'


def test_a_name_that_cannot_be(registry: LookupRegistry, directory: Path) -> None:
    name = "x" * 300
    message = failure(registry, "dsearch", str(directory), name)
    assert message == f'lookup of "{name}" gave DEFER: {directory}/{name}: lstat: File name too long'
    assert look(registry, "dsearch", str(directory), b"file\0") is None


def test_the_directory_must_be_one(registry: LookupRegistry, directory: Path) -> None:
    assert failure(registry, "dsearch", ".", "file") == "dirname '.' for dsearch is not absolute"
    message = failure(registry, "dsearch", f"{directory}/file", "x")
    assert message == f"failed to open {directory}/file for directory search: Not a directory"
    message = failure(registry, "dsearch", f"{directory}/none", "x")
    assert message == f"failed to open {directory}/none for directory search: No such file or directory"
    assert look(registry, "dsearch", f"{directory}/", "file") == b"file"

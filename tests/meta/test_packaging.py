"""What is shipped (an sdist that builds, a wheel with what it should have), and a set-up that tells what is missing.

Built without isolation from the environment that the tests run in, and only one kernel of it: this is about the files.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

pytestmark = pytest.mark.slow

#: what is not part of the sources, wherever it lies
_NOT_OURS = shutil.ignore_patterns(
    ".git", ".venv", ".peers", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the two distributions."""
    folder = tmp_path_factory.mktemp("package")
    try:
        shutil.copytree(PROJECT, folder / "source", ignore=_NOT_OURS, symlinks=True)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
        environment = {**os.environ, "ENGINE_ONLY": "sink", "CFLAGS": "-O0"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
        complaints = [line for line in (result.stdout + result.stderr).splitlines() if "Warning" in line]
        assert complaints == []
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def names_in(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def test_the_source_distribution_has_the_sources_and_nothing_generated(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    names = names_in(sdist)
    kernels = {f"_speedups/{path.name}" for path in (PROJECT / "_speedups").glob("*.p[yx][xd]")}
    assert kernels <= names
    assert {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", ".ci/setup", "tests/conftest.py", "setup.py"} <= names
    assert {str(path.relative_to(PROJECT)) for path in (PROJECT / "engine").rglob("*.py")} <= names
    assert {name for name in names if name.endswith((".c", ".so", ".pyc", ".html"))} == set()
    assert {name for name in names if name.startswith((".git/", ".venv", "build/", ".peers"))} == set()


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = names_in(wheel)
    package = {name for name in names if not name.startswith("outrider-")}
    assert {name for name in package if not name.startswith("engine/")} == set()
    assert {name for name in package if not name.endswith((".py", ".pyi", ".so", "/py.typed"))} == set()
    for kind in ("*.py", "*.pyi"):
        assert {str(path.relative_to(PROJECT)) for path in (PROJECT / "engine").rglob(kind)} <= names
    assert "engine/py.typed" in names
    assert [name for name in names if name.startswith("engine/smtp/_sink.") and name.endswith(".so")]


def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    data = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert (data["Name"], data["License-Expression"]) == ("outrider", "Apache-2.0")
    assert data["Requires-Python"] == ">=3.11"
    assert "# Outrider" in str(data.get_payload())
    assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert b"outrider = engine.cli.main:main" in archive.read(f"{folder}/entry_points.txt")
    assert b"Tag: py3-none-any" not in archive.read(f"{folder}/WHEEL")


# --- .ci/setup: what it says where something is missing ---------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with a shell's usual tools, and no Python and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "cksum", "cat", "grep", "rm", "env"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def fake_python(folder: Path, name: str, *, fails_on: str = "") -> None:
    """A Python that is the one of this test, but for a script of which a word makes it fail."""
    script = folder / name
    real = getattr(sys, "_base_executable", sys.executable)
    test = f'case "$2" in *{fails_on}*) exit 1;; esac\n' if fails_on else ""
    script.write_text(f'#!/bin/sh\n{test}exec {real} "$@"\n')
    script.chmod(0o755)


def set_up(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROJECT / ".ci/setup"), str(path.parent / "venv")]
    environment = {"PATH": str(path), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_no_python_is_told(bare: Path) -> None:
    result = set_up(bare)
    assert result.returncode == 69
    assert "no Python 3.11, 3.12 or 3.13 here" in result.stderr


def test_an_old_python_is_told(bare: Path) -> None:
    fake_python(bare, "python3", fails_on="version_info")
    assert "no Python 3.11, 3.12 or 3.13 here" in set_up(bare).stderr
    result = set_up(bare, PYTHON="python3")
    assert result.returncode == 69
    assert "python3 is not Python 3.11, 3.12 or 3.13" in result.stderr


def test_another_name_of_python_is_found(bare: Path) -> None:
    fake_python(bare, "python3", fails_on="version_info")
    fake_python(bare, "python3.12", fails_on="ensurepip")
    assert "python3.12 has no venv module" in set_up(bare).stderr


@pytest.mark.parametrize(
    ("word", "told"), [("ensurepip", "python3 has no venv module"), ("Python.h", "the headers of python3 are not here")]
)
def test_a_part_of_python_that_is_missing_is_told(bare: Path, word: str, told: str) -> None:
    fake_python(bare, "python3", fails_on=word)
    result = set_up(bare)
    assert result.returncode == 69
    assert told in result.stderr
    if Path("/etc/debian_version").exists():
        assert "on Debian: apt install python3-" in result.stderr
    assert "no C compiler here" in result.stderr, "everything that is missing is told at once"
    assert not (bare.parent / "venv").exists()


def test_no_compiler_is_told(bare: Path) -> None:
    fake_python(bare, "python3")
    result = set_up(bare)
    assert result.returncode == 69
    assert "no C compiler here" in result.stderr

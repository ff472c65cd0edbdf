"""Rules about the repository: the README's commands exist, nothing generated or local is in git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from fakes.peers import PROJECT, peers_directory, require

MAKEFILE = (PROJECT / "Makefile").read_text()
README = PROJECT / "README.md"


def tracked() -> list[str]:
    """The files that git knows."""
    require(shutil.which("git") and (PROJECT / ".git").exists(), "not a git checkout")
    command = ["git", "-c", f"safe.directory={PROJECT}", "ls-files", "-z"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=20, check=True)
    return [name for name in result.stdout.split("\0") if name and (PROJECT / name).is_file()]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def shell_lines(text: str) -> list[str]:
    """The lines of the code blocks of a Markdown text, with their prompts removed."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_the_two_commands_of_the_readme_are_there() -> None:
    assert {"demo", "test", "check"} <= targets()
    assert {"make demo", "make test"} <= set(re.findall(r"make [a-z-]+", README.read_text()))


def test_every_make_command_of_the_readme_exists() -> None:
    lines = [line for line in shell_lines(README.read_text()) if re.fullmatch(r"make [a-z-]+", line)]
    wanted = {line.removeprefix("make ") for line in lines}
    assert wanted <= targets()


@pytest.mark.slow
def test_every_outrider_command_of_the_readme_exists() -> None:
    commands = {
        match[1] for line in shell_lines(README.read_text()) if (match := re.match(r"outrider ([a-z][a-z-]*)\b", line))
    }
    for command in sorted(commands):
        result = subprocess.run(
            [sys.executable, "-m", "engine.cli.main", command, "--help"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert result.returncode == 0, f"outrider {command}: {result.stdout}{result.stderr}"


def test_the_readme_keeps_its_length() -> None:
    """Issue text: the two commands, a transcript and the architecture in under 150 lines."""
    assert len(README.read_text().splitlines()) < 150


def test_ci_runs_what_the_readme_says() -> None:
    script = (PROJECT / ".ci/run").read_text()
    assert "make check" in script
    assert "make test" in script
    assert os.access(PROJECT / ".ci/run", os.X_OK)
    assert os.access(PROJECT / ".ci/install-peers", os.X_OK)


def test_the_shell_scripts_parse() -> None:
    for name in (".ci/run", ".ci/install-peers"):
        subprocess.run(["bash", "-n", name], cwd=PROJECT, timeout=10, check=True)


def test_nothing_generated_is_in_git() -> None:
    suffixes = (".c", ".cpp", ".so", ".pyc", ".html", ".whl", ".tar.gz", ".deb")
    assert [name for name in tracked() if name.endswith(suffixes)] == []
    assert [name for name in tracked() if name.startswith((".venv/", "build/", "dist/", ".peers/"))] == []


def test_tests_are_no_package() -> None:
    assert [name for name in tracked() if name.startswith("tests/") and name.endswith("__init__.py")] == []


# written so that this file does not hold them itself
LOCAL = re.compile(
    "|".join(
        [
            r"/wo" r"rk/(?:main|shared|\.library)\b",
            r"/ro" r"ot/",
            r"/ho" r"me/[a-z]+/(?:src|projects?|outrider)\b",
            r"\bpypi\." r"org\b",
            r"pythonhos" r"ted\.",
            r"\bdeb\." r"debian\.org",
            r"registry\." r"npmjs",
        ]
    )
)  # fmt: skip


def test_no_path_or_host_of_one_machine_is_in_git() -> None:
    found = []
    for name in tracked():
        text = (PROJECT / name).read_bytes().decode(errors="replace")
        found += [f"{name}: {match[0]}" for match in LOCAL.finditer(text)]
        if len(str(PROJECT)) > 8 and str(PROJECT) in text:
            found.append(f"{name}: {PROJECT}")
    assert found == []


def test_the_list_of_peers_is_what_was_unpacked() -> None:
    installed = peers_directory() / "installed"
    require(installed.exists(), "the real servers are not here: run .ci/install-peers (Debian)")
    lines = (PROJECT / "tests/peers-debian.txt").read_text().splitlines()
    wanted = {name for line in lines if line and not line.startswith("#") for name in line.split()[1:]}
    assert wanted <= {line.partition("_")[0] for line in installed.read_text().splitlines()}

"""Rules about the repository: the README's commands exist, nothing generated or local is in git."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess

import pytest
import typer.main

from engine import app
from engine.cli.main import cli
from engine.config import loads
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT, peers_directory, require

MAKEFILE = (PROJECT / "Makefile").read_text()
README = PROJECT / "README.md"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "bench/README.md", "tests/README.md", "engine/actions/README.md")


def tracked() -> list[str]:
    """The files that git knows."""
    require(shutil.which("git") and (PROJECT / ".git").exists(), "not a git checkout")
    command = ["git", "-c", f"safe.directory={PROJECT}", "ls-files", "-z"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
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


def outrider_lines() -> list[str]:
    """The command lines of the README and of the documents beside it that begin with outrider."""
    names = ("README.md", "CONTRIBUTING.md", "tests/README.md", "engine/actions/README.md")
    texts = [(PROJECT / name).read_text() for name in names]
    return [line for text in texts for line in shell_lines(text) if line.startswith("outrider ")]


@pytest.mark.slow
@pytest.mark.parametrize("line", outrider_lines())
def test_every_outrider_command_of_the_documents_exists(line: str) -> None:
    command = typer.main.get_command(cli)
    words = shlex.split(line, comments=True)[1:]
    context = command.make_context("outrider", ["--version"], resilient_parsing=True)
    while words and not words[0].startswith("-") and hasattr(command, "get_command"):
        command = command.get_command(context, words.pop(0))
        assert command is not None, f"no such command: {line}"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    wanted = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert wanted <= known, f"no such option: {line}"


def test_every_python_module_of_the_documents_exists() -> None:
    for name in DOCUMENTS:
        for module in re.findall(r"python -m ([a-z_.]+)", (PROJECT / name).read_text()):
            assert importlib.util.find_spec(module), f"{name}: python -m {module}"


def test_every_path_of_the_documents_exists() -> None:
    """What stands in backquotes and looks like a path of the repository is one."""
    rooms = ("engine", "bench", "tests", "_speedups", "actions", "delivery", "queue", "logs", "smtp", "net", "policy")
    for name in DOCUMENTS:
        text = (PROJECT / name).read_text()
        for path in re.findall(rf"`((?:{'|'.join(rooms)})/[a-z_/.]*)`", text):
            assert (PROJECT / path).exists() or (PROJECT / "engine" / path).exists(), f"{name}: {path}"
        for path in re.findall(r"\]\(([^):]+)\)", text):
            assert ((PROJECT / name).parent / path).exists(), f"{name}: {path}"


def test_the_architecture_of_the_readme_names_the_rooms_that_are_there() -> None:
    text = README.read_text()
    rooms = {path.parent.name for path in (PROJECT / "engine").glob("*/__init__.py")}
    assert {room for room in rooms if f"{room}/" not in text} == set()


@pytest.mark.parametrize("name", ["README.md", "engine/actions/README.md"])
def test_the_configuration_of_a_document_can_be_used(name: str) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (PROJECT / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        app.check(loads(block.encode(), name))


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
    for shell, name in (("bash", ".ci/run"), ("bash", ".ci/install-peers"), ("sh", ".ci/setup")):
        subprocess.run([shell, "-n", name], cwd=PROJECT, timeout=PATIENCE_S, check=True)


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
            r"(?<![\w}])/ro" r"ot/",
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

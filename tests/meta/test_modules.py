"""Rules that every module of the engine keeps: it imports alone, says what it is, prints nothing, and is not too long.

The direction of imports between the layers is import-linter's part (`make check`).
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

ENGINE = PROJECT / "engine"
MODULES = sorted(ENGINE.rglob("*.py"))
TEST_MODULES = sorted((PROJECT / "tests").rglob("*.py"))
SOURCES = sorted((PROJECT / "_speedups").glob("*.pyx"))

#: a file may be longer than this only with a sentence in its header that begins "Long because"
MAX_LINES = 600
#: a header is at most this long, and an essay where the subtlety earns it
MAX_HEADER_LINES = 60

# Each module is imported in a process of its own, forked from one that has loaded only what is not ours: what a module
# needs of the engine it must import itself, in whatever order.
_IMPORT_ALONE = """\
import importlib, json, os, sys, traceback, warnings
project, names, preloaded = json.loads(sys.argv[1])
sys.path.insert(0, project)
for name in preloaded:
    importlib.import_module(name)
assert not any(name == "engine" or name.startswith("engine.") for name in sys.modules)
errors, running = {}, []
def finish(name, reader, pid):
    with os.fdopen(reader, "rb") as result:
        errors[name] = result.read().decode(errors="replace")
    os.waitpid(pid, 0)
for name in names:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            importlib.import_module(name)
            text = ""
        except BaseException:
            text = traceback.format_exc(limit=-3) or "?"
        os.write(writer, text.encode()[-4000:])
        os._exit(0)
    os.close(writer)
    running.append((name, reader, pid))
    if len(running) == (os.cpu_count() or 1):
        finish(*running.pop(0))
for one in running:
    finish(*one)
print(json.dumps(errors))
"""


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def import_errors() -> dict[str, str]:
    names = [name_of(path) for path in MODULES]
    preloaded = ["cryptography.x509", "dns.message", "jinja2", "msgpack", "OpenSSL.SSL", "rich", "trio", "typer"]
    script = [sys.executable, "-I", "-W", "error", "-c", _IMPORT_ALONE, json.dumps([str(PROJECT), names, preloaded])]
    result = subprocess.run(script, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert result.returncode == 0, result.stderr
    errors: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_module_imports_alone_and_without_a_warning(path: Path) -> None:
    assert import_errors()[name_of(path)] == ""


@pytest.mark.parametrize("path", MODULES + TEST_MODULES, ids=relative)
def test_the_module_says_what_it_is(path: Path) -> None:
    header = ast.get_docstring(tree_of(path))
    if path.name == "__init__.py" and not tree_of(path).body:
        return
    assert header, "no docstring at the top"
    first = header.splitlines()[0]
    assert first.endswith((".", "?")) or len(header.splitlines()) > 1, f"its first line is not a sentence: {first!r}"
    assert len(header.splitlines()) <= MAX_HEADER_LINES


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_kernel_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#") and line.strip()]
    assert lines[0].startswith(('"""', 'r"""')), "no docstring at the top"


@pytest.mark.parametrize("path", MODULES + TEST_MODULES + SOURCES, ids=relative)
def test_the_file_is_not_too_long(path: Path) -> None:
    count = len(path.read_text().splitlines())
    if count > MAX_LINES:
        head = path.read_text()[:4000]
        assert "Long because" in head, f"{count} lines, and no sentence 'Long because …' in the header"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if "cli" not in path.relative_to(ENGINE).parts], ids=relative
)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == [], f"print() in line {calls}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_handler_swallows_a_cancellation(path: Path) -> None:
    """A bare `except:` or `except BaseException:` that does not raise again can eat a cancellation."""
    swallowing = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "BaseException"))
        and not any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement))
    ]
    assert swallowing == [], f"except without raise in line {swallowing}"

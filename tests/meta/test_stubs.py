"""Each compiled kernel has a stub, and the stub tells the truth: the same public names, classes and methods."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from fakes.peers import PROJECT


def kernels() -> dict[str, str]:
    """KERNELS of setup.py, as far as their sources are here."""
    tree = ast.parse((PROJECT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["KERNELS"]:
            table: dict[str, str] = ast.literal_eval(node.value)
            return {
                source: module for source, module in table.items() if (PROJECT / f"_speedups/{source}.pyx").exists()
            }
    raise AssertionError("no KERNELS in setup.py")


KERNELS = kernels()


def stub_of(module: str) -> Path:
    return (PROJECT / module.replace(".", "/")).with_suffix(".pyi")


def is_private(name: str) -> bool:
    return name.startswith("_")


def declared(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The names that statements of a stub declare."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.Assign):
            found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return found


def is_type_only(node: ast.stmt) -> bool:
    """Aliases, type variables, protocols and typed dictionaries need not exist when the program runs."""
    text = ast.unparse(node)
    if isinstance(node, ast.ClassDef):
        return any(
            base in ast.unparse(entry) for entry in node.bases for base in ("Protocol", "TypedDict", "NamedTuple")
        )
    return "TypeVar(" in text or "TypeAlias" in text


def test_every_source_is_in_the_table() -> None:
    assert {path.stem for path in (PROJECT / "_speedups").glob("*.pyx")} == set(KERNELS)


@pytest.mark.parametrize("module", KERNELS.values())
def test_the_stub_has_the_names_of_the_module(module: str) -> None:
    stub = declared(ast.parse(stub_of(module).read_text()).body)
    runtime = importlib.import_module(module)
    missing = [name for name, node in stub.items() if not hasattr(runtime, name) and not is_type_only(node)]
    assert missing == [], "in the stub and not in the module"
    public = {
        name
        for name, value in vars(runtime).items()
        if not is_private(name)
        and not inspect.ismodule(value)
        # what the module imported from elsewhere is not its own
        and getattr(value, "__module__", module) in {module, None}
    }
    assert {name for name in public if callable(vars(runtime)[name])} <= set(stub), "in the module and not in the stub"


@pytest.mark.parametrize("module", KERNELS.values())
def test_the_stub_has_the_methods_and_parameters_of_the_module(module: str) -> None:
    runtime = importlib.import_module(module)
    problems: list[str] = []
    for name, node in declared(ast.parse(stub_of(module).read_text()).body).items():
        if is_type_only(node):
            continue
        if isinstance(node, ast.FunctionDef):
            problems += compare_parameters(name, node, getattr(runtime, name))
        elif isinstance(node, ast.ClassDef):
            kind = getattr(runtime, name)
            members = declared(node.body)
            problems += [f"{name}.{member} is not there" for member in members if not hasattr(kind, member)]
            extra = {member for member in vars(kind) if not is_private(member)} - set(members)
            problems += [f"{name}.{member} is not in the stub" for member in sorted(extra)]
    assert problems == []


def compare_parameters(name: str, node: ast.FunctionDef, function: object) -> list[str]:
    """Names and order of the parameters, where the compiled function can tell its signature."""
    if any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    try:
        actual = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return []
    arguments = node.args
    wanted = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    plain = [parameter for parameter in actual if parameter not in {"args", "kwargs"}]
    return (
        []
        if plain == wanted or not plain
        else [f"{name}({', '.join(plain)}) is {name}({', '.join(wanted)}) in the stub"]
    )

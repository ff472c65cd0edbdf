"""Puts another build of a kernel in the place of the one that is installed, before anything imports it.

$KERNEL is the path of the build and $KERNEL_MODULE its name (``engine.tls._certmatch``); nothing happens without them.
A script imports this first; pytest takes it as a plugin (``-p fakes.other_kernel``).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _Finder(MetaPathFinder):
    """Finds the build first, whoever imports the kernel, be it the package that it is in."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self._path) if fullname == self._name else None


if "KERNEL" in os.environ:
    _name = os.environ["KERNEL_MODULE"]
    assert _name not in sys.modules, f"{_name} has been imported already"
    sys.meta_path.insert(0, _Finder(_name, os.environ["KERNEL"]))
    importlib.import_module(_name)

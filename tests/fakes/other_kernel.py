"""Puts another build of a kernel in the place of the one that is installed, before anything imports it.

$KERNEL is the path of the build and $KERNEL_MODULE its name (``engine.tls._certmatch``); nothing happens without them.
A script imports this first; pytest takes it as a plugin (``-p fakes.other_kernel``).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys


def _load(module_name: str, path: str) -> None:
    assert module_name not in sys.modules, f"{module_name} has been imported already"
    package_name, _, name = module_name.rpartition(".")
    package = importlib.import_module(package_name)
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    setattr(package, name, module)
    spec.loader.exec_module(module)


if "KERNEL" in os.environ:
    _load(os.environ["KERNEL_MODULE"], os.environ["KERNEL"])

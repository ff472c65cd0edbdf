"""Build the compiled kernels: each _speedups/NAME.pyx becomes the module beside the Python that uses it.

ENGINE_ONLY=wire,ring  builds just those;  ENGINE_DEBUG=1  turns every check on;  ENGINE_SANITIZE=1  adds
AddressSanitizer and UndefinedBehaviorSanitizer;  ENGINE_ANNOTATE=1  writes the `cython -a` pages to build/cython.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

#: source in _speedups/ -> import name
KERNELS = {
    "wire": "engine.smtp._wire",
    "flight": "engine.smtp._flight",
    "expand": "engine.expand._evaluate",
    "certmatch": "engine.tls._certmatch",
    "records": "engine.tls._records",
    "sink": "engine.smtp._sink",
    "ring": "engine.actions._ring",
    "flat": "engine.delivery._flat",
    "stencil": "engine.compose._stencil",
    "journal": "engine.queue._journal",
    "dnswire": "engine.net._dnswire",
}

debug = os.environ.get("ENGINE_DEBUG") == "1"
sanitize = os.environ.get("ENGINE_SANITIZE") == "1"
only = {name for name in os.environ.get("ENGINE_ONLY", "").split(",") if name}

compile_args = ["-O1", "-g", "-UNDEBUG"] if debug or sanitize else ["-O2", "-g0"]
link_args: list[str] = []
if sanitize:
    compile_args += ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link_args += ["-fsanitize=address,undefined"]

extensions = [
    Extension(
        module,
        [f"_speedups/{source}.pyx"],
        extra_compile_args=[*compile_args, "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter"],
        extra_link_args=link_args,
    )
    for source, module in KERNELS.items()
    if os.path.exists(f"_speedups/{source}.pyx") and (not only or source in only)
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["_speedups"],
        build_dir="build/cython",
        annotate=os.environ.get("ENGINE_ANNOTATE") == "1",
        compiler_directives={"language_level": 3, "boundscheck": True, "embedsignature": True},
    )
)

"""The real servers that the tests unpack and start (tests/fakes), for the peers that are one of them.

Who imports this first can import from `fakes`, too.  Without what the tests need, importing it raises `Missing`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING

from bench._env import PROJECT
from bench._peers import Missing

try:
    import pytest

    sys.path.append(str(PROJECT / "tests"))
    from fakes.peers import peers_directory
except ImportError as error:
    raise Missing(f"the tests' servers do not start here ({error})") from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fakes.peers import Receiver


@contextlib.contextmanager
def missing_if_skipped() -> Iterator[None]:
    """Turns what the tests raise for a server that is not here into `Missing`."""
    try:
        yield
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        raise Missing(str(reason)) from None


def package_version(package: str) -> str:
    """The version of an unpacked Debian package, "" if nobody knows."""
    names = (peers_directory() / "installed").read_text()
    found = re.search(rf"^{package}_([^-_]+)", names, re.MULTILINE)
    return found[1] if found else ""


def version(package: str, make: Callable[[], Receiver]) -> str:
    """The version of a server's Debian package, once it has started.

    Raises:
        Missing: it does not start here.
    """
    with missing_if_skipped():
        make().close()
    return package_version(package)

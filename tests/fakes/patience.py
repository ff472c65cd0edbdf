"""How tests wait for what another process, thread or task does.

A deadline of a test is no measurement: only what hangs comes to it, on whatever machine and beside whatever else.  So
there is one, far above what anything takes, and below the time that pytest gives a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

import trio

#: seconds for anything to happen; arbitrary, a hundred times what a quiet machine takes for the slowest of it
PATIENCE_S: Final = 240.0
#: seconds between two looks
_LOOK_S: Final = 0.01

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, *, patience_s: float = PATIENCE_S) -> T:
    """Look until something is so, and give what `condition` gave.

    Args:
        condition: true as soon as it is so.
        what: what is wrong otherwise, such as "it does not start".
        patience_s: after how long.
    """
    deadline = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(_LOOK_S)
    return found


async def until(condition: Callable[[], object], what: str = "it does not happen") -> None:
    """As `wait_for`, while other tasks run."""
    with trio.move_on_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # another process or thread makes it so
            await trio.sleep(_LOOK_S / 5)
        return
    raise AssertionError(what)

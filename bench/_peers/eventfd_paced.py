"""As eventfd_pingpong, one a millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import eventfd_pingpong
from .eventfd_pingpong import version

if TYPE_CHECKING:
    from .._harness import Timing

__all__ = ["label", "run", "version"]

label = "bare eventfds, one a millisecond"


def run(count: int) -> Timing:
    return eventfd_pingpong.run(count, 0.001)

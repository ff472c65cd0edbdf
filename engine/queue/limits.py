"""Limits that several engines keep together: what an engine asks for, what it is given, and how that is worked out.

Layer: adapter (values and arithmetic; no SQL, no files, time is an argument).  Spec: bulk-sending sections 1a and 6,
rows 1 and 3: limits hold for the destination, whoever sends to it, and come with a time to wake up at.
A *place* is what a limit on connections is for: one host of a transport, or all of them together.  Its slots are
divided so that nobody who wants fewer than the others gets less than it wants, and the rest is equal (max-min).
A *rate* is a row of tokens, each good from a time of its own, one interval after the one before; who reserves some is
told when the first is good.  Nobody has to ask again, and who asked first is served first.
Invariants: what `divide` gives is never more than the limit; in any time T no more than T / interval_s + burst + 1
tokens of one rate are good for use, whoever has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..values import Rate

#: seconds that an engine may have a slot that another one waits for, when there are fewer slots than engines
TURN_S: Final = 5.0
#: seconds within which an engine says something at least, and after which one that has not is left out of account
SEEN_S: Final = 20.0
LOST_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Want:
    """What an engine has and wants at one place.

    Attributes:
        limit: connections that all engines may have there together.
        open: those that this engine has.
        wanted: those that it would have if it could, the open ones included; 0 when it is done with the place.
    """

    limit: int
    open: int
    wanted: int


def reserve(next_at: float, now: float, count: int, rate: Rate) -> tuple[float, float]:
    """Take `count` tokens.

    Args:
        next_at: when the next token is good, as the last call said; 0 for never called.

    Returns:
        When the first of them is good, and when the one behind them will be.
    """
    first = max(next_at, now - (rate.burst - 1) * rate.interval_s)
    return first, first + count * rate.interval_s


def divide(limit: int, wanted: Sequence[int]) -> list[int]:
    """Divide `limit` slots among those that want so many each; what does not come out even goes to the first."""
    shares = [0] * len(wanted)
    left = limit
    hungry = [index for index, count in enumerate(wanted) if count > 0]
    while left > 0 and hungry:
        each = max(1, left // len(hungry))
        for index in hungry[:left]:
            more = min(each, wanted[index] - shares[index])
            shares[index] += more
            left -= more
        hungry = [index for index in hungry if shares[index] < wanted[index]]
    return shares

"""The ladder: how much is sent to a host before its replies are awaited, and what was learned about that.

Layer: sans-I/O.  Spec: bulk-sending section 5, rules 1 to 5; RFC 2920 §3.1, RFC 3030 §2.

    lock-step -> grouped (MAIL RCPT… DATA in one write) -> glued (MAIL RCPT… BDAT LAST and the content in one write)
              -> windowed (several such transactions before the first reply)

A host begins at grouped: a server that announces PIPELINING says that it can.  It climbs a step after a number
of clean transactions, and falls one after trouble; each fall doubles the number for the next climb, so a server that
only sometimes breaks is not tried again and again.  A server that answers a group with the wrong number of replies, or
with something that is no reply, falls all the way.
Glued content is safe only with a server that swallows the octets of a refused BDAT: one that does not would take the
lines of a message for commands.  `swallows` holds what is known of that.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: clean transactions before the first climb; arbitrary, small enough for a site with ten recipients to profit
CLIMB_AFTER: Final = 3
#: clean transactions before a climb, at most; arbitrary
MAX_CLIMB_AFTER: Final = 1000


class Rung(enum.IntEnum):
    """How far a host has climbed; compare with < and >."""

    #: one command, one reply
    LOCK_STEP = 0
    #: MAIL, RCPT and DATA in one group
    GROUPED = 1
    #: the content goes out with the group, as one BDAT LAST
    GLUED = 2
    #: several transactions at a time
    WINDOWED = 3


@dataclass(slots=True)
class HostMemory:
    """What is known about one host, beyond one connection.

    Attributes:
        rung: the highest it may be used on.
        clean: clean transactions since it came to this rung.
        climb_after: how many are wanted for the next.
        swallows: whether it reads the octets of a refused BDAT and drops them; None when nobody knows.
        refuses_bdat: it announced CHUNKING and then did not know BDAT.
        recipient_limit: recipients it took in one transaction before it said 452 (RT-4), or None.
    """

    rung: Rung = Rung.GROUPED
    clean: int = 0
    climb_after: int = CLIMB_AFTER
    swallows: bool | None = None
    refuses_bdat: bool = False
    recipient_limit: int | None = None

    def on_clean(self) -> None:
        """A transaction went through as it should, whatever its outcome."""
        if self.rung is Rung.WINDOWED:
            return
        self.clean += 1
        if self.clean >= self.climb_after:
            self.rung = Rung(self.rung + 1)
            self.clean = 0

    def on_trouble(self) -> None:
        """A connection was lost, fell silent or was ended by the server in the middle of its work."""
        self._fall(Rung(max(Rung.LOCK_STEP, self.rung - 1)))

    def on_disorder(self) -> None:
        """The replies to a group made no sense: the server cannot do what it announced."""
        self._fall(Rung.LOCK_STEP)

    def _fall(self, rung: Rung) -> None:
        self.rung = rung
        self.clean = 0
        self.climb_after = min(self.climb_after * 2, MAX_CLIMB_AFTER)

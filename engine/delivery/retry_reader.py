"""Read the retry records of many sites with few calls of the queue.

Layer: orchestration.  Spec: RT-11.
Each site reads the records of its hosts before its first connection, and a call in the queue's thread costs more than
what it reads.  So one reading goes on at a time, and whatever is asked for meanwhile goes together into the next.
Invariants: what is returned was read after it was asked for; a reading that fails, or whose task is cancelled, is done
again by the next in line that waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..queue.model import RetryRecord
    from .settlement import StoreThread


@dataclass(slots=True, eq=False)
class _Reading:
    """What is read together; `found` once it was."""

    keys: set[str] = field(default_factory=set)
    found: Mapping[str, RetryRecord] | None = None


class RetryReader:
    """See the module's text."""

    def __init__(self, database: StoreThread) -> None:
        self._database = database
        self._turn = trio.Lock()
        #: not begun yet
        self._next = _Reading()

    async def read(self, keys: Iterable[str]) -> Mapping[str, RetryRecord]:
        """The records that exist among `keys`, and maybe others.

        Raises:
            QueueLocked, StoreError: see the store.
        """
        reading = self._next
        reading.keys.update(keys)
        async with self._turn:
            if reading.found is None:
                if reading is self._next:
                    self._next = _Reading()
                reading.found = await self._database.call(self._database.store.retry_records, sorted(reading.keys))
        return reading.found

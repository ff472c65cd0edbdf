"""The queue in one SQLite file.

Layer: adapter (SQLite).  Spec: design.md "Queue"; the promises are those of store.py.
WAL mode, `synchronous=FULL`; one connection, used from one thread at a time.  The parts: `_database` (opening,
transactions, errors), `_schema` (tables), `_loading`, `_leasing` (the hot path), `_outbox` (events), `_limits` (of
connections and messages), `_recovery`, `_administration`.
Limits: the file must be on a local file system, since the locks of WAL and of the journals are those of one kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._administration import Administering
from ._database import DEFAULT_BUSY_TIMEOUT_S, queue_path
from ._recovery import Recovering, current_boot_id

if TYPE_CHECKING:
    from .journal import Journal
    from .store import Store


class SqliteStore(Recovering, Administering):
    """A `store.Store` over one file.

    Args:
        path: absolute path.
        create: make the file if it is not there; its directory must be.
        read_only: open it for looking only.
        busy_timeout_s: seconds to wait for another process's transaction.
        boot_id: what identifies this run of the machine; tests set it.

    Raises:
        StoreError: NotAQueue, QueueCorrupt, QueueLocked, QueueReadOnly, QueueFull, or it cannot be opened.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = True,
        read_only: bool = False,
        busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S,
        boot_id: str | None = None,
    ) -> None:
        self._loads = {}
        self._journals: dict[int, Journal] = {}
        self._boot_id = current_boot_id() if boot_id is None else boot_id
        super().__init__(path, create=create, read_only=read_only, busy_timeout_s=busy_timeout_s)


def open_store(
    url: str, *, create: bool = True, read_only: bool = False, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S
) -> Store:
    """Open the queue at a URL.

    Raises:
        ConfigError: the URL is not one of a queue.
        StoreError: see `SqliteStore`.
    """
    return SqliteStore(queue_path(url), create=create, read_only=read_only, busy_timeout_s=busy_timeout_s)

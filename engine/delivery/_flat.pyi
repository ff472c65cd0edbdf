"""Stub of the kernel for events about one recipient: see _speedups/flat.pyx."""

from typing import Final

from ..events import Contact
from ..queue.model import Claim, Job, OutboxEvent
from .stored import Layout

VALUES: Final[tuple[str, ...]]

# no subclass to the interpreter, but it has all that one has
class Told(OutboxEvent):
    name: str
    key: str
    payload: bytes
    id: int
    stored_at: float
    handler: str
    group: str
    redelivered: int
    layout: Layout | None
    begin: int
    message_id: str
    def __init__(
        self,
        name: str,
        key: str,
        payload: bytes,
        id: int = 0,
        stored_at: float = 0.0,
        handler: str = "",
        group: str = "",
        redelivered: int = 0,
        layout: Layout | None = None,
        begin: int = 0,
        message_id: str = "",
    ) -> None: ...

class Flat:
    @property
    def event(self) -> str: ...
    @property
    def handler(self) -> str: ...
    @property
    def group(self) -> str: ...
    def __init__(
        self, event: str, before: bytes, names: bytes, picks: tuple[int, ...], handler: str, group: str
    ) -> None: ...
    def flat(
        self, contact: Contact, job: Job, message_id: str, claim: Claim, data: str, errno: int, now: float
    ) -> Told: ...

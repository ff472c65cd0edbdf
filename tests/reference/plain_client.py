"""What `engine.smtp._flight.Line` does in its short ways, done the long way: reply by reply."""

from __future__ import annotations

from engine.smtp import Reply, Transaction
from engine.smtp.client import Client


class PlainClient(Client):
    """A client that knows no short way."""

    def glue(self, transaction: Transaction) -> bool:
        return False

    def take_clean(self, found: list[Reply], at: int) -> int:
        return 0

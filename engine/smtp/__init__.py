"""SMTP without I/O: the client's side (`client`, `opening`) and the sink's (`server`)."""

from .capabilities import Capabilities
from .ladder import HostMemory, Rung
from .replies import Reply
from .transaction import Content, Transaction, TransactionResult

__all__ = [
    "Capabilities",
    "Content",
    "HostMemory",
    "Reply",
    "Rung",
    "Transaction",
    "TransactionResult",
]

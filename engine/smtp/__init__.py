"""SMTP without I/O: the client's side (`client`, `opening`) and the sink's (`server`)."""

from ._flight import Content, Transaction, TransactionResult
from .capabilities import Capabilities
from .ladder import HostMemory, Rung
from .replies import Reply

__all__ = [
    "Capabilities",
    "Content",
    "HostMemory",
    "Reply",
    "Rung",
    "Transaction",
    "TransactionResult",
]

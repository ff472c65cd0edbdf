"""Lookups that wait for files, servers and the DNS: one module a type, and the registry that expansions ask.

Layer: adapter; blocking, so never where trio runs.  Spec: expansion 5.
"""

from .driver import Bound, Progress, Statement
from .registry import TOGETHER, LookupOptions, LookupRegistry, Place, Postponed
from .servers import Timeouts

__all__ = [
    "TOGETHER",
    "Bound",
    "LookupOptions",
    "LookupRegistry",
    "Place",
    "Postponed",
    "Progress",
    "Statement",
    "Timeouts",
]
